"""What vLLM answers, for tests that compare; run by a Python that has vLLM.

Reads a JSON list of `LLM`'s arguments from stdin, starts one engine after the other, and writes a list of answers to the file named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

PROMPT = "The capital of France is"
TOP = 5


def answer(arguments: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens, and how likely the first few were at each place, of the prompt, too."""
    llm = LLM(max_model_len=64, enforce_eager=True, dtype="bfloat16", **arguments)
    wanted = SamplingParams(max_tokens=8, temperature=0, logprobs=TOP, prompt_logprobs=TOP)
    [found] = llm.generate([PROMPT], wanted, use_tqdm=False)
    said = found.outputs[0]
    places = [*(found.prompt_logprobs or [])[1:], *(said.logprobs or [])]
    return {
        "text": said.text,
        "tokens": list(said.token_ids),
        "logprobs": [{token: each.logprob for token, each in place.items()} for place in places],
    }


if __name__ == "__main__":  # workers are spawned, and import this file
    Path(sys.argv[1]).write_text(json.dumps([answer(each) for each in json.load(sys.stdin)]))
