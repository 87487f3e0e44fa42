"""An origin's own error code, and what it changes in the meaning of a status."""

from __future__ import annotations

import pytest

from modelcache.errors import AccessDenied, OriginBusy
from modelcache.transport.status import error_of_status, origin_code, wants_renewal

GOOGLE = (
    b'{\n "error": {\n  "code": 403, "message": "no \\"reason\\": \\"x\\"", "errors": [ { "domain": "global", "reason": "forbidden" } ] } }'
)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>reason</Message></Error>', "SlowDown"),
        (GOOGLE, "forbidden"),
        (b'{"error":{"errors":[{"reason":"required"},{"reason":"other"}]}}', "required"),
        (b'{"error": "invalid_grant"}', None),
        (b'{"other": {"reason": "x"}}', None),
        (b'{"error":{"errors":[{"reason":"two words"}]}}', None),
        (b"", None),
    ],
)
def test_codes_are_read_from_xml_and_from_googles_json(body: bytes, code: str | None) -> None:
    assert origin_code(body) == code


def test_a_rate_limit_sent_as_a_refusal_is_one_to_wait_for_and_not_to_sign_again_for() -> None:
    assert isinstance(error_of_status(403, {}, address="x", listed=True, code="rateLimitExceeded"), OriginBusy)
    assert isinstance(error_of_status(403, {}, address="x", listed=True, code="forbidden"), AccessDenied)
    assert not wants_renewal(403, "userRateLimitExceeded")
    assert wants_renewal(403, "forbidden")
