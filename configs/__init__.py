"""Configs: files with `get_config`, which returns the values of a run."""
