"""What the AWS SDK would find by itself in plain sight: where that is all it would find, it need not be imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modelcache.config.setting import Environ
from modelcache.sources.s3 import Key, S3Options

DEFAULT_REGION = "us-east-1"
"""That botocore signs for where an endpoint is set and no region (`botocore.regions`, `aws-global` of S3)."""
TOKENS = ("AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""Where botocore looks for a session token: the first that is set, and be it empty (`botocore.credentials.EnvProvider`)."""


def with_plain_sight(options: S3Options, environ: Environ) -> S3Options:
    """The settings with the environment's own key as `chain_key`, and the SDK's default region where no file of the SDK's can name one.

    The environment is the first place where the SDK's chain looks, unless a profile is named. A key that says when it expires is left
    to the chain, which looks again.
    """
    access_key, secret_key, expires = (
        environ.get(name) or None for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CREDENTIAL_EXPIRATION")
    )
    token = next((environ[name] for name in TOKENS if name in environ), None) or None
    if access_key and secret_key and not expires:
        options = replace(options, chain_key=Key(access_key, secret_key, token))
    file = _config_file(environ)
    if options.endpoint is not None and options.region is None and not file.exists():
        options = replace(options, region=DEFAULT_REGION)
    return options


def _config_file(environ: Environ) -> Path:
    named = environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    home = environ.get("HOME")
    if home and named.startswith("~/"):
        return Path(home, named[2:])
    try:
        return Path(named).expanduser()
    except RuntimeError:
        return Path(named)  # a user id without a home; botocore takes it as it stands, too
