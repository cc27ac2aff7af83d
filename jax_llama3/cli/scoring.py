"""`jax-llama3 score`: its options, and what it prints."""

import argparse
import json
import math

from ..api import score
from ..checkpoint.loading import load
from ..runtime.compilation import keep_compilations
from ..runtime.home import default_folder
from .default_model import model_folder
from .prompts import add_text_options, read_texts


def add_score(command: argparse.ArgumentParser) -> None:
    """Add the options and what runs with them."""
    add_text_options(command)
    command.set_defaults(run=_score)


def _score(options: argparse.Namespace) -> None:
    texts = read_texts(options)
    keep_compilations(default_folder("compiled"))
    model = load(model_folder(options.model), dtype=options.dtype)
    for text in texts:
        scored = score(model, text)
        known = [value for value in scored.logprobs if value is not None]
        perplexity = math.exp(-sum(known) / len(known)) if known else None
        if options.json:
            print(json.dumps({**scored._asdict(), "perplexity": perplexity}))
        else:
            shown = "none, a single token" if perplexity is None else f"{perplexity:.4f}"
            print(f"{len(scored.tokens)} tokens, perplexity {shown}")
