"""fsspec's options of other file systems, as settings of modelcache. What isn't known is refused, never passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelcache.config import Config
from modelcache.errors import BadConfig

Options = dict[str, Any]

WITHOUT_EFFECT = frozenset({
    "asynchronous", "batch_size", "block_size", "cache_regions", "consistency", "default_block_size", "default_cache_type",
    "default_fill_cache", "fixed_upload_size", "listings_expiry_time", "loop", "max_concurrency", "max_paths", "project",
    "skip_instance_cache", "use_listings_cache", "version_aware",
})  # fmt: skip
"""Options of s3fs, gcsfs and fsspec that say how that library reads, and not what is read, from where, or as whom."""


def configured(config: Config, scheme: str | None, options: Mapping[str, Any]) -> Config:
    """The settings with the `target_options` (s3fs', gcsfs', huggingface_hub's names) of this scheme on top.

    Raises:
        BadConfig: an option that modelcache has no setting for; its value is not shown.
    """
    if scheme is not None and scheme not in _READERS and scheme not in _WITHOUT_OPTIONS:
        return _of_filesystem(config, scheme, options)
    left = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT and value is not None}
    if scheme in _READERS:
        name, read = _READERS[scheme]
        config = replace(config, **{name: read(getattr(config, name), left)})
    if left:
        names = ", ".join(sorted(left))
        raise BadConfig(
            f"modelcache has no setting for these options of `{scheme or 'no target'}`: {names}",
            got=names,
            hint="give what reads the origin by modelcache's own settings (`modelcache config show`), or leave it out",
        )
    return config


def _of_filesystem(config: Config, scheme: str, options: Mapping[str, Any]) -> Config:
    """What modelcache itself reads through fsspec takes them as they are, in place of the settings' of the same names."""
    storage = {**config.fsspec.storage, scheme: {**config.fsspec.storage.get(scheme, {}), **options}}
    return replace(config, fsspec=replace(config.fsspec, storage=storage)) if options else config


def _s3(before: Any, left: Options) -> Any:
    """s3fs: `S3FileSystem.__init__`."""
    client: Options = dict(_mapping("client_kwargs", left.pop("client_kwargs", {})))
    given: Options = {
        "access_key": _first(left, "key", "username") or client.pop("aws_access_key_id", None),
        "secret_key": _first(left, "secret", "password") or client.pop("aws_secret_access_key", None),
        "session_token": left.pop("token", None) or client.pop("aws_session_token", None),
        "endpoint": left.pop("endpoint_url", None) or client.pop("endpoint_url", None),
        "region": client.pop("region_name", None),
        "profile": left.pop("profile", None),
        "anonymous": left.pop("anon", None) or None,
        "path_style": _addressing(left),
    }
    verify = client.pop("verify", None)
    if isinstance(verify, str):
        given["ca_file"] = Path(verify)
    elif verify is False:
        given["verify_tls"] = False
    left |= {f"client_kwargs.{name}": value for name, value in client.items()}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("access_key"):  # a key in place of whatever the settings would find
        before = replace(before, anonymous=False, profile=None, access_key=None, secret_key=None, session_token=None)
    if given.get("anonymous"):
        before = replace(before, profile=None, access_key=None, secret_key=None, session_token=None)
    return replace(before, **given)


def _addressing(left: Options) -> bool | None:
    settings: Options = dict(_mapping("config_kwargs", left.pop("config_kwargs", {})))
    inner: Options = dict(_mapping("config_kwargs.s3", settings.pop("s3", {})))
    style = inner.pop("addressing_style", "auto")
    left |= {f"config_kwargs.{name}": value for name, value in settings.items()}
    left |= {f"config_kwargs.s3.{name}": value for name, value in inner.items()}
    if style not in ("auto", "path", "virtual"):
        raise BadConfig("the addressing style of S3 is none of `auto`, `path`, `virtual`", got=str(style))
    return None if style == "auto" else bool(style == "path")


def _gs(before: Any, left: Options) -> Any:
    """gcsfs: `GCSFileSystem.__init__`, `GoogleCredentials`."""
    who = left.pop("token", None)
    endpoint = left.pop("endpoint_url", None)
    if endpoint is not None:
        before = replace(before, endpoint=endpoint)
    if who in (None, "google_default"):
        return before
    if who == "anon":
        return replace(before, anonymous=True, credentials_file=None, access_token=None)
    if isinstance(who, str) and Path(who).is_file():
        return replace(before, anonymous=False, credentials_file=Path(who), access_token=None)
    raise BadConfig("of gcsfs' tokens modelcache takes `anon`, `google_default`, and the path of a credentials file")


def _hf(before: Any, left: Options) -> Any:
    """huggingface_hub: `HfFileSystem.__init__`."""
    endpoint, token = left.pop("endpoint", None), left.pop("token", None)
    if endpoint is not None:
        before = replace(before, endpoint=endpoint)
    if token in (None, True):
        return before
    if token is False:
        return replace(before, anonymous=True, token=None)
    return replace(before, anonymous=False, token=token)


_WITHOUT_OPTIONS = frozenset({"file", "http", "https", "modelscope", "oci", "pvc"})
"""Schemes that modelcache reads itself, with nothing that fsspec's file systems have an option for."""
_READERS: dict[str | None, tuple[str, Callable[[Any, Options], Any]]] = {"s3": ("s3", _s3), "gs": ("gs", _gs), "hf": ("hf", _hf)}
"""By scheme: the field of `Config`, and what takes the options that it knows out of a dictionary."""


def _first(left: Options, *names: str) -> Any:
    """The first of these options that is given; all are taken out."""
    values = [left.pop(name, None) for name in names]
    return next((value for value in values if value is not None), None)


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadConfig(f"`{name}` is not a dictionary")
    return value
