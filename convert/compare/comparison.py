"""A converted folder beside the reference implementation of its source, activation by activation."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array

from jax_llama3.checkpoint.casting import check_finite
from jax_llama3.checkpoint.format import read_config, read_model_manifest, read_tokenizer
from jax_llama3.checkpoint.loading import load
from jax_llama3.model.config import Config
from jax_llama3.model.network import forward
from jax_llama3.model.params import Params, named_leaves
from jax_llama3.runtime.progress import progress

from ..formats.jax.folder import refuse_quantized
from ..source import hash_files
from ..table import plan, resolve_tie
from ..to_jax import open_source
from .references import record

TEXT = """\
In 1789 the metre was still to be invented: « un dix-millionième du quart du méridien ».
巴黎的标准米是铂做的。 Is 3 × 17 = 51? Yes, and 2³ < 3²; метр, μέτρο, מטר 🙂.

def area(radius):
    return 3.14159 * radius ** 2  # square metres

The quick brown fox jumps over the lazy dog, and then it sleeps until the lazy dog wakes up."""
_DRAWN = 96  # tokens for a model without a tokenizer
_LONGEST = 512  # tokens of a text: all attention patterns are kept until ours have been seen
_ROUNDOFF = 2.0**-24  # of float32
_COLUMNS = (
    "attn.q attn.k attn.v attn.pattern attn.z attn.out resid_mid mlp.gate mlp.up mlp.out resid_post"
).split()
PICTURES = (".png", ".svg", ".pdf")
_ENDS = ("embed", "final_norm", "logits")


class Comparison(NamedTuple):
    """How far a converted model is from its reference, both in float32 on the same ids.

    `errors` holds each activation's error in the network's order: of the position where it is
    largest, |ours - theirs| / |theirs|. Every layer starts from the reference's own input, so an
    error does not travel. `logits` is the largest difference of a logit when nothing is put right on
    the way, and `spread` the standard deviation of the logits.
    """

    program: str
    config: Config
    n_tokens: int
    dtypes: list[str]
    notes: list[str]
    errors: dict[str, float]
    logits: float
    spread: float

    @property
    def limit(self) -> float:
        """What float32 explains: a sum of n products is off by about 2^-24 sqrt(n) of their size.

        64 of these, because a sum can be much smaller than its terms.
        """
        longest = max(self.config.ffn_dim, self.config.dim, 1024)
        return 64 * _ROUNDOFF * math.sqrt(longest)

    @property
    def first(self) -> str | None:
        """The first activation whose error exceeds the limit; None if there is none."""
        # NaN exceeds it.
        return next((name for name, e in self.errors.items() if not e <= self.limit), None)


def compare(
    path: Path, folder: Path, *, text: str | None = None, rope_factor: float | None = None
) -> Comparison:
    """Run the checkpoint at `path` in the program it belongs to, and the converted folder in ours.

    Weights stored here in a narrower dtype than there are rounded there too. What `to-jax` would
    refuse, and a folder of another shape, raise ValueError.
    """
    source = open_source(path, rope_factor)
    plan(resolve_tie(source), None)  # what to-jax would refuse is refused here
    if any(info.kept is not None for info in source.tensors.values()):
        raise ValueError(
            f"{path} is quantised, and what its numbers are is told by its own library; "
            "save it dequantised with that one, and compare the result"
        )
    hashes = hash_files(source.files)
    manifest = read_model_manifest(folder, "name a converted model")
    refuse_quantized(folder, manifest["tensors"])
    config = read_config(folder)
    notes = _differences(path, source.config, folder, config)
    if hashes != manifest["source"].get("files", hashes):
        notes.append("the folder was converted from other files than these")
    tokens = _tokens(folder, manifest, config, text)
    dtypes = {name: entry["dtype"] for name, entry in manifest["tensors"].items()}
    recording = record(path, source, tokens, dtypes)
    params = load(folder, dtype=np.float32).params
    for name, leaf in named_leaves(params):
        check_finite(name, np.asarray(leaf))
    errors, logits = _errors(params, tokens, config, recording.activations)
    return Comparison(
        program=recording.program,
        config=config,
        n_tokens=tokens.size,
        dtypes=sorted(set(dtypes.values())),
        notes=notes,
        errors=errors,
        logits=logits,
        spread=float(recording.activations["logits"].std()),
    )


def _tokens(folder: Path, manifest: dict, config: Config, text: str | None) -> np.ndarray:
    """The ids of the text, [1 T]; drawn ones for a model without a tokenizer."""
    tokenizer = read_tokenizer(folder, manifest)
    if tokenizer is not None:
        ids = tokenizer.encode(TEXT if text is None else text, bos=True)
    elif text is None:
        ids = np.random.default_rng(0).integers(0, config.vocab_size, _DRAWN).tolist()
    else:
        raise ValueError(f"{folder} has no tokenizer for a text; leave --text out")
    longest = min(_LONGEST, config.max_seq_len)
    if not 0 < len(ids) <= longest:
        raise ValueError(f"the text has {len(ids)} tokens; give one of 1 to {longest}")
    return np.array([ids], np.int32)


def _differences(path: Path, theirs: Config, folder: Path, ours: Config) -> list[str]:
    """What the two configs say differently; where the shapes of weights follow from it, refuse it."""
    notes = []
    for field in dataclasses.fields(Config):
        there, here = getattr(theirs, field.name), getattr(ours, field.name)
        # A tied matrix may be stored, and how long a text may be changes no number.
        if there == here or field.name in ("tie_embeddings", "max_seq_len"):
            continue
        if field.name not in ("norm_eps", "rope_theta", "rope_scaling"):
            raise ValueError(
                f"{folder} has {field.name} {here} and {path} {there}: they are two models"
            )
        notes.append(f"{field.name} is {here} here and {there} there")
    return notes


def _errors(
    params: Params, tokens: np.ndarray, config: Config, theirs: dict[str, np.ndarray]
) -> tuple[dict[str, float], float]:
    """Every activation's error, and the largest difference of a logit.

    Two rows run: in the first nothing is put right, in the second every layer gets their input.
    """
    errors: dict[str, float] = {}
    logits = math.nan
    bar = progress(config.n_layers, "running ours", "layer")

    def tap(name: str, array: Array) -> Array:
        nonlocal logits
        if name in theirs:
            ours = np.asarray(array)
            expected = theirs[name].reshape(ours[0].shape)
            errors[name] = _error(name, ours[1], expected)
            if name == "logits":
                logits = float(np.abs(ours[0] - expected).max())
        if name.endswith("resid_post"):
            bar.update()
            array = array.at[1].set(theirs[name][0])
        return array if name != "embed" else array.at[1].set(theirs[name][0])

    with bar:
        forward(params, np.repeat(tokens, 2, axis=0), config, tap=tap)
    return errors, logits


def _error(name: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest error of a position, relative to the norm of what the reference has there.

    A norm below a tenth of the median, as a single number can have by chance, counts as that tenth.
    """
    if name.endswith("pattern"):  # [N T S]
        ours, theirs = ours.swapaxes(0, 1), theirs.swapaxes(0, 1)
    length = len(theirs)
    differences = np.linalg.norm((ours - theirs).reshape(length, -1), axis=1)
    sizes = np.linalg.norm(theirs.reshape(length, -1), axis=1)
    least = max(0.1 * float(np.median(sizes)), float(np.finfo(np.float32).tiny))
    return float((differences / np.maximum(sizes, least)).max())


def report(comparison: Comparison) -> str:
    """A table with a line per layer, and the verdict."""
    c = comparison
    lines = [
        f"{c.program} and ours, both in float32 with weights in {', '.join(c.dtypes)}, "
        f"on {c.n_tokens} tokens",
        f"errors relative to the reference, layer by layer from its own input; limit {c.limit:.1e}",
        *(f"note: {note}" for note in c.notes),
        "",
        "layer " + "".join(f"{name.removeprefix('attn.'):>11}" for name in _COLUMNS),
    ]
    for layer in range(c.config.n_layers):
        cells = (_cell(c, f"layers.{layer}.{name}") for name in _COLUMNS)
        lines.append(f"{layer:<6}" + "".join(f"{cell:>11}" for cell in cells))
    lines += [
        "",
        ", ".join(f"{name} {_cell(c, name)}" for name in _ENDS),
        f"from the ids to the logits: they differ by at most {c.logits:.1e}, and vary by {c.spread:.2g}",
    ]
    if c.first is None:
        return "\n".join([*lines, "no divergence"])
    error = c.errors[c.first]
    return "\n".join(
        [*lines, f"first divergence: {c.first}, error {error:.1e}, limit {c.limit:.1e}"]
    )


def _cell(comparison: Comparison, name: str) -> str:
    """An error, marked where it is too large; a dash for what the reference does not show."""
    if name not in comparison.errors:
        return "-"
    error = comparison.errors[name]
    return f"{error:.1e}" if error <= comparison.limit else f"{error:.1e}!"


def plot(comparison: Comparison, file: Path) -> None:
    """The table as a picture: a square for every activation, coloured by its error."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its hints are not for stderr
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = range(comparison.config.n_layers)
    names = [[f"layers.{layer}.{name}" for name in _COLUMNS] for layer in layers]
    errors = [[comparison.errors.get(name, math.nan) for name in row] for row in names]
    levels = np.log10(np.maximum(errors, _ROUNDOFF / 100))
    limit = math.log10(comparison.limit)
    figure = Figure(figsize=(8, 2.5 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(levels, aspect="auto", cmap="coolwarm", vmin=limit - 4, vmax=limit + 4)
    axes.set_xticks(range(len(_COLUMNS)), _COLUMNS, rotation=45, ha="right")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("layer")
    verdict = f"diverges first in {comparison.first}" if comparison.first else "no divergence"
    axes.set_title(f"{comparison.program}: {verdict}")
    figure.colorbar(image).set_label(f"log10 of the relative error; the limit is {limit:.1f}")
    figure.savefig(file, dpi=150)
