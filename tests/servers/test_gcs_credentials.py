"""The GCS source and credentials: found, missing, refused, renewed, expiring; and that no secret comes out."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from daemonset.tenants import caller_of
from modelcache import ModelCache
from modelcache.abc.source import Listing
from modelcache.config import Config
from modelcache.errors import AccessDenied, BadConfig, InvalidUri, ModelCacheError, OriginUnreachable, UnknownScheme
from modelcache.patience import Cancellation
from modelcache.ranges import ByteRange
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.testing.fault_server import Call, FaultServer, Reply
from modelcache.testing.gcs_stand_in import ANYONE, BUCKET, TOKEN_PATH, GcsStandIn
from modelcache.testing.servers import Certificate
from modelcache.testing.source_contract import read
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.transport import Timeouts
from modelcache.uri import parse_uri
from tests.cli.executable import Executable

DATA = b"weights of a model"
BOTH = {"list", "get"}
FIRST, SECOND = (f"ya29.token-{number}-of-the-test" for number in (1, 2))


@pytest.fixture
def store() -> Iterator[GcsStandIn]:
    """A store with one object, `m/f`, that asks for a token, and its token service."""
    with FaultServer() as server:
        made = GcsStandIn(server, rights={FIRST: BOTH})
        made.put("m/f", DATA)
        yield made


@pytest.fixture(scope="module")
def private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form).decode()


@pytest.fixture
def key_file(store: GcsStandIn, private_key: str, tmp_path: Path) -> Path:
    """A service account's key, as the console writes it."""
    fields = {"type": "service_account", "project_id": "p", "private_key_id": "1", "client_id": "1", "private_key": private_key}
    fields |= {"client_email": "reader@p.example", "token_uri": store.server.endpoint + TOKEN_PATH}
    path = tmp_path / "gcloud-application-credentials.json"
    path.write_text(json.dumps(fields))
    return path


@contextmanager
def source_of(options: GcsOptions) -> Iterator[GcsSource]:
    source = GcsSource(options, Timeouts(connect_s=10, stall_s=10))
    try:
        yield source
    finally:
        source.close()


def listed(source: GcsSource) -> Listing:
    return source.list(parse_uri(f"gs://{BUCKET}/m")[0], Cancellation())


# -- found and renewed ----------------------------------------------------------------------------------------------


def test_a_service_account_is_asked_for_once_and_for_reading_alone(store: GcsStandIn, key_file: Path) -> None:
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        [file] = listed(source).files
        assert read(source, file) == DATA
    assert store.issued == [FIRST]
    asked = next(received for received in store.server.received if received.target == TOKEN_PATH)
    [assertion] = parse_qs(asked.body.decode())["assertion"]
    assert assertion.count(".") == 2
    sent = {received.headers.get("authorization") for received in store.server.received if received.target != TOKEN_PATH}
    assert sent == {f"Bearer {FIRST}"}


def test_what_somebody_else_brings_is_a_key_and_leads_to_nothing_of_this_machine(
    store: GcsStandIn, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent/of-the-machine.json")
    key = key_file.read_text()
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_json=key)) as source:
        [file] = listed(source).files
        assert read(source, file) == DATA
    assert store.issued == [FIRST]
    told = json.loads(key)
    GcsOptions(credentials_json=json.dumps(told | {"token_uri": "https://oauth2.googleapis.com/token"}))
    for uri in ("http://169.254.169.254/token", "http://127.0.0.1:9/token", "file:///etc/passwd", None, ["x"]):
        with pytest.raises(BadConfig, match="token_uri") as caught:
            GcsOptions(endpoint=store.server.endpoint, credentials_json=json.dumps(told | {"token_uri": uri}))
        assert told["private_key"] not in str(caught.value.as_dict())
    for text in (
        "",
        "[]",
        "{",
        '{"type": ["service_account"]}',
        '{"type": "external_account", "credential_source": {"file": "/etc/passwd"}}',
    ):
        with pytest.raises(BadConfig, match="no Google credential that is taken"):
            GcsOptions(credentials_json=text)
    with pytest.raises(BadConfig, match="either anonymous"):
        GcsOptions(anonymous=True, credentials_json=key)


@pytest.mark.parametrize("asked", ["list", "open"])
def test_a_refused_token_is_renewed_once(store: GcsStandIn, key_file: Path, asked: str) -> None:
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        [file] = listed(source).files
        store.rights = {SECOND: BOTH}
        assert (listed(source).files == (file,)) if asked == "list" else (read(source, file) == DATA)
        store.rights = {}
        with pytest.raises(AccessDenied):
            read(source, file) if asked == "open" else listed(source)
    assert store.issued == [FIRST, SECOND]


def test_a_token_that_is_about_to_expire_is_renewed_before(store: GcsStandIn, key_file: Path) -> None:
    store.expires_s = 60
    store.rights[SECOND] = BOTH
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        source.list(parse_uri(f"gs://{BUCKET}/m/f")[0], Cancellation())
        store.expires_s = 3600
        assert len(listed(source).files) == 1
    assert store.issued == [FIRST, SECOND]


def test_a_token_is_used_to_its_end_while_no_other_is_to_be_had(store: GcsStandIn, key_file: Path) -> None:
    store.expires_s = 60
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        [file] = source.list(parse_uri(f"gs://{BUCKET}/m/f")[0], Cancellation()).files
        store.server.fail(TOKEN_PATH, Call.reset)
        assert read(source, file) == DATA
        store.rights = {}
        with pytest.raises(OriginUnreachable, match="gives out Google tokens"):
            read(source, file)


def test_a_rotated_key_file_is_read_again(store: GcsStandIn, key_file: Path) -> None:
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        [file] = listed(source).files
        fresh = store.server.endpoint + "/fresh-token"
        key_file.write_text(key_file.read_text().replace(store.server.endpoint + TOKEN_PATH, fresh))
        answer = json.dumps({"access_token": "fresh", "expires_in": 3600}).encode()
        store.server.fail("/fresh-token", lambda call: call.reply(Reply(200, {}, answer)))
        store.rights = {"fresh": BOTH}
        assert read(source, file) == DATA


def test_googles_variable_is_followed_and_its_missing_file_is_no_reason_to_go_without(
    store: GcsStandIn, key_file: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KServe mounts the key and names it there. The store is one of https, for over plain http no credential is looked for."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
    with FaultServer(certificate) as secure:
        behind = GcsStandIn(secure, rights={FIRST: BOTH})
        behind.put("m/f", DATA)
        options = GcsOptions(endpoint=secure.endpoint, ca_file=certificate.ca)
        with source_of(options) as source:
            assert read(source, listed(source).files[0]) == DATA
        key_file.unlink()
        behind.rights[ANYONE] = BOTH
        with source_of(options) as source, pytest.raises(BadConfig, match="Google credential can't be used") as caught:
            listed(source)
        assert "GOOGLE_APPLICATION_CREDENTIALS" in str(caught.value.hint)


def test_where_no_credential_is_found_none_is_sent_and_a_refusal_says_so(certificate: Certificate) -> None:
    with FaultServer(certificate) as secure:
        store = GcsStandIn(secure)
        store.put("m/f", DATA)
        with source_of(GcsOptions(endpoint=secure.endpoint, ca_file=certificate.ca)) as source:
            [file] = listed(source).files
            assert read(source, file) == DATA
            assert source.origin.ca_sha256 is not None
            store.rights = {}
            for refused in (lambda: listed(source), lambda: read(source, file)):
                with pytest.raises(AccessDenied) as caught:
                    refused()
                assert "no Google credential was found" in str(caught.value.hint)
    with source_of(GcsOptions(endpoint="http://localhost:1", ca_file=certificate.ca)) as plain:
        assert plain.origin.ca_sha256 is None


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("google.auth", "google.auth.credentials", "google.auth.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)  # an import fails
    with source_of(GcsOptions()) as source, pytest.raises(UnknownScheme, match="needs google-auth") as caught:
        listed(source)
    assert caught.value.hint is not None
    assert "modelcache[gcs]" in caught.value.hint


def test_workload_identity_comes_from_the_metadata_server(store: GcsStandIn, certificate: Certificate, tmp_path: Path) -> None:
    """In a process of its own, as google-auth reads the server's address when it is imported."""
    metadata = {"Metadata-Flavor": "Google", "Content-Type": "application/text"}
    fields = {**metadata, "Content-Type": "application/json"}
    account = json.dumps({"aliases": ["default"], "email": "node@p.example", "scopes": []}).encode()
    token = json.dumps({"access_token": "of-the-node", "expires_in": 3600, "token_type": "Bearer"}).encode()
    base = "/computeMetadata/v1"
    with FaultServer(certificate) as secure:
        behind = GcsStandIn(secure, rights={"of-the-node": BOTH})
        behind.put("m/f", DATA)
        for path, body in (("/", b""), (f"{base}/project/project-id", b"p"), (f"{base}/universe/universe-domain", b"googleapis.com")):
            store.server.fail(path, lambda call, body=body: call.reply(Reply(200, metadata, body)))  # type: ignore[misc]
        for alias in ("default", "node@p.example"):
            where = f"{base}/instance/service-accounts/{alias}"
            store.server.fail(f"{where}/", lambda call: call.reply(Reply(200, fields, account)))
            store.server.fail(f"{where}/token", lambda call: call.reply(Reply(200, fields, token)))
        here = store.server.endpoint.partition("://")[2]
        variables = {"GCE_METADATA_HOST": here, "GCE_METADATA_IP": here, "NO_GCE_CHECK": "", "http_proxy": "http://127.0.0.1:1"}
        variables |= {"MODELCACHE_GS_ENDPOINT": secure.endpoint, "MODELCACHE_GS_CA_FILE": str(certificate.ca)}
        done = Executable(tmp_path / "root")("pull", f"gs://{BUCKET}/m", **variables)
    assert done.code == 0, done.err
    assert (Path(done.out.strip()) / "f").read_bytes() == DATA


# -- refused --------------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_told_by_oauths_code(store: GcsStandIn, key_file: Path) -> None:
    answer = json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}).encode()
    store.server.fail(TOKEN_PATH, lambda call: call.reply(Reply(400, {}, answer)))
    options = GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)
    with source_of(options) as source, pytest.raises(AccessDenied, match=r"no Google token was given \(invalid_grant\)") as caught:
        listed(source)
    assert "Signature" not in told(caught.value)


@pytest.mark.parametrize("content", ["{", '{"type": "service_account"}', '{"type": "unheard_of"}', None])
def test_a_file_that_is_no_credential_is_refused(store: GcsStandIn, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.json"
    if content is not None:
        path.write_text(content)
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=path)) as source, pytest.raises(BadConfig):
        listed(source)
    assert store.server.received == []


def test_the_token_of_a_uri_is_the_callers_own(store: GcsStandIn, tmp_path: Path) -> None:
    """As a second tenant would come: the configured credential is not used for it, and the reverse."""
    store.rights = {"of-this-call": BOTH, "may-only-list": {"list"}}
    config = Config(root=tmp_path / "root", limits=NO_LIMITS, gs=GcsOptions(endpoint=store.server.endpoint, access_token="unknown-here"))
    with ModelCache(config=config) as cache:
        for uri in (f"gs://{BUCKET}/m", f"gs://unknown@{BUCKET}/m", f"gs://may-only-list@{BUCKET}/m"):
            with pytest.raises(AccessDenied):
                cache.ensure(uri)
        with pytest.raises(InvalidUri, match="not an access token"):
            cache.ensure(f"gs://user:password@{BUCKET}/m")
        with pytest.raises(InvalidUri, match="signing parameters"):
            cache.ensure(f"gs://{BUCKET}/m?X-Goog-Signature=00ff")
        assert (cache.ensure(f"gs://of-this-call@{BUCKET}/m").path / "f").read_bytes() == DATA


def test_a_tenants_key_opens_what_it_may_read_and_nothing_else(store: GcsStandIn, key_file: Path, tmp_path: Path) -> None:
    config = Config(root=tmp_path / "root", limits=NO_LIMITS, gs=GcsOptions(endpoint=store.server.endpoint, access_token="the-node's"))
    key, store.rights = {"gcloud-application-credentials.json": key_file.read_text()}, {"the-node's": BOTH, FIRST: BOTH, SECOND: {"list"}}
    with ModelCache(config=config) as cache:
        for secret, opens in ((key, True), (key, False), ({}, False)):  # one key, whose second token may only list
            caller = caller_of("a" if opens else "b", "default", secret, config)
            if opens:
                assert (cache.ensure(f"gs://{BUCKET}/m", caller=caller).path / "f").read_bytes() == DATA
                continue
            with pytest.raises(AccessDenied):
                cache.ensure(f"gs://{BUCKET}/m", caller=caller)
    assert store.issued[:2] == [FIRST, SECOND]
    with pytest.raises(BadConfig, match=r"gcloud-application-credentials\.json"):
        caller_of("a", "default", {"gcloud-application-credentials.json": "{}"}, config)


def test_a_token_does_not_go_over_plain_http() -> None:
    ways: list[dict[str, Any]] = [{"access_token": "t"}, {"credentials_file": Path("/key.json")}]
    for given in ways:
        with pytest.raises(BadConfig, match="plain http"):
            GcsOptions(endpoint="http://gcs.internal", **given)
        GcsOptions(endpoint="http://127.0.0.1:9", **given)
        GcsOptions(endpoint="https://gcs.internal", **given)
    assert GcsOptions(endpoint="HTTP://gcs.internal").sends_nothing
    with pytest.raises(BadConfig, match="either anonymous"):
        GcsOptions(anonymous=True, access_token="t")


# -- secrets --------------------------------------------------------------------------------------------------------


def test_no_secret_is_logged_or_told(store: GcsStandIn, key_file: Path, private_key: str, caplog: pytest.LogCaptureFixture) -> None:
    """What works and what fails, with every logger at its most talkative, and a store that repeats what it was sent."""
    caplog.set_level(logging.DEBUG)
    said = ""

    def echo(call: Call) -> None:
        fields = {"error": {"message": f"bad {call.received.headers['authorization']}", "errors": [{"reason": "forbidden"}]}}
        call.reply(Reply(403, {}, json.dumps(fields).encode()))

    attempts: list[Callable[[GcsSource], object]] = [listed, lambda source: source.open(file, ByteRange(0, 1), Cancellation())]
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source:
        [file] = listed(source).files
        assert read(source, file) == DATA
        store.server.fail(store.list_path, echo)
        store.server.fail(store.path("m/f"), echo)
        for attempt in attempts:
            with pytest.raises(AccessDenied) as caught:
                attempt(source)
            said += told(caught.value)
        said += repr([source, source._options, source._tokens, source._signer, source._signer.sign("GET", file.locator, {})])
    store.server.fail(TOKEN_PATH, lambda call: call.reply(Reply(400, {}, call.received.body)))
    with source_of(GcsOptions(endpoint=store.server.endpoint, credentials_file=key_file)) as source, pytest.raises(AccessDenied) as caught:
        listed(source)
    said += told(caught.value) + repr(replace(GcsOptions(), access_token="of-this-call")) + caplog.text
    assert "modelcache" in caplog.text
    line = private_key.splitlines()[3]
    assert not [secret for secret in ("ya29", "of-this-call", "assertion", line) if secret in said]


def told(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += f"{error!r} {error} {vars(error)}" + (json.dumps(error.as_dict()) if isinstance(error, ModelCacheError) else "")
        error = error.__cause__ or error.__context__
    return said
