"""A Hugging Face folder as a source: config.json, safetensors, tokenizer."""

from pathlib import Path

from jax_llama3.checkpoint.manifest import read_json
from jax_llama3.model.config import Config

from ...source import Source, TensorInfo, check_plain, source_file
from ..safetensors_rows import check_header, open_safetensors, row_reader
from ..tokenizer import NO_TOKENIZER
from .config import parse_config
from .tokenizer import huggingface_texts

_OTHER_FORMATS = ("pytorch_model*.bin", "consolidated*", "*.gguf", "*.pth")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_READ = (".json", ".safetensors", ".jinja", ".model")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


def open_huggingface(folder: Path) -> Source:
    """Read the folder's config and the headers of its weights; what is off raises ValueError."""
    for path in folder.iterdir():
        if path.suffix in _READ:
            check_plain(path)
    files = [source_file(folder / "config.json")]
    config, values = _read_config(folder / "config.json")
    if others := [p.name for form in _OTHER_FORMATS for p in sorted(folder.glob(form))]:
        raise ValueError(f"{folder} holds a second format, {others[0]}; move one away")
    places = _weight_files(folder)
    if (folder / _INDEX).is_file():
        files.append(source_file(folder / _INDEX))
    shards = sorted(set(places.values()))
    files += [source_file(folder / name) for name in shards]
    if stray := sorted({path.name for path in folder.glob("*.safetensors")} - set(shards)):
        raise ValueError(f"{folder / stray[0]} belongs to no index; move it away")
    tensors, decisions = _read_headers(folder, shards, places)
    texts, text_paths, notes = huggingface_texts(folder, values)
    decisions += notes
    if not texts:
        decisions.append(NO_TOKENIZER)
    return Source(
        kind="huggingface",
        config=config,
        tensors=tensors,
        read=row_reader({name: folder / places[name] for name in tensors}),
        texts=texts,
        files=[*files, *(source_file(path) for path in text_paths)],
        decisions=decisions,
    )


def _read_config(path: Path) -> tuple[Config, dict]:
    values = read_json(path)
    if str(values.get("format")).startswith("jax_llama3/"):
        raise ValueError(
            f"{path.parent} is a converted model already; load it, or use to-hf or to-meta"
        )
    try:
        return parse_config(values), values
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read_headers(
    folder: Path, shards: list[str], places: dict[str, str]
) -> tuple[dict[str, TensorInfo], list[str]]:
    """The tensors of all shards, each of which must be where the index says."""
    tensors: dict[str, TensorInfo] = {}
    decisions: list[str] = []
    found = set()
    for file in shards:
        handle = open_safetensors(folder / file)
        check_header(folder / file)
        for name in handle.keys():  # noqa: SIM118  a handle is no mapping
            found.add(name)
            if places.get(name) != file:
                where = f"the index says {places[name]}" if name in places else "the index does not"
                raise ValueError(f"{folder / file} holds {name}, but {where}")
            if name.endswith(".rotary_emb.inv_freq"):
                decisions.append(f"{name} dropped: RoPE frequencies come from the config")
                continue
            view = handle.get_slice(name)
            if view.get_dtype() not in _DTYPES:
                raise ValueError(
                    f"{folder / file}: {name} is {view.get_dtype()}; "
                    f"only {', '.join(_DTYPES)} are read"
                )
            tensors[name] = TensorInfo(tuple(view.get_shape()), _DTYPES[view.get_dtype()])
    if absent := sorted(set(places) - found):
        raise ValueError(f"{folder}: the index names tensors its shards lack: {absent[0]}, ...")
    return tensors, decisions


def _weight_files(folder: Path) -> dict[str, str]:
    """Tensor name to file name, of an index or of a single file (then filled from its header)."""
    single, index = folder / _SINGLE, folder / _INDEX
    if index.exists():
        places = _read_index(folder, index)
        if single.exists() and set(places.values()) != {single.name}:
            raise ValueError(f"{folder} holds both {single.name} and an index of other shards")
        return places
    if not single.exists():
        raise FileNotFoundError(f"{folder} holds neither {single.name} nor {index.name}")
    return dict.fromkeys(open_safetensors(single).keys(), single.name)


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
