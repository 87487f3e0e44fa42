"""Models that are read while they arrive: their files as the loader takes them, and the check of what was handed out early."""
