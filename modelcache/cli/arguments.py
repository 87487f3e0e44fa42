"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.cli.completion import complete_name
from modelcache.cli.options import FLAG

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A URI, a digest, or its first 8 or more hex digits.", autocompletion=complete_name)
]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME", help="URIs, digests, or their first 8 or more hex digits.", autocompletion=complete_name)
]
AnyName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="A URI, a digest, or its first 8 or more hex digits; everything if left out.", autocompletion=complete_name
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", metavar=FLAG, help="Say what would go; remove nothing.")]
