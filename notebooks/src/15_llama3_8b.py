# %% [markdown] id="title" lang="en"
# # 15 · The real Llama-3-8B
#
# *Reading time 15 minutes. Before it: lessons 01, 02, 05, 08 and 14. What it proves: the big model needs nothing new. Its
# ids, shapes and sizes come out here without its weights; with them, so does its answer.*
#
# All lessons so far ran on a small model of the same architecture. What about the model that gave the architecture its
# name? Its weights take 16 GB and come with a licence that you must accept first, so this lesson runs without them. It
# computes everything that depends only on the tokenizer and on shapes, and it tries out the code that would examine the
# weights on two other models. If you have the weights, one line points the lesson at them.
# %% [markdown] id="title" lang="zh" of="ed655e59"
# # 15 · 真正的 Llama-3-8B
#
# *阅读时间 15 分钟。前置：第 01、02、05、08、14 课。本课证明：大模型不需要任何新东西。它的编号、形状和大小在没有权重时就能
# 得出；有了权重，还能得出它的回答。*
#
# 到目前为止，各课用的都是一个架构相同的小模型。那么，这种架构由之得名的那个模型呢？它的权重有 16 GB，还要先接受许可，所以本课在没有权重时也能运行：凡是只取决于分词器和形状的，都照样算出来；检查权重的代码，则在另外两个模型上试运行。如果你有权重，只要一行就能让本课用上它。
# %% id="setup"
import dataclasses
import importlib.metadata
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.bench.cost import cache_bytes_per_token, weight_bytes
from jax_llama3.bench.presets import preset
from jax_llama3.text.tokenizer import tokenizer_from_files
from jax_llama3.text.vocabulary import MetaVocabulary
from jax_llama3_course import exercise, load_model, on_default_model, show, trace
from jax_llama3_course.figures import llama3_8b as figures

# en: A folder with the converted model; leave it empty if you have none.
# zh: 存放转换后模型的文件夹；没有就留空。
folder_8b = os.environ.get("LESSON_LLAMA3_8B", "")
llama = preset("llama3-8b")
# %% [markdown] id="tokenizer" lang="en"
# ## The tokenizer needs no weights
#
# Meta's package `llama-models` carries Llama 3's tokenizer file: one line for each of 128,000 tokens, with its bytes and
# its rank. We ask Python's own list of installed packages where the file is; we need not import the package.
#
# To the 128,000 tokens the code adds 256 special ones, which are in no file: $128000 + 256 = 128256$.
# %% [markdown] id="tokenizer" lang="zh" of="af274dab"
# ## 分词器：不需要权重
#
# Meta 的软件包 `llama-models` 里带有 Llama 3 的分词器文件：128,000 个 token 各占一行，写着它的字节和序号。文件在哪里，查 Python 自己的已安装软件包清单就知道，不需要导入这个包。
#
# 在这 128,000 个 token 之外，代码再加上 256 个特殊 token，它们不在任何文件里：$128000 + 256 = 128256$。
# %% id="tokenizer_code"
package = importlib.metadata.distribution("llama-models")
(entry,) = (file for file in package.files if str(file) == "llama_models/llama3/tokenizer.model")
data = Path(package.locate_file(entry)).read_bytes()
assert len(data) == 2_183_982

vocabulary = MetaVocabulary(data)
tokenizer = tokenizer_from_files({"tokenizer.model": data})
assert data.count(b"\n") == 128_000
assert vocabulary.size == llama.vocab_size == 128_000 + 256
assert tokenizer.bos_id == vocabulary.special["<|begin_of_text|>"] == 128_000
print(f"{vocabulary.size:,} tokens; begin {tokenizer.bos_id}; stop {tokenizer.stop_ids}")
# %% [markdown] id="ids" lang="en"
# Now a prompt with a well-known answer. It ends with a space, and that space matters. Llama 3 keeps a word together with
# the space before it, but it splits digits off: " 42" is a space and then "42". So the prompt supplies the space, id 220,
# and the answer we hope for is the single token 2983.
# %% [markdown] id="ids" lang="zh" of="18d83541"
# 现在来一个答案众所周知的提示。它以空格结尾，而这个空格很要紧。Llama 3 把单词和前面的空格合在一起，数字却与空格分开：“ 42”是一个空格再加
# “42”。所以提示里给出空格（编号 220），我们期待的回答就是单独一个 token：2983。
# %% id="ids_code"
prompt = "the answer to the ultimate question of life, the universe, and everything is "
ids = tokenizer.encode(prompt, bos=True)
assert ids == [
    *(128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324),
    *(11, 279, 15861, 11, 323, 4395, 374, 220),
]
assert ids[1:] == vocabulary.encode(prompt)
assert len(ids) == 17
assert tokenizer.decode(ids[1:]) == prompt
print([tokenizer.decode([i]) for i in ids])

ANSWER = 2983
assert tokenizer.encode("42") == [ANSWER]
assert tokenizer.encode(" 42") == [220, ANSWER]
assert tokenizer.encode(prompt.strip()) == ids[1:-1]

# en: Digits go three by three, so every number below 1000 is one token.
# zh: 数字每三位一组，所以 1000 以下的数都是一个 token。
assert all(len(tokenizer.encode(str(number))) == 1 for number in range(1000))
assert len(tokenizer.encode("4242")) == 2
# %% [markdown] id="count" lang="en"
# ## Its shapes, without its memory
#
# The config decides every size. We count the parameters by hand and then ask for the abstract tree: the weights' names,
# shapes and dtypes, without a single number. Seven tenths of the parameters are in the feed-forward parts.
# %% [markdown] id="count" lang="zh" of="3fc22e9d"
# ## 不占内存的形状
#
# 所有的大小都由配置决定。我们先亲手数参数，再取一棵抽象的树：有权重的名字、形状和 dtype，却不含一个数。十分之七的参数在前馈部分。
# %% id="count_code"
D, V, F = llama.dim, llama.vocab_size, llama.ffn_dim
N, K, H, L = llama.n_heads, llama.n_kv_heads, llama.head_dim, llama.n_layers
parts = {
    "embedding": V * D,
    "queries": L * N * H * D,
    "keys": L * K * H * D,
    "values": L * K * H * D,
    "attention out": L * D * N * H,
    "feed-forward": L * 3 * F * D,
    "norms": L * 2 * D + D,
    "output": V * D,
}
total = sum(parts.values())
for name, number in parts.items():
    print(f"{name:<14} {number:>14,}  {number / total:6.1%}")
print(f"{'total':<14} {total:>14,}")
assert total == 8_030_261_248 == jax_llama3.count_params(llama)
assert 0.7 < parts["feed-forward"] / total < 0.71

abstract = jax_llama3.abstract_params(llama, "bfloat16")
layer = abstract.layers[0]
assert abstract.embedding.shape == abstract.output.shape == (128256, 4096)
assert layer.wq.shape == (32, 128, 4096)
assert layer.wk.shape == layer.wv.shape == (8, 128, 4096)
assert layer.wo.shape == (4096, 32, 128)
assert layer.w_gate.shape == layer.w_up.shape == (14336, 4096)
assert layer.w_down.shape == (4096, 14336)
assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)) == total
# %% [markdown] id="eval_shape" lang="en"
# `jax.eval_shape` goes one step further: it runs the whole network on shapes alone. So every shape in the forward pass of
# the 8B model can be checked in a second, on any machine.
# %% [markdown] id="eval_shape" lang="zh" of="576e641b"
# `jax.eval_shape` 更进一步：它只用形状把整个网络走一遍。这样，8B 模型前向计算中的每个形状，在任何机器上一秒钟就能检查完。
# %% id="eval_shape_code"
T = len(ids)
shapes = {}


def record(name, array):
    shapes[name] = tuple(array.shape)
    return array


tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)
run = partial(jax_llama3.forward, config=llama, tap=record)
logits, _ = jax.eval_shape(run, abstract, tokens)
assert logits.shape == (1, 17, 128256)
assert logits.dtype == jnp.float32
assert shapes["embed"] == (1, 17, 4096)
assert shapes["layers.0.attn.q"] == (1, 17, 32, 128)
assert shapes["layers.31.attn.k"] == (1, 17, 8, 128)
assert shapes["layers.31.attn.pattern"] == (1, 32, 17, 17)
assert shapes["layers.31.mlp.gate"] == (1, 17, 14336)
for name in ("embed", "layers.31.attn.q", "layers.31.attn.k", "layers.31.mlp.gate", "logits"):
    print(f"{name:<18} {shapes[name]}")
# %% [markdown] id="size" lang="en"
# Now the sizes from lesson 14: how much the weights take, how much a token in the cache takes, and how much text fits
# beside the weights on a graphics card with 24 GB.
# %% [markdown] id="size" lang="zh" of="50bcce0c"
# 再看第 14 课的几个大小：权重占多少，缓存里一个 token 占多少，一块 24 GB 的显卡在权重之外还放得下多长的文本。
# %% id="size_code"
per_token = 2 * L * K * H * 2
assert per_token == cache_bytes_per_token(llama, 2) == 131_072
int8 = jax.eval_shape(jax_llama3.quantize, abstract)
for name, tree in (("bfloat16", abstract), ("int8", int8)):
    held = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    print(f"{name:<9} {held / 1e9:5.2f} GB held, {weight_bytes(tree) / 1e9:5.2f} GB read per token")
assert 2 * total == 16_060_522_496
fits = int((24e9 * 0.9 - 2 * total) / per_token)
assert 42_000 < fits < 43_000
print(f"cache: {per_token:,} bytes a token; in 24 GB with a tenth kept free: {fits:,} tokens")


# %% [markdown] id="convert" lang="en"
# ## Getting and converting it
#
# Meta gives the weights to everyone who accepts its licence, in its own format or in Hugging Face's. The converter reads
# both and makes the same tree from either, bit for bit (lesson 02). You need 16 GB for the source, 16 GB for the result,
# and about as much memory to run it.
#
# ```sh
# python -m convert inspect Meta-Llama-3-8B
# python -m convert to-jax Meta-Llama-3-8B llama3-8b --dtype bfloat16
# python -m convert check llama3-8b
# python -m jax_llama3 info llama3-8b
# LESSON_LLAMA3_8B=$PWD/llama3-8b jupyter lab notebooks/en/15_llama3_8b.ipynb
# ```
#
# `inspect` reads only headers, so within a second it tells you whether the folder is what you think it is. The last line
# points this lesson at the result; setting `folder_8b` near the top does the same. Take the base model: the Instruct
# model was trained to converse, and it continues bare text differently.
#
# ## Examining a model
#
# One function of a model and ids shows all that we want to see: it traces the shapes and returns the best tokens after
# the last position. Nothing in it is specific to the 8B model.
# %% [markdown] id="convert" lang="zh" of="13724f92"
# ## 获取与转换
#
# 接受许可之后，就能从 Meta 得到权重，格式可以是 Meta 自己的，也可以是 Hugging Face 的。转换器两种都能读，得到的树逐比特相同（第 02 课）。源文件需要 16 GB，结果
# 需要 16 GB，运行所需的内存也差不多。
#
# ```sh
# python -m convert inspect Meta-Llama-3-8B
# python -m convert to-jax Meta-Llama-3-8B llama3-8b --dtype bfloat16
# python -m convert check llama3-8b
# python -m jax_llama3 info llama3-8b
# LESSON_LLAMA3_8B=$PWD/llama3-8b jupyter lab notebooks/zh/15_llama3_8b.ipynb
# ```
#
# `inspect` 只读文件头，所以一秒之内就能知道文件夹里是不是你要的东西。最后一行让本课使用转换的结果；在开头设置 `folder_8b` 也有同样的作用。请用基础模型：Instruct 模型是为对话训练的，续写普通文本时是另一个样子。
#
# ## 检查一个模型
#
# 我们想看的，都写在一个以模型和编号为参数的函数里：它检查并打印各个形状，返回最后一个位置之后最好的 token。函数里没有任何专门针对 8B 模型的东西。
# %% id="examine"
class Found(NamedTuple):
    best: list[int]
    values: np.ndarray


def best_tokens(row, count=10):
    values, best = jax.lax.top_k(row, count)
    return Found(best.tolist(), np.asarray(values))


def examine(model, ids):
    seen = {}

    def tap(name, array):
        if name in ("embed", "layers.0.attn.q", "layers.0.attn.k", "layers.0.mlp.gate"):
            seen[name] = array[0]
        return array

    logits, _ = jax_llama3.forward(model.params, np.array([ids]), model.config, tap=tap)
    c = model.config
    trace("embed", seen["embed"], "T D", T=len(ids), D=c.dim)
    trace("q", seen["layers.0.attn.q"], "T N H", T=len(ids), N=c.n_heads, H=c.head_dim)
    trace("k", seen["layers.0.attn.k"], "T K H", T=len(ids), K=c.n_kv_heads, H=c.head_dim)
    trace("gate", seen["layers.0.mlp.gate"], "T F", T=len(ids), F=c.ffn_dim)
    trace("logits", logits[0], "T V", T=len(ids), V=c.vocab_size)
    assert logits.dtype == jnp.float32
    assert jnp.isfinite(logits).all()
    return best_tokens(logits[0, -1])


# %% [markdown] id="checks_text" lang="en"
# What we expect of the real model is in two more functions: one for its structure, one for its answer. The first token
# must be 2983. Of the ten best we check only the **set**; below we shall see why not their order.
# %% [markdown] id="checks_text" lang="zh" of="8dbabf26"
# 对真正的模型的要求，写在另外两个函数里：一个查结构，一个查回答。第一个 token 必须是 2983。对最好的十个，只要求**集合**相同；为什么不要求次序，下面就会看到。
# %% id="checks"
TOP_10 = {tokenizer.encode(text)[0] for text in "42 6 43 41 4 1 45 3 2 46".split()}
assert len(TOP_10) == 10


def check_structure(model):
    assert model.config == llama, "this is not the architecture of Llama 3 8B"
    assert jax_llama3.count_params(model.config) == 8_030_261_248
    for leaf, expected in zip(
        jax.tree.leaves(model.params), jax.tree.leaves(abstract), strict=True
    ):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
    assert model.tokenizer.encode(prompt, bos=True) == ids


def check_answer(found):
    assert found.best[0] == ANSWER
    assert set(found.best) == TOP_10


# %% [markdown] id="power" lang="en"
# A check that has never failed proves nothing (lesson 08), so we make these two fail. Hand-made logits with the ten
# tokens on top and 2983 first must pass; with one wrong token, or another one first, they must not. The check of the
# structure looks only at config, shapes, dtypes and the tokenizer, so the abstract tree will do: in bfloat16 it passes,
# in float32 it does not.
# %% [markdown] id="power" lang="zh" of="f048bdd5"
# 从未失败过的检查什么也证明不了（第 08 课），所以我们先让这两个函数失败一次。人工造一组 logits，让那十个 token 排在最前、2983 居首，检查应当通过；错一个 token，或者换一个居首，就不应通过。结构检查只看配置、形状、dtype 和分词器，用抽象的树就行：bfloat16 的通过，float32 的不通过。
# %% id="power_code"
def fails(check, *arguments):
    try:
        check(*arguments)
    except AssertionError:
        return True
    return False


planted = jnp.zeros(V).at[jnp.array(sorted(TOP_10))].set(5.0).at[ANSWER].set(6.0)
check_answer(best_tokens(planted))
check_structure(jax_llama3.Model(llama, abstract, tokenizer))
assert fails(check_answer, best_tokens(planted.at[tokenizer.encode("7")[0]].set(5.5)))
assert fails(check_answer, best_tokens(planted.at[ANSWER].set(4.9)))
float32_tree = jax_llama3.abstract_params(llama, "float32")
assert fails(check_structure, jax_llama3.Model(llama, float32_tree, tokenizer))
print("both checks pass what is right and refuse what is wrong")


# %% [markdown] id="small" lang="en"
# Next, a small random model built like the big one: the same vocabulary, four query heads to a key/value head, a separate
# output matrix, bfloat16. We write it to a folder and read it back, as if it had been converted. The real prompt runs
# through it, and both checks must refuse it.
# %% [markdown] id="small" lang="zh" of="2ff6737e"
# 然后是一个构造与大模型相同的随机小模型：同样的词表，每个键/值头配四个查询头，独立的输出矩阵，bfloat16。把它写进文件夹再读回来，就像转换好的
# 模型一样。让真正的提示从它里面走一遍；两个检查都必须拒绝它。
# %% id="small_code"
def load_bfloat16(folder):
    return jax_llama3.load(folder, dtype="bfloat16")


sizes = {"dim": 64, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "head_dim": 16, "ffn_dim": 224}
small_config = dataclasses.replace(llama, **sizes)
assert N // K == small_config.n_heads // small_config.n_kv_heads == 4
small_params = jax_llama3.init_params(jax.random.key(0), small_config, "bfloat16")
with tempfile.TemporaryDirectory() as folder:
    saved = Path(folder) / "small"
    jax_llama3.save(saved, jax_llama3.Model(small_config, small_params, tokenizer))
    small = load_bfloat16(saved)
    assert small.tokenizer.encode(prompt, bos=True) == ids
    small_found = examine(small, ids)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), small.params, small_params)
    assert all(jax.tree.leaves(same))
assert fails(check_structure, small)
assert fails(check_answer, small_found)
# %% [markdown] id="default" lang="en"
# Last, the model of the other lessons, with its own ids for the same text. It cannot say "42" in one go: its vocabulary
# has no such token, because it splits numbers into single digits. What it offers instead is the ten digits.
# %% [markdown] id="default" lang="zh" of="c428e36d"
# 最后是前面各课所用的模型，文本相同，编号是它自己的。它没法一口说出“42”：它的词表里没有这个 token，
# 因为数都拆成一位一位的数字。它给出的正是十个数字。
# %% id="default_code"
model = load_model()
own_ids = model.tokenizer.encode(prompt, bos=True)
found = examine(model, own_ids)
print([model.tokenizer.decode([i]) for i in found.best])
assert len(set(found.best)) == 10
# en: These are known for the course's own model; with another they need not hold.
# zh: 这些在课程自己的模型上是已知的；换了别的模型未必成立。
if on_default_model():
    assert len(model.tokenizer.encode("42")) == 2
    assert all(model.tokenizer.decode([i]).isdigit() for i in found.best)
# %% [markdown] id="ties" lang="en"
# ## Why a set: ties in bfloat16
#
# bfloat16 has 8 bits of precision. Between 16 and 32, where the best logits often lie, neighbouring numbers are
# $2^{4-7} = 0.125$ apart. An implementation that computes the last product in bfloat16 rounds all logits to this grid,
# and candidates that lie close together become **equal**. A sort must still put one of them first, and it does so by
# rules of its own: `top_k` takes the lower id, others may not. The printed order of equal logits says nothing about the
# model.
#
# `jax_llama3` keeps the logits in float32, so exact ties are rare. Yet the order within such a group is still noise: the
# vectors that went into the product were rounded to bfloat16 in every layer, and that moves a logit by more than the
# differences that decide the order. What survives is the first token, if its lead is large, and the set, if the tenth is
# clear of the eleventh.
# %% [markdown] id="ties" lang="zh" of="b81254c7"
# ## 为什么只看集合：bfloat16 的并列
#
# bfloat16 的精度是 8 个比特。最好的 logits 常落在 16 与 32 之间，那里相邻两个数相差 $2^{4-7} = 0.125$。若某个实现用 bfloat16 计算最后一个乘积，所有 logits 都会舍入到这些格点上，靠得近的候选就变得**相等**。排序时总要让其中一个在前，依据的是它自己的规则：`top_k` 取编号小的，
# 别的实现未必。相等的 logits 打印出来的次序，与模型毫无关系。
#
# `jax_llama3` 的 logits 保持 float32，恰好相等的情况很少。但这一组内部的次序仍是噪声：进入乘积的向量在每一层都舍入到了 bfloat16，由此带来的
# logits 偏移，比决定次序的差距还要大。靠得住的是：领先足够多时的第一个 token，以及第十名与第十一名拉开距离时的那个集合。
# %% id="ties_code"
grid = jnp.bfloat16(16) * jnp.finfo(jnp.bfloat16).eps
assert float(grid) == 0.125
assert jnp.bfloat16(20.0) + jnp.bfloat16(0.05) == jnp.bfloat16(20.0)

equal = best_tokens(jnp.array([1.0, 3.0, 2.0, 3.0]), 2)
assert equal.best == [1, 3]


def distinct(values):
    return len({float(jnp.bfloat16(value)) for value in values})


rounded = np.asarray(jnp.asarray(found.values).astype(jnp.bfloat16), np.float32)
groups = distinct(found.values)
print(f"different values among ten: float32 {len(set(found.values.tolist()))}, bfloat16 {groups}")
assert groups == len(set(rounded.tolist())) <= len(set(found.values.tolist()))

narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
narrow_logits, _ = jax_llama3.forward(narrow, np.array([own_ids]), model.config)
moved = np.abs(np.asarray(narrow_logits[0, -1])[np.array(found.best)] - found.values).max()
closest = -np.diff(found.values).max()
if on_default_model():
    assert len(set(found.values.tolist())) == 10
    assert groups < 10
    assert moved > 10 * closest
print(
    f"the closest two of the ten are {closest:.3f} apart; bfloat16 throughout moves a logit by more"
)
# %% id="picture"
show(
    figures.ties(found.values, rounded, [repr(model.tokenizer.decode([i])) for i in found.best]),
    en="The ten best logits of the default model: falling in float32, but in bfloat16 several of them share one level.",
    zh="默认模型最好的十个 logits：float32 下依次下降，舍入到 bfloat16 后有几个落在同一高度。",
)
# %% [markdown] id="weights" lang="en"
# ## The real one
#
# If you have given a folder, the same functions now run on the real weights. If not, the lesson says so and goes on.
# %% [markdown] id="weights" lang="zh" of="b02711fa"
# ## 真正的模型
#
# 如果给出了文件夹，同样的函数现在就在真正的权重上运行；没有给出的话，本课说明一声，继续往下。
# %% id="weights_code"
if folder_8b:
    real = load_bfloat16(folder_8b)
    check_structure(real)
    real_found = examine(real, ids)
    print([real.tokenizer.decode([i]) for i in real_found.best])
    check_answer(real_found)
else:
    print("no weights of Llama 3 8B: set LESSON_LLAMA3_8B to a converted folder to run this cell")
# %% [markdown] id="answer_proves" lang="en"
# "42" makes a fine moment, but it is weak evidence: in lesson 08, eleven of seventeen errors kept the right next token.
# The proof that the code is right lies in the logits at all positions, not in one famous token.
#
# ## What changed after Llama 3
#
# Hardly anything in the network. That is why one library reads them all.
#
# - **3.1** (8B, 70B, 405B): the context grows from 8,192 to 131,072 tokens, and RoPE's slow pairs turn 8 times more
#   slowly (lesson 05). Some reserved special tokens get names and uses, such as 128008, the end of a message that waits
#   for a tool's answer; the ids stay the same.
# - **3.2** (1B, 3B): small models. The embedding doubles as the output matrix, and RoPE's factor is 32. The 11B and 90B
#   models of 3.2 also read images; they have additional layers, and this library does not support them.
# - **3.3** (70B): the shapes and the config of 3.1 70B, with new training. Nothing in the code tells them apart.
# %% [markdown] id="answer_proves" lang="zh" of="c439c0b9"
# “42”很精彩，却是薄弱的证据：第 08 课的十七种错误里，有十一种仍然给出正确的下一个 token。代码正确的证明在于所有位置的 logits，而不在于一个出名的 token。
#
# ## Llama 3 之后变了什么
#
# 网络本身几乎没变，所以一个库能全部读取。
#
# - **3.1**（8B、70B、405B）：上下文从 8,192 增长到 131,072 个 token，RoPE 的慢速对转得慢 8 倍（第 05 课）。一些保留的特殊 token 有了名字和用途，例如 128008，表示一条等待工具回复的消息结束；编号不变。
# - **3.2**（1B、3B）：小模型。嵌入兼作输出矩阵，RoPE 的缩放因子是 32。3.2 的 11B 和 90B 还能读图像；它们多出一些层，本库不支持。
# - **3.3**（70B）：形状和配置与 3.1 的 70B 相同，重新训练过。代码里没有任何东西能区分两者。
# %% id="family"
names = ["llama3-8b", "llama3.1-8b", "llama3.2-1b", "llama3.2-3b"]
names += ["llama3.1-70b", "llama3.3-70b", "llama3.1-405b"]
print(f"{'':<14} {'parameters':>15} {'context':>8} {'factor':>6} {'tied':>5} {'KV/token':>8}")
for name in names:
    each = preset(name)
    factor = each.rope_scaling.factor if each.rope_scaling else 1
    count, per = jax_llama3.count_params(each), cache_bytes_per_token(each, 2)
    tied = "yes" if each.tie_embeddings else "no"
    print(f"{name:<14} {count:>15,} {each.max_seq_len:>8,} {factor:>6g} {tied:>5} {per:>8,}")
    assert (each.vocab_size, each.n_kv_heads) == (128_256, 8)
    assert (each.rope_theta, each.norm_eps) == (500_000, 1e-5)

newer = preset("llama3.1-8b")
changed = {
    field.name
    for field in dataclasses.fields(llama)
    if getattr(llama, field.name) != getattr(newer, field.name)
}
assert changed == {"max_seq_len", "rope_scaling"}
assert (newer.max_seq_len, newer.rope_scaling.factor) == (131_072, 8)
assert preset("llama3.3-70b") == preset("llama3.1-70b")
for name in ("llama3.2-1b", "llama3.2-3b"):
    assert preset(name).tie_embeddings
    assert preset(name).rope_scaling.factor == 32
assert vocabulary.special["<|eom_id|>"] == 128_008

# en: The long context has its price: 1 GiB of cache per row becomes 16.
# zh: 长上下文有它的代价：每行缓存从 1 GiB 变成 16 GiB。
assert llama.max_seq_len * per_token == 2**30
assert newer.max_seq_len * per_token == 16 * 2**30
# %% [markdown] id="shares_text" lang="en"
# What does change is where the parameters are. A vocabulary of 128,256 tokens is a heavy load for a small model, even if
# one matrix serves as embedding and output, and next to nothing for a big one.
# %% [markdown] id="shares_text" lang="zh" of="19ccff0f"
# 真正变化的是参数的分布。有 128,256 个 token 的词表对小模型是沉重的负担，即使嵌入兼作输出矩阵也是如此；对大模型则微不足道。
# %% id="shares_code"
chosen = ["llama3.2-1b", "llama3.2-3b", "llama3-8b", "llama3.1-70b", "llama3.1-405b"]
where = {"vocabulary": [], "attention": [], "feed-forward": []}
for name in chosen:
    each = preset(name)
    tables = each.vocab_size * each.dim * (1 if each.tie_embeddings else 2)
    forward_part = each.n_layers * 3 * each.ffn_dim * each.dim
    heads = 2 * (each.n_heads + each.n_kv_heads)
    attention_part = each.n_layers * heads * each.head_dim * each.dim
    numbers = (tables, attention_part, forward_part)
    for part, number in zip(where.values(), numbers, strict=True):
        part.append(number)
    norms = (2 * each.n_layers + 1) * each.dim
    assert sum(numbers) + norms == jax_llama3.count_params(each)
small_share, *_, big_share = np.array(where["vocabulary"]) / np.sum(list(where.values()), axis=0)
assert small_share > 0.2
assert big_share < 0.02
show(
    figures.shares(chosen, where),
    en="Bars of five models: the vocabulary's share falls from a fifth in the 1B model to next to nothing in the 405B one; "
    "the feed-forward part's grows.",
    zh="五个模型的横条：词表所占份额从 1B 模型的五分之一降到 405B 模型的几乎为零，前馈部分的份额则上升。",
)
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** The prompt ends with one space and has 17 ids. You type a second space by mistake. How many ids are there now?
# Predict, run the cell, and look at the last id.
# %% [markdown] id="exercises" lang="zh" of="98a4cf17"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 提示以一个空格结尾，共有 17 个编号。你不小心多打了一个空格。现在有多少个编号？先预测，再运行，并看看最后一个。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    longer = tokenizer.encode(prompt + " ", bos=True)
    print(len(longer), "ids; the last is", longer[-1], repr(tokenizer.decode(longer[-1:])))
    assert answer == len(longer)


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Lesson 01: the split's alternative `\s+(?!\S)` takes all the white space at the end of a text as one piece, and then BPE
# merges what is frequent. Programs are full of runs of spaces.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="d6ba00db"
# <details><summary>线索</summary>
#
# 第 01 课：切分中的分支 `\s+(?!\S)` 把文本末尾的全部空白当作一段，然后由 BPE 合并常见的组合。程序代码里到处是连续的空格。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, 17, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** You want the same cache to hold four times as much text, and to keep at least 95% of the parameters. Which one
# field of Llama 3 8B's config do you change? Answer with the changed config, from `dataclasses.replace(llama, ...)`.
# %% [markdown] id="exercise_2_text" lang="zh" of="1b5bd10d"
# **2.** 你想在同样大小的缓存里放下四倍的文本，而参数不少于原来的 95%。该改动 Llama 3 8B 配置中的哪一个字段？用
# `dataclasses.replace(llama, ...)` 得到的配置作答。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    ratio = cache_bytes_per_token(llama, 2) / cache_bytes_per_token(answer, 2)
    kept = jax_llama3.count_params(answer) / total
    print(f"{ratio:g} times the text, {kept:.1%} of the parameters")
    assert ratio == 4
    assert kept >= 0.95
    fields = [field.name for field in dataclasses.fields(llama)]
    assert sum(getattr(answer, name) != getattr(llama, name) for name in fields) == 1


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Three fields decide the bytes of a token: `n_layers`, `n_kv_heads` and `head_dim`. Two of them cannot be cut to a
# quarter without losing more than 5% of the parameters.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="d495ab03"
# <details><summary>线索</summary>
#
# 一个 token 的字节数由三个字段决定：`n_layers`、`n_kv_heads` 和 `head_dim`。其中有两个若减到四分之一，损失的参数会超过 5%。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, dataclasses.replace(llama, n_kv_heads=2), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Rounding the ten logits of the default model to bfloat16 makes some of them equal. Would it help to multiply all
# of them by 4 first? Or to subtract the largest from all of them first? Predict, and answer with a pair of truth values.
# %% [markdown] id="exercise_3_text" lang="zh" of="6dab0391"
# **3.** 把默认模型的十个 logits 舍入到 bfloat16，有几个变得相等。先把它们都乘以 4，会有帮助吗？先都减去其中最大的一个呢？先预测，再用两个真假值作答。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    plain, scaled, shifted = (
        distinct(v) for v in (found.values, found.values * 4, found.values - found.values.max())
    )
    print(f"different values: {plain}; times 4: {scaled}; minus the largest: {shifted}")
    assert list(answer) == [scaled > plain, shifted > plain]


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# The smaller a floating-point number, the finer the grid that it lies on. What does each change do to the grid, and what
# to the differences?
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="fb50f182"
# <details><summary>线索</summary>
#
# 浮点数越小，它所在的格子就越细。两种改动各自对格子有什么影响，对差距又有什么影响？
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, (False, True), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Grattafiori et al., *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - Meta's package [llama-models](https://pypi.org/project/llama-models/), which carries the tokenizer file
# - [docs/converter.md](../../docs/converter.md): what the converter reads, promises and checks
#
# Next: lesson 16 writes the whole model down once more, on one page, without our library.
# %% [markdown] id="sources" lang="zh" of="8d0a7534"
# ## 来源
#
# - Grattafiori 等，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - Meta 的软件包 [llama-models](https://pypi.org/project/llama-models/)，其中带有分词器文件
# - [docs/converter.md](../../docs/converter.md)：转换器能读什么、承诺什么、检查什么
#
# 下一课：第 16 课把整个模型再写一遍，只用一页，不用本库。
