"""Hugging Face's tokenizer files: as those that jax_llama3 keeps, and made of those."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax_llama3.checkpoint.manifest import json_bytes
from jax_llama3.text.tokenizer import (
    GENERATION,
    JSON,
    MODEL,
    TEMPLATE,
    Tokenizer,
    tokenizer_from_files,
)
from jax_llama3.text.tokenizer_json import read_tokenizer_json
from jax_llama3.text.vocabulary import MetaVocabulary, byte_level

from ..sentencepiece_file import is_sentencepiece
from ..tokenizer import byte_level_bpe, generation_bytes
from .slow_tokenizer import MadeTokenizer, make_tokenizer, optional_json

_FLAGS = ("add_bos_token", "add_prefix_space", "legacy")
_GENERATION = "generation_config.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")

# Meta's format as `jax_llama3.text.chat` writes it, for models that speak it without a template.
_LLAMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + ('ipython' if message['role'] == 'tool' else message['role']) + "
    "'<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)


class TokenizerTexts(NamedTuple):
    """Our tokenizer files, the paths that they come from, and what was decided for the user."""

    texts: dict[str, bytes]
    paths: list[Path]
    notes: list[str]


def huggingface_texts(folder: Path, config_values: dict) -> TokenizerTexts:
    """Our tokenizer files from a Hugging Face folder; none if it has no tokenizer."""
    try:
        return _huggingface_texts(folder, config_values)
    except (AttributeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}: a tokenizer file is damaged: {error}") from None


def _huggingface_texts(folder: Path, config_values: dict) -> TokenizerTexts:
    if (meta := _metas_file(folder)) is not None:
        return TokenizerTexts({MODEL: meta}, [folder / MODEL], [])
    made = _tokenizer_file(folder)
    if made is None:
        return TokenizerTexts({}, [], [])
    settings, data = made.settings, made.data
    tokenizer = _read_tokenizer(folder / made.names[0], data)
    bos_id = _special_id(tokenizer, settings.get("bos_token"), config_values.get("bos_token_id"))
    stop_ids = _stop_ids(folder, config_values, tokenizer)
    _check_ids(folder / "config.json", "bos_token_id", [bos_id], tokenizer)
    eos_id = _special_id(tokenizer, settings.get("eos_token"), stop_ids[0] if stop_ids else None)
    if eos_id is not None and eos_id not in stop_ids:
        stop_ids.append(eos_id)
    templates = _chat_templates(folder, settings)
    default = templates.pop("default", None)
    texts = {
        JSON: data,
        GENERATION: generation_bytes(
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=_adds_bos(tokenizer, settings, bos_id),
            stop_ids=stop_ids,
            special_tokens=_special_tokens(settings),
            chat_templates=templates,
        ),
    }
    if default:
        texts[TEMPLATE] = default.encode()
    names = dict.fromkeys((*made.names, *_SETTINGS, _GENERATION, TEMPLATE))
    paths = [folder / name for name in names if (folder / name).is_file()]
    return TokenizerTexts(texts, [*paths, *_template_files(folder)], made.notes)


def _settings(folder: Path) -> dict:
    """tokenizer_config.json, with the special tokens that older folders keep in a file of their own."""
    path = folder / "tokenizer_config.json"
    settings = optional_json(path)
    for key in _FLAGS:
        if not isinstance(settings.get(key), bool | None):
            raise ValueError(f"{path}: {key} {settings[key]!r} is neither true nor false")
    if "added_tokens_decoder" in settings:
        return settings
    return {**settings, **optional_json(folder / "special_tokens_map.json")}


def _special_tokens(settings: dict) -> dict[str, str]:
    """The texts of the special tokens by the names under which templates know them."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    if isinstance(extra := settings.get("extra_special_tokens"), dict):
        named |= extra
    texts = {n: v.get("content") if isinstance(v, dict) else v for n, v in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _metas_file(folder: Path) -> bytes | None:
    """Meta's tokenizer.model, if the folder has that and no tokenizer.json; SentencePiece's has its name."""
    path = folder / MODEL
    if (folder / JSON).is_file() or not path.is_file():
        return None
    data = path.read_bytes()
    if is_sentencepiece(data):
        return None
    try:
        tokenizer_from_files({MODEL: data})
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return data


def _tokenizer_file(folder: Path) -> MadeTokenizer | None:
    """The folder's tokenizer.json, or one made of what it has instead."""
    settings = _settings(folder)
    if not (folder / JSON).is_file():
        return make_tokenizer(folder, settings)
    data = (folder / JSON).read_bytes()
    try:
        read_tokenizer_json(data)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return MadeTokenizer(data, settings, [JSON], [])


def _stop_ids(folder: Path, config_values: dict, tokenizer: Any) -> list[int]:
    """What generation_config.json, or else config.json, says of the ends of a text."""
    generation = optional_json(folder / _GENERATION)
    name = _GENERATION if "eos_token_id" in generation else "config.json"
    stops = generation.get("eos_token_id", config_values.get("eos_token_id"))
    stop_ids = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
    if not all(type(token) is int for token in stop_ids):
        raise ValueError(f"{folder / name}: eos_token_id {stops!r} is not a list of ids")
    _check_ids(folder / name, "eos_token_id", stop_ids, tokenizer)
    return stop_ids


def _check_ids(path: Path, key: str, ids: Sequence[int | None], tokenizer: Any) -> None:
    """Refuse ids that no token has, in the words of the file that they stand in."""
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    for token in ids:
        if token is not None and not 0 <= token < size:
            raise ValueError(
                f"{path}: {key} {token} is beyond the {size} tokens of the tokenizer; "
                "correct it, or bring the tokenizer that belongs to it"
            )


def _read_tokenizer(path: Path, data: bytes) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path}: {error}") from None


def _adds_bos(tokenizer: Any, settings: dict, bos_id: int | None) -> bool:
    """Whether the tokenizer puts the beginning-of-text token before plain text."""
    if (given := settings.get("add_bos_token")) is not None:
        return given
    return bos_id is not None and tokenizer.encode("a").ids[:1] == [bos_id]


def _special_id(tokenizer: Any, token: Any, fallback: Any) -> int | None:
    if isinstance(token, dict):
        token = token.get("content")
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is not None:
        return found
    return fallback if isinstance(fallback, int) else None


def _chat_templates(folder: Path, settings: dict) -> dict[str, str]:
    """The chat templates by their names; a file of its own goes before tokenizer_config.json."""
    path, others = folder / TEMPLATE, _template_files(folder)
    if path.is_file() or others:
        files = {file.stem: file for file in others}
        files |= {"default": path} if path.is_file() else {}
        return {name: file.read_text(encoding="utf-8") for name, file in files.items()}
    template = settings.get("chat_template")
    named = {"default": template}
    if isinstance(template, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in template}
    return {str(name): text for name, text in named.items() if isinstance(text, str)}


def _template_files(folder: Path) -> list[Path]:
    """The templates beside the default one, which newer folders keep in a folder of their own."""
    return sorted(folder.glob("additional_chat_templates/*.jinja"))


def huggingface_files(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json of a tokenizer."""
    names = tokenizer.special_names
    template = exported_template(tokenizer)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }
    if tokenizer.bos_id in names:
        settings["bos_token"] = names[tokenizer.bos_id]
    if tokenizer.eos_id in names:
        settings["eos_token"] = names[tokenizer.eos_id]
    named = tokenizer.special_tokens or {}
    settings |= {name: text for name, text in named.items() if text}
    if template is not None:
        settings["chat_template"] = template
    if others := tokenizer.chat_templates:
        entries = {**({} if template is None else {"default": template}), **others}
        settings["chat_template"] = [{"name": n, "template": t} for n, t in entries.items()]
    generation: dict[str, Any] = {}
    if tokenizer.stop_ids:
        generation["eos_token_id"] = list(tokenizer.stop_ids)
    if tokenizer.bos_id is not None:
        generation["bos_token_id"] = tokenizer.bos_id
    return {
        JSON: _tokenizer_json(tokenizer),
        "tokenizer_config.json": json_bytes(settings),
        "generation_config.json": json_bytes(generation),
    }


def exported_template(tokenizer: Tokenizer) -> str | None:
    """The chat template for other programs: the model's own, or Meta's format if it speaks that."""
    if tokenizer.chat_template is None and tokenizer.chat_format is not None:
        return _LLAMA3_TEMPLATE
    return tokenizer.chat_template


def _tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """The model's tokenizer.json, or one made of Meta's ranks; it adds the BOS token as ours does."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.processors import TemplateProcessing

    if JSON in tokenizer.files:
        data = tokenizer.files[JSON]
        fast = Fast.from_buffer(data)
    else:
        fast = ranks_tokenizer(tokenizer.vocabulary)
        data = fast.to_str().encode()
    bos_id = tokenizer.bos_id
    adds = bos_id is not None and fast.encode("a").ids[:1] == [bos_id]
    if tokenizer.add_bos and not adds and bos_id in tokenizer.special_names:
        name = tokenizer.special_names[bos_id]
        fast.post_processor = TemplateProcessing(
            single=f"{name} $A", pair=f"{name} $A {name} $B", special_tokens=[(name, bos_id)]
        )
        return fast.to_str().encode()
    if adds and not tokenizer.add_bos:
        return json.dumps({**json.loads(data), "post_processor": None}).encode()
    return data


def ranks_tokenizer(vocabulary: Any) -> Any:
    """Meta's tokenizer.model as byte-level BPE.

    tiktoken merges whichever neighbours make the token of lowest rank; so every pair of tokens that
    makes a token is a merge, in the order of what they make.
    """
    from tokenizers import AddedToken

    assert isinstance(vocabulary, MetaVocabulary)
    printable = {byte: character for character, byte in byte_level().items()}
    tokens = [vocabulary.token_bytes(rank) for rank in range(min(vocabulary.special.values()))]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    texts = ["".join(printable[byte] for byte in token) for token in tokens]
    merges = []
    for token, text in zip(tokens, texts, strict=True):
        pairs = [
            (ranks[token[:cut]], ranks[token[cut:]], cut)
            for cut in range(1, len(token))
            if token[:cut] in ranks and token[cut:] in ranks
        ]
        merges += [(text[:cut], text[cut:]) for _, _, cut in sorted(pairs)]
    vocab = {text: rank for rank, text in enumerate(texts)}
    fast = byte_level_bpe(vocab, merges, "llama3")
    special = sorted(vocabulary.special, key=lambda name: vocabulary.special[name])
    fast.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in special])
    return fast
