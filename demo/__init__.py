"""`make demo`: from an authenticated S3 server through modelcache to a model that answers. Two halves, `demo.store` and `demo.model`."""
