"""The model that the lessons look into."""

import os
import sys
from pathlib import Path

import jax

import jax_llama3
from convert.fetch.models import fetch
from jax_llama3 import Model
from jax_llama3.runtime.home import default_folder

DEFAULT_MODEL = "smollm2-135m-instruct"
OTHER_MODEL = "LESSON_MODEL"  # the variable that names a converted model to use instead

# On a GPU a float32 product would be rounded to fewer bits than the asserts allow.
jax.config.update("jax_default_matmul_precision", "highest")


def model_folder() -> Path:
    """The default model's folder, or that of the converted model which $LESSON_MODEL names.

    The default model is fetched if it is not there, 94 MB; what cannot be fetched raises OSError.
    """
    if other := os.environ.get(OTHER_MODEL):
        return Path(other)
    folder = default_folder(DEFAULT_MODEL)
    if not folder.is_dir():
        print(f"fetching {DEFAULT_MODEL}, once", file=sys.stderr)
        fetch(DEFAULT_MODEL)
    return folder


def load_model() -> Model:
    """The model of the lessons in float32: config, params, tokenizer."""
    return jax_llama3.load(model_folder(), dtype="float32")
