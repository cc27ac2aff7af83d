"""The converted folder on disk: loaded, saved, verified."""
