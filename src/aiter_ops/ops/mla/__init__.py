"""Multi-head latent attention (MLA): decoding on a paged cache of latents, and their up-projection."""

from .decode import mla_decode, mla_decode_lse
from .expand import gather_kv_b_proj
from .plan import mla_decode_plan

__all__ = ["gather_kv_b_proj", "mla_decode", "mla_decode_lse", "mla_decode_plan"]
