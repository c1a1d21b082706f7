"""``python -m aiter_ops``: the command line."""

from aiter_ops.cli import main

main()
