"""Credentials that expire as a body breaks: each source that can renews its own for the rest of the bytes, which come once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import modelcache.registry
from modelcache import Config, ModelCache
from modelcache.abc.source import Source
from modelcache.sources.gcs import GcsOptions, GcsSource
from modelcache.sources.huggingface import HubOptions, HubSource
from modelcache.sources.s3 import S3Options, S3Source
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.faulted_contract import AT_ONCE
from modelcache.testing.faulty_source import FaultySource
from modelcache.testing.gcs_stand_in import BUCKET, TOKEN_PATH, GcsStandIn
from modelcache.testing.s3_sources import proxied
from modelcache.testing.servers import Identity, SeaweedFS
from modelcache.testing.servers.hub import HubServer
from modelcache.testing.store_filling import content
from modelcache.testing.store_fixtures import NO_LIMITS
from modelcache.units import MIB

DATA = content(9 * MIB + 5, seed=4)


def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source, uri: str, expire: Callable[[], object]) -> FaultySource:
    """Fetch `f` at the URI through the whole product, with faults around the source and what expires at the first break."""
    faults = FaultySource(source, seed=3, on_first_break=expire)
    monkeypatch.setattr(modelcache.registry, "_bare", lambda config, uri, secrets: faults)
    with ModelCache(config=Config.load(environ={}, root=tmp_path / "store", retry=AT_ONCE, limits=NO_LIMITS)) as cache:
        assert (cache.ensure(uri).path / "f").read_bytes() == DATA
    assert faults.books.bytes == {"f": len(DATA)}
    return faults


def test_the_hubs_token_and_its_urls(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = hub.token(), hub.token()
    repository = hub.repository("org/model", {"f": DATA})
    repository.private = True
    repository.readers |= {first, second}
    token = tmp_path / "token"
    token.write_text(first)

    def expire() -> None:
        hub.tokens.remove(first)
        token.write_text(second)
        hub.expire_urls()

    source = HubSource(HubOptions(endpoint=hub.endpoint, token_file=token))
    pulled(tmp_path, monkeypatch, source, "hf://org/model", expire)
    sent = [each.headers.get("authorization") for each in hub.front.received]
    assert sent[0] == f"Bearer {first}"
    assert sent[-1] == f"Bearer {second}"


def test_googles_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with FaultServer() as server:
        store = GcsStandIn(server, rights={"ya29.token-1-of-the-test": {"list", "get"}})
        store.put("m/f", DATA)
        fields = {"type": "service_account", "project_id": "p", "private_key_id": "1", "client_id": "1"}
        fields |= {"private_key": key.private_bytes(*form).decode(), "client_email": "reader@p.example"}
        (tmp_path / "key.json").write_text(json.dumps({**fields, "token_uri": server.endpoint + TOKEN_PATH}))

        def expire() -> None:
            store.rights = {"ya29.token-2-of-the-test": {"list", "get"}}

        source = GcsSource(GcsOptions(endpoint=server.endpoint, credentials_file=tmp_path / "key.json"))
        pulled(tmp_path, monkeypatch, source, f"gs://{BUCKET}/m", expire)
        assert len(store.issued) == 2


@dataclass(frozen=True, slots=True)
class Profile:
    """The file that S3's credential chain reads."""

    path: Path

    def write(self, who: Identity) -> None:
        self.path.write_text(f"[default]\naws_access_key_id = {who.access_key}\naws_secret_access_key = {who.secret_key}\n")


def test_the_key_of_s3s_chain(seaweedfs: SeaweedFS, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nginx refuses the first key, as AWS does one that has expired, once a file says so."""
    seaweedfs.put(bucket, "m/f", DATA)
    profile, expired = Profile(tmp_path / "credentials"), tmp_path / "expired"
    profile.write(seaweedfs.reader)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile.path))
    refusal = (
        f'set $refused ""; if (-f "{expired}") {{ set $refused a; }}'
        f' if ($http_authorization ~ "Credential={seaweedfs.reader.access_key}/") {{ set $refused "${{refused}}b"; }}'
        ' if ($refused = ab) { return 400 "<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"; }'
    )

    def expire() -> None:
        profile.write(seaweedfs.admin)
        expired.touch()

    with proxied(seaweedfs, refusal) as proxy:
        source = S3Source(S3Options(endpoint=proxy.endpoint))
        pulled(tmp_path, monkeypatch, source, f"s3://{bucket}/m", expire)
        assert 400 in [request.status for request in proxy.requests()]
