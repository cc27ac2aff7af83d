"""One random model in every format that is converted, written by the formats' own libraries."""

import json
from pathlib import Path

import gguf
import jax
import numpy as np
import safetensors.numpy
from random_models import TINY, replace, sharp_params

from convert.to_jax import to_jax
from jax_llama3 import Config, Layer, Params, RopeScaling, load
from jax_llama3.checkpoint.manifest import read_manifest

V4 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 101,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 88,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.46.0",
}
V5 = {key: value for key, value in V4.items() if not key.startswith("rope_")}
V5 |= {"rope_parameters": {"rope_theta": 10000.0, **V4["rope_scaling"]}, "dtype": "float32"}


def bits(tree: Params) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def hf_tensors(params: Params) -> dict[str, np.ndarray]:
    """The weights under transformers' names, every matrix of two axes."""
    tensors = {"model.embed_tokens.weight": params.embedding, "model.norm.weight": params.norm}
    if params.output is not None:
        tensors["lm_head.weight"] = params.output
    for index, layer in enumerate(params.layers):
        tensors |= {f"model.layers.{index}.{name}": a for name, a in hf_layer(layer).items()}
    return {name: np.array(tensor) for name, tensor in tensors.items()}


def hf_layer(layer: Layer) -> dict[str, jax.Array]:
    dim = layer.attn_norm.size
    return {
        "input_layernorm.weight": layer.attn_norm,
        "post_attention_layernorm.weight": layer.ffn_norm,
        "self_attn.q_proj.weight": layer.wq.reshape(-1, dim),
        "self_attn.k_proj.weight": layer.wk.reshape(-1, dim),
        "self_attn.v_proj.weight": layer.wv.reshape(-1, dim),
        "self_attn.o_proj.weight": layer.wo.reshape(dim, -1),
        "mlp.gate_proj.weight": layer.w_gate,
        "mlp.up_proj.weight": layer.w_up,
        "mlp.down_proj.weight": layer.w_down,
    }


def write_sharded(folder: Path, config: dict, tensors: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    places = {}
    for index in range(3):
        names = list(tensors)[index::3]
        file = f"model-{index + 1:05}-of-00003.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def interleaved(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Half-split rows back to the interleaved order that GGUF holds."""
    return rows.reshape(n_heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    path: Path,
    config: Config,
    params: Params,
    *,
    kind: gguf.GGMLQuantizationType | None = None,
    divisors: np.ndarray | None = None,
    **split: int,
) -> Path:
    writer = gguf.GGUFWriter(path, "llama", **split)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors)
    for name, array in hf_tensors(params).items():
        if name.endswith("q_proj.weight"):
            array = interleaved(array, config.n_heads)
        if name.endswith("k_proj.weight"):
            array = interleaved(array, config.n_kv_heads)
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)
        if kind is None or array.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(array))
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def divisors(config: Config) -> np.ndarray:
    """What a GGUF file says of Llama 3.1's scaling: by how much each pair turns slower."""
    values = []
    for pair in range(config.head_dim // 2):
        wavelength = 2 * np.pi * config.rope_theta ** (2 * pair / config.head_dim)
        if wavelength < 8192 / 4:
            values.append(1.0)
        elif wavelength > 8192:
            values.append(config.rope_scaling.factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            values.append(1 / ((1 - smooth) / config.rope_scaling.factor + smooth))
    return np.array(values, np.float32)


PLAIN = replace(TINY, rope_scaling=None)
PARAMS = sharp_params(11, TINY)


META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
# A shape that splits four ways, with the only scaling that Meta's params.json can mean.
META = replace(
    TINY,
    vocab_size=104,
    dim=64,
    n_heads=4,
    n_kv_heads=2,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    max_seq_len=131072,
)
META_PARAMS = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 104,
    "ffn_dim_multiplier": 0.52,  # 0.52 * 170 = 88.4
    "multiple_of": 8,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "use_scaled_rope": True,
}


def meta_tensors(params: Params, config: Config) -> dict[str, np.ndarray]:
    """The whole tensors under Meta's names, q and k rows interleaved."""
    tensors = {}
    for name, tensor in hf_tensors(params).items():
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, config.n_heads)
        if name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, config.n_kv_heads)
        for old, new in META_NAMES.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    return tensors


def meta_shards(params: Params, config: Config, shards: int) -> list[dict[str, np.ndarray]]:
    """What each of Meta's model-parallel ranks would save."""
    parts: list[dict[str, np.ndarray]] = [{} for _ in range(shards)]
    for name, tensor in meta_tensors(params, config).items():
        for rank in range(shards):
            if tensor.ndim == 1:
                piece = tensor
            elif name.endswith((".wo.weight", ".w2.weight")):
                piece = np.split(tensor, shards, axis=1)[rank]
            elif name.endswith((".wk.weight", ".wv.weight")) and shards > config.n_kv_heads:
                kv_heads = np.split(tensor, config.n_kv_heads)
                piece = kv_heads[rank * config.n_kv_heads // shards]
            else:
                piece = np.split(tensor, shards)[rank]
            parts[rank][name] = piece.copy()
    return parts


def write_meta(
    folder: Path,
    params: Params,
    config: Config = META,
    *,
    shards: int = 1,
    values: dict | None = None,
    dtype: str = "float32",
) -> Path:
    """A folder of .pth files, which torch alone writes: a test that asks for one is a `reference`."""
    import torch

    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(META_PARAMS if values is None else values))
    for rank, part in enumerate(meta_shards(params, config, shards)):
        saved = {name: torch.tensor(t).to(getattr(torch, dtype)) for name, t in part.items()}
        torch.save(saved, folder / f"consolidated.{rank:02}.pth")
    return folder


def notes(source: Path, params: Params = PARAMS) -> list[str]:
    """The notes of a conversion whose tree is that of `params`, bit for bit."""
    said: list[str] = []
    out = source.parent / f"{source.name}-out"
    to_jax(source, out, on_note=said.append)
    assert bits(load(out).params) == bits(params)
    kept = [line for line in read_manifest(out)["decisions"] if line.startswith("note: ")]
    assert said == kept
    return [line for line in said if "no tokenizer" not in line]
