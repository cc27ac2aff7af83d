"""A converted folder beside the reference implementation of its source."""

from .comparison import Comparison, check_picture, compare, plot, report

__all__ = ["Comparison", "check_picture", "compare", "plot", "report"]
