"""transformers' logits for a tree of ours."""

import jax
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jax_llama3 import Config, Params


def state_dict(params: Params) -> dict[str, torch.Tensor]:
    """The weights under transformers' names."""

    def flat(array: jax.Array, rows: int) -> torch.Tensor:
        return torch.tensor(np.asarray(array).reshape(rows, -1))

    tensors = {
        "model.embed_tokens.weight": torch.tensor(np.asarray(params.embedding)),
        "model.norm.weight": torch.tensor(np.asarray(params.norm)),
    }
    if params.output is not None:
        tensors["lm_head.weight"] = torch.tensor(np.asarray(params.output))
    for index, layer in enumerate(params.layers):
        prefix = f"model.layers.{index}."
        heads = layer.wq.shape[0] * layer.wq.shape[1]
        kv_heads = layer.wk.shape[0] * layer.wk.shape[1]
        tensors |= {
            prefix + "input_layernorm.weight": torch.tensor(np.asarray(layer.attn_norm)),
            prefix + "post_attention_layernorm.weight": torch.tensor(np.asarray(layer.ffn_norm)),
            prefix + "self_attn.q_proj.weight": flat(layer.wq, heads),
            prefix + "self_attn.k_proj.weight": flat(layer.wk, kv_heads),
            prefix + "self_attn.v_proj.weight": flat(layer.wv, kv_heads),
            prefix + "self_attn.o_proj.weight": flat(layer.wo, layer.wo.shape[0]),
            prefix + "mlp.gate_proj.weight": flat(layer.w_gate, layer.w_gate.shape[0]),
            prefix + "mlp.up_proj.weight": flat(layer.w_up, layer.w_up.shape[0]),
            prefix + "mlp.down_proj.weight": flat(layer.w_down, layer.w_down.shape[0]),
        }
    return tensors


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
