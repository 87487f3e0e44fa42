"""`with_boto3.py BUCKET PREFIX DIRECTORY`: list, then `download_file` of every object, with boto3's own defaults."""

from __future__ import annotations

import sys
from pathlib import Path

import boto3


def main() -> None:
    bucket, prefix, directory = sys.argv[1:]
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for each in page["Contents"]:
            client.download_file(bucket, each["Key"], str(Path(directory, Path(each["Key"]).name)))


if __name__ == "__main__":
    main()
