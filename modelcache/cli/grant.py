"""`modelcache grant`: what the owner of a namespace applies so that the agents may read a secret of it."""

from __future__ import annotations

from typing import Annotated

import typer

from modelcache.cli.exit_codes import ExitCode
from modelcache.cli.session import Session
from modelcache.errors import BadConfig
from modelcache.k8s.grants import render_grant

Secret = Annotated[str, typer.Argument(metavar="SECRET", help="Name of the secret.", show_default=False)]
Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NAMESPACE", help="Where the secret is.", show_default=False)]
ServiceAccounts = Annotated[
    list[str] | None,
    typer.Option("--service-account", metavar="NAME", help="Service account through which a cache finds it; again for each."),
]
To = Annotated[str, typer.Option("--to", metavar="NS/NAME", help="The agents' service account.")]


def grant(
    session: Session,
    secret: Secret,
    namespace: Namespace,
    service_account: ServiceAccounts = None,
    to: To = "modelcache-system/modelcache-agent",
) -> ExitCode:
    """Render the Role and RoleBinding that let the nodes' agents read one secret, for prewarming what it opens.

    Nothing is asked or changed: pipe it into `kubectl apply -f -`. Deleting both takes the right back.
    """
    place, given, name = to.partition("/")
    if not given:
        raise BadConfig("`--to` names a namespace and a service account", got=to, hint="as `modelcache-system/modelcache-agent`")
    text = render_grant(secret, namespace, agent=(place, name), service_accounts=service_account or ())
    session.finish(manifest=text)
    for line in text.splitlines():
        session.output.line(line)
    return ExitCode.OK
