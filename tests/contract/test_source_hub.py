"""What the contract does not say about the hub: revisions, paths, what is stated, refusals, and what each costs in requests."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcache.abc.source import Source
from modelcache.digest import Algorithm, Digest
from modelcache.errors import AccessDenied, ModelCacheError, NotFound, OriginBusy
from modelcache.sources.retrying import Pace, RetryingSource
from modelcache.testing import faults
from modelcache.testing.hub_sources import hub_source
from modelcache.testing.listings import listing_of
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.servers.hub_repository import LFS_BYTES
from modelcache.testing.source_contract import read

LARGE = os.urandom(LFS_BYTES + 1)
SMALL = b'{"a": 1}\n'
COMMIT = "0123456789abcdef0123456789abcdef01234567"


# -- revisions ------------------------------------------------------------------------------------------------------------


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(hub: HubServer) -> None:
    repository = hub.repository(files={"f": b"one"})
    first = repository.refs["v1.0"] = repository.refs["feature/x"] = repository.refs["main"]
    second = repository.refs["refs/pr/3"] = repository.commit({"f": b"two"})
    with hub_source(hub) as source:
        for written, commit, immutable in (
            ("", second, False),
            (":main", second, False),
            (":v1.0", first, False),
            (":feature%2Fx", first, False),
            (":refs/pr/3", second, False),
            (f":{first}", first, True),
            (f":{second}", second, True),
        ):
            found = listing_of(source, f"hf://org/model{written}")
            assert (found.revision, found.immutable) == (commit, immutable), written
            assert read(source, found.files[0]) == (b"one" if commit == first else b"two")


def test_an_old_commit_is_read_to_its_end_while_new_ones_come(hub: HubServer) -> None:
    repository = hub.repository(files={"f": LARGE, "g": SMALL})
    with hub_source(hub) as source:
        listed = listing_of(source, "hf://org/model").files
        repository.commit({"f": LARGE[::-1], "g": None})
        assert [read(source, file) for file in listed] == [LARGE, SMALL]
        [fresh] = listing_of(source, "hf://org/model").files
        assert fresh.locator != listed[0].locator


def test_a_commit_like_name_that_is_a_branch_stays_mutable(hub: HubServer) -> None:
    repository = hub.repository(files={"f": b"one"})
    repository.refs[COMMIT] = repository.refs["main"]
    with hub_source(hub) as source:
        assert not listing_of(source, f"hf://org/model:{COMMIT}").immutable


def test_a_listing_costs_two_requests_and_one_while_its_commit_stays(hub: HubServer) -> None:
    repository = hub.repository(files={"f": LARGE})
    with hub_source(hub) as source:
        listing_of(source, "hf://org/model")
        assert hub.counts() == {"info": 1, "tree": 1}
        again = listing_of(source, "hf://org/model")
        assert hub.counts() == {"info": 1}
        assert again == listing_of(source, "hf://org/model")
        repository.commit({"g": b""})
        hub.counts()
        assert len(listing_of(source, "hf://org/model").files) == 2
        assert hub.counts() == {"info": 1, "tree": 1}


# -- what is there --------------------------------------------------------------------------------------------------------


def test_digests_are_what_git_and_lfs_name_the_bytes_by(hub: HubServer) -> None:
    repository = hub.repository()
    repository.xet = True
    repository.commit({"large": LARGE, "small": SMALL, "empty": b""})
    with hub_source(hub) as source:
        stated = {file.path: (file.digests, file.validator) for file in listing_of(source, "hf://org/model").files}
    sha256 = hashlib.sha256(LARGE).hexdigest()
    git = {data: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() for data in (SMALL, b"")}
    assert stated == {
        "large": ((Digest(Algorithm.SHA256, sha256),), sha256),
        "small": ((Digest(Algorithm.GIT_SHA1, git[SMALL]),), git[SMALL]),
        "empty": ((Digest(Algorithm.GIT_SHA1, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),), git[b""]),
    }


def test_an_object_id_of_a_pointer_states_nothing_of_the_bytes(hub: HubServer) -> None:
    """An entry of a file that is kept in Xet, without the digest that LFS would have."""
    commit = hub.repository(files={"f": LARGE}).refs["main"]
    entry = {"type": "file", "path": "f", "oid": COMMIT, "size": len(LARGE), "xetHash": "0" * 64}
    hub.front.fail(f"/api/models/org/model/tree/{commit}", faults.status(200, body=json.dumps([entry]).encode()))
    with hub_source(hub) as source:
        [file] = listing_of(source, "hf://org/model").files
        assert (file.digests, file.validator) == ((), COMMIT)
        assert read(source, file) == LARGE


NAMES = st.sampled_from(["a", "b", "a b", "ü"])
TREES = st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.integers(0, 3), min_size=1, max_size=8)


def possible(tree: dict[str, int]) -> bool:
    return not any(other.startswith(f"{path}/") for path in tree for other in tree)


@given(tree=TREES.filter(possible), path=st.lists(NAMES, max_size=3).map("/".join), page=st.integers(1, 4))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_path_is_a_file_or_everything_below_it(hub: HubServer, tree: dict[str, int], path: str, page: int) -> None:
    hub.page_entries = page
    hub.repository(files={name: b"x" * size for name, size in tree.items()})
    if path in tree:
        expected = {path.rpartition("/")[2]: tree[path]}
    else:
        expected = {name[len(path) + 1 if path else 0 :]: size for name, size in tree.items() if not path or name.startswith(f"{path}/")}
    with hub_source(hub) as source:
        if not expected:
            with pytest.raises(NotFound):
                listing_of(source, f"hf://org/model/{path}")
            return
        found = listing_of(source, f"hf://org/model/{path}")
    assert {file.path: file.size_bytes for file in found.files} == expected


def test_a_repository_without_files_is_not_found(hub: HubServer) -> None:
    hub.repository()
    with hub_source(hub) as source, pytest.raises(NotFound):
        listing_of(source, "hf://org/model")


def test_a_renamed_repository_is_followed_with_the_token(hub: HubServer) -> None:
    repository = hub.repository("org/new", {"f": LARGE, "g": SMALL})
    token = hub.token()
    repository.private = True
    repository.readers.add(token)
    hub.moved["org/model"] = "org/new"
    with hub_source(hub, token) as source:
        assert [read(source, file) for file in listing_of(source, "hf://org/model").files] == [LARGE, SMALL]


def test_a_mirror_may_stand_behind_a_path_and_pass_on_the_hubs_own_links(hub: HubServer) -> None:
    hub.prefix = "/artifacts/hub"
    hub.page_entries = 1
    repository = hub.repository(files={"a": LARGE, "b": SMALL, "c": b""})
    tree = f"{hub.prefix}/api/models/org/model/tree/{repository.refs['main']}"
    elsewhere = f'<https://huggingface.co{tree.removeprefix(hub.prefix)}?recursive=true&expand=false&cursor=1>; rel="next"'
    token = hub.token()
    with hub_source(hub, token) as source:
        hub.front.fail(tree, faults.with_headers({"Link": elsewhere}), times=1)
        found = listing_of(source, "hf://org/model")
        assert [file.path for file in found.files] == ["a", "b", "c"]
        assert [read(source, file) for file in found.files[:2]] == [LARGE, SMALL]
    assert found.origin.endpoint == hub.endpoint
    assert {each.headers.get("authorization") for each in hub.front.received} == {f"Bearer {token}"}


# -- refusals -------------------------------------------------------------------------------------------------------------


def refused(hub: HubServer, token: str | None, uri: str = "hf://org/model") -> ModelCacheError:
    with hub_source(hub, token) as source, pytest.raises(ModelCacheError) as caught:
        read_all(source, uri)
    error = caught.value
    assert token is None or token not in f"{error} {error.as_dict()} {error!r}"
    return error


def read_all(source: Source, uri: str) -> None:
    for file in listing_of(source, uri).files:
        read(source, file)


@pytest.mark.parametrize("name", ["large", "small"])
@pytest.mark.parametrize("signed_in", [False, True])
def test_a_gated_repository_is_listed_and_not_read(hub: HubServer, name: str, signed_in: bool) -> None:
    hub.repository(files={name: {"large": LARGE, "small": SMALL}[name]}).gated = True
    token = hub.token() if signed_in else None
    with hub_source(hub, token) as source:
        assert len(listing_of(source, "hf://org/model").files) == 1
    error = refused(hub, token)
    assert isinstance(error, AccessDenied)
    assert error.hint is not None
    assert f"{hub.endpoint}/org/model" in error.hint
    assert ("HF_TOKEN" in error.hint) == (not signed_in)
    assert hub.counts()["cdn"] == 0


def test_a_private_repository_looks_like_none(hub: HubServer) -> None:
    hub.repository(files={"f": SMALL}).private = True
    for uri in ("hf://org/model", "hf://org/none"):
        nobody, somebody, wrong = refused(hub, None, uri), refused(hub, hub.token(), uri), refused(hub, "hf_wrong", uri)
        assert isinstance(nobody, AccessDenied)
        assert "does not exist, or is private" in str(nobody)
        assert isinstance(somebody, NotFound)
        assert isinstance(wrong, AccessDenied)
        assert "does not accept the token" in str(wrong)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("hf://org/model:v9", "no revision `v9`"),
        (f"hf://org/model:{COMMIT}", f"no revision `{COMMIT}`"),
        ("hf://org/model/no/such", "nothing of this name"),
        ("hf://org/model/f/below", "nothing of this name"),
        ("hf://org/model#include=*.gguf", "patterns"),
    ],
)
def test_what_is_not_there_is_told_apart(hub: HubServer, uri: str, said: str) -> None:
    hub.repository(files={"f": SMALL})
    error = refused(hub, None, uri)
    assert isinstance(error, NotFound)
    assert said in str(error)


def test_a_disabled_repository_is_denied(hub: HubServer) -> None:
    hub.repository(files={"f": SMALL}).disabled = True
    error = refused(hub, hub.token())
    assert isinstance(error, AccessDenied)
    assert "disabled" in str(error)


def test_a_refusal_without_code_is_told_in_the_hubs_own_words_without_a_token(hub: HubServer) -> None:
    hub.repository(files={"f": SMALL})
    token = hub.token()
    said = f"Enable access to  public gated repositories for {token} \xfc" + " and more" * 100
    hub.front.fail("/api/models/org/model/revision/main", faults.status(403, {"X-Error-Message": said}))
    error = refused(hub, token)
    assert isinstance(error, AccessDenied)
    assert "Enable access to public gated repositories for *** \\xfc and more" in str(error)
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    ("headers", "pause_s"),
    [({"Retry-After": "7"}, 7.0), ({"RateLimit": '"resolvers";r=0;t=55'}, 55.0), ({"RateLimit": '"api";r=3;t=55'}, None), ({}, None)],
)
@pytest.mark.parametrize("where", ["info", "tree", "large", "small"])
def test_the_rate_limit_is_waited_out_as_the_hub_says(hub: HubServer, headers: dict[str, str], pause_s: float | None, where: str) -> None:
    repository = hub.repository(files={"large": LARGE, "small": SMALL})
    commit = repository.refs["main"]
    path = {
        "info": "/api/models/org/model/revision/main",
        "tree": f"/api/models/org/model/tree/{commit}",
    }.get(where, f"/org/model/resolve/{commit}/{where}")
    hub.front.fail(path, faults.status(429, headers), times=2)
    error = refused(hub, None)
    assert isinstance(error, OriginBusy)
    assert error.retry_after_s == pause_s

    hub.front.fail(path, faults.status(429, headers), times=2)
    pauses: list[float] = []
    with hub_source(hub) as source:
        patient = RetryingSource(source, pace=Pace(now_s=lambda: 0.0, pause=lambda _, seconds: pauses.append(seconds), jitter=lambda: 0.5))
        assert [read(patient, file) for file in listing_of(patient, "hf://org/model").files] == [LARGE, SMALL]
    assert pauses
    assert min(pauses) >= (pause_s or 0.0)
