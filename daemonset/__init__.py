"""The node's agent: one process that owns a node's weights. `python -m daemonset`; docs/agent.md."""
