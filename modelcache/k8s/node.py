"""A LocalModelNode as values: what it wants a node to have, and what the node says that it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from modelcache.k8s.names import GROUP, STATUS_ANNOTATION, VERSION

MAX_ERROR_TEXT = 500
"""Characters; as in the schema."""

Object = dict[str, Any]


class State(StrEnum):
    """KServe's."""

    PENDING = "ModelDownloadPending"
    DOWNLOADING = "ModelDownloading"
    DOWNLOADED = "ModelDownloaded"
    ERROR = "ModelDownloadError"


@dataclass(frozen=True, slots=True)
class Storage:
    """Which entry of KServe's storage secret is the model's. `key` None: KServe's default one."""

    key: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WantedModel:
    """One model that a node is to have.

    Attributes:
        namespace: of the cache that wants it; None: a cluster cache.
    """

    name: str
    uri: str
    namespace: str | None = None
    service_account: str | None = None
    storage: Storage | None = None

    @property
    def key(self) -> str:
        """Its name in the status (KServe: `name`, or `namespace/name`)."""
        return self.name if self.namespace is None else f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a node says about one model. Times are Unix times; an error beside DOWNLOADED is one of looking for a newer version."""

    state: State = State.PENDING
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_s: int = 0
    started_at_s: float | None = None
    finished_at_s: float | None = None
    revision: str | None = None
    digest: str | None = None
    error_code: str | None = None
    error_text: str | None = None


def wanted_models(node: Object) -> dict[str, WantedModel]:
    """By key, in the order of the spec; of two with one key the first. KServe's minimal definitions check nothing: what names no model
    and URI, or has a name that none has (a slash would make another namespace's key of it), is left out.
    """
    found: dict[str, WantedModel] = {}
    listed = _part(node, "spec").get("localModels")
    for each in listed if isinstance(listed, list) else ():
        if not isinstance(each, dict) or not _text_in(each, "modelName") or not _text_in(each, "sourceModelUri"):
            continue
        model = WantedModel(
            name=each["modelName"],
            uri=each["sourceModelUri"],
            namespace=_text_in(each, "namespace"),
            service_account=_text_in(each, "serviceAccountName"),
            storage=_storage(each.get("storage")),
        )
        if "/" not in model.name and "/" not in (model.namespace or ""):
            found.setdefault(model.key, model)
    return found


def _part(node: Object, name: str) -> Object:
    found = node.get(name)
    return found if isinstance(found, dict) else {}


def _storage(told: object) -> Storage | None:
    if not isinstance(told, dict):
        return None
    parameters = told.get("parameters")
    texts = {str(name): str(value) for name, value in parameters.items()} if isinstance(parameters, dict) else {}
    return Storage(_text_in(told, "key"), texts)


def _text_in(told: Object, name: str) -> str | None:
    value = told.get(name)
    return value if isinstance(value, str) and value else None


def state_texts(node: Object) -> object:
    """KServe's word on each model, as the API server has it."""
    return _part(node, "status").get("modelStatus") or {}


def other_writers(node: Object, own: str) -> tuple[str, ...]:
    """Who else writes KServe's word on models, by the names that the API server keeps (`managedFields`)."""
    fields = _part(node, "metadata").get("managedFields")
    found = set()
    for each in fields if isinstance(fields, list) else ():
        if isinstance(each, dict) and _text_in(each, "manager") not in (None, own):
            status = _part(_part(each, "fieldsV1"), "f:status")
            found |= {str(each["manager"])} if "f:modelStatus" in status else set()
    return tuple(sorted(found))


def told_models(node: Object) -> Mapping[str, Object]:
    """What was reported of each model besides KServe's word: in the status, or in the annotation where the status has no room for it."""
    models = _part(node, "status").get("models") or _part(_annotated(node), "models")
    return {key: told for key, told in models.items() if isinstance(told, dict)} if isinstance(models, dict) else {}


def _annotated(node: Object) -> Object:
    try:
        told = json.loads(str(_part(_part(node, "metadata"), "annotations").get(STATUS_ANNOTATION)))
    except (ValueError, RecursionError):  # there is none, or somebody else wrote it
        return {}
    return told if isinstance(told, dict) else {}


def times_of(told: Object) -> tuple[float | None, float | None]:
    """`startedAt` and `finishedAt`; None: absent, or unreadable."""
    return _seconds(told.get("startedAt")), _seconds(told.get("finishedAt"))


def states_of(reports: Mapping[str, ModelReport]) -> Object:
    """A status with KServe's fields alone."""
    return {"modelStatus": {key: report.state.value for key, report in reports.items()}}


def status_of(reports: Mapping[str, ModelReport], generation: int) -> Object:
    """The whole status."""
    states = [report.state for report in reports.values()]
    return states_of(reports) | {
        "observedGeneration": generation,
        "copies": {"available": states.count(State.DOWNLOADED), "total": len(states), "failed": states.count(State.ERROR)},
        "models": {key: _told(report) for key, report in reports.items()},
    }


def node_with(name: str, status: Object) -> Object:
    """The object to apply."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "LocalModelNode", "metadata": {"name": name}, "status": status}


def _told(report: ModelReport) -> Object:
    told = {
        "bytesDone": report.bytes_done,
        "bytesTotal": report.bytes_total,
        "bytesPerSecond": report.bytes_per_s,
        "startedAt": _text(report.started_at_s),
        "finishedAt": _text(report.finished_at_s),
        "revision": report.revision,
        "digest": report.digest,
        "errorCode": report.error_code,
        "errorText": None if report.error_text is None else report.error_text[:MAX_ERROR_TEXT],
    }
    return {name: value for name, value in told.items() if value is not None}


def _text(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp() if text else None
    except ValueError:
        return None
