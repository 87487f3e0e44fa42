"""`with_s3fs.py BUCKET PREFIX DIRECTORY`: one recursive `get`, with s3fs's own defaults."""

from __future__ import annotations

import os
import sys

import s3fs


def main() -> None:
    bucket, prefix, directory = sys.argv[1:]
    files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    files.get(f"{bucket}/{prefix}/", directory, recursive=True)


if __name__ == "__main__":
    main()
