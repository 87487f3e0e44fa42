"""What single filesystems of fsspec need to keep what a source promises."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from modelcache.errors import AccessDenied, OriginBusy
from modelcache.sources.any_fsspec.filesystems import Filesystem
from modelcache.transport import Timeouts

MAX_REFUSAL_BYTES = 64 << 10
_IN_STANDBY = re.compile(rb'"exception"\s*:\s*"(?:Standby|Retriable)Exception"')
"""Hadoop's words, with a 403, for a name node that another one serves in place of; nobody's right is in question."""


def prepared(filesystem: Filesystem, timeouts: Timeouts) -> Filesystem:
    """A new instance, fit for use."""
    session = getattr(filesystem, "session", None)
    if "webhdfs" in _protocols(filesystem) and session is not None:
        _prepare_webhdfs(session, timeouts)
    client = getattr(filesystem, "service_client", None)
    if "abfs" in _protocols(filesystem) and client is not None:
        _prepare_azure(client)
        if not getattr(filesystem, "version_aware", False):
            _take_names_as_they_are(filesystem)
    if is_oss(filesystem):
        _prepare_oss(filesystem)
    return filesystem


def is_oss(filesystem: Filesystem) -> bool:
    """Whether it is ossfs's, which is asked in ways of its own."""
    return "oss" in _protocols(filesystem)


def _protocols(filesystem: Filesystem) -> tuple[str, ...]:
    named = type(filesystem).protocol
    return (named,) if isinstance(named, str) else tuple(named)


def _prepare_webhdfs(session: Any, timeouts: Timeouts) -> None:
    """Of a `requests.Session`. fsspec looks at no status of a data node, so that what it says of an error would pass for the file; of
    a name node it drops the status where the answer names an exception. And it sets no timeout."""
    send = session.send

    def send_in_time(request: Any, **how: Any) -> Any:
        return send(request, **{**how, "timeout": (timeouts.connect_s, timeouts.stall_s)})

    session.send = send_in_time
    session.hooks["response"].append(_refuse_errors)


def _prepare_oss(filesystem: Filesystem) -> None:
    """ossfs takes a prefix that may not be listed for an empty one."""
    listed = getattr(filesystem, "_get_object_info_list", None)
    if listed is None:
        return

    def list_or_refuse(bucket: str, prefix: str, *how: Any) -> Any:
        try:
            return listed(bucket, prefix, *how)
        except Exception as error:
            if type(error).__name__ != "AccessDenied":
                raise
        raise AccessDenied("a part of the place may not be listed (403 Forbidden)", address=f"oss://{bucket}/{prefix}")

    filesystem._get_object_info_list = list_or_refuse


def _prepare_azure(client: Any) -> None:
    """Of an Azure `BlobServiceClient`, which tries again for one and a half minutes by itself; so do we, with a deadline and a word. And
    it logs each request, unless somebody chose a level for it."""
    logger = logging.getLogger("azure")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    policy: Any = getattr(getattr(client, "_config", None), "retry_policy", None)
    if hasattr(policy, "total_retries"):
        policy.total_retries = 0


def _take_names_as_they_are(filesystem: Filesystem) -> None:
    """adlfs reads each name as a URL, so that one that ends with `?` or `#`, or has `?versionid=` in it, would be another's."""

    def split_path(path: str, **_: str) -> tuple[str, str, None]:
        container, name = [*path.lstrip("/").split("/", 1), ""][:2]
        return container, name, None

    filesystem.split_path = split_path
    filesystem._strip_protocol = lambda path: path.lstrip("/")


def _refuse_errors(response: Any, **_: Any) -> None:
    if response.status_code == HTTPStatus.FORBIDDEN and _IN_STANDBY.search(
        response.raw.read(MAX_REFUSAL_BYTES, decode_content=True) or b""
    ):
        response.close()
        raise OriginBusy("the name node is in standby, or not ready to serve")
    if response.status_code >= 400:
        response.close()  # else its connection would live as long as the error
        response.raise_for_status()
