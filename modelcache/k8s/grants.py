"""What the owner of a namespace applies so that the agents may read one secret of it, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence

from modelcache.k8s.names import expect_label, expect_subdomain

_RBAC = "rbac.authorization.k8s.io"


def render_grant(secret: str, namespace: str, *, agent: tuple[str, str], service_accounts: Sequence[str] = ()) -> str:
    """YAML of a Role and its RoleBinding, both named after the secret.

    Args:
        agent: namespace and name of the agents' service account.
        service_accounts: of `namespace`, whose list of secrets the agents may look at, too: a cache that names a service account
            finds its secret through it.

    Raises:
        BadConfig: a name that none of these can have.
    """
    expect_label("a namespace", namespace)
    expect_label("a namespace", agent[0])
    for what, name in (("a secret", secret), ("a service account", agent[1]), *(("a service account", each) for each in service_accounts)):
        expect_subdomain(what, name)
    rules = [("secrets", [secret])] + ([("serviceaccounts", list(dict.fromkeys(service_accounts)))] if service_accounts else [])
    name = f"modelcache-{secret}"[:253].rstrip("-.")
    lines = [
        *_head("Role", name, namespace),
        "rules:",
        *(line for resource, names in rules for line in _rule(resource, names)),
        "---",
        *_head("RoleBinding", name, namespace),
        "roleRef:",
        f"  apiGroup: {_RBAC}",
        "  kind: Role",
        f"  name: {json.dumps(name)}",
        "subjects:",
        "  - kind: ServiceAccount",
        f"    name: {json.dumps(agent[1])}",
        f"    namespace: {json.dumps(agent[0])}",
    ]
    return "\n".join(lines) + "\n"


def _head(kind: str, name: str, namespace: str) -> list[str]:
    """Names are quoted: `n` and `1e3` are names, and to YAML a boolean and a number."""
    metadata = ["metadata:", f"  name: {json.dumps(name)}", f"  namespace: {json.dumps(namespace)}"]
    return [f"apiVersion: {_RBAC}/v1", f"kind: {kind}", *metadata, "  labels:", "    app.kubernetes.io/name: modelcache"]


def _rule(resource: str, names: Sequence[str]) -> list[str]:
    return ['  - apiGroups: [""]', f"    resources: [{resource}]", f"    resourceNames: {json.dumps(list(names))}", "    verbs: [get]"]
