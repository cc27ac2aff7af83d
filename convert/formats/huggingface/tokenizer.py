"""Our tokenizer as the files that transformers reads."""

import json
from typing import Any

from jax_llama3.checkpoint.manifest import json_bytes
from jax_llama3.text.tokenizer import JSON, MetaVocabulary, Tokenizer, byte_level

from ..vocabulary import pre_tokenizer

# Meta's format as `jax_llama3.text.chat` writes it, for tokenizers that bring no template of their own.
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


def huggingface_files(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and generation_config.json of a tokenizer."""
    names = tokenizer.special_names
    template = tokenizer.chat_template
    if template is None and "<|start_header_id|>" in tokenizer.vocabulary.special:
        template = _LLAMA3_TEMPLATE
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
    if template is not None:
        settings["chat_template"] = template
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


def _tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """The model's tokenizer.json, or one made of Meta's ranks; it adds the BOS token as ours does."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.processors import TemplateProcessing

    if JSON in tokenizer.files:
        data = tokenizer.files[JSON]
        fast = Fast.from_buffer(data)
    else:
        fast = _from_ranks(tokenizer.vocabulary)
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


def _from_ranks(vocabulary: Any) -> Any:
    """Meta's tokenizer.model as byte-level BPE.

    tiktoken merges whichever neighbours make the token of lowest rank; so every pair of tokens that
    makes a token is a merge, in the order of what they make.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

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
    fast = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizer("llama3")
    fast.decoder = decoders.ByteLevel()
    special = sorted(vocabulary.special, key=lambda name: vocabulary.special[name])
    fast.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in special])
    return fast
