"""A Hugging Face folder as a source: config.json of transformers 4 or 5, safetensors, tokenizer."""

from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 for safetensors
import numpy as np
from safetensors import SafetensorError, safe_open

from jax_llama3.checkpoint import read_json
from jax_llama3.config import Config, RopeScaling

from .table import Source, TensorInfo
from .vocabulary import huggingface_texts

_OTHER_FORMATS = ("pytorch_model*.bin", "consolidated*", "*.gguf", "*.pth")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Keys that change nothing in what the network computes at inference.
_WITHOUT_EFFECT = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "name_or_path",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "unk_token_id",
        "use_cache",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "is_llama_config",
        "return_dict",
        "output_hidden_states",
        "output_attentions",
        "torchscript",
        "id2label",
        "label2id",
        "problem_type",
        "chunk_size_feed_forward",
        "transformers.js_config",
    ]
)
# Keys that may only have the value under which they change nothing.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pretraining_tp": (1, None),
    "rope_interleaved": (False, None),
    "is_encoder_decoder": (False,),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
}
_USED = frozenset(
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "max_position_embeddings",
        "tie_word_embeddings",
    ]
)
_ROPE_KEYS = frozenset(
    [
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
    ]
)


def open_huggingface(folder: Path) -> Source:
    """Read the folder's config and the headers of its weights; what is off raises ValueError."""
    for entry in folder.iterdir():
        check_plain(entry)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json; is it a Hugging Face folder?")
    others = [p.name for form in _OTHER_FORMATS for p in sorted(folder.glob(form))]
    if others:
        raise ValueError(f"{folder} holds a second format, {others[0]}; move one away")
    values = read_json(folder / "config.json")
    try:
        config = parse_config(values)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    places = _weight_files(folder)
    files = {name: _open_safetensors(folder / name) for name in sorted(set(places.values()))}
    if stray := sorted({path.name for path in folder.glob("*.safetensors")} - set(files)):
        raise ValueError(f"{folder / stray[0]} belongs to no index; move it away")
    tensors: dict[str, TensorInfo] = {}
    decisions: list[str] = []
    for file, handle in files.items():
        for name in handle.keys():  # noqa: SIM118  a handle is no mapping
            if places.get(name) != file:
                where = f"the index says {places[name]}" if name in places else "the index does not"
                raise ValueError(f"{folder / file} holds {name}, but {where}")
            if name.endswith(".rotary_emb.inv_freq"):
                decisions.append(f"{name} dropped: RoPE frequencies come from the config")
                places[name] = ""
                continue
            view = handle.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise ValueError(
                    f"{folder / file}: {name} is {view.get_dtype()}; only {', '.join(_DTYPES)} are read"
                )
            tensors[name] = TensorInfo(tuple(view.get_shape()), _DTYPES[view.get_dtype()])
    if absent := sorted(name for name, file in places.items() if file and name not in tensors):
        raise ValueError(f"{folder}: the index names tensors its shards lack: {absent[0]}, ...")

    def read(name: str) -> np.ndarray:
        return files[places[name]].get_tensor(name)

    texts, text_paths = huggingface_texts(folder, values)
    if not texts:
        decisions.append("the source has no tokenizer")
    paths = [folder / "config.json", *(folder / name for name in files), *text_paths]
    index = folder / "model.safetensors.index.json"
    return Source(
        kind="huggingface",
        config=config,
        tensors=tensors,
        read=read,
        texts=texts,
        paths=[*paths, index] if index.is_file() and len(files) > 1 else paths,
        decisions=decisions,
    )


def parse_config(values: dict) -> Config:
    """Our config from the values of a config.json; unknown or unsupported keys are refused."""
    known = _WITHOUT_EFFECT | _USED | set(_FIXED)
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown keys {', '.join(unknown)}; what they mean is not supported")
    if "model_type" not in values:
        raise ValueError("model_type is missing; only 'llama' is supported")
    for key, allowed in _FIXED.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} {values[key]!r} is not supported, only {allowed[0]!r}")
    try:
        dim, n_heads = values["hidden_size"], values["num_attention_heads"]
        theta, scaling = _parse_rope(values)
        head_dim = values.get("head_dim")
        if head_dim is None and dim % n_heads:
            raise ValueError(f"hidden_size {dim} is not a multiple of {n_heads} heads")
        n_kv_heads = values.get("num_key_value_heads")
        # What a key's absence means is transformers' default for it.
        return Config(
            vocab_size=values["vocab_size"],
            dim=dim,
            n_layers=values["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=n_heads if n_kv_heads is None else n_kv_heads,
            head_dim=dim // n_heads if head_dim is None else head_dim,
            ffn_dim=values["intermediate_size"],
            norm_eps=values.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_seq_len=values.get("max_position_embeddings", 2048),
            tie_embeddings=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"a value has the wrong type: {error}") from None


def _parse_rope(values: dict) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from `rope_parameters` (v5) or `rope_theta` and `rope_scaling` (v4)."""
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    if new and old and new != old:
        raise ValueError("rope_parameters and rope_scaling contradict each other")
    for given in (new, old):
        if not isinstance(given, dict | None):
            raise ValueError(f"rope_parameters or rope_scaling {given!r} is no object")
    rope = new or old or {}
    if unknown := sorted(set(rope) - _ROPE_KEYS):
        raise ValueError(f"unknown RoPE keys {', '.join(unknown)}")
    thetas = {v for v in (values.get("rope_theta"), rope.get("rope_theta")) if v is not None}
    if len(thetas) > 1:
        raise ValueError(f"rope_theta is given twice, differently: {sorted(thetas)}")
    theta = thetas.pop() if thetas else 10000.0
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor is not supported, only 1.0")
    kinds = {rope[key] for key in ("rope_type", "type") if rope.get(key) is not None}
    if len(kinds) > 1:
        raise ValueError(f"rope_type and type contradict each other: {sorted(kinds)}")
    kind = kinds.pop() if kinds else "default"
    scaling_keys = set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind == "default":
        if scaling_keys:
            raise ValueError(f"RoPE scaling without a type: {', '.join(sorted(scaling_keys))}")
        return theta, None
    if kind != "llama3":
        raise ValueError(f"RoPE scaling {kind!r} is not supported, only 'llama3'")
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_seq_len=rope["original_max_position_embeddings"],
    )


def _weight_files(folder: Path) -> dict[str, str]:
    """Tensor name to file name, of an index or of a single file (then filled from its header)."""
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.exists() and index.exists():
        places = _read_index(folder, index)
        if set(places.values()) != {single.name}:
            raise ValueError(f"{folder} holds both {single.name} and an index of other shards")
        return places
    if index.exists():
        return _read_index(folder, index)
    if not single.exists():
        raise FileNotFoundError(f"{folder} holds neither {single.name} nor {index.name}")
    return dict.fromkeys(_open_safetensors(single).keys(), single.name)


def _read_index(folder: Path, index: Path) -> dict[str, str]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map is missing or empty")
    for file in places.values():
        if not isinstance(file, str) or not file or Path(file).name != file:
            raise ValueError(f"{index}: {file!r} is not a plain file name")
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder / file} is missing; the index names it")
    return places


def _open_safetensors(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a sound safetensors file: {error}") from None


def check_plain(path: Path) -> None:
    """Refuse a file that the converter would read, if it is none, or a link that leaves the folder."""
    if path.suffix not in (".json", ".safetensors", ".jinja", ".model"):
        return
    # A link may only lead where the hub's own cache keeps its files.
    target, folder = path.resolve(), path.parent.resolve()
    leaves = folder not in target.parents and target.parent != folder.parent.parent / "blobs"
    if path.is_symlink() and leaves:
        raise ValueError(f"{path} is a link that leaves its folder")
    if not path.is_file():
        raise ValueError(f"{path} is no plain file, or a link to nothing")
