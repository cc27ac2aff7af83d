# %% [markdown] id="title" lang="en"
# # 16 · One page: text to text without any library of ours
#
# *Reading time 15 minutes. Before it: lessons 01 to 07 and 10. What it proves: one page of Python, with NumPy and nothing of
# `jax_llama3` in it, turns text into text; its ids, logits and greedy text are those of `jax_llama3`.*
#
# Every lesson so far looked at one part. How much code remains if you write it all down once, with no regard for checks,
# speed or comfort? One page. It reads the three kinds of files that make up a model, turns text into ids, runs the
# network with a KV cache, and turns ids into text. You have met every line of it.
#
# The page uses Python, NumPy and the package `regex` (Python's own `re` has no class for letters). No JAX, no PyTorch, no
# tokenizer library, no safetensors library. Then we compare it with `jax_llama3`, number by number, and break it on purpose.
# %% [markdown] id="title" lang="zh" of="cda183f7"
# # 16 · 一页代码：不用本库，从文本到文本
#
# *阅读时间 15 分钟。前置：第 01 至 07 课、第 10 课。本课证明：一页 Python，只用 NumPy，不含 `jax_llama3` 的任何东西，就能从文本走到文本；
# 它的编号、logits 和贪心文本都与 `jax_llama3` 的一致。*
#
# 前面十几课，每课只看一个部分。如果把全部内容一次写完，不做检查，不求速度，也不图方便，还剩多少代码？一页。它读取构成模型的三类文件，
# 把文本变成编号，带着 KV 缓存运行网络，再把编号变回文本。其中的每一行你都见过。
#
# 这一页只用到 Python、NumPy 和软件包 `regex`（Python 自带的 `re` 没有“字母”这个类）。没有 JAX，没有 PyTorch，没有分词器库，也没有
# safetensors 库。然后我们拿它与 `jax_llama3` 逐个数对照，再故意把它弄坏。
# %% [markdown] id="guide" lang="en"
# ## How to read the page
#
# It has four parts. A model is a dictionary: what the config says, the tokenizer's tables, and the weights.
#
# | part | functions | explained in |
# |---|---|---|
# | files | `read_model` `read_weights` `to_float32` | 02 |
# | text | `byte_signs` `cut` `merge` `encode` `decode` | 01 |
# | network | `linear` to `forward` | 03 to 07 |
# | generation | `generate` | 10 |
#
# Three details are worth a look. A safetensors file is eight bytes that give the length of a header, the header in JSON,
# and then the numbers; bfloat16 is the upper half of a float32, so appending sixteen zero bits turns it into one. A
# `tokenizer.json` writes bytes as printable signs, a space as `Ġ`; `byte_signs` is that table. And `linear` is the only
# matrix product with weights: a weight's first axes are the output, so flattening them and transposing is enough for
# every matrix of the network.
# %% [markdown] id="guide" lang="zh" of="1b7054cd"
# ## 怎样读这一页
#
# 它分四部分。一个模型就是一个字典，里面是配置中的各项、分词器的几张表，以及权重。
#
# | 部分 | 函数 | 讲解于 |
# |---|---|---|
# | 文件 | `read_model` `read_weights` `to_float32` | 02 |
# | 文本 | `byte_signs` `cut` `merge` `encode` `decode` | 01 |
# | 网络 | 从 `linear` 到 `forward` | 03 至 07 |
# | 生成 | `generate` | 10 |
#
# 有三处细节值得一看。safetensors 文件先用八个字节给出文件头的长度，接着是 JSON 格式的文件头，再往后就是数；bfloat16 是 float32 的高 16 位，后面补上十六个零比特就成了 float32。`tokenizer.json` 用可打印的符号来写字节，空格写成 `Ġ`；`byte_signs` 就是这张对照表。与权重相乘的矩阵乘积只有 `linear` 一处：权重靠前的轴是输出，把它们展平再转置，对网络里的每个矩阵都适用。
# %% id="one_page"
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import regex

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


# en: ---- Files ----
# zh: ---- 文件 ----
def read_model(folder):
    files = {path.name: json.loads(path.read_bytes()) for path in Path(folder).glob("*.json")}
    words = files["tokenizer.json"]
    pairs = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in words["model"]["merges"]
    ]
    special = {token["content"]: token["id"] for token in words["added_tokens"]}
    return {
        **files["config.json"],
        **files["generation.json"],
        "cuts": words["pre_tokenizer"]["pretokenizers"],
        "whole_first": words["model"].get("ignore_merges", False),
        "ids": {**words["model"]["vocab"], **special},
        "special": special,
        "ranks": {tuple(pair): rank for rank, pair in enumerate(pairs)},
        "weights": read_weights(folder),
    }


def read_weights(folder):
    weights = {}
    for path in Path(folder).glob("*.safetensors"):
        data = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(data[:8].tobytes(), "little")
        for name, entry in json.loads(data[8:start].tobytes()).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                numbers = to_float32(data[start + begin : start + end], entry["dtype"])
                weights[name] = numbers.reshape(entry["shape"])
    return weights


def to_float32(data, dtype):
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view({"F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32, copy=False)


# en: ---- Text to ids, ids to text ----
# zh: ---- 文本到编号，编号到文本 ----
def byte_signs():
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}


def cut(text, model):
    pieces, signs = [text], byte_signs()
    for step in model["cuts"]:
        find, pattern = regex.findall, step.get("pattern", {}).get("Regex")
        if step["type"] == "Digits":
            pattern = r"\p{N}|\P{N}+"
        elif step["type"] == "ByteLevel":
            pattern = GPT2 if step["use_regex"] else r"(?s).+"
        elif step["behavior"] == "Removed":
            find = regex.split
        pieces = [part for piece in pieces for part in find(pattern, piece) if part]
        if step["type"] == "ByteLevel":
            pieces = ["".join(signs[byte] for byte in piece.encode()) for piece in pieces]
    return pieces


def merge(piece, model):
    parts = list(piece)
    while len(parts) > 1:
        ranks = [model["ranks"].get(pair, math.inf) for pair in pairwise(parts)]
        if min(ranks) == math.inf:
            break
        i = ranks.index(min(ranks))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def encode(text, model):
    ids = [model["bos_id"]] if model["add_bos"] else []
    for piece in cut(text, model):
        whole = model["whole_first"] and piece in model["ids"]
        ids += [model["ids"][part] for part in ([piece] if whole else merge(piece, model))]
    return ids


def decode(ids, model):
    names = {i: name for name, i in model["ids"].items() if name not in model["special"]}
    values = {sign: byte for byte, sign in byte_signs().items()}
    return bytes(values[sign] for i in ids for sign in names.get(i, "")).decode(errors="replace")


# en: ---- The network ----
# zh: ---- 网络 ----
def linear(x, weight):
    return x @ weight.reshape(-1, x.shape[-1]).T


def norm(x, weight, model):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + model["norm_eps"]) * weight


def rotate(x, positions, model):
    half = x.shape[-1] // 2
    speeds = model["rope_theta"] ** (-np.arange(half) / half)
    if scaling := model["rope_scaling"]:
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_seq_len"] * speeds / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        speeds = kept * speeds + (1 - kept) * speeds / scaling["factor"]
    angles = positions[:, None, None] * speeds
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(positions):
    return np.arange(positions[-1] + 1) <= positions[:, None]


def softmax(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(x, layer, positions, cache, model):
    n, k, h = model["n_heads"], model["n_kv_heads"], model["head_dim"]
    q = rotate(linear(x, layer["wq"]).reshape(-1, n, h), positions, model)
    new_k = rotate(linear(x, layer["wk"]).reshape(-1, k, h), positions, model)
    new_v = linear(x, layer["wv"]).reshape(-1, k, h)
    for name, new in (("k", new_k), ("v", new_v)):
        cache[name] = np.concatenate([cache[name], new]) if name in cache else new
    keys, values = (cache[name].repeat(n // k, axis=1).swapaxes(0, 1) for name in "kv")
    scores = q.swapaxes(0, 1) @ keys.swapaxes(1, 2) / math.sqrt(h)
    pattern = softmax(np.where(visible(positions), scores, -np.inf))
    return linear((pattern @ values).swapaxes(0, 1).reshape(-1, n * h), layer["wo"])


def silu(x):
    # en: x / (1 + exp(-x)), written so that nothing overflows
    # zh: x / (1 + exp(-x))，这种写法不会溢出
    return x * (1 + np.tanh(x / 2)) / 2


def feed_forward(x, layer):
    return linear(silu(linear(x, layer["w_gate"])) * linear(x, layer["w_up"]), layer["w_down"])


def forward(ids, model, caches, start=0):
    weights, positions = model["weights"], np.arange(start, start + len(ids))
    x = weights["embedding"][ids]
    for i in range(model["n_layers"]):
        inside = f"layers.{i}."
        layer = {n.removeprefix(inside): w for n, w in weights.items() if n.startswith(inside)}
        cache = caches.setdefault(i, {})
        x = x + attention(norm(x, layer["attn_norm"], model), layer, positions, cache, model)
        x = x + feed_forward(norm(x, layer["ffn_norm"], model), layer)
    return linear(norm(x, weights["norm"], model), weights.get("output", weights["embedding"]))


# en: ---- Generation ----
# zh: ---- 生成 ----
def generate(prompt, model, count):
    new, caches, start, written = encode(prompt, model), {}, 0, []
    for _ in range(count):
        token = int(forward(new, model, caches, start)[-1].argmax())
        if token in model["stop_ids"]:
            break
        start += len(new)
        new = [token]
        written += new
    return decode(written, model)


# %% [markdown] id="run_text" lang="en"
# ## Does it generate text?
#
# All the page needs is a folder. A helper of the course says where the default model is; for now, that is all we take
# from the course.
# %% [markdown] id="run_text" lang="zh" of="ac1b437b"
# ## 它能生成文本吗？
#
# 这一页只需要一个文件夹。默认模型在哪里，由课程的一个辅助函数给出；眼下只用到课程的这一处。
# %% id="run"
from jax_llama3_course import model_folder

folder = model_folder()
page_model = read_model(folder)
prompt = "The capital of France is"
print(encode(prompt, page_model))
print(repr(generate(prompt, page_model, 24)))
# %% [markdown] id="alone" lang="en"
# ## Is it really alone?
#
# "Nothing of ours" is only a claim so far, and the notebook imports `jax_llama3` further down. So here is the proof. A
# Python function looks up every name that it does not define itself in the dictionary of its module. We build all
# functions of the page anew, with a dictionary that holds the page's imports, its one constant and its own functions, and
# nothing else. If one of them needed more, the call below would end in a `NameError`.
# %% [markdown] id="alone" lang="zh" of="79c3f9a5"
# ## 它真的是独立的吗？
#
# “不用本库”只是一个说法，何况这个笔记本在下文就会导入 `jax_llama3`。所以这里给出证明。Python 函数里凡是自己没有定义的名字，都到所在模块的字典里去找。我们把这一页的所有函数重新造一遍，给它们的字典里只有这一页导入的东西、它的一个常量和它自己的函数，别的一概没有。若有哪个函数还需要别的
# 东西，下面的调用就会以 `NameError` 告终。
# %% id="alone_code"
import types

names = "read_model read_weights to_float32 byte_signs cut merge encode decode linear norm rotate "
names += "visible softmax attention silu feed_forward forward generate"
alone = {"json": json, "math": math, "np": np, "regex": regex, "Path": Path}
alone |= {"pairwise": pairwise, "GPT2": GPT2}
for name in names.split():
    function = globals()[name]
    alone[name] = types.FunctionType(function.__code__, alone, name, function.__defaults__)

text = alone["generate"](prompt, alone["read_model"](folder), 8)
assert text == generate(prompt, page_model, 8)
modules = sorted(value.__name__ for value in alone.values() if isinstance(value, types.ModuleType))
assert modules == ["json", "math", "numpy", "regex"]
print(f"{len(names.split())} functions, {', '.join(modules)}: {text!r}")
# %% [markdown] id="compare" lang="en"
# ## Is it right?
#
# Now the comparison, in the order in which the text goes through the model: ids, logits, greedy text. The ids must be
# equal on a thousand random strings in many scripts. The logits may differ by rounding, because NumPy and XLA add in
# different orders; we allow a difference of 0.001. (On the course's own model the text is known, and `expect` checks that
# as well.)
# %% [markdown] id="compare" lang="zh" of="9c2468e3"
# ## 它对吗？
#
# 现在开始对照，次序与文本穿过模型的次序相同：编号、logits、贪心文本。在一千个含多种文字的随机字符串上，编号必须完全相等。logits 可以有舍入上的差别，因为 NumPy 与 XLA 的加法次序不同；我们允许相差 0.001。（在课程自己的模型上，文本是已知的，`expect` 也会核对它。）
# %% id="ids_code"
import random

import jax_llama3
from jax_llama3_course import close, exercise, expect, load_model

model = load_model()
rng = random.Random(0)
signs = "abcdefghijklmnopqrstuvwxyz" * 2 + "ETAOINS" + "     '.,!?-\n\t0123456789"
signs += "éüñßпривет中文你好世界的是，。🙂😀안녕ไทยợềđ"
strings = ["".join(rng.choices(signs, k=rng.randint(1, 60))) for _ in range(1_000)]
for string in strings:
    ids = encode(string, page_model)
    assert ids == model.tokenizer.encode(string, bos=True)
    assert decode(ids, page_model) == model.tokenizer.decode(ids, skip_special=True)
print(f"{len(strings):,} strings, the same ids and back")
# %% id="logits_code"
prompts = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def add(a, b):\n    return",
    "今天天气不错",
]
# en: One call for all four: shorter rows are padded at the end, which no earlier position sees (lesson 13).
# zh: 四个提示一次算完：短的行在末尾填充，前面的位置看不到填充的部分（第 13 课）。
rows = [encode(each, page_model) for each in prompts]
width = max(map(len, rows))
together, _ = jax_llama3.forward(
    model.params, np.array([row + [0] * (width - len(row)) for row in rows]), model.config
)
for row, theirs in zip(rows, together, strict=True):
    close(forward(row, page_model, {}), theirs[: len(row)], atol=1e-3)
# %% id="greedy_code"
completions = jax_llama3.generate(model, prompts, max_new_tokens=16)
for each, theirs in zip(prompts, completions, strict=True):
    ours = generate(each, page_model, 16)
    kept = [token for token in theirs.tokens if token not in page_model["stop_ids"]]
    assert ours == decode(kept, page_model)
    print(repr(each), "→", repr(ours))
expect(generate(prompt, page_model, 1), " Paris")
# %% [markdown] id="other" lang="en"
# The page could be right on one model by luck. So here is another model: small and random, but built like Llama 3.1. It
# has a separate output matrix, RoPE with scaling, and weights in bfloat16. `jax_llama3` saves it, and the page reads it.
# %% [markdown] id="other" lang="zh" of="58647ea9"
# 在一个模型上正确，也许是碰巧。所以再换一个模型：它又小又是随机的，但构造与 Llama 3.1 相同，输出矩阵独立，RoPE 带缩放，权重是 bfloat16。由 `jax_llama3` 保存，由这一页读取。
# %% id="other_code"
import dataclasses
import tempfile

import jax

from jax_llama3.bench.presets import preset

sizes = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 224}
vocabulary = {"vocab_size": model.config.vocab_size}
small = dataclasses.replace(preset("llama3.1-8b"), **sizes, **vocabulary)
random_params = jax_llama3.init_params(jax.random.key(0), small, "bfloat16")
with tempfile.TemporaryDirectory() as parent:
    saved = Path(parent) / "small"
    jax_llama3.save(saved, jax_llama3.Model(small, random_params, model.tokenizer))
    small_page = read_model(saved)
    wide = jax_llama3.load(saved, dtype="float32")
    ids = encode("one two three " * 20, small_page)
    theirs, _ = jax_llama3.forward(wide.params, np.array([ids]), small)
    close(forward(ids, small_page, {}), theirs[0], atol=1e-3)
    assert small_page["rope_scaling"]["factor"] == 8
    assert "output" in small_page["weights"]
    del small_page
# %% [markdown] id="broken" lang="en"
# ## Which line is needed?
#
# The page is small enough to ask of each line what it is good for. `swapped` replaces one of the page's functions with
# another, runs something, and puts the original back; `without` does so to get the next token of four prompts. Before you
# look: which of the four prompts could do without the rotation of lesson 05? Which could do without the mask?
# %% [markdown] id="broken" lang="zh" of="fbe59bc2"
# ## 哪一行是必需的？
#
# 这一页足够短，可以逐行追问有什么用。`swapped` 把这一页的某个函数换成另一个，运行一段代码，再把原来的函数换回去；`without` 用它来求四个提示各自的下一个 token。先别往下看：这四个提示里，哪些没有第 05 课的旋转也行？哪些没有掩码也行？
# %% id="broken_code"
questions = [
    "New York, Los Angeles and San",
    "one, two, three, four,",
    "Thank you very",
    "Once upon a",
]


def next_token(text):
    last = forward(encode(text, page_model), page_model, {})[-1]
    return decode([int(last.argmax())], page_model)


def swapped(name, other, run):
    own = globals()[name]
    globals()[name] = other
    try:
        return run()
    finally:
        globals()[name] = own


def without(name, other, texts=questions):
    return swapped(name, other, lambda: [next_token(text) for text in texts])


whole = [next_token(text) for text in questions]
changes = {
    "no rotation": ("rotate", lambda x, positions, model: x),
    "no mask": ("visible", lambda positions: np.ones((len(positions), len(positions)), bool)),
    "no gate": ("silu", lambda x: x),
    "no feed-forward": ("feed_forward", lambda x, layer: 0 * x),
}
print(f"{'the page':<16}", *(f"{word!r:<14}" for word in whole))
found = {}
for what, change in changes.items():
    found[what] = without(*change)
    print(f"{what:<16}", *(f"{word!r:<14}" for word in found[what]))
expect(whole, [" Francisco", " five", " much", " time"])
same = {what: [a == b for a, b in zip(whole, words, strict=True)] for what, words in found.items()}
expect(same["no rotation"], [True, False, True, False])
expect(same["no mask"], [True, True, False, False])
expect(same["no gate"], [False] * 4)
expect(same["no feed-forward"], [False] * 4)
# %% [markdown] id="broken_end" lang="en"
# The table is a warning as much as an answer. Without rotation the page still says "San Francisco" and "Thank you very
# much"; without the mask it still counts. Anyone who tested with only one such prompt would find nothing wrong. That is
# why the comparison above looks at every logit at every position, and why lesson 08 does the same with seventeen errors.
# %% [markdown] id="broken_end" lang="zh" of="5c7fb4a2"
# 这张表既是答案，也是警告。没有旋转，这一页仍然说得出“San Francisco”和“Thank you very much”；没有掩码，它仍然会数数。谁若只用这样一个提示来测试，就什么毛病也发现不了。所以上面的对照要看每个位置的每一个 logit，第 08 课对十七种错误也是这样做的。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Three people each change one line of `rotate`. One adds 1,000 to every position, one doubles every position, one
# turns the other way (by negating every position). Which of them change the logits of "The capital of France is"? Answer
# with a set of the words `"shifted"`, `"doubled"`, `"reversed"`. Predict first.
# %% [markdown] id="exercises" lang="zh" of="8ae764be"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 三个人各改了 `rotate` 里的一行：一个给每个位置加 1,000，一个把每个位置乘以二，一个让它反着转（每个位置取负）。哪些改动会改变
# “The capital of France is”的 logits？用由 `"shifted"`（平移）、`"doubled"`（加倍）、`"reversed"`（反转）组成的集合作答。先预测。
# %% id="exercise_1"
answer_1 = None
turned = {
    "shifted": lambda x, positions, model, own=rotate: own(x, positions + 1000, model),
    "doubled": lambda x, positions, model, own=rotate: own(x, positions * 2, model),
    "reversed": lambda x, positions, model, own=rotate: own(x, -positions, model),
}


def check_1(answer):
    ids = encode(prompt, page_model)
    right, moved = forward(ids, page_model, {}), {}
    for what, other in turned.items():
        logits = swapped("rotate", other, lambda: forward(ids, page_model, {}))
        moved[what] = float(np.abs(logits - right).max())
    print({what: round(number, 2) for what, number in moved.items()})
    assert set(answer) == {what for what, number in moved.items() if number > 0.1}


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Lesson 05: a score depends on the difference of two positions, and on nothing else about them. In each case, what
# happens to the difference, and to its sign?
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="7745ecbf"
# <details><summary>线索</summary>
#
# 第 05 课：分数只取决于两个位置之差，与位置本身无关。三种情况下，这个差各变成什么？正负号呢？
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, {"doubled", "reversed"}, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Find a prompt of at least five tokens that does not notice that the mask is missing: its next token stays the
# same. (The prompts in the table do not count.) Try as many as you like with
# `without(*changes["no mask"], [your_prompt])`.
# %% [markdown] id="exercise_2_text" lang="zh" of="a5bc310c"
# **2.** 找一个至少五个 token 的提示，没有掩码它也不受影响：下一个 token 不变（表中的提示不算）。用 `without(*changes["no mask"], [你的提示])` 想试多少次就试多少次。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    assert answer not in questions
    assert len(encode(answer, page_model)) >= 5
    (other,) = without(*changes["no mask"], [answer])
    print(repr(answer), "→", repr(next_token(answer)), "and without the mask", repr(other))
    assert other == next_token(answer)


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# The last row sees every token with the mask and without it. Only the rows before it are disturbed. So look for a next
# token that hardly depends on what those rows have worked out: one that the last few tokens settle by themselves.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="e3c0d6b9"
# <details><summary>线索</summary>
#
# 有没有掩码，最后一行都看得到每一个 token；被扰乱的是它前面的各行。所以要找这样的下一个 token：它几乎不依赖那些行算出的东西，单凭最后几个 token 就定了。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, "We flew from New York to Los", check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** So far the page only takes the most likely token. Write `probability(prompt, continuation)` with the functions of
# the page: how likely does the model find it that the prompt goes on like this? The continuation may have several tokens.
# The check compares your number with `jax_llama3.score`, and lesson 17 is about this number.
# %% [markdown] id="exercise_3_text" lang="zh" of="3eede1c6"
# **3.** 到现在为止，这一页只取最可能的 token。请用这一页的函数写出 `probability(prompt, continuation)`：模型认为提示这样接下去的概率有多大？接续的文本可以有好几个 token。检查会与 `jax_llama3.score` 比较；第 17 课讲的就是这个数。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    for continuation in (" Paris", " Rome", " a city of light"):
        first = len(encode(prompt, page_model))
        logprobs = jax_llama3.score(model, prompt + continuation).logprobs[first:]
        ours = float(answer(prompt, continuation))
        print(f"{continuation!r}: {ours:.2e}")
        np.testing.assert_allclose(ours, math.exp(sum(logprobs)), rtol=0.02)


exercise(3, answer_3, check_3)


# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# One forward pass over prompt and continuation together gives all the logits that you need. The row at position $i$ is
# about the token at $i + 1$. The probabilities of successive tokens are multiplied.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="414b9b05"
# <details><summary>线索</summary>
#
# 把提示和接续的文本连在一起做一次前向计算，需要的 logits 就全有了。位置 $i$ 那一行预测的是 $i + 1$ 处的 token。相继几个 token 的概率要相乘。
#
# </details>
# %% id="solution_3" tags=["solution"]
def probability(prompt, continuation):
    first, ids = len(encode(prompt, page_model)), encode(prompt + continuation, page_model)
    rows = softmax(forward(ids, page_model, {}))
    return math.prod(float(rows[place - 1, ids[place]]) for place in range(first, len(ids)))


exercise(3, probability, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Grattafiori et al., *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - Hugging Face, [the safetensors format](https://huggingface.co/docs/safetensors/index#format)
# - Hugging Face, [tokenizers](https://huggingface.co/docs/tokenizers/index), whose `tokenizer.json` the page reads
# - Allal et al., *SmolLM2*, 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737): the default model
#
# Next: lesson 17 asks where the weights come from.
# %% [markdown] id="sources" lang="zh" of="1035585c"
# ## 来源
#
# - Grattafiori 等，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - Hugging Face，[safetensors 格式](https://huggingface.co/docs/safetensors/index#format)
# - Hugging Face，[tokenizers](https://huggingface.co/docs/tokenizers/index)，这一页读取的 `tokenizer.json` 就是它的格式
# - Allal 等，*SmolLM2*，2025，[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)：默认模型
#
# 下一课：第 17 课追问权重从何而来。
