"""What an agent in a cluster decides by itself: when to report, what a secret says, what a LocalModelNode wants."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.backoff import Backoff
from daemonset.credentials import values_of, values_of_storage
from daemonset.reporting import LEAST_S, PROGRESS_EVERY_S, Told, due_s, unless_overwritten
from daemonset.tenants import NAMES
from modelcache.config import Config
from modelcache.errors import BadConfig, OriginBusy
from modelcache.k8s.api import _event as event_of
from modelcache.k8s.grants import render_grant
from modelcache.k8s.node import ModelReport, State, Storage, WantedModel, other_writers, status_of, told_models, wanted_models

MOVING = ModelReport(State.DOWNLOADING, bytes_done=100, bytes_total=1000, bytes_per_s=7, started_at_s=1.0)
TOLD = Told({"m": MOVING}, 3, 50.0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, None),
        ({"bytes_per_s": 9}, None),
        ({"bytes_done": 149}, None),
        ({"bytes_done": 150}, 50.0 + PROGRESS_EVERY_S),
        ({"bytes_done": 40}, 50.0 + PROGRESS_EVERY_S),
        ({"bytes_done": 1000, "state": State.DOWNLOADED}, 50.0 + LEAST_S),
        ({"error_code": "no-space"}, 50.0 + LEAST_S),
        ({"digest": "sha256:1"}, 50.0 + LEAST_S),
    ],
)
def test_a_change_is_told_at_once_and_progress_now_and_then(change: dict[str, Any], expected: float | None) -> None:
    assert due_s(TOLD, {"m": dataclasses.replace(MOVING, **change)}, 3) == expected


def test_another_spec_is_told_and_so_is_the_first_one() -> None:
    assert due_s(TOLD, TOLD.reports, 4) == 50.0 + LEAST_S
    assert due_s(TOLD, {}, 3) == 50.0 + LEAST_S
    assert due_s(None, {}, 3) == 0.0


def test_who_writes_over_each_report_is_not_answered_without_a_pause() -> None:
    ours: dict[str, Any] = {"status": {"modelStatus": {"m": "ModelDownloading"}}}
    assert due_s(unless_overwritten(TOLD, ours), TOLD.reports, 3) is None
    for theirs in ({"m": "ModelDownloaded"}, {}, {"m": "ModelDownloading", "other": "ModelDownloaded"}):
        found = unless_overwritten(TOLD, {"status": {"modelStatus": theirs}})
        assert due_s(found, TOLD.reports, 3) == 50.0 + LEAST_S
        assert due_s(unless_overwritten(found, ours), TOLD.reports, 3) == 50.0 + LEAST_S  # what was told may have come before theirs


@given(st.integers(1, 1000), st.none() | st.floats(0, 3600))
def test_pauses_grow_up_to_a_bound_and_are_as_long_as_was_asked_for(failures: int, asked_s: float | None) -> None:
    pause_s = Backoff(1.0, 60.0).after(failures, asked_s)
    bound_s = min(2.0 ** min(failures - 1, 10), 60.0)
    assert max(bound_s / 2, asked_s or 0) <= pause_s <= max(bound_s, asked_s or 0)


def test_what_a_node_is_to_have_is_read_as_kserve_writes_it() -> None:
    models = [
        {"modelName": "m", "sourceModelUri": "hf://o/m", "namespace": "", "nodeGroup": "g"},
        {"modelName": "m", "sourceModelUri": "s3://b/m", "namespace": "a", "serviceAccountName": "sa", "storage": {"key": "k"}},
        {"modelName": "m", "sourceModelUri": "s3://another/m", "namespace": "a"},
        {"modelName": "b/m", "sourceModelUri": "s3://another/m"},
        {"modelName": "m", "sourceModelUri": "s3://another/m", "namespace": "b/m"},
    ]
    assert wanted_models({"spec": {"localModels": models}}) == {
        "m": WantedModel("m", "hf://o/m"),
        "a/m": WantedModel("m", "s3://b/m", "a", "sa", Storage("k")),
    }
    for broken in (
        {},
        {"spec": None},
        {"spec": {"localModels": "m"}},
        {"spec": ["m"], "status": ["m"]},
        {"spec": {"localModels": [1, {"modelName": "m"}, {"modelName": 1}]}},
    ):
        assert wanted_models(broken) == {}
        assert told_models(broken) == {}
        assert due_s(unless_overwritten(Told({}, 3, 50.0), broken), {}, 3) is None


def test_who_else_writes_a_status_is_known_by_name() -> None:
    ours: dict[str, Any] = {"f:status": {"f:modelStatus": {"f:m": {}}}}
    fields = [
        {"manager": "modelcache-agent", "operation": "Apply", "fieldsV1": ours},
        {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:spec": {"f:localModels": {}}}},
        {"manager": "localmodelnode", "operation": "Update", "fieldsV1": ours},
    ]
    assert other_writers({"metadata": {"managedFields": fields}}, "modelcache-agent") == ("localmodelnode",)
    for broken in (
        {},
        {"metadata": {"managedFields": "x"}},
        {"metadata": {"managedFields": [1, {"manager": 1}, {"manager": "m", "fieldsV1": []}]}},
    ):
        assert other_writers(broken, "modelcache-agent") == ()


def test_a_status_has_the_limits_of_its_schema_and_leaves_out_what_is_unknown() -> None:
    failed = ModelReport(State.ERROR, error_code="no-space", error_text="x" * 9999, started_at_s=0.9)
    status = status_of({"m": failed, "here": ModelReport(State.DOWNLOADED)}, 2)
    assert status["modelStatus"] == {"m": "ModelDownloadError", "here": "ModelDownloaded"}
    assert status["copies"] == {"available": 1, "total": 2, "failed": 1}
    told = status["models"]["m"]
    assert told["startedAt"] == "1970-01-01T00:00:00Z"
    assert len(told["errorText"]) == 500
    assert {"finishedAt", "digest", "revision"}.isdisjoint(told)


@pytest.mark.parametrize("told", [{}, {"code": None}, {"code": "many"}, {"code": 503}])
def test_what_ends_a_watch_is_an_error_whatever_its_status_is(told: dict[str, Any]) -> None:
    with pytest.raises(OriginBusy):
        event_of({"type": "ERROR", "object": told}, "GET /watched")


def taken(data: dict[str, str], annotations: dict[str, str] | None = None) -> dict[str, str]:
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    return values_of({"metadata": {"name": "s", "annotations": annotations}, "data": encoded}, Config(root=Path("/store")))


def test_a_secret_is_read_by_kserves_names() -> None:
    keys = {"awsAccessKeyID": "a", "awsSecretAccessKey": "s", "ca.crt": "theirs"}
    told = {"serving.kserve.io/s3-endpoint": "host:9000", "serving.kserve.io/s3-useanoncredential": "false", "other/s3-region": "r"}
    found = taken(keys, told)
    assert found == {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
        "S3_ENDPOINT": "host:9000",
        "awsAnonymousCredential": "false",
    }
    assert set(found) <= set(NAMES)
    assert taken({"HF_TOKEN": "t"}, {"serving.kserve.io/s3-endpoint": "no S3 secret"}) == {"HF_TOKEN": "t"}
    assert taken({"https-host": "h", "headers": "{}", "h-headers": "{}"}) == {
        "https-host": "h",
        "headers": "{}",
        "h-headers": "{}",
    }
    assert taken({".dockerconfigjson": "{}"}) == {}
    key = {"gcloud-application-credentials.json": "{}"}
    assert taken(key) == key
    with pytest.raises(BadConfig, match="lacks a tenant id and a client secret") as caught:
        taken({"AZURE_CLIENT_ID": "the-value"})
    assert "the-value" not in str(caught.value.as_dict())


def test_an_entry_of_the_storage_secret_is_overridden_and_never_told() -> None:
    entry = json.dumps({"type": "s3", "access_key_id": "a", "secret_access_key": "s", "region": "r", "bucket": "b"})
    assert values_of_storage(entry, {"region": "other"}, "e") == {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_DEFAULT_REGION": "other",
    }
    assert values_of_storage('{"type": "hf", "token": "t"}', {}, "e") == {"HF_TOKEN": "t"}
    for broken in (
        "secret text",
        "[" * 100_000,
        '["secret text"]',
        '{"type": {"a": "secret text"}}',
        '{"type": "hdfs", "x": "secret text"}',
    ):
        with pytest.raises(BadConfig) as caught:
            values_of_storage(broken, {}, "e")
        assert "secret text" not in str(caught.value.as_dict())


@pytest.mark.parametrize(("secret_name", "namespace"), [("a\nrules: []", "ns"), ("x_y", "ns"), ("ok", "a.b"), ("", "ns"), ('"', "ns")])
def test_no_name_writes_rules_of_its_own(secret_name: str, namespace: str) -> None:
    with pytest.raises(BadConfig):
        render_grant(secret_name, namespace, agent=("modelcache-system", "modelcache-agent"))
