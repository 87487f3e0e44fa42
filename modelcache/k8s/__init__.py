"""Kubernetes as modelcache sees it: custom resources as pure functions, and a thin client of the API server. Standard library only."""
