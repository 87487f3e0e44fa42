"""What the AWS SDK would find by itself in plain sight: where that is all it would find, it need not be imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modelcache.config.setting import Environ
from modelcache.sources.s3 import Key, S3Options

DEFAULT_REGION = "us-east-1"
"""That botocore signs for where an endpoint is set and no region (`botocore.regions`, `aws-global` of S3)."""


def with_plain_sight(options: S3Options, environ: Environ) -> S3Options:
    """The settings with the environment's own key as `chain_key`, and the SDK's default region where no file of the SDK's can name one.

    The environment is the first place where the SDK's chain looks, unless a profile is named. A key that says when it expires is left
    to the chain, which looks again.
    """
    access_key, secret_key = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if access_key and secret_key and not environ.get("AWS_CREDENTIAL_EXPIRATION"):
        options = replace(options, chain_key=Key(access_key, secret_key, environ.get("AWS_SESSION_TOKEN") or None))
    if options.endpoint is not None and options.region is None and not _config_file(environ).exists():
        options = replace(options, region=DEFAULT_REGION)
    return options


def _config_file(environ: Environ) -> Path:
    named = environ.get("AWS_CONFIG_FILE") or "~/.aws/config"
    home = environ.get("HOME")
    return Path(home, named[2:]) if home and named.startswith("~/") else Path(named).expanduser()
