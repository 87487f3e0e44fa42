"""Nothing in the repository belongs to one machine, or sends anybody to a package registry that they didn't choose."""

from __future__ import annotations

import re

from tests.docs.documents import ROOT, name_of, tracked

# in pieces, so that this file doesn't name them
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("registry", "npmjs", "org"),
        ("conda", "anaconda", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
]
MACHINE_PATH = re.compile(r"(?<![\w.$~}-])/(?:work|root|home/(?!you\b)\w+|opt/(?:pypi|wheels)|Users/\w+)(?:/|\b)")
INDEX_OPTION = re.compile(r"--(?:extra-)?index(?:-url)?[ =]\S|--find-links[ =]\S")


def findings(text: str) -> list[str]:
    found = [match[0] for pattern in (MACHINE_PATH, INDEX_OPTION) for match in pattern.finditer(text)]
    return found + [host for host in REGISTRIES if host in text]


def test_no_machine_path_and_no_registry_is_named() -> None:
    bad: dict[str, list[str]] = {}
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8000] and (found := findings(data.decode("utf-8"))):
            bad[name_of(path)] = found

    assert bad == {}


def test_what_is_looked_for_is_found() -> None:
    assert findings("cd " + "/wo" + "rk/x; cat " + "/ro" + "ot; open(" + repr("/home" + "/joe/x") + ")") == [
        "/wo" + "rk/",
        "/ro" + "ot",
        "/home" + "/joe/",
    ]
    assert findings("pip install --index-url" + "=https://example.com x") == ["--index-url" + "=h"]
    assert findings(f"https://{REGISTRIES[0]}/simple") == [REGISTRIES[0]]
    assert findings("ROOT/root.json docs/work/x /var/lib/modelcache framework/root") == []


def test_the_tests_of_documents_see_the_repository() -> None:
    names = {name_of(path) for path in tracked()}

    assert {"README.md", "LICENSE", "Makefile", "pyproject.toml", "constraints.txt", "docs/architecture.md"} <= names
    assert (ROOT / ".ci/run").stat().st_mode & 0o111
