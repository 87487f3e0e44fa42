"""Writes what the documentation says about settings, from the table of them in the code.

    python -m tools.settings           brings docs/operations.md and docs/config.example.toml up to date
    python -m tools.settings --check   says whether they are

One of the tests does the latter.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from modelcache.config import Resolved, Settings
from modelcache.config.kinds import Entry

ROOT = Path(__file__).resolve().parents[1]
OPERATIONS = ROOT / "docs/operations.md"
EXAMPLE = ROOT / "docs/config.example.toml"
MARK = re.compile(r"(<!-- settings -->\n).*?(<!-- /settings -->)", re.DOTALL)
HEAD = """# Every setting of modelcache with its default, as docs/operations.md explains them.
# Written by `python -m tools.settings`; a line that begins with `#` and a key is not set.
"""


def defaults() -> list[Resolved]:
    """Every setting at its default, on no particular machine."""
    return list(Settings.read({"HOME": "/home/you"}, file=Path("/dev/null")).values)


def table(settings: list[Resolved]) -> str:
    """The table of docs/operations.md."""
    lines = ["| key | variables, the first that is set counts | default | what |", "|---|---|---|---|"]
    for one in settings:
        variables = ", ".join(f"`{variable.name}`" for variable in one.setting.variables)
        lines.append(f"| `{one.setting.key}` | {variables} | {_default(one)} | {_meaning(one)} |")
        inside = [entry for entry in one.setting.kind.entries if entry.meaning]
        lines += [f"| `{one.setting.key}{_below(entry)}` | | {_need(entry)} | {entry.meaning} |" for entry in inside]
    return "".join(f"{line}\n" for line in lines)


def example(settings: list[Resolved]) -> str:
    """docs/config.example.toml."""
    lines = [HEAD]
    section = ""
    for one in settings:
        before, _, name = one.setting.key.rpartition(".")
        if before != section:
            section = before
            lines.append(f"\n[{section}]\n" if section else "")
        lines += list(_statement(one, name))
    return "".join(lines)


def _statement(one: Resolved, name: str) -> Iterator[str]:
    """A comment, and the key with its default; with an example, commented out, where the default is none that could be written."""
    plain = one.setting.kind.plain(one.default)
    yield f"# {'; '.join([_meaning(one), *(variable.name for variable in one.setting.variables[:1])])}\n"
    if isinstance(plain, dict | list):
        yield from (f"#{line}\n" for line in one.setting.example.splitlines())
    elif one.setting.absent or one.setting.default_of:
        said = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", one.setting.absent or _toml(plain))
        yield f"#{name} = {one.setting.example or one.setting.kind.example}  # default: {said}\n"
    else:
        yield f"{name} = {_toml(plain)}\n"


def _toml(plain: object) -> str:
    if isinstance(plain, float) and plain.is_integer():
        return str(int(plain))
    return json.dumps(plain, ensure_ascii=False)


def _default(one: Resolved) -> str:
    if one.setting.absent:
        return one.setting.absent
    plain = one.setting.kind.plain(one.default)
    return "none" if plain in (None, {}, []) else f"`{_toml(plain).strip(chr(34))}`"


def _meaning(one: Resolved) -> str:
    unit = one.setting.kind.unit
    return f"{one.setting.meaning} ({unit})" if unit not in ("", "share") else one.setting.meaning


def _below(entry: Entry) -> str:
    return entry.name if entry.name.startswith((".", "[")) else f".{entry.name}"


def _need(entry: Entry) -> str:
    return "needed" if entry.required else ""


def wanted() -> dict[Path, str]:
    """What the documents should hold."""
    settings = defaults()
    return {
        OPERATIONS: MARK.sub(lambda found: found[1] + table(settings) + found[2], OPERATIONS.read_text(encoding="utf-8")),
        EXAMPLE: example(settings),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if something differs")
    only_check = parser.parse_args().check
    stale = [path for path, text in wanted().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if not only_check:
            path.write_text(wanted()[path], encoding="utf-8")
        print(f"{'differs' if only_check else 'written'}: {path.relative_to(ROOT)}")
    return 1 if stale and only_check else 0


if __name__ == "__main__":
    sys.exit(main())
