"""An engine as a user writes it: generate.py MODEL TOKENS ENGINE PROMPTS; prints tokens and texts as JSON."""

from __future__ import annotations

import json
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    model, tokens, engine, prompts = sys.argv[1:]
    given = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256} | json.loads(engine)
    llm = LLM(model, **given)
    greedy = SamplingParams(temperature=0, max_tokens=int(tokens))
    found = [out.outputs[0] for out in llm.generate(json.loads(prompts), greedy, use_tqdm=False)]
    print(json.dumps({"tokens": [list(f.token_ids) for f in found], "texts": [f.text for f in found]}), flush=True)


if __name__ == "__main__":
    main()
