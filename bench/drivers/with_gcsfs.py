"""`with_gcsfs.py BUCKET PREFIX DIRECTORY`: one recursive `get`, with gcsfs's own defaults."""

from __future__ import annotations

import sys

import gcsfs


def main() -> None:
    bucket, prefix, directory = sys.argv[1:]
    files = gcsfs.GCSFileSystem(token="anon")
    files.get(f"{bucket}/{prefix}/", directory, recursive=True)


if __name__ == "__main__":
    main()
