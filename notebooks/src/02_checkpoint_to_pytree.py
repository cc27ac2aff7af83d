# %% [markdown] id="title" lang="en"
# # 02 · A checkpoint becomes a pytree
#
# *Reading time 22 minutes. Before it: lesson 00. What it proves: the number of weights is what a formula says, three
# file formats of one model give the same weights bit for bit, and a small slip in the order of their rows passes every
# check of shapes.*
#
# Everything a model knows is in its parameters. Where do they come from, and what must a program know to use them? They
# come from a **checkpoint**, the files that training leaves: the parameters, a short record of the architecture (the
# config), and the tokenizer. There is no program in it. We write the program, and it works only if names, shapes and
# order match.
#
# The first part takes about 10 minutes and is all you need for the next lessons. The second part is for those who
# convert checkpoints. A heading between the two tells you where you can stop.
# %% [markdown] id="title" lang="zh" of="746f1673"
# # 02 · 检查点变成 pytree
#
# *阅读时间 22 分钟。前置：第 00 课。本课证明：参数个数与公式一致；同一个模型的三种文件格式给出逐比特相同的权重；而行的次序上一个小
# 错误，任何形状检查都发现不了。*
#
# 模型知道的一切都在参数里。参数从哪里来？程序要知道些什么，才能用上它们？它们来自**检查点**（checkpoint），也就是训练留下的文件：参数、
# 一份简短的架构记录（config）和分词器。里面没有程序。程序由我们来写；只有名字、形状和次序都对得上，它才能工作。
#
# 第一部分大约 10 分钟，后面几课只需要这些。第二部分写给要转换检查点的人。两部分之间有一个标题，告诉你可以在那里停下。
# %% id="setup"
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.model.params import named_leaves
from jax_llama3_course import close, exercise, expect, load_model, model_folder, show, trace
from jax_llama3_course.figures import checkpoint as figures

model, folder = load_model(), model_folder()
config, params = model.config, model.params
# %% [markdown] id="folder" lang="en"
# ## What is in the folder
#
# Here are the files of our model. Nearly all of their size is weights. `config.json` is the record of the architecture, the
# tokenizer has a file of its own (lesson 01), and the rest is small.
# %% [markdown] id="folder" lang="zh" of="26d11b31"
# ## 文件夹里有什么
#
# 下面是我们这个模型的全部文件，大小几乎都来自权重。`config.json` 是架构的记录，分词器有自己的文件（第 01 课），其余的都很小。
# %% id="folder_code"
sizes_of_files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
for name, size in sizes_of_files.items():
    print(f"{name:<36} {size / 1e6:6.1f} MB")

weights = sum(size for name, size in sizes_of_files.items() if name.endswith(".safetensors"))
assert weights > 0.9 * sum(sizes_of_files.values())
# %% [markdown] id="keys" lang="en"
# ## The first twelve names
#
# The weights are stored in **safetensors** files: a table of contents, then the numbers. Each entry of the table has a
# name, a type and a shape. That is all a checkpoint says about a number: where it belongs, not what it does.
#
# Here are the first twelve. On the course's own model the number of tensors is known, and `expect` checks it; with
# another model `expect` checks nothing.
# %% [markdown] id="keys" lang="zh" of="caf3ceb6"
# ## 最前面的十二个名字
#
# 权重存放在 **safetensors** 文件里：先是一张目录，后面是数。目录中每一项有名字、类型和形状。关于一个数，检查点只说到这里：它放在哪里，
# 而不是它做什么。
#
# 下面就是这十二个。对本课程自己的模型，张量的个数是已知的，由 `expect` 检查；换成别的模型时，`expect` 什么也不检查。
# %% id="keys_code"
files = sorted(folder.glob("*.safetensors"))
keys = []
for path in files:
    with safe_open(path, framework="np") as file:
        for key in sorted(file.keys()):
            if len(keys) < 12:
                view = file.get_slice(key)
                print(f"{key:<22} {view.get_dtype()}  {view.get_shape()}")
            keys.append(key)

L = config.n_layers
assert len(keys) == len(set(keys)) == 9 * L + 2 + (params.output is not None)
expect(len(keys), 272)
print(len(keys), "tensors in", len(files), "files")
# %% [markdown] id="layer_0" lang="en"
# ## The shapes of layer 0
#
# Every layer has nine tensors, with the same shapes in all layers. Five belong to attention, its norm included, and
# four to the feed-forward network. In this lesson and in all that follow, letters stand for sizes: $V$ tokens in the
# vocabulary, $D$ the model's width, $N$ heads, $K$ heads of keys and values, $H$ numbers in a head, $F$ the width
# inside the feed-forward network, $L$ layers.
#
# A matrix is stored with its outputs first and its inputs last: $y = W x$ with $W$ of shape [out, in]. For many rows at
# once that is `x @ W.T`. The heads are split out: `wq` is not one matrix of $N H$ rows but $N$ matrices of $H$ rows.
# That is a reshape; no number moves.
# %% [markdown] id="layer_0" lang="zh" of="5c33f436"
# ## 第 0 层的形状
#
# 每一层都有九个张量，各层的形状都相同：五个属于注意力（包括它的归一化），四个属于前馈网络。本课和以后各课都用字母表示大小：$V$ 词表的
# token 数，$D$ 模型宽度，$N$ 头数，$K$ 键和值的头数，$H$ 每个头的维数，$F$ 前馈网络内部的宽度，$L$ 层数。
#
# 矩阵按“输出在前、输入在后”存放：$y = W x$，其中 $W$ 的形状是 [out, in]；一次处理许多行时就是 `x @ W.T`。头是拆开的：`wq` 不是一个
# $N H$ 行的矩阵，而是 $N$ 个 $H$ 行的矩阵。这只是 reshape，没有一个数移动位置。
# %% id="layer_0_code"
V, D, F = config.vocab_size, config.dim, config.ffn_dim
N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
sizes = {"V": V, "D": D, "F": F, "N": N, "K": K, "H": H}
layer = params.layers[0]
trace("embedding", params.embedding, "V D", **sizes)
for name, letters in {
    "attn_norm": "D",
    "wq": "N H D",
    "wk": "K H D",
    "wv": "K H D",
    "wo": "D N H",
    "ffn_norm": "D",
    "w_gate": "F D",
    "w_up": "F D",
    "w_down": "D F",
}.items():
    trace(name, getattr(layer, name), letters, **sizes)
trace("norm", params.norm, "D", **sizes)

shapes = jax.tree.map(np.shape, layer)
assert all(jax.tree.map(np.shape, other) == shapes for other in params.layers)

# en: Head by head, or as one flat matrix: the same products.
# zh: 逐个头计算，或者当作一个不拆头的矩阵：乘积相同。
x = params.embedding[0]
by_heads = jnp.stack([layer.wq[n] @ x for n in range(N)])
close(by_heads.reshape(-1), layer.wq.reshape(N * H, D) @ x, atol=1e-5)
# %% [markdown] id="config" lang="en"
# ## Each field of the config
#
# | field | what it says | can the shapes tell? |
# |---|---|---|
# | `vocab_size` $V$ | rows of the embedding: one for each id | yes |
# | `dim` $D$ | length of the vector that stands for a token between the layers | yes |
# | `n_layers` $L$ | how many layers follow one another | yes, by the names |
# | `n_heads` $N$, `head_dim` $H$ | attention is done in $N$ parts of $H$ numbers each | only $N H$, in files that do not split heads |
# | `n_kv_heads` $K$ | keys and values have only $K$ parts; $N/K$ heads share one | only $K H$, in the same files |
# | `ffn_dim` $F$ | width inside the feed-forward network | yes |
# | `norm_eps` $\varepsilon$ | a small number under the root of every norm (lesson 03) | **no** |
# | `rope_theta`, `rope_scaling` | how fast positions turn the vectors of attention (lesson 05) | **no** |
# | `max_seq_len` | the longest text the model was made for; it appears in no formula | **no** |
# | `tie_embeddings` | the output matrix *is* the embedding, stored once | yes: one tensor is missing |
#
# Look at the last column. (The code below checks it: `abstract_params` gives the shapes that a config asks for, and
# `fits` compares them with those of our weights.) A wrong `dim` no longer fits the shapes and is noticed at once. A
# wrong `norm_eps` runs without complaint and gives wrong numbers. In files that do not split the heads you see only
# products, so 9 heads of 64 and 18 heads of 32 fit the same matrix.
# %% [markdown] id="config" lang="zh" of="8504ab19"
# ## config 的每个字段
#
# | 字段 | 含义 | 从形状能看出吗？ |
# |---|---|---|
# | `vocab_size` $V$ | 嵌入的行数：每个编号一行 | 能 |
# | `dim` $D$ | 层与层之间代表一个 token 的向量的长度 | 能 |
# | `n_layers` $L$ | 有多少层前后相接 | 能，看名字 |
# | `n_heads` $N$、`head_dim` $H$ | 注意力分成 $N$ 份来做，每份 $H$ 维 | 不拆头的文件里只看得出 $N H$ |
# | `n_kv_heads` $K$ | 键和值只有 $K$ 份，每份由 $N/K$ 个头共用 | 同样的文件里只看得出 $K H$ |
# | `ffn_dim` $F$ | 前馈网络内部的宽度 | 能 |
# | `norm_eps` $\varepsilon$ | 每个归一化的根号里加的一个很小的数（第 03 课） | **不能** |
# | `rope_theta`、`rope_scaling` | 位置以多快的速度转动注意力里的向量（第 05 课） | **不能** |
# | `max_seq_len` | 模型所适用的最长文本；不出现在任何公式里 | **不能** |
# | `tie_embeddings` | 输出矩阵**就是**嵌入，只存一份 | 能：少一个张量 |
#
# 请看最后一列。（下面的代码逐项检查：`abstract_params` 给出 config 所要求的形状，`fits` 把它们与我们权重的形状比较。）`dim` 错了就
# 与形状不符，马上会被发现；`norm_eps` 错了照样能跑，也不报错，只是数不对。不拆头的文件只显示乘积，所以 9 个 64 维的头与 18 个 32 维
# 的头配得上同一个矩阵。
# %% id="config_code"
for field in dataclasses.fields(config):
    print(f"{field.name:<16} {getattr(config, field.name)}")


def fits(**fields):
    # en: The shapes that a config with these fields asks for are those of our weights.
    # zh: 改了这些字段的 config 所要求的形状，与我们的权重一致。
    asked = jax_llama3.abstract_params(dataclasses.replace(config, **fields), jnp.float32)
    return jax.tree.map(lambda leaf: leaf.shape, asked) == jax.tree.map(np.shape, params)


assert fits()
for field, wrong in {
    "vocab_size": V + 1,
    "dim": D + 1,
    "n_layers": L + 1,
    "n_heads": 2 * N,
    "head_dim": 2 * H,
    "n_kv_heads": N if K < N else 1,
    "ffn_dim": F + 1,
    "tie_embeddings": not config.tie_embeddings,
}.items():
    assert not fits(**{field: wrong}), field
for field in ("norm_eps", "rope_theta", "max_seq_len"):
    assert fits(**{field: 2 * getattr(config, field)}), field

assert config.tie_embeddings == (params.output is None)
flat = layer.wq.reshape(-1, D)
assert flat.shape == (N * H, D)
assert flat.reshape(2 * N, H // 2, D).shape == (2 * N, H // 2, D)

# en: What the network says when a field is wrong and no shape shows it.
# zh: 字段错了而形状看不出来时，网络怎么说。
ids = model.tokenizer.encode("The capital of France is", bos=True)


def logits_with(params, **fields):
    changed = dataclasses.replace(config, **fields)
    return np.asarray(jax_llama3.forward(params, np.array([ids]), changed)[0][0])


right = logits_with(params)
moved = np.abs(logits_with(params, norm_eps=0.01) - right).max()
print(f"norm_eps = 0.01 moves the logits by up to {moved:.1f}")
assert moved > 1
assert (logits_with(params, max_seq_len=2 * config.max_seq_len) == right).all()
# %% [markdown] id="pytree" lang="en"
# ## Pytrees
#
# In this project weights are data and the network is a function, `forward(params, tokens, config)`. What then is
# `params`? A **pytree**: containers in containers (tuples, lists, dicts, named tuples), with leaves at the ends, here
# arrays. JAX walks through any such structure, and a few functions do nearly all of the work:
#
# - `jax.tree.leaves(tree)` gives the leaves in a fixed order;
# - `jax.tree.map(function, tree, ...)` applies a function to every leaf and keeps the structure;
# - `jax.tree.structure(tree)` gives the structure without its leaves; `jax.tree.unflatten` puts new leaves into it.
#
# `None` is an empty container, not a leaf. That is how a tied model (`tie_embeddings`) can do without an output matrix
# while all code still works.
#
# The leaves can also be mere shapes. `abstract_params` makes such a tree from the config alone: it is the contract
# between the checkpoint and the program, and it costs no memory, however large the model.
# %% [markdown] id="pytree" lang="zh" of="693233a8"
# ## pytree
#
# 在本项目里，权重是数据，网络是函数：`forward(params, tokens, config)`。那么 `params` 是什么？是一棵 **pytree**：容器套容器（元组、
# 列表、字典、具名元组），末端是叶子，这里就是数组。JAX 能走遍任何这样的嵌套结构，只用几个函数就能完成几乎全部工作：
#
# - `jax.tree.leaves(tree)` 按固定次序给出所有叶子；
# - `jax.tree.map(function, tree, ...)` 对每片叶子应用一个函数，结构不变；
# - `jax.tree.structure(tree)` 给出去掉叶子的结构，`jax.tree.unflatten` 再给它配上新的叶子。
#
# `None` 是空容器，不是叶子。共享嵌入（`tie_embeddings`）的模型因此可以没有输出矩阵，而所有代码照常工作。
#
# 叶子也可以只是形状。`abstract_params` 只凭 config 就能造出这样的结构：它是检查点与程序之间的契约，不论模型多大都不占内存。
# %% id="pytree_code"


class Pair(NamedTuple):
    left: object
    right: object


tree = Pair(left=[1, 2], right={"a": 3, "b": None})
print(jax.tree.leaves(tree))
assert jax.tree.leaves(tree) == [1, 2, 3]
assert jax.tree.map(lambda leaf: 10 * leaf, tree) == Pair([10, 20], {"a": 30, "b": None})
structure = jax.tree.structure(tree)
assert jax.tree.unflatten(structure, [7, 8, 9]) == Pair([7, 8], {"a": 9, "b": None})

# en: The model is such a tree too, only larger. Its key paths are the names in the files.
# zh: 模型也是这样一棵树，只是更大。它的键路径就是文件里的名字。
names = [name for name, _ in named_leaves(params)]
assert names[:3] == ["embedding", "layers.0.attn_norm", "layers.0.wq"]
assert set(names) == set(keys)

contract = jax_llama3.abstract_params(config, jnp.float32)
assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, contract)

# en: One line casts all tensors, another counts their bytes.
# zh: 一行代码转换全部张量的类型，再一行数出字节数。
halved = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
assert sum(leaf.nbytes for leaf in jax.tree.leaves(halved)) == total // 2
assert jax.tree.structure(halved) == jax.tree.structure(params)
print(f"{total / 1e6:.1f} MB in float32, half of it in float16")
del halved
# %% id="tree_picture"
whole = {
    "embedding": str(list(params.embedding.shape)),
    "layers": f"{L} of this form",
    "norm": str(list(params.norm.shape)),
    "output": "None" if params.output is None else str(list(params.output.shape)),
}
leaves_of_layer = {name: str(list(leaf.shape)) for name, leaf in layer._asdict().items()}
show(
    figures.tree(whole, leaves_of_layer),
    en="A tree from left to right: params opens into embedding, layers, norm and output; a layer opens into nine tensors, each with its shape.",
    zh="从左到右的一棵树：params 分为 embedding、layers、norm 和 output；一层再分为九个张量，每个都写着形状。",
)
# %% [markdown] id="objects" lang="en"
# Must it be done this way? No. In other libraries a model is an object with the network as its method. In Flax NNX it
# is a Python object that holds its parameters, in Equinox a dataclass, and in both the object is registered as a
# pytree, so `jax.tree.map` works on it too. JAX itself needs one line for that, as you see below. The difference is a
# matter of style. Ours is the plainest: named tuples that hold arrays and nothing else, and beside them a function.
# Nothing is hidden, and a checkpoint is simply the leaves with their names.
# %% [markdown] id="objects" lang="zh" of="3c2db9b8"
# 非这样做不可吗？不是。在别的库里，模型是一个对象，网络是它的方法。Flax NNX 的模型是持有参数的 Python 对象，Equinox 的模型是一个 dataclass；
# 两者的对象都注册成了 pytree，所以 `jax.tree.map` 对它们同样有效。如下所示，JAX 自己做到这一点只要一行。区别只在风格。我们的写法最朴素：只装
# 数组的具名元组，旁边放一个函数。没有任何隐藏的东西，检查点就是这些叶子加上名字。
# %% id="objects_code"


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
    weight: jax.Array

    def __call__(self, x):
        return self.weight @ x


# en: An object with a method, and yet a tree: `map` makes an object of the same class.
# zh: 带方法的对象，同时又是一棵树：`map` 得到同一个类的对象。
linear = Linear(layer.w_up)
doubled = jax.tree.map(lambda leaf: 2 * leaf, linear)
assert isinstance(doubled, Linear)
assert len(jax.tree.leaves(doubled)) == 1
close(jax.jit(lambda linear, x: linear(x))(doubled, x), 2 * (layer.w_up @ x), atol=1e-5)
# %% [markdown] id="count" lang="en"
# ## How many parameters?
#
# We can add them up by hand. A layer has the shapes above, and the embedding counts once if it is tied ($t = 1$),
# otherwise twice ($t = 2$):
#
# $$P = t\,V D + L\,\bigl(\underbrace{2 N H D}_{w_q,\,w_o} + \underbrace{2 K H D}_{w_k,\,w_v}
#  + \underbrace{3 F D}_{\text{feed-forward}} + \underbrace{2 D}_{\text{norms}}\bigr) + D .$$
#
# The result must equal the count of all numbers in the leaves. It must also equal what `count_params` gives. That
# function looks at the contract alone, so it can count a model that we do not have.
# %% [markdown] id="count" lang="zh" of="4c361248"
# ## 一共有多少参数？
#
# 可以亲手加起来。一层的形状如上；嵌入若共享只算一份（$t = 1$），否则算两份（$t = 2$）：
#
# $$P = t\,V D + L\,\bigl(\underbrace{2 N H D}_{w_q,\,w_o} + \underbrace{2 K H D}_{w_k,\,w_v}
#  + \underbrace{3 F D}_{\text{FFN}} + \underbrace{2 D}_{\text{归一化}}\bigr) + D .$$
#
# 结果必须等于所有叶子里的数的总个数，也必须等于 `count_params` 的结果。后者只看契约，所以连手头没有的模型也能数。
# %% id="count_code"


def parts(c):
    head = c.head_dim * c.dim
    return {
        "embedding, output": (1 if c.tie_embeddings else 2) * c.vocab_size * c.dim,
        "attention": c.n_layers * 2 * (c.n_heads + c.n_kv_heads) * head,
        "feed-forward": c.n_layers * 3 * c.ffn_dim * c.dim,
        "norms": (2 * c.n_layers + 1) * c.dim,
    }


P = sum(parts(config).values())
assert P == sum(leaf.size for leaf in jax.tree.leaves(params)) == jax_llama3.count_params(config)
expect(P, 134_515_008)
print(f"this model       {P:>15,}")
for name, known in {"llama3.2-1b": 1_235_814_400, "llama3-8b": 8_030_261_248}.items():
    assert sum(parts(preset(name)).values()) == known
    print(f"{name:<16} {known:>15,}")
# %% [markdown] id="count_picture_text" lang="en"
# Where are they? Mostly in the feed-forward networks, and the larger the model, the more so. The norms have too few to
# be seen.
# %% [markdown] id="count_picture_text" lang="zh" of="815b9843"
# 它们都在哪里？大部分在前馈网络里，模型越大越是如此。归一化的权重太少，图上看不见。
# %% id="count_picture"
models = {"this model": parts(config)} | {
    name: parts(preset(name)) for name in ("llama3.2-1b", "llama3-8b", "llama3-70b")
}
published = list(models.values())[1:]
feed_forward = [each["feed-forward"] / sum(each.values()) for each in published]
assert 0.5 < feed_forward[0] < feed_forward[1] < feed_forward[2]
assert all(each["norms"] < 1e-3 * sum(each.values()) for each in published)
show(
    figures.shares(models),
    en="Stacked bars for four models: the embedding's share is a fifth in the two small models and shrinks in the large ones; the feed-forward network's grows from three fifths to four fifths.",
    zh="四个模型的堆叠条形图：嵌入在两个小模型里占五分之一，在大模型里更小；前馈网络的份额则从五分之三增到五分之四。",
)
# %% [markdown] id="bytes" lang="en"
# ## How many bytes per number?
#
# A float32 takes four bytes. Published models mostly use **bfloat16**, which takes two: it is simply the upper half of
# a float32, with the same sign and exponent, so the same range, but with 8 bits of precision instead of 24. Widening is
# exact; narrowing rounds. With 8 bits you cannot count one by one past 256.
#
# Our model comes from a file with even fewer bits: 4 per number in most of its matrices (the second part shows how). It
# was widened to float32 for this course, so that rounding never hides an error of ours.
# %% [markdown] id="bytes" lang="zh" of="ce7770df"
# ## 每个数占几个字节？
#
# 一个 float32 占四个字节。公开的模型大多用 **bfloat16**，只占两个：它就是 float32 的高 16 位，符号和指数相同，所以范围相同，但精度
# 只有 8 比特而不是 24 比特。加宽是精确的，变窄则要舍入。只有 8 比特时，数到 256 就不能再一个一个往下数了。
#
# 我们的模型来自更省的文件：大多数矩阵里每个数只有 4 比特（第二部分讲怎样做到）。本课程把它加宽成 float32，这样舍入就不会掩盖我们自己的错误。
# %% id="bytes_code"
number = np.array([math.pi], np.float32)
upper_half = (number.view(np.uint32) >> 16).astype(np.uint16)
assert upper_half.view(jnp.bfloat16)[0] == number.astype(jnp.bfloat16)[0]
print("pi in bfloat16:", float(number.astype(jnp.bfloat16)[0]))
assert jnp.bfloat16(257) == jnp.bfloat16(256)

narrow = layer.w_up.astype(jnp.bfloat16)
assert (narrow.astype(jnp.float32).astype(jnp.bfloat16) == narrow).all()
rounding = jnp.abs(narrow.astype(jnp.float32) - layer.w_up)
assert (rounding <= 2**-8 * jnp.abs(layer.w_up)).all()
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Does the model notice bfloat16? Write a function of a tree that rounds every matrix to bfloat16 and widens it
# to float32 again, and leaves the vectors (the weights of the norms) alone. Before you run it: will the next token
# still be " Paris"? By how much will the logits move?
# %% [markdown] id="exercises" lang="zh" of="5733887f"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 模型会察觉 bfloat16 吗？写一个以树为参数的函数：把每个矩阵舍入成 bfloat16，再加宽回 float32，向量（归一化的权重）保持不变。运行之前
# 先猜：下一个 token 还是“ Paris”吗？logits 会变动多少？
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    rounded = answer(params)
    assert jax.tree.structure(rounded) == jax.tree.structure(params)
    for (name, before), after in zip(named_leaves(params), jax.tree.leaves(rounded), strict=True):
        kept = before if before.ndim == 1 else before.astype(jnp.bfloat16)
        assert after.dtype == jnp.float32, name
        assert (after == kept.astype(jnp.float32)).all(), name
    logits = logits_with(rounded)
    best = int(logits[-1].argmax())
    expect(best, int(right[-1].argmax()))
    moved = np.abs(logits - right).max()
    print(f"{model.tokenizer.decode([best])!r}; the logits move by up to {moved:.1f}")


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# `jax.tree.map` with a function that looks at `leaf.ndim`; `astype` twice.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="291029c2"
# <details><summary>线索</summary>
#
# 用 `jax.tree.map`，函数里看 `leaf.ndim`；`astype` 用两次。
#
# </details>
# %% id="solution_1" tags=["solution"]


def round_matrices(tree):
    def rounded(leaf):
        return leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.ndim > 1 else leaf

    return jax.tree.map(rounded, tree)


exercise(1, round_matrices, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Lie to the network. Change one field of the config, other than `norm_eps`, so that every shape still fits and
# yet the next token is wrong. Answer with a dictionary that holds this field and its new value. Which fields can it be?
# Guess how far you must go before the token changes, then try.
# %% [markdown] id="exercise_2_text" lang="zh" of="95402213"
# **2.** 骗一骗网络。把 config 的一个字段（`norm_eps` 除外）改掉，使所有形状仍然相符，而下一个 token 却是错的。用一个字典作答：一个字段和它的新值。
# 哪些字段有可能？先猜要改到多大 token 才会变，再动手试。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    (field,) = answer
    assert field != "norm_eps"
    assert fits(**answer)
    best = int(logits_with(params, **answer)[-1].argmax())
    assert best != int(right[-1].argmax()), "the next token is still right"
    print(f"{answer}: {model.tokenizer.decode([best])!r}")


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# The table above says "no" for four fields. One is excluded, one appears in no formula.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="29d9c68e"
# <details><summary>线索</summary>
#
# 上面的表里有四个字段写着“不能”。其中一个已排除，一个不出现在任何公式里。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, {"rope_theta": 10.0}, check_2)
# %% [markdown] id="pause" lang="en"
# ## You can go on to lesson 03 here
#
# You know what a checkpoint is, what each field of the config says, what the tree looks like and how many parameters it
# holds. **That is all the next lessons need.**
#
# What follows is for those who convert checkpoints: reading safetensors by hand, why pickles are dangerous, the formats
# of Meta, Hugging Face and llama.cpp, and the order of the rows of q and k, which no check of shapes can see. It is
# best read after lesson 08, when q and k are old friends.
# %% [markdown] id="pause" lang="zh" of="d60c0741"
# ## 可以从这里去第 03 课
#
# 检查点是什么、config 的每个字段说了什么、树长什么样、一共有多少参数，你已经知道了。**后面几课只需要这些。**
#
# 以下内容写给要转换检查点的人：亲手读 safetensors，pickle 为什么危险，Meta、Hugging Face 和 llama.cpp 的格式，以及 q 和 k 各行的次
# 序，任何形状检查都看不出它对不对。最好读完第 08 课再回来，那时 q 和 k 都是老朋友了。
# %% id="setup_2"
import contextlib
import io
import json
import pickle
import re
import tempfile
import zipfile
from pathlib import Path

import gguf
import torch

from convert.__main__ import main
from convert.formats.meta.config import ffn_dim
from convert.formats.pth import read_records, read_tensors
from convert.layout import half_split, interleaved
from jax_llama3_course import on_default_model

scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)
# %% [markdown] id="mapped" lang="en"
# ## Loading without reading
#
# A safetensors file is so simple that we can read it by hand. First come eight bytes with the length of a header; then
# the header, which is JSON and gives the name, type and shape of each tensor, and where its bytes begin and end; then
# the bytes of all tensors.
#
# The bytes need not be copied into a buffer first. The file is **memory-mapped**: the operating system gives its bytes
# addresses, and fetches a page of the file only when a program reads an address in it. Opening costs next to nothing,
# whatever the size, and what is never used is never read. So the converter can work through a file far larger than
# memory. (`load` maps as well. On a CPU a large tensor that keeps its number format *is* the pages of its file, and JAX
# computes with them.)
# %% [markdown] id="mapped" lang="zh" of="e7487398"
# ## 不读就加载
#
# safetensors 文件非常简单，亲手就能读。先是八个字节，给出文件头的长度；接着是文件头，它是 JSON，给出每个张量的名字、类型、形状，以
# 及它的字节从哪里开始、到哪里结束；再往后是所有张量的字节。
#
# 不必先把这些字节复制进缓冲区，可以使用**内存映射**（memory-mapped）：操作系统给文件的字节分配地址，只有当程序访问某个地址时，才取
# 来文件里对应的那一页。不论文件多大，打开几乎不花代价；没用到的部分从不读取。所以转换器能处理比内存大得多的文件。（`load` 也用映
# 射。在 CPU 上，不改变数值格式的大张量**就是**文件的那些页，JAX 直接用它们计算。）
# %% id="mapped_code"
DTYPES = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}


def read_header(path):
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def mapped(path, name):
    header, data = read_header(path)
    entry = header[name]
    first, _ = entry["data_offsets"]
    dtype = DTYPES[entry["dtype"]]
    return np.memmap(path, dtype, "r", data + first, tuple(entry["shape"]))


embedding = mapped(files[0], "embedding")
assert embedding.shape == (V, D)
np.testing.assert_array_equal(embedding[:100].astype(np.float32), params.embedding[:100])

# en: A file as large as Llama 3 8B in bfloat16, all holes: mapping it and reading its end take hardly any time or memory.
# zh: 一个与 bfloat16 的 Llama 3 8B 一样大的文件，全是空洞：映射它并读取末尾，几乎不花时间，也几乎不占内存。
size = 2 * jax_llama3.count_params(preset("llama3-8b"))
with open(work / "large", "wb") as file:
    file.truncate(size)
large = np.memmap(work / "large", np.uint8, "r")
assert large.nbytes == size
assert large[-1] == 0
print(f"mapped {large.nbytes / 1e6:,.1f} MB")
del large, embedding
# %% [markdown] id="pickle" lang="en"
# ## Why not pickle
#
# PyTorch's `.pth` files are zip archives that hold a **pickle**, Python's format for objects. A pickle is not a table
# but a program for a small machine, and one of its instructions is "call this function with these arguments". Whoever
# made the file chose the function. Loading such a file means running it: it can delete your files before you have seen
# a single weight.
# %% [markdown] id="pickle" lang="zh" of="dccf39fe"
# ## 为什么不用 pickle
#
# PyTorch 的 `.pth` 文件是 zip 压缩包，里面有一份 **pickle**，即 Python 存放对象的格式。pickle 不是表格，而是一台小机器的程序，其中一条
# 指令是“用这些参数调用这个函数”，调用什么函数由制作文件的人决定。加载这样的文件就等于运行它：你还没看到一个权重，它就可以删掉你的文件。
# %% id="pickle_code"
ran = []


def anything(text):
    ran.append(text)
    return np.zeros(3)


class Weights:
    def __reduce__(self):
        return anything, ("this could have been any command",)


loaded = pickle.loads(pickle.dumps({"norm.weight": Weights()}))
assert loaded["norm.weight"].shape == (3,)
assert ran == ["this could have been any command"]
print("ran while loading:", ran[0])

# en: The same in a .pth file. Torch's restricted loader, the default of new versions, refuses any function it does not know.
# zh: 换成 .pth 文件也一样。torch 的受限加载器（新版本的默认方式）拒绝一切它不认识的函数。
torch.save({"norm.weight": Weights()}, work / "bad.pth")
assert any(name.endswith("data.pkl") for name in zipfile.ZipFile(work / "bad.pth").namelist())
try:
    torch.load(work / "bad.pth", weights_only=True)
    raise AssertionError("a file that calls a function was loaded")
except pickle.UnpicklingError:
    print("refused by torch.load(weights_only=True)")
try:
    read_tensors(work / "bad.pth", read_records(work / "bad.pth"))
    raise AssertionError("a file that calls a function was accepted")
except ValueError as error:
    print("refused by the converter:", str(error).partition(": ")[2].partition(", ")[2])
assert len(ran) == 1
# %% [markdown] id="pickle_rest" lang="en"
# A safetensors file has nothing that could be called: a header of JSON, then plain bytes. The converter of this project
# reads the instructions of a pickle as text first. If they name anything but plain tensors, it refuses the file before
# any of them is run.
# %% [markdown] id="pickle_rest" lang="zh" of="cf276db6"
# safetensors 文件里没有任何可以调用的东西：一段 JSON 文件头，后面全是普通的字节。本项目的转换器先把 pickle 的指令当作文本来读；
# 只要其中提到普通张量以外的东西，就在执行任何一条指令之前拒绝整个文件。
# %% [markdown] id="quantised" lang="en"
# ## A few bits for each number
#
# A **quantised** file keeps a few bits for each number and one scale for each block of numbers. The usual format is
# **GGUF**, from llama.cpp: config, tokenizer and tensors in one file. Our default model comes from one, with 4 bits in
# most matrices: in each block of 32 neighbours every number is `minimum + scale * q`, with a whole number `q` from 0
# to 15. This still shows after the numbers were widened to float32: a block of 32 holds at most 16 different values,
# and the distances between them are multiples of one step.
# %% [markdown] id="quantised" lang="zh" of="c3e81fbf"
# ## 每个数只用几个比特
#
# **量化**（quantised）的文件里，每个数只留几个比特，每一块数共用一个缩放系数。这类文件通常是 **GGUF** 格式，它来自 llama.cpp：config、分词器和张量都在一个文件里。默认模型就来自这样的文件，多数矩阵用 4 比特：相邻的 32 个数为一块，块中每个数都是
# `minimum + scale * q`，其中 `q` 是 0 到 15 的整数。加宽成 float32 之后仍看得出来：一块 32 个数里最多有 16 个不同的值，而且它们的间
# 隔都是同一个步长的整数倍。
# %% id="quantised_code"


def on_a_grid(block):
    # en: From 0 to 1, in whole steps of 1/n for some n up to 15.
    # zh: 从 0 到 1，对某个不超过 15 的 n，都是 1/n 的整数倍。
    scaled = (block - block.min()) / np.ptp(block)
    return any(np.abs(n * scaled - np.round(n * scaled)).max() < 1e-3 for n in range(1, 16))


def blocks_of(leaf):
    return np.asarray(leaf).reshape(-1, 32)[:100]


def in_four_bits(leaf):
    return max(len(set(block)) for block in blocks_of(leaf).tolist()) <= 16


matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
count = sum(map(in_four_bits, matrices))
print(f"at most 16 different values in a block: {count} of {len(matrices)} matrices")
if on_default_model():
    assert count > len(matrices) / 2
    assert in_four_bits(layer.w_up)
    assert all(map(on_a_grid, blocks_of(layer.w_up)))
assert not on_a_grid(np.random.default_rng(0).standard_normal(32))
# %% [markdown] id="multiple_of" lang="en"
# ## Where $F$ comes from: `multiple_of`
#
# Meta's own files have no `ffn_dim`. They have `multiple_of` and `ffn_dim_multiplier`, and $F$ is computed:
#
# 1. The classical width is $4D$, with two matrices: $2 \cdot 4D \cdot D = 8D^2$ numbers. Here there are three matrices,
#    so the width is cut to two thirds, and $3 \cdot \tfrac{8}{3} D \cdot D$ is again $8 D^2$.
# 2. This is multiplied by `ffn_dim_multiplier`, if there is one, and the fraction is dropped.
# 3. The result is rounded **up** to a multiple of `multiple_of`.
#
# So `multiple_of` is only the granularity of this rounding. It sets no other size. (In Llama 3 8B the keys of one token
# happen to have $K H = 8 \cdot 128 = 1024$ entries, too. That is a coincidence: in 70B they have 1024 as well, and
# there `multiple_of` is 4096.) Round widths suit the hardware and divide evenly among devices. For Llama 3 8B:
# $D = 4096$, multiplier 1.3, multiple 1024.
# %% [markdown] id="multiple_of" lang="zh" of="25bc6310"
# ## $F$ 从哪里来：`multiple_of`
#
# Meta 自己的文件里没有 `ffn_dim`，只有 `multiple_of` 和 `ffn_dim_multiplier`，$F$ 由它们算出：
#
# 1. 传统的宽度是 $4D$，配两个矩阵，共 $2 \cdot 4D \cdot D = 8D^2$ 个数。这里有三个矩阵，所以宽度缩到三分之二，$3 \cdot \tfrac{8}{3} D \cdot D$ 又是 $8 D^2$。
# 2. 再乘以 `ffn_dim_multiplier`（如果有），并舍去小数。
# 3. 结果**向上**取整到 `multiple_of` 的倍数。
#
# 可见 `multiple_of` 只是这次取整的粒度，不决定任何别的大小。（Llama 3 8B 中一个 token 的键恰好也有 $K H = 8 \cdot 128 = 1024$
# 维，这是巧合：70B 也是 1024，而它的 `multiple_of` 是 4096。）整齐的宽度适合硬件，也便于平均分给多个设备。Llama 3 8B 的数值是：$D = 4096$，
# 倍率 1.3，粒度 1024。
# %% id="multiple_of_code"
width = int(2 * (4 * 4096) / 3)
print("two thirds of 4 D      ", width)
width = int(1.3 * width)
print("times 1.3              ", width)
width = math.ceil(width / 1024) * 1024
print("up to a multiple of 1024", width)
assert width == 14336 == ffn_dim(4096, 1.3, 1024) == preset("llama3-8b").ffn_dim
assert ffn_dim(8192, 1.3, 4096) == preset("llama3-70b").ffn_dim == 28672
assert ffn_dim(2048, 1.5, 256) == preset("llama3.2-1b").ffn_dim == 8192
for name, grain in (("llama3-8b", 1024), ("llama3-70b", 4096)):
    shape = preset(name)
    assert shape.n_kv_heads * shape.head_dim == 1024
    assert shape.ffn_dim % grain == 0
# %% [markdown] id="eps" lang="en"
# ## What `norm_eps` is
#
# A norm divides a vector by the root of the mean of its squares (lesson 03). For a vector of zeros that would be 0/0.
# So $\varepsilon$ is added to the mean of squares, **inside** the root:
# $\sqrt{\operatorname{mean}(x^2) + \varepsilon}$. It is not added to $x$, nor to the result of the division. It is not
# an error bound either, and you are not free to choose it: the weights were trained with it. It matters as soon as the
# mean of squares is small, as in the rows of an embedding.
# %% [markdown] id="eps" lang="zh" of="51e961a1"
# ## `norm_eps` 是什么
#
# 归一化把向量除以其平方平均值的平方根（第 03 课）。若向量全为零，就成了 0/0。所以把 $\varepsilon$ 加在平方的平均值上，位于根号**里面**：$\sqrt{\operatorname{mean}(x^2) + \varepsilon}$。它不加在 $x$ 上，也不加在除法的结果上。它也不是误差界，更不能随意
# 选取：权重就是带着它训练出来的。只要平方的平均值很小，它就有影响，嵌入的各行正是如此。
# %% id="eps_code"
eps = config.norm_eps
assert eps > 0
expect(eps, 1e-5)
zeros = np.zeros(D, np.float32)
with np.errstate(invalid="ignore"):
    assert np.isnan(zeros / np.sqrt((zeros**2).mean())).all()
assert (zeros / np.sqrt((zeros**2).mean() + eps) == 0).all()

mean_squares = np.asarray(jnp.mean(params.embedding**2, axis=1))
share = eps / (np.median(mean_squares) + eps)
print(f"eps is {share:.3%} of what stands under the root for a typical row of the embedding")
assert not on_default_model() or 1e-4 < share < 1e-2
# %% [markdown] id="contract" lang="en"
# ## A model of our own
#
# To compare formats we need a model small enough to be written three times. We choose its config: two layers, 24 wide.
# The config gives the contract, and we fill every leaf of it with random numbers, the norms too, so that no two tensors
# can be swapped unnoticed.
# %% [markdown] id="contract" lang="zh" of="ec34e9f4"
# ## 自己造一个模型
#
# 要比较各种格式，需要一个小到可以写三遍的模型。config 由我们定：两层，宽 24。由 config 得到契约，再给它的每片叶子填上随机数，归一化
# 的权重也一样，这样任何两个张量对调都会被发现。
# %% id="contract_code"
small = jax_llama3.Config(
    vocab_size=96,
    dim=24,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    ffn_dim=40,
    norm_eps=1e-5,
    rope_theta=10000.0,
    max_seq_len=8192,
)
rng = np.random.default_rng(0)
small_contract = jax_llama3.abstract_params(small, jnp.float32)
original = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), small_contract)
assert len(jax.tree.leaves(original)) == 9 * small.n_layers + 3
# %% [markdown] id="orders" lang="en"
# ## Two orders of the same rows
#
# There is one difference between the formats that no shape can show. Attention treats the $H$ numbers of a head of q
# and k as $H/2$ **pairs**, and turns each pair by an angle (lesson 05). There are two conventions for which numbers
# form a pair:
#
# - **interleaved**, in Meta's and GGUF files: neighbours, (0, 1), (2, 3), (4, 5);
# - **half-split**, in Hugging Face's files and here: $H/2$ apart, (0, 3), (1, 4), (2, 5).
#
# Both compute the same if the rows of `wq` and `wk` are in the matching order. To go from interleaved to half-split,
# take the even rows of each head first, then the odd ones: 0 2 4 1 3 5. The inverse undoes that: 0 3 1 4 2 5. Nothing
# turns v, so its rows stay.
#
# Why may rows be reordered at all? Attention uses q and k only through sums of products over a head, $\sum_i q_i k_i$.
# A sum does not care about the order of its terms, as long as q and k have the same order.
# %% [markdown] id="orders" lang="zh" of="092139b9"
# ## 同样的行，两种次序
#
# 各种格式之间有一处差别，从形状上看不出来。注意力把 q 和 k 每个头的 $H$ 维看成 $H/2$ **对**，把每一对转过一个角度（第 05 课）。哪两维
# 算一对，有两种约定：
#
# - **交错**（interleaved），用于 Meta 和 GGUF 文件：相邻的两个，(0, 1)、(2, 3)、(4, 5)；
# - **对半**（half-split），用于 Hugging Face 文件和本库：相隔 $H/2$，(0, 3)、(1, 4)、(2, 5)。
#
# 只要 `wq` 和 `wk` 的行按相应的次序排列，两者算出来一样。从交错到对半：每个头先取偶数行，再取奇数行，即 0 2 4 1 3 5。逆变换把它还原：0 3 1 4 2 5。v 不被转动，所以它的行不动。
#
# 为什么行可以重排？注意力只通过一个头内的乘积之和 $\sum_i q_i k_i$ 使用 q 和 k。只要 q 和 k 的次序相同，求和就与各项的次序无关。
# %% id="orders_code"
h = small.head_dim
to_half = [*range(0, h, 2), *range(1, h, 2)]
to_interleaved = [to_half.index(i) for i in range(h)]
print("half-split from interleaved:", to_half)
print("interleaved from half-split:", to_interleaved)
assert to_half == [0, 2, 4, 1, 3, 5]
assert to_interleaved == [0, 3, 1, 4, 2, 5]


def reorder(flat, order):
    # en: Take the heads apart, reorder the rows of each, put the heads together again.
    # zh: 拆开各个头，重排每个头的行，再合起来。
    heads = flat.reshape(-1, len(order), flat.shape[-1])
    return heads[:, order].reshape(flat.shape)


flat = original.layers[0].wq.reshape(-1, small.dim)
np.testing.assert_array_equal(reorder(flat, to_half), half_split(flat, h))
np.testing.assert_array_equal(reorder(flat, to_interleaved), interleaved(flat, h))
np.testing.assert_array_equal(reorder(reorder(flat, to_half), to_interleaved), flat)

# en: The same direction twice is not the inverse, and q k stays the same only if both are reordered.
# zh: 同一方向做两次并不是逆变换；只有两者都重排，q k 才不变。
assert (reorder(reorder(flat, to_half), to_half) != flat).any()
q, k = rng.standard_normal((2, h))
assert math.isclose(q[to_half] @ k[to_half], q @ k)
assert not math.isclose(q[to_half] @ k, q @ k)
# %% id="orders_picture"
show(
    figures.two_orders(to_half),
    en="Six rows of a head in three coloured pairs: neighbours in the upper order, three places apart in the lower one.",
    zh="一个头的六行分成三对，用颜色区分：上面的次序里成对的两行相邻，下面的次序里相隔三个位置。",
)
# %% [markdown] id="formats" lang="en"
# ## Three formats, one tree
#
# Now the same small model in all three formats. The names differ, no format splits the heads, and in two of the three q
# and k are interleaved. The table in the code is all there is to know. With it a checkpoint becomes a tree in a few
# lines: look up the name, reorder the rows if it is q or k, split the heads out.
# %% [markdown] id="formats" lang="zh" of="ae9bb8b8"
# ## 三种格式，一棵树
#
# 现在把这个小模型写成三种格式。三种格式用的名字不同，矩阵都不拆头，其中两种的 q 和 k 是交错的。要知道的，全在代码里的那张表中。有了
# 它，几行代码就能把检查点变成树：查名字；若是 q 或 k 就重排；拆开各个头。
# %% id="formats_code"
FORMATS = ("huggingface", "meta", "gguf")
NAMES = {
    "embedding": ("model.embed_tokens", "tok_embeddings", "token_embd"),
    "norm": ("model.norm", "norm", "output_norm"),
    "output": ("lm_head", "output", "output"),
    "attn_norm": ("input_layernorm", "attention_norm", "attn_norm"),
    "wq": ("self_attn.q_proj", "attention.wq", "attn_q"),
    "wk": ("self_attn.k_proj", "attention.wk", "attn_k"),
    "wv": ("self_attn.v_proj", "attention.wv", "attn_v"),
    "wo": ("self_attn.o_proj", "attention.wo", "attn_output"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm", "ffn_norm"),
    "w_gate": ("mlp.gate_proj", "feed_forward.w1", "ffn_gate"),
    "w_up": ("mlp.up_proj", "feed_forward.w3", "ffn_up"),
    "w_down": ("mlp.down_proj", "feed_forward.w2", "ffn_down"),
}
PREFIXES = ("model.layers.{}.", "layers.{}.", "blk.{}.")


def their_name(ours, form):
    column = FORMATS.index(form)
    prefix, _, field = ours.rpartition(".")
    number = re.sub(r"\D", "", prefix)
    start = PREFIXES[column].format(number) if number else ""
    return f"{start}{NAMES[field][column]}.weight"


def is_reordered(name, form):
    return form != "huggingface" and name.endswith(("wq", "wk"))


def tree_from(tensors, form, order=to_half):
    leaves = []
    for name, leaf in named_leaves(small_contract):
        array = np.asarray(tensors[their_name(name, form)])
        if is_reordered(name, form):
            array = reorder(array, order)
        leaves.append(array.reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(small_contract), leaves)


print(their_name("layers.1.wq", "huggingface"))
print(their_name("layers.1.wq", "meta"))
print(their_name("layers.1.wq", "gguf"))
# %% [markdown] id="written" lang="en"
# The converter's `to-hf` and `to-meta` write the Hugging Face and Meta folders; we write the GGUF file with GGUF's own
# library. Then the library of each format reads its file back, and our few lines make a tree of it. "Equal" means equal
# in every bit.
# %% [markdown] id="written" lang="zh" of="2bb4fce0"
# Hugging Face 和 Meta 的文件夹由转换器的 `to-hf` 和 `to-meta` 写出；GGUF 文件用 GGUF 自己的库来写。然后各用自己格式的库读回来，再由
# 我们的几行代码变成树。“相等”是指每一个比特都相同。
# %% id="written_code"


def convert(*words):
    # en: The command line of the converter; it prints the folder and its notes, which we do not need.
    # zh: 转换器的命令行；它会打印文件夹名和说明，这里用不到。
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert main([str(word) for word in words]) == 0, words


def same_bits(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


jax_llama3.save(work / "ours", jax_llama3.Model(small, jax.tree.map(jnp.asarray, original), None))
convert("to-hf", work / "ours", work / "huggingface")
convert("to-meta", work / "ours", work / "meta")

writer = gguf.GGUFWriter(work / "small.gguf", "llama")
writer.add_block_count(small.n_layers)
writer.add_context_length(small.max_seq_len)
writer.add_embedding_length(small.dim)
writer.add_feed_forward_length(small.ffn_dim)
writer.add_head_count(small.n_heads)
writer.add_head_count_kv(small.n_kv_heads)
writer.add_rope_freq_base(small.rope_theta)
writer.add_layer_norm_rms_eps(small.norm_eps)
writer.add_vocab_size(small.vocab_size)
for name, leaf in named_leaves(original):
    rows = math.prod(leaf.shape[:-1])
    flat = leaf.reshape(leaf.shape[0] if name.endswith("wo") else rows, -1)
    if is_reordered(name, "gguf"):
        flat = reorder(flat, to_interleaved)
    writer.add_tensor(their_name(name, "gguf"), flat if leaf.ndim > 1 else leaf)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

with safe_open(work / "huggingface/model.safetensors", framework="np") as file:
    from_huggingface = {name: file.get_tensor(name) for name in sorted(file.keys())}
from_meta = torch.load(work / "meta/consolidated.00.pth", weights_only=True)
from_gguf = {tensor.name: tensor.data for tensor in gguf.GGUFReader(work / "small.gguf").tensors}
for form, tensors in zip(FORMATS, (from_huggingface, from_meta, from_gguf), strict=True):
    assert same_bits(tree_from(tensors, form), original)
    print(f"{form:<12} {len(tensors)} tensors, by hand: every bit as in the original")
# %% [markdown] id="converter" lang="en"
# The converter does the same for any size, with checks: before it writes anything, it names every tensor that is
# missing, unknown or of the wrong shape. The weights of its three results equal the original too, bit for bit, and the
# fields of the config that we compare agree. It also goes back: `to-meta`, applied to what came from GGUF, gives Meta's
# tensors again.
# %% [markdown] id="converter" lang="zh" of="5b5be55c"
# 转换器做的是同一件事，但不限大小，还带检查：写文件之前，先报出所有缺少的、未知的或形状不对的张量。它的三个结果，权重也与原来的逐比
# 特相同，config 中我们比较的那些字段也一致。它还能转回去：从 GGUF 转来的模型再用 `to-meta` 写出，得到的就是 Meta 的张量。
# %% id="converter_code"
sources = {
    "huggingface": work / "huggingface",
    "meta": work / "meta",
    "gguf": work / "small.gguf",
}
for form, source in sources.items():
    convert("to-jax", source, work / f"from_{form}")
    converted = jax_llama3.load(work / f"from_{form}")
    assert same_bits(converted.params, original), form
    assert (converted.config.dim, converted.config.n_kv_heads) == (small.dim, small.n_kv_heads)
    assert math.isclose(converted.config.norm_eps, small.norm_eps, rel_tol=1e-6)
    assert converted.config.rope_theta == small.rope_theta
    print(f"{form:<12} converted: every bit as in the original")

convert("to-meta", work / "from_gguf", work / "meta_again")
again = torch.load(work / "meta_again/consolidated.00.pth", weights_only=True)
assert again.keys() == from_meta.keys()
assert all(torch.equal(again[name], from_meta[name]) for name in again)
# %% [markdown] id="forgotten" lang="en"
# ## The slip that no check of shapes sees
#
# What if somebody forgets the reordering? All names are there, all shapes fit, all sums and histograms of the weights
# are the same. Only `wq` and `wk` differ, in every layer.
# %% [markdown] id="forgotten" lang="zh" of="27c4b05f"
# ## 任何形状检查都看不出的错误
#
# 如果有人忘了重排会怎样？名字齐全，形状相符，权重的总和与直方图也一样。只有每一层的 `wq` 和 `wk` 不同。
# %% id="forgotten_code"
forgotten = tree_from(from_meta, "meta", order=list(range(h)))
assert jax.tree.map(np.shape, forgotten) == jax.tree.map(np.shape, original)
differ = [
    name
    for (name, ours), theirs in zip(named_leaves(original), jax.tree.leaves(forgotten), strict=True)
    if (ours != theirs).any()
]
print(differ)
assert differ == ["layers.0.wq", "layers.0.wk", "layers.1.wq", "layers.1.wk"]
np.testing.assert_array_equal(
    np.sort(forgotten.layers[0].wq.ravel()), np.sort(original.layers[0].wq.ravel())
)
# %% [markdown] id="wrong_logits" lang="en"
# And the answer? We put the rows of the real model into the wrong order and run the network. In the first line both q
# and k are wrong, as after a forgotten step; then only one of them; then v, whose rows must not be touched. Each number
# is the largest difference of a logit at one position.
# %% [markdown] id="wrong_logits" lang="zh" of="ff35b228"
# 那么答案呢？我们把真实模型的行换成错误的次序，再运行网络。第一行里 q 和 k 都错，正如忘了一步；然后只错其中之一；最后是 v，它的行本来就不该动。
# 每个数是某个位置上 logit 的最大差。
# %% id="wrong_logits_code"


def with_rows(function, *names):
    def changed(layer):
        new = {}
        for name in names:
            weight = getattr(layer, name)
            flat = np.asarray(weight).reshape(-1, D)
            new[name] = jnp.asarray(function(flat, H).reshape(weight.shape))
        return layer._replace(**new)

    return params._replace(layers=tuple(changed(layer) for layer in params.layers))


best = int(right[-1].argmax())
print(f"right       -> {model.tokenizer.decode([best])!r}")
differences, tops = {}, {}
for names in (("wq", "wk"), ("wq",), ("wk",), ("wv",)):
    wrong = logits_with(with_rows(interleaved, *names))
    differences[names] = np.abs(wrong - right).max(axis=-1)
    tops[names] = int(wrong[-1].argmax())
    numbers = " ".join(f"{difference:5.1f}" for difference in differences[names])
    token = model.tokenizer.decode([tops[names]])
    print(f"{' '.join(names):<11} -> {token!r:<9} largest: {numbers}")

# en: At position 0 nothing is turned and there is one key only: no order of q and k can matter.
# zh: 位置 0 不转动，也只有一个键：q 和 k 的次序不会有影响。
assert differences["wq", "wk"][0] < 1e-3 < 0.1 < differences["wv",][0]
assert min(differences[names][1:].max() for names in differences) > 1
if on_default_model():
    assert differences["wq", "wk"][1:].min() > 2
    assert tops["wq", "wk"] == best != tops["wq",]

# en: The inverse puts every row back, and with it every logit.
# zh: 逆变换让每一行归位，每个 logit 也随之复原。
undone = jnp.asarray(half_split(interleaved(np.asarray(layer.wq).reshape(-1, D), H), H))
np.testing.assert_array_equal(undone.reshape(layer.wq.shape), layer.wq)
# %% [markdown] id="wrong_logits_rest" lang="en"
# With the default model the forgotten step moves some logits by several units at every position but the first, and the
# next token is still " Paris". Nothing crashed, and one prompt looked fine. This is why we compare converted weights
# bit for bit, and why lesson 08 compares logits at every position.
# %% [markdown] id="wrong_logits_rest" lang="zh" of="6d0a6900"
# 对默认模型，忘掉这一步会让除第一个位置之外的每个位置都有 logit 变动好几个单位，而下一个 token 仍然是“ Paris”。没有报错，单看一个提
# 示也没问题。正因如此，转换之后要逐比特比较权重，第 08 课也要在每个位置上比较 logits。
# %% [markdown] id="exercise_3_text" lang="en"
# ## The last exercise
#
# **3.** The order of the rows of q and k matters. Are there rows whose order does not? Write a function of a layer that
# reverses rows or columns of `w_gate`, `w_up` and `w_down`, so that all three change and yet no logit does. Before you
# run it: why can the network not notice?
# %% [markdown] id="exercise_3_text" lang="zh" of="523b3449"
# ## 最后一题
#
# **3.** q 和 k 的行的次序有影响。有没有哪些行的次序没有影响？写一个以层为参数的函数，把 `w_gate`、`w_up`、`w_down` 的行或列倒过来，
# 使三者都变了，而 logits 一个也不变。运行之前先想：网络为什么察觉不到？
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    changed = params._replace(layers=tuple(map(answer, params.layers)))
    for name in ("w_gate", "w_up", "w_down"):
        assert (getattr(changed.layers[0], name) != getattr(layer, name)).any(), name
    close(logits_with(changed), right, atol=1e-2)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# The $F$ numbers inside the feed-forward network have no order of their own: each is made from one row of `w_gate` and
# one of `w_up`, and goes into one column of `w_down`.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="739ef182"
# <details><summary>线索</summary>
#
# 前馈网络内部的 $F$ 个数没有先后之分：每个数由 `w_gate` 的一行和 `w_up` 的一行得出，再进入 `w_down` 的一列。
#
# </details>
# %% id="solution_3" tags=["solution"]


def reversed_inside(layer):
    return layer._replace(
        w_gate=layer.w_gate[::-1], w_up=layer.w_up[::-1], w_down=layer.w_down[:, ::-1]
    )


exercise(3, reversed_inside, check_3)
scratch.cleanup()
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - The safetensors format, [github.com/huggingface/safetensors](https://github.com/huggingface/safetensors)
# - JAX, *Pytrees*, [docs.jax.dev](https://docs.jax.dev/en/latest/pytrees.html)
# - Flax, *Module & Pytree*, [flax.readthedocs.io](https://flax.readthedocs.io/en/latest/guides/pytree.html); Equinox,
#   *All of Equinox*, [docs.kidger.site](https://docs.kidger.site/equinox/all-of-equinox/)
# - Python, *pickle*, with its warning, [docs.python.org](https://docs.python.org/3/library/pickle.html)
# - Touvron et al., *LLaMA*, 2023: the architecture of this family, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# Next: lesson 03 uses the first of these weights: the embedding and a norm.
# %% [markdown] id="sources" lang="zh" of="140b097f"
# ## 来源
#
# - safetensors 格式，[github.com/huggingface/safetensors](https://github.com/huggingface/safetensors)
# - JAX，*Pytrees*，[docs.jax.dev](https://docs.jax.dev/en/latest/pytrees.html)
# - Flax，*Module & Pytree*，[flax.readthedocs.io](https://flax.readthedocs.io/en/latest/guides/pytree.html)；Equinox，*All of Equinox*，[docs.kidger.site](https://docs.kidger.site/equinox/all-of-equinox/)
# - Python，*pickle* 及其警告，[docs.python.org](https://docs.python.org/3/library/pickle.html)
# - Touvron 等，*LLaMA*，2023，这一家族的架构，[arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# 下一课：第 03 课用上其中最先用到的权重：嵌入和一个归一化。
