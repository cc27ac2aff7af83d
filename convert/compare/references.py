"""The reference implementations, run on given ids in float32, with the activations that ours has too."""

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from jax_llama3.checkpoint.casting import check_finite
from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.model.config import Config, RopeScaling, llama3_scaling
from jax_llama3.runtime.progress import progress

from ..formats.meta.config import params_values
from ..source import Source
from ..table import NAMES, rules
from .surroundings import quiet, world_of_one


class Recording(NamedTuple):
    """What a reference computed; activations are float32, by tap name, heads perhaps not split out."""

    program: str
    activations: dict[str, np.ndarray]


Save = Callable[[str, Any], None]  # takes a tap's name and a tensor

# Tap name to the module that it is the output, or the input, of.
_TRANSFORMERS = {
    "embed": ("model.embed_tokens", "output"),
    "layers.{}.attn.v": ("model.layers.{}.self_attn.v_proj", "output"),
    "layers.{}.attn.z": ("model.layers.{}.self_attn.o_proj", "input"),
    "layers.{}.attn.out": ("model.layers.{}.self_attn.o_proj", "output"),
    "layers.{}.resid_mid": ("model.layers.{}.post_attention_layernorm", "input"),
    "layers.{}.mlp.gate": ("model.layers.{}.mlp.gate_proj", "output"),
    "layers.{}.mlp.up": ("model.layers.{}.mlp.up_proj", "output"),
    "layers.{}.mlp.out": ("model.layers.{}.mlp", "output"),
    "layers.{}.resid_post": ("model.layers.{}", "output"),
    "final_norm": ("model.norm", "output"),
    "logits": ("lm_head", "output"),
}
_META = {
    "embed": ("tok_embeddings", "output"),
    "layers.{}.attn.v": ("layers.{}.attention.wv", "output"),
    "layers.{}.attn.z": ("layers.{}.attention.wo", "input"),
    "layers.{}.attn.out": ("layers.{}.attention.wo", "output"),
    "layers.{}.resid_mid": ("layers.{}.ffn_norm", "input"),
    "layers.{}.mlp.gate": ("layers.{}.feed_forward.w1", "output"),
    "layers.{}.mlp.up": ("layers.{}.feed_forward.w3", "output"),
    "layers.{}.mlp.out": ("layers.{}.feed_forward", "output"),
    "layers.{}.resid_post": ("layers.{}", "output"),
    "final_norm": ("norm", "output"),
    "logits": ("output", "output"),
}
_META_SCALING = llama3_scaling(8.0)  # what Meta's code holds as constants


def record(path: Path, source: Source, tokens: np.ndarray, dtypes: dict[str, str]) -> Recording:
    """Run the program that a checkpoint's format belongs to: transformers, or Meta's own model.

    `tokens` are [B T]. Weights are rounded before, to the dtypes that stand under our names for them.
    It reads the weights by itself: nothing of our conversion is in them.
    """
    run = _run_meta if source.kind == "meta" else _run_transformers
    activations: dict[str, np.ndarray] = {}
    bar = progress(source.config.n_layers, "running the reference", "layer")

    def save(name: str, tensor: Any) -> None:
        # A copy: what follows may write over it.
        activations[name] = np.array(tensor.detach().float().numpy())
        bar.update(name.endswith("resid_post"))

    with bar:
        program = run(path, source, tokens, dtypes, save)
    return Recording(program, activations)


def _run_transformers(
    path: Path, source: Source, tokens: np.ndarray, dtypes: dict[str, str], save: Save
) -> str:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"comparing needs the package {error.name}: pip install 'jax_llama3[compare]'"
        ) from None
    model = _load_transformers(transformers, path, source)
    modeling = sys.modules[type(model).__module__]  # of Llama, or of Mistral
    original = modeling.eager_attention_forward

    def attend(module: Any, query: Any, key: Any, *rest: Any, **options: Any) -> Any:
        mixed, pattern = original(module, query, key, *rest, **options)
        prefix = f"layers.{module.layer_idx}.attn."
        save(prefix + "q", query.transpose(1, 2))
        save(prefix + "k", key.transpose(1, 2))
        save(prefix + "pattern", pattern)
        return mixed, pattern

    _round(model, "huggingface", source.config, dtypes)
    with (
        _hooked(model, _TRANSFORMERS, source.config.n_layers, save),
        mock.patch.object(modeling, "eager_attention_forward", attend),
        torch.inference_mode(),
    ):
        model(torch.tensor(tokens, dtype=torch.int64), use_cache=False)
    return f"transformers {transformers.__version__}"


def _load_transformers(transformers: ModuleType, path: Path, source: Source) -> Any:
    """The model as transformers itself reads it."""
    options: dict[str, Any] = {"dtype": "float32", "attn_implementation": "eager"}
    kind = transformers.LlamaForCausalLM
    if source.kind == "gguf":
        path, options["gguf_file"] = path.parent, path.name
        if hasattr(transformers, "GgufConfig"):  # newer versions else compute with packed weights
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = any(f.path.suffix == ".safetensors" for f in source.files)
        if read_json(path / "config.json")["model_type"] == "mistral":
            kind = transformers.MistralForCausalLM
    with quiet(transformers):
        loaded, report = kind.from_pretrained(
            path, local_files_only=True, output_loading_info=True, **options
        )
    if missing := sorted(report["missing_keys"]):
        # It computes with random numbers in their place.
        raise ValueError(
            f"{path}: transformers does not find {missing[0]} and {len(missing) - 1} more; to compare, "
            "save the tensors under transformers' own names"
        )
    if source.kind == "gguf":
        # A GGUF file says its scaling in a tensor, which transformers passes over.
        for divisors in _gguf_tensors(path / options["gguf_file"], "rope_freqs.weight"):
            loaded.model.rotary_emb.inv_freq /= divisors
    return loaded.eval()


def _gguf_tensors(file: Path, name: str) -> list[Any]:
    """The tensor of that name, if the file has one, read by the gguf library."""
    import gguf
    import torch

    tensors = gguf.GGUFReader(file).tensors
    return [torch.tensor(np.array(tensor.data)) for tensor in tensors if tensor.name == name]


def _run_meta(
    path: Path, source: Source, tokens: np.ndarray, dtypes: dict[str, str], save: Save
) -> str:
    try:
        import torch
        from llama_models.llama3 import model as meta
        from llama_models.llama3.args import ModelArgs
    except ImportError:
        raise ImportError(
            "comparing with Meta's format needs its own code: "
            "pip install --no-deps llama-models==0.3.0 fairscale==0.4.13"
        ) from None
    original = meta.apply_rotary_emb
    layers = iter(range(source.config.n_layers))

    def rotate(*arguments: Any, **options: Any) -> Any:
        query, key = original(*arguments, **options)
        prefix = f"layers.{next(layers)}.attn."
        for name, heads in (("q", query), ("k", key)):
            save(prefix + name, torch.cat([heads[..., 0::2], heads[..., 1::2]], dim=-1))
        return query, key

    with world_of_one():
        model = _load_meta(meta, ModelArgs, source, tokens)
        _round(model, "meta", source.config, dtypes)
        with (
            _hooked(model, _META, source.config.n_layers, save),
            mock.patch.object(meta, "apply_rotary_emb", rotate),
        ):
            model(torch.tensor(tokens, dtype=torch.int64), 0)
    return f"llama-models {importlib.metadata.version('llama-models')}"


def _load_meta(meta: ModuleType, arguments: Any, source: Source, tokens: np.ndarray) -> Any:
    """Meta's model of its own params.json and shards."""
    scaling = source.config.rope_scaling
    values = read_json(source.files[0].path)
    if "hidden_dim" in values:  # Mistral's; Meta's code knows Meta's keys alone
        values = params_values(source.config)
    values |= {"max_batch_size": tokens.shape[0], "max_seq_len": tokens.shape[1]}
    values["use_scaled_rope"] = scaling == _META_SCALING
    model = meta.Transformer(arguments(**values)).eval()
    model.load_state_dict(_meta_tensors(source), strict=True)
    if scaling is not None and scaling != _META_SCALING:
        # Meta's code knows no other factor, although Llama 3.2 was trained with another.
        model.freqs_cis = _angles(source.config, scaling, tokens.shape[1])
    return model


def _meta_tensors(source: Source) -> dict[str, Any]:
    """Every tensor of the shards, joined in torch as Meta's parallel layers split it."""
    import safetensors.torch
    import torch

    whole = [f.path for f in source.files if f.path.suffix == ".safetensors"]
    if whole:  # Mistral's, which are in no parts
        found = {n: t for path in whole for n, t in safetensors.torch.load_file(path).items()}
        return {name: found[name].float() for name in source.tensors}
    paths = [file.path for file in source.files if file.path.suffix == ".pth"]
    shards = [torch.load(path, map_location="cpu", mmap=True, weights_only=True) for path in paths]
    joined = {}
    for name in source.tensors:
        parts = [shard[name] for shard in shards]
        if name.endswith((".wk.weight", ".wv.weight")):  # more shards than heads hold copies
            parts = parts[:: max(len(parts) // source.config.n_kv_heads, 1)]
        axis = 1 if name.endswith((".wo.weight", ".w2.weight")) else 0
        joined[name] = (parts[0] if parts[0].ndim == 1 else torch.cat(parts, axis)).float()
    return joined


def _angles(config: Config, scaling: RopeScaling, length: int) -> Any:
    """e^(i angle) of every position and pair, for a scaling that Meta's code does not hold."""
    import torch

    exponents = torch.arange(0, config.head_dim, 2).float() / config.head_dim
    frequencies = 1 / config.rope_theta**exponents
    turns = scaling.original_max_seq_len * frequencies / (2 * torch.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    scaled = frequencies * (kept + (1 - kept) / scaling.factor)
    angles = torch.outer(torch.arange(length).float(), scaled)
    return torch.polar(torch.ones_like(angles), angles)


def _round(model: Any, kind: str, config: Config, dtypes: dict[str, str]) -> None:
    """Round the weights to the dtypes, after a check that they are numbers at all."""
    import torch

    wanted = {rule.theirs: dtypes[rule.ours] for rule in rules(kind, config) if rule.ours in dtypes}
    wanted.setdefault(NAMES[kind]["output"], dtypes["embedding"])
    for name, parameter in model.named_parameters():
        check_finite(name, parameter.detach().numpy())
        narrow = getattr(torch, wanted[name])
        parameter.data = parameter.data.to(narrow).to(torch.float32)


@contextlib.contextmanager
def _hooked(
    model: Any, table: dict[str, tuple[str, str]], n_layers: int, save: Save
) -> Iterator[None]:
    """A context in which the inputs and outputs named in the table are saved."""
    handles = []
    for name, (place, side) in table.items():
        for layer in range(n_layers if "{}" in name else 1):

            def hook(
                _: Any, given: tuple, result: Any, name: str = name.format(layer), side: str = side
            ) -> None:
                save(name, given[0] if side == "input" else result)

            module = model.get_submodule(place.format(layer))
            handles.append(module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
