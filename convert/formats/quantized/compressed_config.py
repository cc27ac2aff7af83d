"""The quantization_config of compressed-tensors: which module's weight is stored how."""

import re
from typing import Any, NamedTuple

from ..patterns import matching
from .matrix import check_keys, flag, integer, unsupported

_KEYS = (
    "quant_method",
    "config_groups",
    "dequantize",
    "format",
    "global_compression_ratio",
    "ignore",
    "kv_cache_scheme",
    "moe_sparsity_config",
    "quantization_status",
    "run_compressed",
    "sparsity_config",
    "transform_config",
    "use_optimized_inference",
    "version",
)
_OLDER_BLOCK = re.compile(r"[1-9]\d{0,8}x[1-9]\d{0,8}")
_GROUP_KEYS = ("targets", "weights", "input_activations", "output_activations", "format")
_WEIGHT_KEYS = (
    "actorder",
    "block_structure",
    "dynamic",
    "group_size",
    "num_bits",
    "observer",
    "observer_kwargs",
    "scale_dtype",
    "strategy",
    "symmetric",
    "type",
    "zp_dtype",
)
_KINDS = ("int", "float")
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
_PATTERN = "re:"


class Scheme(NamedTuple):
    """How the weights of a group of modules are stored."""

    bits: int
    kind: str  # int or float
    symmetric: bool
    strategy: str
    group_size: int | None
    block: tuple[int, int] | None
    format: str

    def block_of(self, rows: int, columns: int) -> tuple[int, int]:
        """How many rows and columns of a matrix have one scale."""
        height, width = {
            "tensor": (rows, columns),
            "channel": (1, columns),
            "group": (1, self.group_size or columns),
            "block": self.block or (rows, columns),
        }[self.strategy]
        return min(height, rows), min(width, columns)

    def __str__(self) -> str:
        size = {"group": f" of {self.group_size}", "block": f" of {self.block}"}
        kind = {"int": "int", "float": "fp"}[self.kind]
        symmetry = "" if self.symmetric else ", with zero points"
        return (
            f"{self.format}, {kind}{self.bits}, a scale for each {self.strategy}"
            f"{size.get(self.strategy, '')}{symmetry}"
        )


class Groups(NamedTuple):
    """The schemes and the modules that each is for, in the config's order."""

    schemes: list[tuple[list[str], Scheme]]

    def of_modules(self, modules: list[str]) -> dict[str, Scheme]:
        """The scheme of each module whose weight is stored quantised, as far as one is for it."""
        if len({scheme for _, scheme in self.schemes}) == 1:
            return dict.fromkeys(modules, self.schemes[0][1])
        every = [target for targets, _ in self.schemes for target in targets]
        patterns = [t.removeprefix(_PATTERN) for t in every if t.startswith(_PATTERN)]
        matched = matching(patterns, modules, "quantization_config's targets")
        found: dict[str, Scheme] = {}
        for targets, scheme in self.schemes:
            for module in modules:
                if any(_is_meant(module, target, matched) for target in targets):
                    found.setdefault(module, scheme)
        return found


def parse_groups(config: dict) -> Groups:
    """The groups of a quantization_config; what is not supported or not known raises ValueError."""
    check_keys(config, _KEYS, "quantization_config")
    _check_sparsity(config.get("sparsity_config"))
    for key in ("transform_config", "moe_sparsity_config"):
        if config.get(key):
            raise unsupported(f"quantization_config: {key} {config[key]!r}", "none")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ValueError("quantization_config: config_groups is missing or empty")
    schemes = [
        (_targets(name, group), _scheme(name, group, config.get("format")))
        for name, group in groups.items()
        if isinstance(group, dict) and group.get("weights") is not None
    ]
    if names := [name for name, group in groups.items() if not isinstance(group, dict)]:
        raise ValueError(f"quantization_config: config_groups {names[0]!r} is no object")
    return Groups(schemes)


def _check_sparsity(sparsity: Any) -> None:
    if sparsity and (not isinstance(sparsity, dict) or sparsity.get("format") != "dense"):
        kind = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        raise unsupported(f"quantization_config: sparsity_config format {kind!r}", "'dense'")


def _targets(name: str, group: dict) -> list[str]:
    targets = group.get("targets")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"quantization_config: the targets of {name} are no list of names")
    return targets


def _scheme(name: str, group: dict, model_format: Any) -> Scheme:
    check_keys(group, _GROUP_KEYS, f"quantization_config: {name}")
    weights, form = group["weights"], group.get("format") or model_format
    if not isinstance(weights, dict):
        raise ValueError(f"quantization_config: the weights of {name} are no object")
    check_keys(weights, _WEIGHT_KEYS, f"quantization_config: the weights of {name}")
    bits, kind = integer(weights, "num_bits", 8), weights.get("type", "int")
    what = f"compressed-tensors {form!r} with {bits} bits of type {kind!r}"
    if form not in _FORMATS:
        raise unsupported(what, ", ".join(_FORMATS))
    if kind not in _KINDS:
        raise unsupported(what, " or ".join(_KINDS))
    widths = {"float": (8,), "int": (2, 4, 8) if form == "pack-quantized" else (8,)}
    if kind == "float" and form == "pack-quantized":
        raise unsupported(what, "integers")
    if bits not in widths[kind]:
        raise unsupported(what, f"{' or '.join(map(str, widths[kind]))} bits")
    return Scheme(bits, kind, flag(weights, "symmetric", True), *_spacing(name, weights), form)


def _spacing(name: str, weights: dict) -> tuple[str, int | None, tuple[int, int] | None]:
    """The strategy, the group size and the block size."""
    size, strategy = weights.get("group_size"), weights.get("strategy")
    if size is not None and (type(size) is not int or size < -1 or size == 0):
        raise ValueError(f"quantization_config: group_size {size!r} of {name} is no size")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    if strategy not in _STRATEGIES:
        raise unsupported(f"compressed-tensors strategy {strategy!r}", ", ".join(_STRATEGIES))
    if strategy == "group" and (size is None or size < 1):
        raise ValueError(f"quantization_config: {name} has groups, but group_size {size!r}")
    block = weights.get("block_structure")
    if isinstance(block, str) and _OLDER_BLOCK.fullmatch(block):
        block = [int(size) for size in block.split("x")]
    if strategy != "block":
        return strategy, size, None
    if isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        return strategy, None, (block[0], block[1])
    raise ValueError(
        f"quantization_config: block_structure {block!r} of {name} is no pair of sizes"
    )


def _is_meant(module: str, target: str, matched: dict[str, set[str]]) -> bool:
    """Whether a target means a module: its name, its class, or a pattern of its name."""
    if target.startswith(_PATTERN):
        return module in matched[target.removeprefix(_PATTERN)]
    is_embedding = module.endswith("embed_tokens")
    return target in (module, "Embedding" if is_embedding else "Linear")
