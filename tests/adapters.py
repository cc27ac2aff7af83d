"""LoRA adapters as PEFT writes them, without PEFT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

PREFIX = "base_model.model."
# What PEFT 0.21 writes for a plain LoRA adapter.
CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "somebody/a-model",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 4,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q_proj", "v_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    """An adapter's folder, whose tensors are named from the module on."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    named = {PREFIX + name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(named, folder / "adapter_model.safetensors")
    return folder


def lora(
    shapes: dict[str, tuple[int, ...]], rank: int = 4, seed: int = 0, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """Random A and B for modules of these shapes, (out, in)."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((rank, columns))
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((rows, rank)) / 8
    return {name: array.astype(dtype) for name, array in tensors.items()}
