"""What AITER's releases offer: the entry points that the adapters use, as data read from AITER's sources.

releases.json (made by tools/aiter_contract.py), its reader `table`, `extract`, which reads Python sources without
running them, the changes of meaning that no signature shows (`meanings`), and what AITER has for each family of
architectures (`archs`). None of it is read before an AITER adapter is asked about a machine.
"""
