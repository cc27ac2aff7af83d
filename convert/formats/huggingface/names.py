"""The names of a Hugging Face folder's tensors, as LlamaForCausalLM has them."""

import re
from pathlib import Path

from ..weight_files import Weights

# What torch puts into the names when a module is wrapped: for several devices, or to be compiled.
_WRAPPERS = re.compile(r"\b(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIX, _OUTPUT = "model.", "lm_head."


def with_plain_names(folder: Path, weights: Weights) -> Weights:
    """The weights without wrappers' names, and with the prefix that a bare LlamaModel's lack.

    Names that would become the same raise ValueError.
    """
    plain = {name: _WRAPPERS.sub("", name) for name in weights.tensors}
    notes = []
    if changed := [name for name, new in plain.items() if new != name]:
        wrappers = sorted({wrapper for name in changed for wrapper in _WRAPPERS.findall(name)})
        notes.append(f"note: {'. and '.join(wrappers)}. left out of the names of the tensors")
    if "embed_tokens.weight" in plain.values():
        plain = {n: new if new.startswith(_OUTPUT) else _PREFIX + new for n, new in plain.items()}
        notes.append(f"note: the tensors are a bare LlamaModel's; {_PREFIX} put before their names")
    theirs: dict[str, str] = {}
    for name, new in plain.items():
        if theirs.setdefault(new, name) != name:
            raise ValueError(
                f"{folder}: {theirs[new]} and {name} both are {new}; remove one of them"
            )
    read = weights.read
    return weights._replace(
        tensors={new: weights.tensors[name] for new, name in theirs.items()},
        read=lambda name, start, stop: read(theirs[name], start, stop),
        decisions=[*weights.decisions, *notes],
    )
