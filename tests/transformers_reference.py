"""transformers' logits for a tree of ours."""

import numpy as np
import torch
from checkpoints import hf_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from jax_llama3 import Config, Params


def state_dict(params: Params) -> dict[str, torch.Tensor]:
    """The weights under transformers' names."""
    return {name: torch.tensor(tensor) for name, tensor in hf_tensors(params).items()}


def transformers_config(config: Config) -> LlamaConfig:
    rope: dict = {"rope_type": "default", "rope_theta": config.rope_theta}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        }
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        rms_norm_eps=config.norm_eps,
        rope_parameters=rope,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tie_embeddings,
        attention_bias=False,
        mlp_bias=False,
    )


def transformers_model(params: Params, config: Config) -> LlamaForCausalLM:
    model = LlamaForCausalLM(transformers_config(config)).eval()
    missing, unexpected = model.load_state_dict(state_dict(params), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    return model


def transformers_logits(model: LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(tokens, dtype=torch.int64)).logits.float().numpy()
