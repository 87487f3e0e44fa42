"""The grammar: the documented tables, and what must hold of every URI (round trip, one form per place, no secret shown)."""

from __future__ import annotations

import re
import traceback
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from modelcache.digest import sha256
from modelcache.errors import InvalidUri
from modelcache.uri import StorageUri, UriSecrets, parse_uri, redact_url

DOCS = (Path(__file__).parents[2] / "docs" / "uris.md").read_text(encoding="utf-8")
EXAMPLES, REFUSED = DOCS.partition("## Examples")[2].split("What is refused")
ROW = r"^\| `(.+?)` \|(?: `(.+?)`)? \|$"
CWD = Path("/data")
MARKER = "sEcReT"


def uri_of(text: str) -> StorageUri:
    return parse_uri(text, cwd=CWD)[0]


def parsed(text: str) -> tuple[StorageUri, UriSecrets] | InvalidUri:
    try:
        return parse_uri(text, cwd=CWD)
    except InvalidUri as error:
        return error


# -- the documented tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("written", "canonical"), re.findall(ROW, EXAMPLES, re.MULTILINE))
def test_documented_canonical_forms(written: str, canonical: str) -> None:
    uri = uri_of(written)
    assert str(uri) == canonical
    assert parse_uri(canonical) == (uri, UriSecrets())


@pytest.mark.parametrize(("written", "bad"), re.findall(ROW, REFUSED, re.MULTILINE))
def test_documented_refusals_show_the_bad_part(written: str, bad: str) -> None:
    with pytest.raises(InvalidUri) as caught:
        parse_uri(written, cwd=CWD)
    assert (caught.value.got or "") == bad
    assert bad in str(caught.value)
    assert ("#include=" in (caught.value.hint or "")) is ("*" in bad)


def test_a_path_of_this_machine_may_be_a_path_object() -> None:
    assert parse_uri(cast(str, Path("/data/m")))[0] == uri_of("m")
    with pytest.raises(TypeError, match="NoneType"):
        parse_uri(cast(str, None))


def test_the_documented_tables_were_read() -> None:
    assert len(re.findall(ROW, EXAMPLES, re.MULTILINE)) >= 30
    assert len(re.findall(ROW, REFUSED, re.MULTILINE)) >= 20


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("s3://b/k?versionId=x1", StorageUri("s3", "b", "k", revision="x1")),
        ("s3://b", StorageUri("s3", "b", "")),
        ("hf://o/m:v1/sub/dir", StorageUri("hf", "o/m", "sub/dir", revision="v1")),
        ("hf://o/m:a%2Fb", StorageUri("hf", "o/m", "", revision="a/b")),
        ("https://h:8443/a%20b?x=1", StorageUri("https", "h:8443", "a%20b", query="x=1")),
        ("oci://r.io/a/b@sha256:" + "0" * 64, StorageUri("oci", "r.io", "a/b", revision="sha256:" + "0" * 64)),
        ("pvc://claim/a", StorageUri("pvc", "claim", "a")),
        ("m", StorageUri("file", "", "/data/m")),
        ("file:///", StorageUri("file", "", "/")),
        ("oss://b/k?x=1", StorageUri("oss", "b", "k", query="x=1")),
        (f"s3://b/k#sha256={'0' * 64}&include=*", StorageUri("s3", "b", "k", digest=sha256("0" * 64))),
    ],
)
def test_fields(text: str, fields: StorageUri) -> None:
    assert uri_of(text) == fields


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("https://u:p%40@h/k?sig=1&SE=2&a=3&X%2DAmz-Date=4", UriSecrets("u:p%40", "sig=1&SE=2&X%2DAmz-Date=4")),
        ("https://h/k?se=2&sp=r", UriSecrets()),
        ("hf://tok@o/m", UriSecrets("tok")),
        ("s3://KEY:se%2Fcret@b/k?AWSAccessKeyId=1", UriSecrets("KEY:se%2Fcret", "AWSAccessKeyId=1")),
        ("https://h/k?token", UriSecrets(None, "token")),
        ("https://@h/k", UriSecrets("")),
        ("abfs://container@account.dfs.core.windows.net/k", UriSecrets()),
        ("./a@b?token=1", UriSecrets()),
    ],
)
def test_secrets_come_back(text: str, secrets: UriSecrets) -> None:
    found = parse_uri(text, cwd=CWD)[1]
    assert found == secrets
    assert bool(found) == (secrets != UriSecrets())


@pytest.mark.parametrize(
    "text", ["", " s3://b/k", "s3://b/k\n", "s3://b/\x00", "s3://b/\ud800", "/a\tb", "s3://", "x://", "file://", "https://"]
)
def test_more_refusals(text: str) -> None:
    with pytest.raises(InvalidUri):
        parse_uri(text)


def test_a_relative_path_starts_here_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert uri_of("x").path == "/data/x"
    assert parse_uri("x")[0].path == f"{tmp_path}/x"
    with pytest.raises(ValueError, match="not an absolute directory"):
        parse_uri("x", cwd=Path("rel"))
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert parse_uri("/abs")[0].path == "/abs"
    with pytest.raises(InvalidUri, match="current directory is gone"):
        parse_uri("x")


# -- every URI ------------------------------------------------------------------------------------------------------

SEGMENT = st.text("abzAZ09 ._-~%#?&=+@:!*'()é\U0001f600", min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..") and "::" not in text
)
RAW_PATH = st.lists(SEGMENT, max_size=4).map("/".join)
NAME = st.text("abzAZ09-", min_size=1, max_size=8).map(lambda text: f"n{text}")
LABEL = st.text("abz09", min_size=1, max_size=6)
REVISION = st.from_regex(r"[a-z0-9][a-z0-9@#%é+-]{0,6}(/[a-z0-9]{1,4})?", fullmatch=True)
PATTERN = st.text("ab*?[]!/&#%= é.", min_size=1, max_size=8)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
PORT = st.integers(1, 65535)


@st.composite
def values(draw: st.DrawFn) -> StorageUri:
    """Canonical values, made field by field: what `parse_uri` may give."""
    scheme = draw(
        st.sampled_from(["file", "http", "https", "s3", "gs", "hf", "modelscope", "pvc", "oci", "hdfs", "oss", "sftp", "github", "abfs"])
    )
    authority, path, query, revision = draw(LABEL), draw(RAW_PATH), "", None
    match scheme:
        case "file":
            authority, path = "", f"/{path}"
        case "http" | "https" | "sftp":
            port = draw(st.none() | PORT.filter(lambda port: port not in (22, 80, 443)))
            authority = draw(st.sampled_from([authority, "[::1]"])) + (f":{port}" if port else "")
            if scheme != "sftp":
                path = draw(st.from_regex(r"([a-zA-Z0-9~!$&'()*+,;=:@-]|%2F|%25|%C3%A9){0,9}", fullmatch=True))
                query = draw(st.sampled_from(["", "a=1", "b=%26&a=2", "se=1", "x=/?:@"]))
            else:
                path = path.replace("?", "q")
        case "s3" | "gs":
            authority = draw(NAME)
            if path:
                revision = draw(st.none() | st.from_regex(r"[1-9]{1,9}", fullmatch=True))
        case "hf" | "modelscope":
            authority, revision = f"{draw(NAME)}/{draw(NAME)}", draw(REVISION)
        case "oci":
            authority, path = f"{authority}.io:5000", draw(st.from_regex(r"[a-z0-9]{1,5}(/[a-z0-9]{1,5})?", fullmatch=True))
            revision = draw(st.sampled_from(["latest", "v1.0_x", f"sha256:{'0' * 64}"]))
        case "oss":
            path, query = path.replace("?", "q"), draw(st.sampled_from(["", "a=1", "b=%26&a=/?"]))
        case "github" | "abfs":
            authority = {"github": "org:repo@main", "abfs": "container@account.host:444"}[scheme]
            path = path.replace("?", "q")
    patterns = st.lists(PATTERN.filter(lambda text: not text.endswith("/")), max_size=3, unique=True).map(
        lambda found: tuple(sorted(found))
    )
    include, exclude = draw(patterns), draw(patterns)
    include = () if "*" in include else include
    return StorageUri(scheme, authority, path, query, revision, include, exclude, draw(st.none() | HEX.map(sha256)), draw(st.booleans()))


@given(values())
@example(StorageUri("s3", "b", "a#b?c"))
@example(StorageUri("gs", "b", "a#1", revision="2"))
@example(StorageUri("s3", "b", "a "))
@example(StorageUri("file", "", "/a\N{NO-BREAK SPACE}"))
def test_every_value_survives_its_print(uri: StorageUri) -> None:
    assume(uri.scheme != "file" or "/" not in (uri.path[1:2], uri.path[-1:]) or uri.path == "/")
    assert parse_uri(str(uri)) == (uri, UriSecrets())


HOSTILE = st.tuples(
    st.sampled_from(
        [
            "",
            "/",
            "file://",
            "file:",
            "http://",
            "HTTPS://h",
            "s3://b/",
            "gs://b/",
            "hf://o/m",
            "pvc://c/",
            "oci://",
            "hdfs://",
            "oss://b",
            "git://",
            "sftp://h",
        ]
    ),
    st.text("abAB01:/@?#%&=*.+-[] é\u2028\x00", max_size=30),
    st.sampled_from(["", "#include=a", "?versionId=1", "#1", "/", "//", "#", "?", " ", "%41", "?a&&b=", ":443/x", "::x://"]),
).map("".join)


@settings(max_examples=2000)
@given(HOSTILE)
def test_any_text_is_refused_or_has_a_fixed_canonical_form(text: str) -> None:
    result = parsed(text)
    if isinstance(result, InvalidUri):
        assert result.address is not None
        assert result.address.isprintable()
        return
    uri, _ = result
    assert parse_uri(str(uri)) == (uri, UriSecrets())
    assert str(uri) == str(parse_uri(str(uri))[0])


@given(values(), st.data())
def test_equal_places_print_alike(uri: StorageUri, data: st.DataObject) -> None:
    head, slashes, rest = str(uri).partition("://")
    body, mark, fragment = rest.partition("#") if uri.scheme.startswith("http") else _last(rest, "#")
    spelled = data.draw(st.sampled_from([head, head.upper(), {"s3": "s3a", "gs": "gcs", "oci": "oci+native"}.get(head, head)]))
    pairs = data.draw(st.permutations(fragment.split("&"))) if fragment else []
    pairs += data.draw(st.lists(st.sampled_from(pairs), max_size=2)) if pairs and uri.digest is None else []
    if uri.scheme in ("http", "https") and not uri.authority.rpartition("]")[2].count(":"):
        port = {"http": ":80", "https": ":443"}[uri.scheme]
        authority = re.split("[/?]", body)[0]
        body = f"{data.draw(st.sampled_from([authority, authority.upper()]))}{port}{body[len(authority) :]}"
    if "?" not in body and uri.scheme != "github":
        body += data.draw(st.sampled_from(["", "/", "//"])) if uri.path else ""
    assert str(uri_of(f"{spelled}{slashes}{body}{mark}{'&'.join(pairs)}")) == str(uri)


def _last(text: str, mark: str) -> tuple[str, str, str]:
    before, found, after = text.rpartition(mark)
    return (before, found, after) if found else (text, "", "")


@given(st.text("abcXYZ019-._~/", max_size=12), st.data())
def test_percent_encoded_spellings_of_one_url_print_alike(path: str, data: st.DataObject) -> None:
    assume(not {".", ".."} & set(path.split("/")))
    spelled = "".join(data.draw(st.sampled_from([char, f"%{ord(char):02x}", f"%{ord(char):02X}"])) if char != "/" else "/" for char in path)
    assert uri_of(f"https://h/{spelled}") == uri_of(f"https://h/{path}")


# -- secrets --------------------------------------------------------------------------------------------------------

HIDDEN = st.tuples(st.text("abXY019-._~!$&'()*+,;=", max_size=5), st.just(MARKER), st.text("abXY019-._~!$&'()*+,;=", max_size=5)).map(
    "".join
)
RAW_PASSWORD = st.sampled_from(["ab/?#%:", "ab@%:"]).flatmap(
    lambda letters: st.tuples(st.text(letters, max_size=4), st.text(letters, max_size=4)).map(lambda ends: f"x{ends[0]}{MARKER}{ends[1]}")
)
PARAMETER = st.sampled_from(
    [
        "X-Amz-Signature",
        "x-amz-security-token",
        "X-Amz-Credential",
        "X-Goog-Signature",
        "Signature",
        "Expires",
        "AWSAccessKeyId",
        "GoogleAccessId",
        "Key-Pair-Id",
        "Policy",
        "sig",
        "token",
        "ACCESS_TOKEN",
        "X%2DAmz%2DSignature",
        "%74oken",
        "password",
        "api_key",
        "hdnts",
    ]
)
TARGET = st.sampled_from(
    [
        "http://{}host/a",
        "https://{}host:444/a?x=1",
        "s3://{}bucket/a/b",
        "gs://{}bucket/o",
        "hf://{}o/m",
        "hf://{}o/m:v/x",
        "modelscope://{}o/m",
        "oci://{}ghcr.io/a/b:v1",
        "oss://{}bucket/k",
        "sftp://{}host/a",
        "webhdfs://{}host:50070/a",
        "pvc://{}claim/a",
        "file://{}/a",
        "zip://{}x",
    ]
)
BREAKAGE = st.sampled_from(["", "#sha256=1", "#bad=1", "/..", "%zz", "\x00", " ", ":99999999", "?x=1", "::s3://x", "#a"])


def shown(text: str) -> str:
    """Everything that a person or a log could be shown of this text."""
    result = parsed(text)
    if isinstance(result, InvalidUri):
        assert result.__context__ is None
        assert result.__cause__ is None
        return f"{result} {result!r} {result.as_dict()} {result.args} {''.join(traceback.format_exception_only(result))}"
    uri, secrets = result
    return f"{uri} {uri!r} {secrets} {secrets!r} {redact_url(str(uri))}"


@given(TARGET, HIDDEN, st.booleans(), BREAKAGE)
def test_userinfo_is_never_shown(target: str, hidden: str, with_user: bool, breakage: str) -> None:
    text = target.format(f"{'user:' if with_user else ''}{hidden}@") + breakage
    assert MARKER not in shown(text)
    assert MARKER not in redact_url(text)


@given(TARGET, RAW_PASSWORD, BREAKAGE)
@example("https://{}host/a", f"x?{MARKER}", "")
@example("s3://{}bucket/a/b", f"x#{MARKER}=1", "")
def test_a_password_with_raw_separators_is_never_shown(target: str, password: str, breakage: str) -> None:
    text = target.format(f"user:{password}@") + breakage
    assert MARKER not in redact_url(text)
    assert MARKER not in shown(text)


@given(TARGET.filter(lambda target: not target.startswith("file")), PARAMETER, HIDDEN, BREAKAGE)
def test_signing_parameters_are_never_shown(target: str, name: str, hidden: str, breakage: str) -> None:
    text = target.format("")
    text += f"{'&' if '?' in text else '?'}{name}={hidden.replace('&', '')}" + breakage
    assert MARKER not in shown(text)
    assert MARKER not in redact_url(text)


@pytest.mark.parametrize(
    "text", [f"https://to#{MARKER}=1@host/x", f"s3://to#{MARKER}@b/k", f"hf://o/m#token={MARKER}", f"s3://b/k?x{MARKER}"]
)
def test_what_may_be_a_secret_is_not_shown(text: str) -> None:
    assert isinstance(parsed(text), InvalidUri)
    assert MARKER not in shown(text)


@given(st.text())
@example("https://u:p@h/x?y=1#z")
@example("//u:p@h")
@example("u:p@h/x")
def test_redact_url_takes_any_text(text: str) -> None:
    once = redact_url(text)
    assert once.isprintable()
    assert redact_url(once) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://u:p@h:1/x/@scope/y?q=a@b#f", "https://h:1/x/@scope/y"),
        ("zip://a::s3://k:s@b/x?y", "zip://a::s3://b/x"),
        ("http://127.0.0.1:80/@a", "http://127.0.0.1:80/@a"),
        ("http://[::1]:80/@a?x", "http://[::1]:80/@a"),
        ("/plain/path", "/plain/path"),
        ("https://h/\x1b[31m", "https://h/\N{REPLACEMENT CHARACTER}[31m"),
    ],
)
def test_redact_url_keeps_the_rest(text: str, expected: str) -> None:
    assert redact_url(text) == expected


# -- patterns -------------------------------------------------------------------------------------------------------


@given(st.lists(PATTERN, max_size=3), st.lists(PATTERN, max_size=3), st.text("ab/. é&#", min_size=1, max_size=8))
def test_patterns_select_as_written(include: list[str], exclude: list[str], path: str) -> None:
    def encoded(text: str) -> str:
        return "".join(f"%{byte:02x}" for byte in text.encode())

    def matches(patterns: list[str]) -> bool:
        return any(fnmatchcase(path, pattern + "*" * pattern.endswith("/")) for pattern in patterns)

    pairs = [f"include={encoded(text)}" for text in include] + [f"exclude={encoded(text)}" for text in exclude]
    uri = uri_of(f"s3://b/k#{'&'.join(pairs)}")
    assert uri.selects(path) == ((not include or matches(include)) and not matches(exclude))
