"""Run folders and their files, metrics, loggers, and the provenance of results."""
