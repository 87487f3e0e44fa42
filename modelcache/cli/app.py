"""The commands, put together."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from modelcache import __version__
from modelcache.cli.config import config
from modelcache.cli.dedupe import dedupe
from modelcache.cli.df import df
from modelcache.cli.doctor import doctor
from modelcache.cli.evictions import telling_evictions
from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.export import export
from modelcache.cli.failures import report, report_usage
from modelcache.cli.gc import gc
from modelcache.cli.grant import grant
from modelcache.cli.import_ import import_
from modelcache.cli.inspect_ import inspect as inspect_model
from modelcache.cli.load import load
from modelcache.cli.ls import ls
from modelcache.cli.options import FLAG, CommonOptions, spread
from modelcache.cli.path import path
from modelcache.cli.pin import pin, unpin
from modelcache.cli.prewarm import prewarm
from modelcache.cli.pull import pull
from modelcache.cli.rates import rates
from modelcache.cli.rm import rm
from modelcache.cli.session import Session
from modelcache.cli.show import show
from modelcache.cli.top import top
from modelcache.cli.verify import verify

FETCHING, LOOKING, KEEPING = "Bring models in", "Look at what is here", "Keep and remove"

Command = Callable[..., ExitCode]

COMMANDS: tuple[tuple[Command, str], ...] = (
    (pull, FETCHING),
    (prewarm, FETCHING),
    (import_, FETCHING),
    (rates, FETCHING),
    (grant, FETCHING),
    (ls, LOOKING),
    (show, LOOKING),
    (inspect_model, LOOKING),
    (load, LOOKING),
    (path, LOOKING),
    (df, LOOKING),
    (top, LOOKING),
    (verify, LOOKING),
    (doctor, LOOKING),
    (config, LOOKING),
    (export, KEEPING),
    (pin, KEEPING),
    (unpin, KEEPING),
    (rm, KEEPING),
    (gc, KEEPING),
    (dedupe, KEEPING),
)


@dataclass
class Start:
    """What `main` hands to the commands: the process's variables, and the options before the command's name."""

    environ: Mapping[str, str] = field(repr=False)
    options: CommonOptions = field(default_factory=CommonOptions)


Version = Annotated[bool, typer.Option("--version", metavar=FLAG, help="The version.")]


def start(context: typer.Context, common: CommonOptions, version: Version = False) -> None:
    """Model weights, fetched once, verified, shared.

    A URI says where a model comes from: hf://owner/model, s3://bucket/path, gs://…, https://…, or a path of this machine. A NAME is a
    URI that was pulled, a digest, or its first 8 or more hex digits.
    """
    context.obj.options = common
    session = Session.of(common, context.obj.environ)
    if version:
        session.output.line(f"modelcache {__version__}")
        session.finish(version=__version__)
        raise typer.Exit(ExitCode.OK)
    if context.invoked_subcommand is None and common.as_json:
        hint = f"`{context.command_path} --help` lists the commands"
        raise typer.Exit(report_usage(session.output, "Missing command.", hint=hint, environ=context.obj.environ))
    if context.invoked_subcommand is None:
        with redirect_stdout(sys.stderr):
            typer.echo(context.get_help())
        raise typer.Exit(ExitCode.USAGE)


def _as_callback(function: Callable[..., None]) -> Callable[..., None]:
    signature, gather = spread(function, _context())

    def run(**values: Any) -> None:
        function(values.pop("context"), **gather(values))

    return _dressed(run, function, signature)


def _as_command(function: Command) -> Callable[..., int]:
    """What typer calls: makes the session, runs the command in it, and turns what it raises into an exit code."""
    signature, gather = spread(function, _context(), more=CommonOptions)

    def run(**values: Any) -> int:
        begun: Start = values.pop("context").obj
        arguments = gather(values)
        session = Session.of(arguments.pop("more").over(begun.options), begun.environ)
        try:
            with telling_evictions(session.output):
                return function(session, **arguments)
        except (Exception, KeyboardInterrupt) as error:
            return report(session, error)

    return _dressed(run, function, signature)


def _as_listed(function: Command) -> Callable[..., int]:
    """What the list of commands shows of one that isn't called: reading its options would cost more than all else that is shown."""
    return _dressed(lambda: ExitCode.UNEXPECTED, function, inspect.Signature())


def _dressed(run: Callable[..., Any], function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    run.__signature__ = signature  # type: ignore[attr-defined]  # typeshed's functions have none; inspect looks for it
    run.__doc__, run.__name__ = _unwrapped(inspect.getdoc(function) or ""), function.__name__
    return run


def _unwrapped(text: str) -> str:
    """Paragraphs as one line each: the terminal's width decides where they break, not the source's."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _context() -> inspect.Parameter:
    return inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def build(given: Container[str] | None = None) -> typer.Typer:
    """The application; with `given`, the arguments of a call, the commands that aren't among them have no options yet."""
    app = typer.Typer(name="modelcache", pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.callback(invoke_without_command=True)(_as_callback(start))
    for function, panel in COMMANDS:
        called = given is None or function.__name__ in given
        app.command(function.__name__, rich_help_panel=panel)(_as_command(function) if called else _as_listed(function))
    return app
