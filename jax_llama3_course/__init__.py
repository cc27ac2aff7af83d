"""What the lessons of the course use beside the library: a model, checks, pictures, exercises."""

from .checks import close, exercise, expect, on_default_model, trace
from .drawings import BLUE, GREEN, GREY, ORANGE, RED, arrow, box, canvas
from .model import load_model, model_folder
from .pictures import bars, heat_map, show

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "arrow",
    "bars",
    "box",
    "canvas",
    "close",
    "exercise",
    "expect",
    "heat_map",
    "load_model",
    "model_folder",
    "on_default_model",
    "show",
    "trace",
]
