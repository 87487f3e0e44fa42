"""How commands fail: one exit code per group, an error and a next step, and never a secret."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.cli import lazy
from modelcache.cli.main import main
from modelcache.redaction import HIDDEN, redact
from modelcache.testing.fault_server import FaultServer
from modelcache.testing.faults import gzipped, status
from tests.cli.conftest import WEIGHTS
from tests.cli.executable import Done, Executable

PASSWORD = "hunter2-Sesame"
TOKEN = "tok3n-Sesame"


def failed(done: Done) -> tuple[int, str]:
    """Exit code and error code of a run with --json, after a look at the shape of its document."""
    error = done.document["error"]
    assert done.code == error["exit_code"]
    assert error["message"]
    return done.code, error["code"]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (status(404), (3, "not-found")),
        (status(403), (4, "access-denied")),
        (status(503), (5, "origin-busy")),
        (gzipped, (10, "protocol-violation")),
    ],
)
def test_what_an_origin_does_decides_the_exit_code(
    cli: Executable, server: FaultServer, fault: Callable[..., None], expected: tuple[int, str]
) -> None:
    server.put("/model.safetensors", WEIGHTS)
    server.fail("/model.safetensors", fault)

    done = cli("pull", "--json", f"{server.endpoint}/model.safetensors", MODELCACHE_RETRY_DEADLINE_S="0.5")

    assert failed(done) == expected


def test_a_root_that_may_not_be_read_is_told_by_what_opens_it(
    cli: Executable, inside: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose store it is, and what to do; not as a mistake in the arguments."""
    cli.root.mkdir()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: mode != os.R_OK and real(path, mode, **more))

    assert inside("ls", "--root", cli.root).code == 0


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("gc --need 5x", "--need"),
        ("verify --budget 5x", "--budget"),
        ("verify --rate 5x", "--rate"),
        ("pull /tmp --max-bytes 5x", "--max-bytes"),
        ("rates --of host=5x", "--of host"),
    ],
)
def test_what_is_no_size_is_told_with_its_option(inside: Callable[..., Done], arguments: str, what: str) -> None:
    done = inside(*arguments.split())

    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {what}: `5x` is not a size")


@pytest.mark.parametrize("option", ["--root", "--config", "--agent"])
def test_an_empty_place_is_a_mistake_and_not_the_current_directory(inside: Callable[..., Done], option: str) -> None:
    assert failed(inside("ls", "--json", option, "")) == (2, "usage")


def test_an_unreachable_origin_is_worth_another_try(cli: Executable) -> None:
    with FaultServer() as server:
        gone = server.endpoint

    done = cli("pull", f"{gone}/model.safetensors", MODELCACHE_RETRY_DEADLINE_S="0.5")

    assert done.code == 5
    assert done.err.splitlines()[-1].startswith("hint: ")


def test_wrong_bytes_exit_with_the_code_of_integrity(cli: Executable, server: FaultServer) -> None:
    server.put("/model.safetensors", WEIGHTS)

    done = cli("pull", "--json", f"{server.endpoint}/model.safetensors#sha256={'0' * 64}")

    assert failed(done) == (6, "digest-mismatch")
    assert done.document["error"]["expected"].endswith("0" * 64)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["pull", "s3:/typo"], "invalid-uri"),
        (["pull", "nothing://serves/this"], "unknown-scheme"),
        (["pull", "--max-bytes", "many", "/tmp"], "bad-config"),
        (["pull", "--offline", "--refresh", "auto", "/tmp"], "bad-config"),
        (["pull", "--refresh", "sometimes", "/tmp"], "usage"),
        (["pull"], "usage"),
        (["frobnicate"], "usage"),
        ([], "usage"),
        (["ls", "--frobnicate"], "usage"),
    ],
)
def test_bad_arguments_exit_with_2(inside: Callable[..., Done], arguments: list[str], code: str) -> None:
    assert failed(inside("--json", *arguments)) == (2, code)


def test_bad_settings_name_the_variable(cli: Executable) -> None:
    done = cli("ls", MODELCACHE_HIGH_WATERMARK="7")

    assert done.code == 2
    assert done.err.startswith("error: MODELCACHE_HIGH_WATERMARK: ")


def test_a_directory_of_something_else_is_no_store(cli: Executable) -> None:
    cli.root.mkdir()
    (cli.root / "precious").touch()

    assert failed(cli("df", "--json")) == (8, "store-location")
    assert os.listdir(cli.root) == ["precious"]


def test_people_get_an_error_and_a_hint_on_stderr_alone(cli: Executable, tmp_path: Path) -> None:
    done = cli("pull", tmp_path / "nowhere")

    assert done.out == ""
    assert done.err.splitlines()[-2].startswith("error: no such file or directory")
    assert done.err.splitlines()[-1].startswith("hint: ")
    assert "\x1b" not in done.err


def test_verbose_shows_code_and_values(inside: Callable[..., Done], tmp_path: Path) -> None:
    lines = inside("pull", "-v", tmp_path / "nowhere").err.splitlines()

    assert "code: not-found" in lines
    assert f"address: file://{tmp_path}/nowhere" in lines


def test_no_command_shows_the_help_and_fails(cli: Executable) -> None:
    done = cli()

    assert (done.code, done.out) == (2, "")
    assert "Usage: modelcache" in done.err


# -- secrets --------------------------------------------------------------------------------------------------------


def test_a_credential_in_an_argument_works_and_is_warned_of_and_is_never_shown(cli: Executable, server: FaultServer) -> None:
    server.put("/model.bin", b"weights")
    host = server.endpoint.removeprefix("http://")
    uri = f"http://user:{PASSWORD}@{host}/model.bin?sig={TOKEN}"

    warned = cli("pull", "-v", uri)
    silent = cli("pull", "--json", "-", stdin=uri)
    listed = cli("show", "--json", f"http://{host}/model.bin")
    wrong = cli("pull", "-v", uri.replace("model.bin", "missing"))
    usage = cli("ls", uri)

    assert warned.code == silent.code == listed.code == 0
    assert warned.err.startswith(f"warning: the URI of `http://{host}/model.bin` holds a credential")
    assert "warning" not in silent.err
    assert silent.document["snapshots"][0]["uri"] == f"http://{host}/model.bin"
    assert (wrong.code, usage.code) == (3, 2)
    for done in (warned, silent, listed, wrong, usage):
        assert PASSWORD not in done.out + done.err
        assert TOKEN not in done.out + done.err
    stored = b"".join(path.read_bytes() for path in cli.root.rglob("*") if path.is_file())
    assert PASSWORD.encode() not in stored
    assert TOKEN.encode() not in stored


def test_patterns_join_a_uri_that_holds_a_credential(cli: Executable, server: FaultServer) -> None:
    server.put("/model.bin", b"weights")
    host = server.endpoint.removeprefix("http://")

    done = cli("pull", "--json", "-", "--include", "*.bin", stdin=f"http://user:{PASSWORD}@{host}/model.bin#exclude=x")

    assert done.document["snapshots"][0]["uri"] == f"http://{host}/model.bin#include=*.bin&exclude=x"


def test_no_option_takes_a_credential(cli: Executable) -> None:
    text = cli("pull", "--help").out.lower()

    assert "--profile" in text
    assert [word for word in ("secret", "password", "--token", "--access-key", "--key") if word in text] == []


@pytest.fixture
def broken_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Opening a cache raises what no command plans for, with secrets in its words."""

    def cache_of(config: object) -> object:
        raise KeyError(f"http://user:{PASSWORD}@host/x?token={TOKEN} Authorization: Bearer {TOKEN}\nsecond line")

    monkeypatch.setattr(lazy, "cache_of", cache_of)
    monkeypatch.setenv("MODELCACHE_ROOT", str(tmp_path))
    return tmp_path


def test_the_unexpected_is_one_line_and_a_hint(broken_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["pull", "/tmp"])
    shown = capsys.readouterr()

    assert (code, shown.out) == (1, "")
    assert len(shown.err.splitlines()) == 2
    assert shown.err.startswith("error: unexpected KeyError: ")
    assert "-v" in shown.err.splitlines()[1]
    assert PASSWORD not in shown.err
    assert TOKEN not in shown.err


@pytest.mark.parametrize("place", ["read_settings", "cache_of"])
def test_ctrl_c_is_that_wherever_it_comes(
    broken_cache: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.11 makes a RuntimeError of what interrupts the making of a class, and so of an import."""

    def interrupted(*_: object) -> None:
        raise RuntimeError("Error calling __set_name__") from KeyboardInterrupt()

    monkeypatch.setattr(lazy, place, interrupted)

    assert main(["pull", str(broken_cache)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: cancelled"


def test_the_traceback_of_the_unexpected_has_no_secret(broken_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["-v", "pull", "/tmp"])
    shown = capsys.readouterr().err

    assert "Traceback (most recent call last)" in shown
    assert "in cache_of" in shown
    assert PASSWORD not in shown
    assert TOKEN not in shown


def test_the_unexpected_is_a_document_too(broken_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--json", "-v", "pull", "/tmp"])
    shown = capsys.readouterr()

    assert failed(Done(code, shown.out, shown.err)) == (1, "unexpected")
    assert "in cache_of" in shown.out
    assert TOKEN not in shown.out


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"<>`@/?#"), min_size=8, max_size=20)


@given(secret=TEXT, before=st.text(max_size=10), after=st.text(max_size=10))
def test_values_of_variables_named_like_secrets_are_hidden(secret: str, before: str, after: str) -> None:
    shown = redact(f"{before}{secret}{after}", {"AWS_SECRET_ACCESS_KEY": secret, "HOME": "/home"})

    assert secret not in shown.replace(HIDDEN, "")


@given(secret=TEXT.filter(str.isalnum).map("Zq9".__add__))
def test_secrets_in_urls_headers_and_pairs_are_hidden(secret: str) -> None:
    for text in (
        f"GET https://{secret}@host/x failed",
        f"GET https://user:{secret}@host/x failed",
        f"(https://host/x?X-Amz-Signature={secret}&y=1)",
        f"{{'Authorization': 'AWS4-HMAC-SHA256 Credential={secret}'}}",
        f"X-Amz-Security-Token: {secret}",
        f"aws_secret_access_key = {secret}",
        f"password={secret}",
        f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={secret};EndpointSuffix=core.windows.net",
        f"?sv=2021&sig={secret}&se=1",
        f"{{'account_key': '{secret}', 'connection_string': None}}",
    ):
        assert secret not in redact(text, {})


@pytest.mark.parametrize(
    "variable", ["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_KEY", "AZURE_STORAGE_CONNECTION_STRING", "X_API_KEY"]
)
def test_a_key_that_begins_like_a_path_is_a_key(variable: str) -> None:
    assert redact("the library said /bXRuL+k9aTk3 here", {variable: "/bXRuL+k9aTk3\n"}) == f"the library said {HIDDEN} here"


def test_words_are_left_alone() -> None:
    text = "".join(traceback.format_exception(ValueError("no such file: /models/token.json at s3://bucket/key, 3 left")))

    places = dict.fromkeys(("HF_TOKEN_PATH", "GOOGLE_APPLICATION_CREDENTIALS", "AWS_WEB_IDENTITY_TOKEN_FILE"), "/models/token.json")
    assert redact(text, {**places, "USE_TOKEN": "true"}) == text
