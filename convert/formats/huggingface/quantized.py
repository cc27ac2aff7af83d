"""Hugging Face folders whose weights are quantised: which method, and whether it can be read."""

from typing import Any

from ..quantized.scheme import METHODS

_BITS = {"fbgemm_fp8": 8, "fp8": 8, "mxfp4": 4, "bitnet": 2}


def quantization_refusal(values: dict) -> str | None:
    """Why a folder with this config.json cannot be read for its quantisation; None if it can."""
    settings = values.get("quantization_config")
    if settings is None and values.get("quantization") is not None:
        settings = {"quant_method": "mlx", **_as_dict(values["quantization"])}
    if settings is None:
        return None
    method, bits = describe_quantization(_as_dict(settings))
    if method.partition(" ")[0] in METHODS:
        return None
    return (
        f"quantization_config: weights quantised by {method}{bits} are not supported; "
        "convert the model that they were made of"
    )


def describe_quantization(settings: dict) -> tuple[str, str]:
    """The method of a quantization_config, and " with N bits" if it says how many."""
    method = str(settings.get("quant_method") or "an unnamed method")
    bits = settings.get("bits") or settings.get("w_bit") or _BITS.get(method)
    if method == "bitsandbytes" or any(key.endswith("load_in_4bit") for key in settings):
        method = "bitsandbytes"
        bits = 4 if settings.get("load_in_4bit") or settings.get("_load_in_4bit") else 8
        kind = settings.get("bnb_4bit_quant_type") if bits == 4 else None
        method += f" {kind}" if kind else ""
    groups = settings.get("config_groups")
    if isinstance(groups, dict):
        weights = [_as_dict(_as_dict(group).get("weights")) for group in groups.values()]
        bits = "/".join(sorted({str(w["num_bits"]) for w in weights if "num_bits" in w})) or bits
        method += f" {settings['format']}" if settings.get("format") else ""
    return method, f" with {bits} bits" if bits else ""


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}
