"""How an op is declared, chosen and called. Knows no op and no provider."""
