"""Write tests/golden/decisions.txt: who serves each op on AMD machines with AITERs of several releases, and why not AITER.

    python tools/golden_decisions.py

Review its diff as an engineer who knows AITER would: it is what users of those machines get.
"""

from __future__ import annotations

from pathlib import Path

from aiter_ops.check.decisions import table

FILE = Path(__file__).resolve().parents[1] / "tests" / "golden" / "decisions.txt"

if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(table(), encoding="utf-8")
