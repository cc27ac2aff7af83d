"""A GGUF file of Llama architecture as a source, dequantised by the gguf library."""

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np

from jax_llama3.model.config import Config, RopeScaling, llama3_scaling

from ...source import Source, TensorInfo, refuse_unknown
from ..tokenizer import NO_TOKENIZER
from .header import GgufTensor
from .parts import open_parts
from .vocabulary import gguf_notes, gguf_texts

_ROPE_FREQS = "rope_freqs.weight"
_USED = frozenset(
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon",
        "attention.key_length",
        "attention.value_length",
        "rope.freq_base",
        "rope.dimension_count",
    ]
)
# Keys that some programs write for every model, and the values that mean "none".
_NONE: dict[str, tuple] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_feed_forward_length": (0,),
    "leading_dense_block_count": (0,),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "rope.scaling.type": ("none",),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.finetuned": (False,),
    "rope.scaling.original_context_length": (0,),
    "rope.scale_linear": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "use_parallel_residual": (False,),
    # The names of layouts in which q and k are interleaved, as they are in every file of this kind.
    "tensor_data_layout": ("Meta AI original pth",),
}
_PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


def open_gguf(path: Path) -> Source:
    """Read a GGUF file's fields and tensor table; what is off raises ValueError.

    Of a model in several files any one may be named.
    """
    fields, places, paths, files = open_parts(path)

    def read(name: str, start: int, stop: int) -> np.ndarray:
        return _read_rows(paths[name], name, places[name], start, stop)

    try:
        _refuse_other_kinds(fields, places)
        config = _parse_config(fields, places)
        if _ROPE_FREQS in places:
            config = _with_scaling(config, read(_ROPE_FREQS, 0, places[_ROPE_FREQS].shape[0]))
        for name in {place.kind: name for name, place in places.items()}.values():
            read(name, 0, 1)  # whether its type can be dequantised shows before anything is written
        texts = gguf_texts(fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{path}: field missing or damaged: {error}") from None
    tensors = {
        name: TensorInfo(place.shape, np.dtype(_PLAIN.get(place.kind, np.float32)).name)
        for name, place in places.items()
        if name != _ROPE_FREQS
    }
    types = sorted({place.kind for place in places.values()})
    decisions = [f"tensor types {', '.join(types)}"]
    if config.rope_scaling is not None:
        decisions.append(f"{_ROPE_FREQS} recovered as factor {config.rope_scaling.factor:g}")
    decisions += gguf_notes(fields)
    if not texts:
        decisions.append(NO_TOKENIZER)
    if len(files) > 1:
        decisions.append(f"{len(files)} parts joined")
    return Source("gguf", config, tensors, read, texts, files, decisions)


def _refuse_other_kinds(fields: dict, places: dict[str, GgufTensor]) -> None:
    """Refuse a file that holds no model, or one part of it, by what it is."""
    kind = fields.get("general.type", "model")
    if kind == "adapter":
        base = fields.get("general.base_model.0.name", "a model that it does not name")
        raise ValueError(
            f"it is a LoRA adapter of {base}: convert that model, and then its PEFT folder: "
            "convert merge DIR ADAPTER DST"
        )
    if kind != "model":
        raise ValueError(f"it is of the type {kind!r}, not a model; name the model's own file")
    if not places:
        raise ValueError("it holds no tensors, only a vocabulary; name the model's own file")


def _parse_config(fields: dict, places: dict[str, GgufTensor]) -> Config:
    if fields["general.architecture"] != "llama":
        raise ValueError(f"architecture {fields['general.architecture']!r}, not 'llama'")
    values = {
        key.removeprefix("llama."): value for key, value in fields.items() if key[:6] == "llama."
    }
    refuse_unknown({f"llama.{key}" for key in set(values) - _USED - set(_NONE)})
    for key in sorted(set(values) & set(_NONE)):
        if values[key] not in _NONE[key]:
            raise ValueError(
                f"llama.{key} {values[key]!r} is not supported, only {_NONE[key][0]!r}"
            )
    n_heads, dim = int(values["attention.head_count"]), int(values["embedding_length"])
    head_dim = int(values.get("attention.key_length", dim // n_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(values.get(key, head_dim)) != head_dim:
            raise ValueError(f"llama.{key} {values[key]} is not the head dim {head_dim}")
    config = Config(
        vocab_size=places["token_embd.weight"].shape[0],
        dim=dim,
        n_layers=int(values["block_count"]),
        n_heads=n_heads,
        n_kv_heads=int(values.get("attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        ffn_dim=int(values["feed_forward_length"]),
        norm_eps=decimal(values["attention.layer_norm_rms_epsilon"]),
        rope_theta=decimal(values.get("rope.freq_base", 10000.0)),
        rope_scaling=None,
        max_seq_len=int(values["context_length"]),
        tie_embeddings="output.weight" not in places,
    )
    if int(values.get("vocab_size", config.vocab_size)) != config.vocab_size:
        raise ValueError(
            f"llama.vocab_size {values['vocab_size']} is not the embedding's {config.vocab_size}"
        )
    return config


def _with_scaling(config: Config, divisors: np.ndarray) -> Config:
    """The config with that scaling of the family which divides the frequencies by `divisors`."""
    for factor in (8.0, 32.0):
        scaling = llama3_scaling(factor)
        expected = rope_divisors(config, scaling)
        if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-5, atol=0):
            return dataclasses.replace(config, rope_scaling=scaling)
    raise ValueError(f"{_ROPE_FREQS} is not the scaling of Llama 3.1 (8) or 3.2 (32)")


def rope_divisors(config: Config, scaling: RopeScaling) -> np.ndarray:
    """What Llama 3.1's scaling divides each pair's frequency by: 1 (fast) to `factor` (slow)."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    turns = scaling.original_max_seq_len / (2 * np.pi * config.rope_theta**exponents)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / scaling.factor + kept)


def decimal(value: float) -> float:
    """The shortest decimal that is the same float32: the file's 9.99999974e-06 is meant as 1e-05."""
    return float(str(np.float32(value)))


def _read_rows(path: Path, name: str, place: GgufTensor, start: int, stop: int) -> np.ndarray:
    """F32, F16 and BF16 as they are, every quantised type as float32."""
    import gguf

    row_bytes = place.nbytes // place.shape[0]
    count, offset = (stop - start) * row_bytes, place.offset + start * row_bytes
    data = np.fromfile(path, np.uint8, count, offset=offset)
    if data.size != count:
        raise ValueError(f"{path}: {name} ends too early; the file has changed")
    rows = (stop - start, *place.shape[1:])
    if place.kind in _PLAIN:
        return data.view(_PLAIN[place.kind]).reshape(rows)
    try:
        with np.errstate(all="ignore"):  # what is not finite is refused later, by name
            values = gguf.dequantize(
                data.reshape(stop - start, row_bytes), gguf.GGMLQuantizationType[place.kind]
            )
        return values.astype(np.float32, copy=False).reshape(rows)
    except NotImplementedError:
        raise ValueError(f"{name}: type {place.kind} is not supported") from None
