"""Provider ``acme``: one module a family beside this file, imported when an op of that family is first used."""

from aiter_ops import Provider

PROVIDER = Provider("acme", package=__name__)
