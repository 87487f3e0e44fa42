"""Programs that give out AWS credentials (`credential_process`), which botocore waits for as long as they like."""

from __future__ import annotations

import subprocess
from typing import Any

PROGRAM_S = 60.0
"""For one run of a program; it may ask a vault, or a person, and the call that waits can't be cancelled. botocore's own calls of a
network have connection and read timeouts (`Sdk`)."""


def bound_programs(session: Any) -> None:
    """Have every program that this session's chain runs end in time, those of a role's source profile, too. Who doesn't is killed.

    Args:
        session: botocore's, before it asks for a credential. Its provider takes what starts programs as an argument, and nobody
            passes one on: so it is set here.
    """
    program = _kind()
    resolver = session.get_component("credential_provider")
    for provider in resolver.providers:
        _bind(provider, program)
        builder = getattr(provider, "_profile_provider_builder", None)  # of roles
        if builder is not None:
            make = builder._create_process_provider
            builder._create_process_provider = lambda profile_name, make=make: _bind(make(profile_name), program)


def _bind(provider: Any, program: type[Any]) -> Any:
    if hasattr(provider, "_popen"):
        provider._popen = program
    return provider


def _kind() -> type[Any]:
    from botocore.exceptions import CredentialRetrievalError

    class Program(subprocess.Popen[bytes]):
        """Raises CredentialRetrievalError where it gives no answer in PROGRAM_S."""

        def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002  # its name there
            try:
                return super().communicate(input, PROGRAM_S if timeout is None else timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                self.wait()
                for stream in filter(None, (self.stdout, self.stderr)):
                    stream.close()  # a child of its own may have them open still
            raise CredentialRetrievalError(provider="custom-process", error_msg=f"no answer in {PROGRAM_S:g} s")

    return Program
