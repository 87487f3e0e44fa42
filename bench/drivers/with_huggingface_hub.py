"""`with_huggingface_hub.py REPO DIRECTORY`: one `snapshot_download` into a cache of its own, with the library's defaults."""

from __future__ import annotations

import sys

from huggingface_hub import snapshot_download


def main() -> None:
    repo, directory = sys.argv[1:]
    snapshot_download(repo, cache_dir=directory, token=False)


if __name__ == "__main__":
    main()
