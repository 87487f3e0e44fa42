"""Model weights, verified and shared, from any object store to every process of a machine."""

__version__ = "0.1.0"
