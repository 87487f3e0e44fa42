"""What the cluster's document says of the custom resources is what their definitions say."""

from __future__ import annotations

from typing import Any

import yaml

from modelcache.k8s import crds
from modelcache.k8s.node import ModelReport, State, status_of
from tests.docs.documents import ROOT, between, rows

TEXT = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")


def spec_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(crds.text_of(name))["spec"])


def test_kinds_short_names_and_columns_are_those_of_the_definitions() -> None:
    found = []
    for name in crds.NAMES:
        spec = spec_of(name)
        columns = spec["versions"][0]["additionalPrinterColumns"]
        always, wide = (", ".join(each["name"] for each in columns if bool(each.get("priority")) is w) for w in (False, True))
        found.append([spec["names"]["kind"], f"`{spec['names']['shortNames'][0]}`", spec["scope"], always, wide])
    assert list(rows(between(TEXT, "custom resources"))) == found


def test_all_that_is_reported_is_in_the_definition_and_in_the_document() -> None:
    report = ModelReport(State.ERROR, 1, 2, 3, 4.0, 5.0, "r", "d", "c", "t")
    status = status_of({"m": report}, 1)
    declared = spec_of("localmodelnodes")["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    assert sorted(declared) == sorted(status)
    told = status["models"]["m"]
    assert sorted(declared["models"]["additionalProperties"]["properties"]) == sorted(told)
    for name in told:
        assert f"`models.*.{name}`" in TEXT or f"`.{name}`" in TEXT, name
    for name in status:
        assert f"| `{name}` |" in TEXT or name == "models", name
