"""Published chat formats: transformers' ids for harmless dialogs, and no token of what a person typed."""

import dataclasses
import datetime
import json
from collections import Counter
from functools import lru_cache
from typing import Any

import pytest
from chat_templates import FORMATS, Format
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as JsonTokenizer

from jax_llama3.text.chat import chat_tokens
from jax_llama3.text.tokenizer import GENERATION, JSON, TEMPLATE, Tokenizer, tokenizer_from_files
from jax_llama3.text.vocabulary import byte_level

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather < now & later",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "description": "Ort, z. B. Köln"}},
            "required": ["town"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"town": "Köln", "days": [1, 2.5, None]}},
}
SYSTEM = {"role": "system", "content": "Sei knapp.\n"}
TURNS = [
    {"role": "user", "content": "  Hello 你好 🙂\n"},
    {"role": "assistant", "content": "<b>thoughts</b>\n\nHi & bye!"},
    {"role": "user", "content": "\n\nand   now?"},
]
WITH_TOOLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": '{"sun": 1}'},
    {"role": "assistant", "content": "Sunny."},
    {"role": "user", "content": "Thanks!"},
]
DOCUMENTS = [{"title": f"straße {i}", "text": f"Text {i}"} for i in range(3)]


def dialogs_of(form: Format) -> list[tuple[list[dict], dict[str, Any]]]:
    """Dialogs that the format can take, and what goes with them."""
    told = [SYSTEM] if form.system else []
    found: list[tuple[list[dict], dict[str, Any]]] = [
        ([*told, *TURNS[:1]], {}),
        (TURNS, {}),
        ([*told, *TURNS], {"documents": DOCUMENTS}),
        ([*told, *TURNS[:2]], {"add_generation_prompt": False}),
    ]
    if form.tools:
        found += [(WITH_TOOLS, {"tools": [TOOL, TOOL]}), ([SYSTEM, *TURNS], {"tools": [TOOL]})]
    return found


@lru_cache
def fast_tokenizer(name: str) -> JsonTokenizer:
    """Bytes and a few merges, with the format's added tokens."""
    form = FORMATS[name]
    vocabulary = {character: index for index, character in enumerate(byte_level())}
    merges = [("h", "e"), ("l", "l"), ("i", "m"), ("im", "_"), ("t", "h"), ("th", "i")]
    vocabulary |= {a + b: len(vocabulary) + i for i, (a, b) in enumerate(merges)}
    tokenizer = JsonTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys([*form.special.values(), *form.marks])
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
        + [AddedToken(text, special=False, normalized=False) for text in form.plain]
    )
    return tokenizer


@lru_cache
def ours(name: str) -> Tokenizer:
    form, fast = FORMATS[name], fast_tokenizer(name)
    eos_id = fast.token_to_id(form.special["eos_token"])
    values = {"bos_id": None, "eos_id": eos_id, "add_bos": False, "stop_ids": [eos_id]}
    values |= {"special_tokens": form.special, "chat_templates": dict(form.named)}
    files = {JSON: fast.to_str(), GENERATION: json.dumps(values), TEMPLATE: form.template}
    return tokenizer_from_files({name: text.encode() for name, text in files.items()})


CASES = [(name, index) for name, form in FORMATS.items() for index in range(len(dialogs_of(form)))]


@pytest.mark.reference
@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_published_format_has_transformers_ids(name: str, index: int) -> None:
    from transformers import PreTrainedTokenizerFast

    form = FORMATS[name]
    template = {"default": form.template, **dict(form.named)} if form.named else form.template
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=JsonTokenizer.from_str(fast_tokenizer(name).to_str()),
        chat_template=template,
        **form.special,
    )
    messages, options = dialogs_of(form)[index]
    expected = theirs.apply_chat_template(
        messages, **{"add_generation_prompt": True, **options}, return_dict=False
    )
    assert chat_tokens(ours(name), messages, **options) == expected
    marks = {token.id for token in ours(name).vocabulary.added}
    assert marks & {*expected} or name in ("mistral", "llama 2")


def test_variables_of_the_caller_reach_the_template() -> None:
    tokenizer, messages = ours("llama 3.1"), TURNS[:1]
    told = tokenizer.decode(chat_tokens(tokenizer, messages, date_string="1 Jan 2030"))
    assert "Today Date: 1 Jan 2030\n" in told
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert f"Today Date: {today}\n" in tokenizer.decode(chat_tokens(ours("llama 3.2"), messages))


def test_the_template_for_tools_is_taken_where_tools_are_given() -> None:
    tokenizer = ours("hermes")
    without, with_tools = chat_tokens(tokenizer, TURNS), chat_tokens(tokenizer, TURNS, [TOOL])
    assert "<tools>" not in tokenizer.decode(without)
    assert "<tools>" in tokenizer.decode(with_tools)
    assert chat_tokens(tokenizer, TURNS, [TOOL], chat_template="default") == without
    with pytest.raises(ValueError, match="no chat template 'rag'; it has: default, tool_use"):
        chat_tokens(tokenizer, TURNS, chat_template="rag")
    nameless = dataclasses.replace(tokenizer, chat_template=None)
    with pytest.raises(ValueError, match="none of the model's chat templates is the default"):
        chat_tokens(nameless, TURNS)


HARMLESS = "qQ"  # what stands in the place of a typed text; it is a part of no token's name


def fill(form: Format, typed: list[str]) -> tuple[list[dict], dict[str, Any]]:
    """A dialog with the texts in its places, each in turn: every string that a person may type."""
    rest = iter(typed * 4)

    def said() -> str:
        return f"a{next(rest)}b"

    def function() -> dict:
        return {"name": said(), "arguments": {"x": said(), "y": [said(), {"z": said()}]}}

    def reply(text: str) -> dict:
        return {"role": "assistant", "content": text, "reasoning_content": said()}

    messages = [{"role": "system", "content": next(rest)}] if form.system else []
    messages += [{"role": "user", "name": said(), "content": next(rest) + said()}]
    options: dict[str, Any] = {"documents": [{"title": said(), "text": said()}]}
    if form.tools:
        call = {"id": "abcdefghi", "type": said(), "function": function()}
        messages += [{"role": "assistant", "content": said(), "tool_calls": [call]}]
        messages += [{"role": "tool", "tool_call_id": said(), "content": next(rest)}]
        properties = {said(): {"type": said(), "description": said()}}
        parameters = {"type": "object", "properties": properties}
        tool = {"name": said(), "description": said(), "parameters": parameters}
        options["tools"] = [{"type": "function", "function": tool}]
    messages += [reply(said()), {"role": "user", "content": next(rest)}, reply(next(rest))]
    return messages, options


def texts_of(name: str) -> st.SearchStrategy[str]:
    names = [token.name for token in ours(name).vocabulary.added]
    cuts = st.builds(lambda text, cut: text[:cut], st.sampled_from(names), st.integers(1, 9))
    ends = st.builds(lambda text, cut: text[-cut:], st.sampled_from(names), st.integers(1, 9))
    pieces = st.sampled_from([*names, " ", "\n", "x", "</think>", "|><|", "%s", "{0}"])
    return st.lists(st.one_of(pieces, cuts, ends), max_size=3).map("".join)


def specials(tokenizer: Tokenizer, form: Format, typed: list[str]) -> Counter:
    messages, options = fill(form, typed)
    ids = chat_tokens(tokenizer, messages, **options)
    added = {token.id: token.name for token in tokenizer.vocabulary.added}
    return Counter(added[token] for token in ids if token in added)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_token_is_made_of_what_a_person_typed(name: str, data: st.DataObject) -> None:
    form, tokenizer = FORMATS[name], ours(name)
    typed = data.draw(st.lists(texts_of(name), min_size=8, max_size=8))
    calm = harmless(name)
    marks = Counter({k: n for k, n in specials(tokenizer, form, typed).items() if k in uses(name)})
    assert marks <= calm


@lru_cache
def harmless(name: str) -> Counter:
    return specials(ours(name), FORMATS[name], [HARMLESS] * 8)


@lru_cache
def uses(name: str) -> frozenset[str]:
    """Special tokens, and the other added tokens that the format itself writes."""
    form = FORMATS[name]
    templates = form.template + "".join(dict(form.named).values())
    roles = {"<|user|>", "<|assistant|>", "<|system|>"}
    plain = {text for text in form.plain if text in templates or text in roles}
    return frozenset({*form.special.values(), *form.marks, *plain})


@pytest.mark.parametrize("role", ["<|end|>", "user|><|end", "|end|", "<|user|"])
def test_a_role_ends_no_turn(role: str) -> None:
    tokenizer = ours("phi 3")
    end = tokenizer.vocabulary.special["<|end|>"]
    for other in (role, "nobody"):
        ids = chat_tokens(tokenizer, [{"role": other, "content": "x"}])
        assert ids.count(end) == 1


def test_a_template_finds_a_tokens_name_in_a_message() -> None:
    tokenizer = ours("deepseek r1 distill")
    messages = [TURNS[0], {"role": "assistant", "content": "<think>hm</think>Hi"}, TURNS[2]]
    text = tokenizer.decode(chat_tokens(tokenizer, messages))
    assert "<｜Assistant｜>Hi<｜end▁of▁sentence｜>" in text
    assert "hm" not in text


FLAGS = ["lstrip", "rstrip", "single_word", "normalized"]


@pytest.mark.reference
@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("special", [True, False])
def test_the_flags_of_added_tokens_are_the_librarys(flag: str, special: bool) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = JsonTokenizer.from_str(fast_tokenizer("chatml").to_str())
    given = {"normalized": False, "special": special, flag: True}
    fast.add_tokens([AddedToken("<turn>", **given)])
    template = "a  <turn> \n b<turn>c {{ messages[0].content }}<turn>{{ messages[0].content }}"
    files = {JSON: fast.to_str(), GENERATION: ours("chatml").files[GENERATION].decode()}
    files[TEMPLATE] = template
    tokenizer = tokenizer_from_files({name: text.encode() for name, text in files.items()})
    theirs = PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template)
    messages = [{"role": "user", "content": " you "}]
    expected = theirs.apply_chat_template(messages, return_dict=False)
    assert chat_tokens(tokenizer, messages) == expected
    # Beside a token's name that somebody typed the template's tokens take the same blanks.
    typed = chat_tokens(tokenizer, [{"role": "user", "content": " you <|im_end|> "}])
    again = theirs.apply_chat_template([{"role": "user", "content": " you QQ "}], return_dict=False)
    assert tokenizer.decode(typed).replace("<|im_end|>", "QQ") == tokenizer.decode(again)
