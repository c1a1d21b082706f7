"""Tile choices by architecture, one module a family: data and small pure functions of platform and sizes."""
