"""The custom resource definitions, as files: KServe's schemas field for field, with printer columns, short names and optional status
fields of modelcache's. A cluster that has KServe's own serves without ours.
"""

from __future__ import annotations

from importlib.resources import files

NAMES = ("localmodelcaches", "localmodelnamespacecaches", "localmodelnodegroups", "localmodelnodes")


def text_of(name: str) -> str:
    """The YAML text of one of NAMES."""
    return files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
