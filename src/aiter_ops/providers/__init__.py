"""Who computes: one package a provider, one module a family in it."""
