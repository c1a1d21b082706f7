"""Samplers by AITER: aiter/ops/sample.py.

`sample` has no adapter, for no entry gives its tokens. aiter/ops/sampling.py (top_k_top_p_sampling_from_probs and its
kin, csrc/cpp_itfs/sampling) takes top-p of the original mass, where the op takes it of what top-k left, and its random
numbers from torch's generator, one a row. random_sample and mixed_sample of aiter/ops/sample.py read seed and offset of
that generator on the host, and cut nothing; random_sample_outer_exponential would race the op's own noise, but with
another library's exp, which lets near ties fall otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aiter_ops.core.platforms import Platform
from aiter_ops.core.provider import Predicate

from . import PROVIDER, limits
from .call import entry, needs, rows

LEAST_COLUMNS = 16384
"""1024 threads that read 16 columns each; in shorter rows some compare registers they have not loaded."""


def _greedy(platform: Platform) -> Predicate:
    def refuse(logits: Tensor) -> str | None:
        columns = logits.shape[1]
        if columns < LEAST_COLUMNS:
            return f"AITER's greedy_sample takes rows of >= {LEAST_COLUMNS} columns; it is {columns}"
        # it reads 16 columns at once, and finds zeros beyond the last one
        return limits.multiple(columns, 16, "a number of columns") or limits.addressable(logits)

    return refuse


@PROVIDER.implements("greedy", requires=needs("0.1.12", "greedy_sample"), refuses=_greedy, batch_invariant=True)
def greedy(logits: Tensor) -> Tensor:
    """AITER aiter/ops/sample.py, greedy_sample, 0.1.12-0.1.20 (csrc/kernels/sample_kernels.cu); before, since
    0.1.5.post4, it ran on the default stream, whatever the current one was.

    Of equal logits it takes the lower column, passes over NaN, and gives 0 for a row without a number above -3.4028e38,
    the least of fp32: a row with that for its largest, and -inf or NaN in column 0, is the one where it differs.
    """
    x = rows(logits)
    tokens = torch.empty((len(x),), dtype=torch.int32, device=x.device)
    entry("greedy_sample")(tokens, x)
    return tokens
