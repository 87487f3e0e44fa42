"""The last line of defence before a text of unknown origin is shown: an unexpected exception, a traceback, a usage error.

Errors of modelcache never hold a secret in the first place; what a library raises may.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from modelcache.uri_secrets import redact_url

HIDDEN = "[hidden]"

_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]+://[^\s'\"<>`]+")
_HEADER = re.compile(r"(?i)\b((?:proxy-)?authorization|x-amz-security-token|(?:set-)?cookie|x-api-key)(['\"]?\s*[:=]\s*['\"]?)[^\r\n'\"]+")
_PAIR = re.compile(
    r"(?i)(?<![\w-])([\w-]*(?:password|passwd|secret|token|(?:access|account|api|private|shared)[_-]?key|signature|\bsig)[\w-]{0,40})(['\"]?\s*[:=]\s*['\"]?)[^\s'\",;&]+"
)
_SHAPE = re.compile(
    r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"
    r"|\b(?:hf_[A-Za-z0-9]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|ya29\.[\w.-]+|(?:AKIA|ASIA)[A-Z0-9]{12,})"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?i:\b(?:bearer|basic)\s+[\w.~+/=-]{8,})"
)
"""Private keys in PEM, tokens of Hugging Face, GitHub and Google, ids of AWS keys, JSON Web Tokens, values of `Authorization`."""
_SECRET_NAME = re.compile(r"(?i)secret|token|password|passwd|credential|(?:access|account|api|private|storage)_?key|connection_string")
_PLACE_NAME = re.compile(r"(?i)(?:file|path|dir|directory|credentials)$")
"""Of variables that name where a secret is; a key in base64 may begin with `/`, too."""
LEAST_SECRET_CHARACTERS = 8
"""Values of variables shorter than this are words such as `true` or `default`, not secrets."""


def redact(text: str, environ: Mapping[str, str]) -> str:
    """`text` without userinfo, queries, credential headers, `secret=…` pairs, what looks like a key or token, and values of variables
    that are named like one."""
    for name, told in environ.items():
        value = told.strip()  # a secret that was made from a file ends with a line feed, and is used without
        if len(value) >= LEAST_SECRET_CHARACTERS and _SECRET_NAME.search(name) and not (value[0] == "/" and _PLACE_NAME.search(name)):
            text = text.replace(value, HIDDEN)
    text = _URL.sub(lambda match: redact_url(match.group()), text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    return _PAIR.sub(rf"\1\2{HIDDEN}", _SHAPE.sub(HIDDEN, text))
