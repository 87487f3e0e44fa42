"""Arguments that several commands take."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from modelcache.cli import lazy
from modelcache.cli.completion import complete_name
from modelcache.cli.options import FLAG
from modelcache.errors import BadConfig, FileFault
from modelcache.units import parse_bytes

if TYPE_CHECKING:
    from modelcache.cli.output import Output

URIS = "Where models come from: hf://owner/model, s3://…, gs://…, https://…, or a path; - reads them from stdin, one a line."
A_NAME = "A URI or path that was pulled, a digest, or its first 8 or more hex digits"
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"{A_NAME}.", autocompletion=complete_name)]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help=f"{A_NAME}; several, too.", autocompletion=complete_name)]
AnyName = Annotated[str | None, typer.Argument(metavar="NAME", help=f"{A_NAME}; everything if left out.", autocompletion=complete_name)]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", metavar=FLAG, help="Say what would go; remove nothing.")]


def stdin() -> TextIO:
    """This process's stdin. Raises FileFault: it was started without one (`<&-`), and its number may be another file's by now."""
    found: TextIO | None = sys.stdin
    if found is None:
        raise FileFault("stdin can't be read: it is closed", hint="pipe into this command what it is to read, or name a file")
    return found


def size_of(option: str, text: str) -> int:
    """Bytes that an option names. Raises BadConfig, which names the option."""
    try:
        return parse_bytes(text)
    except BadConfig as error:
        raise BadConfig(f"{option}: {error.message}", got=text, hint=error.hint) from None


def warn_of_secrets(output: Output, text: str, instead: str) -> None:
    """Warn if a URI among the arguments holds a credential. `instead`: the command that reads it from stdin. Raises InvalidUri."""
    uri, secrets = lazy.read_uri(text)
    if secrets:
        output.warn(
            f"the URI of `{uri}` holds a credential, and every user of this machine can read arguments",
            hint=f"write it to the stdin of `{instead}`, or use a profile or the environment",
        )
