"""How long a signed URL is good, by what it says itself and by the clock of the hub that gave it out."""

from __future__ import annotations

import pytest

from modelcache.sources.huggingface.places import _lifetime_s

DATE = {"date": "Tue, 01 Jan 2030 00:00:00 GMT"}
AT_S = 1_893_456_000


@pytest.mark.parametrize(
    ("query", "lifetime_s"),
    [
        (f"Expires={AT_S + 3600}&Signature=x&Key-Pair-Id=K", 3600.0),
        (f"Expires={AT_S - 1}", -1.0),
        ("X-Amz-Date=20291231T235900Z&X-Amz-Expires=3600&X-Amz-Signature=x", 3540.0),
        ("X-Goog-Date=20300101T000010Z&X-Goog-Expires=60", 70.0),
        ("x-amz-date=20300101T000000Z&x-amz-expires=5", 5.0),
        ("", None),
        ("Expires=soon", None),
        ("X-Amz-Expires=60", None),
        ("X-Amz-Date=today&X-Amz-Expires=60", None),
        ("X-Amz-Date=20300101T000000Z", None),
    ],
)
def test_the_lifetime_that_a_url_states(query: str, lifetime_s: float | None) -> None:
    assert _lifetime_s(f"https://cdn/x?{query}", DATE) == lifetime_s


def test_a_date_that_can_t_be_read_is_no_clock() -> None:
    assert _lifetime_s(f"https://cdn/x?Expires={AT_S}", {"date": "yesterday"}) is None
