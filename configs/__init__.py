"""The configs of this package: files whose `get_config` returns the values of a run."""
