"""The fake hub is one: huggingface_hub's own client reads from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.testing.servers.hub import HubServer

FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": os.urandom(50_000),
    "sub dir/deep/ünï#1?.json": b"x",
    "empty": b"",
    **{f"parts/{number}": b"p" for number in range(7)},
}
CLIENT = """
import sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

api = HfApi()
for name, error in {"org/model:no-such": RevisionNotFoundError, "org/none": RepositoryNotFoundError}.items():
    repo, _, revision = name.partition(":")
    try:
        api.model_info(repo, revision=revision or None)
    except error:
        continue
    sys.exit(f"{name}: no {error}")
try:
    snapshot_download("org/gated")
    sys.exit("gated was read")
except GatedRepoError:
    pass
assert [each.rfilename for each in api.model_info("org/gated").siblings] == ["config.json"]
assert len(list(api.list_repo_tree("org/model", recursive=True))) == 14
print(api.model_info("org/model", revision="v1").sha)
print(snapshot_download("org/model", revision="v1"))
"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_entries=3) as server:
        yield server


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("xet", [False, True])
def test_the_hubs_own_client_reads_every_file_from_it(hub: HubServer, tmp_path: Path, private: bool, xet: bool) -> None:
    repository = hub.repository("org/model")
    repository.xet = xet
    commit = repository.refs["v1"] = repository.commit(FILES)
    repository.commit({"config.json": b"newer"})
    token = hub.token()
    if private:
        repository.private = True
        repository.readers.add(token)
    hub.repository("org/gated", {"config.json": b"{}"}).gated = True

    environ = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    run = subprocess.run([sys.executable, "-c", CLIENT], env=environ, capture_output=True, text=True, timeout=100, check=False)

    assert run.returncode == 0, run.stderr
    sha, directory = run.stdout.split("\n")[:2]
    assert sha == commit
    root = Path(directory)
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == FILES
    assert hub.counts()["cdn"] == 1
