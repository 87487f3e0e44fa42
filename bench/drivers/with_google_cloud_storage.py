"""`with_google_cloud_storage.py BUCKET PREFIX DIRECTORY`: a listing, then `transfer_manager`'s parallel download of it."""

from __future__ import annotations

import sys
from typing import Any

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.storage import transfer_manager


def main() -> None:
    bucket, prefix, directory = sys.argv[1:]
    anonymous: Any = AnonymousCredentials  # has no types
    client = storage.Client(project="bench", credentials=anonymous())
    names = [blob.name.removeprefix(f"{prefix}/") for blob in client.list_blobs(bucket, prefix=f"{prefix}/")]
    done = transfer_manager.download_many_to_path(
        client.bucket(bucket), names, destination_directory=directory, blob_name_prefix=f"{prefix}/", worker_type=transfer_manager.THREAD
    )
    if failed := [each for each in done if isinstance(each, Exception)]:
        raise failed[0]


if __name__ == "__main__":
    main()
