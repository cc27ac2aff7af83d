"""A converted folder beside the reference implementation of its source."""

from .comparison import PICTURES, Comparison, compare, plot, report

__all__ = ["PICTURES", "Comparison", "compare", "plot", "report"]
