"""Opens a model of transformers out of the cache and asks it one question.

    python -m demo.ask URI QUESTION

Prints one JSON object: the answer, and the seconds of each phase.
"""

from __future__ import annotations

import json
import sys
import time


def main(uri: str, question: str) -> None:
    started_s = time.monotonic()
    from transformers.utils import logging

    from modelcache.integrations import transformers

    logging.disable_progress_bar()
    imported_s = time.monotonic()
    tokenizer = transformers.tokenizer(uri)
    model = transformers.from_pretrained(uri)
    loaded_s = time.monotonic()
    turns = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    answer = tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    seconds = {"import": imported_s - started_s, "load": loaded_s - imported_s, "answer": time.monotonic() - loaded_s}
    print(json.dumps({"answer": answer, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
