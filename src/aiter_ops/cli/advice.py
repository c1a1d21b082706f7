"""What a user can do about a reason."""

from __future__ import annotations

ADVICE = (
    ("needs an AMD GPU", "nothing to do: it serves AMD GPUs only"),
    ("needs a GPU; this machine has none", "nothing to do: torch serves on a CPU"),
    ("is not AMD's AITER", "uninstall that package; AMD's is amd-aiter, see docs/install.md"),
    ("says no release", "install it with pip, so that its release is known: pip install -e PATH/TO/aiter"),
    ("its package aiter is not to be found", "install amd-aiter again"),
    ("AITER is not installed", "install AMD's AITER (distribution amd-aiter) for this ROCm; see docs/install.md"),
    ("needs AITER", "install a release in that window"),
    ("Triton is not installed", "use a GPU build of torch; it brings its Triton"),
    ("needs Triton", "use a newer GPU build of torch; it brings its Triton"),
    ("is not what that release is", "install that release again; files of another one, or a changed copy, are here"),
    ("the table", "use a newer aiter-ops, or a release that it knows: docs/aiter-contract.md"),
    ("AITER_TRITON_ONLY", "unset AITER_TRITON_ONLY to use it"),
    ("import failed", "mend that AITER, or leave it out with AITER_OPS=-aiter"),
    ("known bad", "nothing to do: the next provider serves; a rule OP=+aiter takes it all the same"),
    ("excluded by rule", "remove that rule to use it"),
    ("AITER_OPS=off", "unset AITER_OPS to use it"),
    ("AITER_OPS_BATCH_INVARIANT", "unset AITER_OPS_BATCH_INVARIANT to use it"),
    ("VLLM_ROCM_USE_AITER", "set that variable to 1 to use it"),
    ("serves ", "nothing to do: it has no kernels for this architecture"),
)


def advice(reason: str) -> str:
    """Empty where nothing is known."""
    return next((text for start, text in ADVICE if start in reason), "")
