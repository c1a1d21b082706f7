"""Provider ``aiter``: adapters to AMD's AITER library, one room a family. Nothing here imports AITER before a call."""

from aiter_ops.core.provider import Provider, Requirements

from . import probe
from .known_bad import KNOWN_BAD

PROVIDER = Provider(
    "aiter",
    Requirements(vendors=("amd",), gpu=True, aiter=("0.1.5", None)),
    package=__name__,
    known_bad=KNOWN_BAD,
    stands=probe.stands,
    symbols=probe.symbols,
    facts=probe.facts,
    features=probe.features,
    trial=f"{__name__}.trial",
)
