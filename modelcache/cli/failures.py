"""From an exception to words and an exit code."""

from __future__ import annotations

import traceback
from collections.abc import Mapping

from modelcache.cli.exit_codes import ExitCode, exit_code_of
from modelcache.cli.output import Output, ReaderGone
from modelcache.cli.session import Session
from modelcache.errors import Cancelled, ModelCacheError
from modelcache.redaction import redact

RETRY_HINT = "the same command may work later"
TRACEBACK_HINT = "this is a defect or a broken machine; the same command with -v shows the traceback"


def report(session: Session, error: BaseException) -> ExitCode:
    """Tell the user why the command failed, in the style of the session."""
    if isinstance(error, ReaderGone):
        return ExitCode.READER_GONE
    if isinstance(error.__cause__, KeyboardInterrupt):  # as typer passes it on, and Python 3.11 where a class is just being made
        error = error.__cause__
    code = exit_code_of(error)
    output, environ = session.output, session.environ
    details = ""
    if isinstance(error, KeyboardInterrupt):
        fields = Cancelled("cancelled").as_dict()
    elif isinstance(error, ModelCacheError):
        fields = error.as_dict() | {"message": str(error)}
        if error.retryable:
            fields.setdefault("hint", RETRY_HINT)
        details = _details(fields) if output.style.verbose else ""
    else:
        fields = unexpected(error, environ)
        details = redact("".join(traceback.format_exception(error)), environ) if output.style.verbose else ""
        if details and output.style.as_json:
            fields["traceback"] = details
    try:
        output.failure({**fields, "exit_code": int(code)}, result=session.result, details=details)
    except ReaderGone:
        return ExitCode.READER_GONE
    return code


def unexpected(error: BaseException, environ: Mapping[str, str]) -> dict[str, object]:
    """An exception that is none of ours, in one line and without secrets."""
    said = " ".join(redact(str(error), environ).split())
    name = type(error).__name__
    return {"code": "unexpected", "message": f"unexpected {name}: {said}" if said else f"unexpected {name}", "hint": TRACEBACK_HINT}


def report_usage(output: Output, message: str, *, hint: str, environ: Mapping[str, str]) -> ExitCode:
    """The arguments make no sense; nothing was started."""
    fields = {"code": "usage", "message": " ".join(redact(message, environ).split()), "hint": hint, "exit_code": int(ExitCode.USAGE)}
    try:
        output.failure(fields, result={})
    except ReaderGone:
        return ExitCode.READER_GONE
    return ExitCode.USAGE


def _details(fields: Mapping[str, object]) -> str:
    left = {name: value for name, value in fields.items() if name not in ("message", "hint")}
    return "".join(f"{name}: {value}\n" for name, value in left.items())
