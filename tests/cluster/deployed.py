"""deploy/ on a control plane."""

from __future__ import annotations

from modelcache.k8s.names import SYSTEM_NAMESPACE
from modelcache.testing.servers.control_plane import ControlPlane
from tests.deploy.manifests import Object, objects

PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/serviceaccounts",
    "ConfigMap": f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "PriorityClass": "/apis/scheduling.k8s.io/v1/priorityclasses",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/networkpolicies",
    "DaemonSet": f"/apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/daemonsets",
}


def deploy(plane: ControlPlane) -> None:
    """Apply every object, as `kubectl apply --server-side -k deploy` does. No pod comes of it: that takes a controller manager."""
    for each in objects():
        plane.apply(path_of(each), each)


def path_of(manifest: Object) -> str:
    return f"{PATHS[manifest['kind']]}/{manifest['metadata']['name']}"
