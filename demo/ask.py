"""Opens a model with transformers and asks it one question: a program that knows nothing of modelcache.

    python -m demo.ask DIRECTORY QUESTION

Prints one JSON object: the answer, and the seconds of each phase.
"""

from __future__ import annotations

import json
import sys
import time


def main(directory: str, question: str) -> None:
    started_s = time.monotonic()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    imported_s = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    loaded_s = time.monotonic()
    turns = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    seconds = {"import": imported_s - started_s, "load": loaded_s - imported_s, "answer": time.monotonic() - loaded_s}
    print(json.dumps({"answer": answer, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
