"""The node's agent as its clients see it: wire types (`modelcache.agent.v1`) and a typed client. Needs `modelcache[agent]`."""
