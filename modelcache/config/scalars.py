"""The kinds of single values: sizes, shares, durations, counts, flags, paths, URLs."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelcache.config.kinds import Scalar
from modelcache.errors import BadConfig, InvalidUri
from modelcache.sources.gcs import GcsOptions
from modelcache.sources.huggingface import HubOptions
from modelcache.sources.s3 import S3Options
from modelcache.transport import Target
from modelcache.units import parse_bytes, parse_duration
from modelcache.uri_secrets import redact_url

_DAY_S = 86_400.0


def _share(text: str) -> float:
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value <= 1:
        raise BadConfig(f"`{text}` is not a share between 0 and 1", got=text)
    return value


def _seconds(text: str) -> float:
    value = parse_duration(text)
    if not 0 < value < 10**9:
        raise BadConfig(f"`{text}` is not a number of seconds", got=text)
    return value


def _timeout(text: str) -> float:
    value = _seconds(text)
    if value >= _DAY_S:
        raise BadConfig(f"`{text}` is a day or more, which is no timeout", got=text)
    return value


def _age(text: str) -> float:
    return 0.0 if parse_duration(text) == 0 else _seconds(text)


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise BadConfig(f"`{text}` is neither true nor false", got=text)


def _path(text: str) -> Path:
    if text.startswith("~"):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise BadConfig(f"no home directory stands for the `~` of `{text}`", got=text) from None
    return Path(text)


def _socket(text: str) -> Path | None:
    return None if text == "none" else _path(text)


def _endpoint(text: str) -> str | None:
    return S3Options(endpoint=text).endpoint


def _gcs_endpoint(text: str) -> str | None:
    return GcsOptions(endpoint=text, anonymous=True).endpoint


def _hub_endpoint(text: str) -> str:
    return HubOptions(endpoint=text).endpoint


def _hub_token(text: str) -> str | None:
    """Kubernetes secrets that were made from a file end with a line feed."""
    return HubOptions(token=text.strip()).token


def _positive(text: str) -> int:
    value = parse_bytes(text)
    if value < 1:
        raise BadConfig(f"`{text}` is no rate above zero", got=text)
    return value


def _origins(text: str) -> tuple[str, ...]:
    """Endpoints as `Origin` writes them, each once."""
    try:
        return tuple(dict.fromkeys(Target.parse(one.strip()).base for one in text.split(",") if one.strip()))
    except InvalidUri as error:
        raise BadConfig(f"an origin in it is none: {error.message}") from None


def _networks(text: str) -> tuple[str, ...]:
    """CIDR blocks, each once; an address is one of its own."""
    try:
        return tuple(dict.fromkeys(str(ipaddress.ip_network(one.strip())) for one in text.split(",") if one.strip()))
    except ValueError as error:
        raise BadConfig(f"a network in it is none: {error}", got=text) from None


def count(least: int, most: int) -> Scalar:
    """A whole number in these bounds."""

    def read(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise BadConfig(f"`{text}` is not a number from {least} to {most}", got=text)
        return value

    return Scalar(f"a whole number from {least} to {most}", read, types=(int,))


def choice(words: Mapping[str, Any]) -> Scalar:
    """One of these words, each for a value."""

    def read(text: str) -> Any:
        if text not in words:
            raise BadConfig(f"`{text}` is not one of {', '.join(words)}", got=text)
        return words[text]

    names = {value: word for word, value in words.items()}
    return Scalar(f"one of {', '.join(words)}", read, show=lambda value: names[value])


def _shown_path(value: Path | None) -> str | None:
    return None if value is None else str(value)


_TIMES = (str, int, float)
SIZE = Scalar("a size such as `200GiB`", parse_bytes, "bytes", (str, int), example='"200GiB"')
RATE = Scalar("a rate such as `100MiB`", _positive, "bytes a second", (str, int), example='"100MiB"')
SHARE = Scalar("a share such as `0.9` or `90%`", _share, "share", (str, int, float), example='"90%"')
DURATION = Scalar("a duration such as `10m` or 600", _seconds, "seconds", _TIMES, example='"10m"')
TIMEOUT = Scalar("a duration such as `30s` or 30", _timeout, "seconds", _TIMES, example='"30s"')
AGE = Scalar("a duration such as `10m`, or 0", _age, "seconds", _TIMES, example='"10m"')
FLAG = Scalar("true or false", _flag, types=(bool,), example="true")
TEXT = Scalar("a text", str)
SECRET = Scalar("a text", str, secret=True)
SOCKET = Scalar("a path, or `none`", _socket, show=lambda value: "none" if value is None else str(value), example='"/path"')
PATH = Scalar("a path", _path, show=_shown_path, example='"/path"')
ENDPOINT = Scalar("a URL such as `https://host:9000`", _endpoint, example='"https://host:9000"')
HUB_ENDPOINT = Scalar("a URL such as `https://host`", _hub_endpoint, example='"https://host"')
HUB_TOKEN = Scalar("a token", _hub_token, secret=True, example='"hf_token"')
GCS_ENDPOINT = Scalar("a URL such as `https://host`", _gcs_endpoint, example='"https://host"')
NETWORKS = Scalar("networks such as `169.254.0.0/16`, divided by commas", _networks, show=",".join, example='"169.254.0.0/16"')
ORIGINS = Scalar("origins such as `https://host`, divided by commas", _origins, show=",".join, example='"https://huggingface.co"')
PROXY = Scalar("a URL such as `http://host:3128`", str, hide=redact_url, example='"http://host:3128"')
