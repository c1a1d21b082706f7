"""Provider ``torch``: the references themselves, on every machine."""

from aiter_ops.core.provider import Provider

PROVIDER = Provider("torch")
