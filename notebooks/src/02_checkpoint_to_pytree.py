# %% [markdown] id="title" lang="en"
# # 02 · A checkpoint becomes a pytree
#
# *Reading time 20 minutes. Before it: lessons 00 and 01. What it proves: three file formats of one model give the same weights
# bit for bit, the weights are as many as a formula says, and a small slip in their order goes unnoticed by every check of shapes.*
#
# Lesson 01 made ids. What turns ids into a next token are the parameters, and they come from a file. A **checkpoint** is what
# is kept of a model after training: the parameters, a short record of the architecture (the config), and the tokenizer. There
# is no program in it. The program is ours to write, and the checkpoint only fits it if names, shapes and order are right.
# %% [markdown] id="title" lang="zh" of="7e7d72ee"
# # 02 · 检查点变成 pytree
#
# *阅读时间 20 分钟。前置：第 00、01 课。本课证明：同一个模型的三种文件格式给出逐位相同的权重；参数个数与公式一致；而排列次序上的
# 一个小错误，任何形状检查都发现不了。*
#
# 第 01 课得到了编号。把编号变成下一个 token 的是参数，而参数来自文件。**检查点**（checkpoint）是训练结束后留下来的东西：全部参数、
# 一份简短的架构记录（config）和分词器。里面没有程序。程序由我们来写；只有名字、形状和次序都对，检查点才与程序相配。
# %% id="setup"
import sys

sys.path.insert(0, "..")

import contextlib
import dataclasses
import io
import json
import math
import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import gguf
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from drawings import BLUE, ORANGE, arrow, box, canvas
from lesson import close, exercise, load_model, model_folder, show, trace
from safetensors import safe_open

import jax_llama3
from convert.__main__ import main
from convert.formats.meta.config import ffn_dim
from convert.formats.pth import read_records, read_tensors
from convert.layout import half_split, interleaved
from jax_llama3.bench.presets import preset
from jax_llama3.model.params import named_leaves

model = load_model()
folder = model_folder()
is_default = folder.name == "smollm2-135m-instruct"
config, params = model.config, model.params
V, D, F = config.vocab_size, config.dim, config.ffn_dim
N, K, H, L = config.n_heads, config.n_kv_heads, config.head_dim, config.n_layers
scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)

for path in sorted(folder.iterdir()):
    print(f"{path.name:<36} {path.stat().st_size / 1e6:>6.1f} MB")
# %% [markdown] id="keys" lang="en"
# ## The first keys
#
# The weights lie in files called **safetensors**: a table of contents, then the numbers. Each entry has a name, a type and a
# shape, and that is all a checkpoint says about a number: where it belongs, not what it does. We open the first file and print
# the first twelve names. They are our names, the paths of the tree below; other formats have others, and we come to them.
# %% [markdown] id="keys" lang="zh" of="fd2f3fb2"
# ## 最前面的键
#
# 权重存放在 **safetensors** 文件里：先是一张目录，后面是数。目录中每一项有名字、类型和形状。关于一个数，检查点只说到这里：它放在哪里，
# 而不是它做什么。我们打开第一个文件，打印最前面的十二个名字。这些是我们自己的名字，即下文那棵树里的路径；别的格式用别的名字，后面会讲。
# %% id="keys_code"
files = sorted(folder.glob("*.safetensors"))
with safe_open(files[0], framework="np") as file:
    for key in list(file.keys())[:12]:
        view = file.get_slice(key)
        print(f"{key:<22} {view.get_dtype()}  {view.get_shape()}")

keys = []
for path in files:
    with safe_open(path, framework="np") as file:
        keys += file.keys()
matrices = 9 * L + 2 + (params.output is not None)
assert len(keys) == len(set(keys)) == matrices
assert not is_default or len(keys) == 272
print(len(keys), "tensors in", len(files), "files")
# %% [markdown] id="layer_0" lang="en"
# ## The shapes of layer 0
#
# Every layer has nine tensors of the same shapes. Four belong to attention, three to the feed-forward network, two to the norms.
# Letters stand for sizes, in this lesson and in all that follow: $V$ vocabulary, $D$ the model's width, $N$ heads, $K$ heads of
# keys and values, $H$ numbers in a head, $F$ the width inside the feed-forward network, $L$ layers.
#
# A matrix is stored with its outputs first and its inputs last: $y = W x$ with $W$ of shape [out, in], for many rows `x @ W.T`.
# The heads are split out: `wq` is not one matrix of $N H$ rows but $N$ matrices of $H$ rows. That is a reshape; no number moves.
# %% [markdown] id="layer_0" lang="zh" of="d362867c"
# ## 第 0 层的形状
#
# 每一层都有形状相同的九个张量：四个属于注意力，三个属于前馈网络，两个属于归一化。本课和以后各课都用字母表示大小：$V$ 词表，$D$ 模型宽度，
# $N$ 头数，$K$ 键和值的头数，$H$ 每个头的数的个数，$F$ 前馈网络内部的宽度，$L$ 层数。
#
# 矩阵按“输出在前、输入在后”存放：$y = W x$，其中 $W$ 的形状是 [out, in]；对许多行就是 `x @ W.T`。头是拆开的：`wq` 不是一个 $N H$ 行的
# 矩阵，而是 $N$ 个 $H$ 行的矩阵。这只是 reshape，没有一个数移动位置。
# %% id="layer_0_code"
layer = params.layers[0]
sizes = {"V": V, "D": D, "F": F, "N": N, "K": K, "H": H}
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

x = params.embedding[0]
by_heads = jnp.stack([layer.wq[n] @ x for n in range(N)])
close(by_heads.reshape(-1), layer.wq.reshape(N * H, D) @ x, atol=1e-5)
# %% [markdown] id="config" lang="en"
# ## Each field of the config
#
# | field | what it says | can the shapes tell? |
# |---|---|---|
# | `vocab_size` $V$ | rows of the embedding: one per id | yes |
# | `dim` $D$ | length of the vector that stands for a token between the layers | yes |
# | `n_layers` $L$ | how many blocks follow one another | yes, by the names |
# | `n_heads` $N$, `head_dim` $H$ | attention is done in $N$ parts of $H$ numbers each | only $N H$, in files that do not split heads |
# | `n_kv_heads` $K$ | keys and values have only $K$ parts; $N/K$ heads share one | only $K H$, in the same files |
# | `ffn_dim` $F$ | width inside the feed-forward network | yes |
# | `norm_eps` $\varepsilon$ | small number under the root of every norm | **no** |
# | `rope_theta`, `rope_scaling` | how fast positions turn the vectors of attention (lesson 05) | **no** |
# | `max_seq_len` | the longest text the model was made for; it stands in no formula | **no** |
# | `tie_embeddings` | the output matrix *is* the embedding, stored once | yes: one tensor is missing |
#
# The last column is the point. A wrong `dim` stops at once. A wrong `norm_eps` or `rope_theta` runs, and writes fluent text.
# Of the head fields a flat file shows only products, so 9 heads of 64 and 18 heads of 32 fit the same matrix.
# %% [markdown] id="config" lang="zh" of="8355acaa"
# ## config 的每个字段
#
# | 字段 | 含义 | 从形状能看出吗？ |
# |---|---|---|
# | `vocab_size` $V$ | 嵌入的行数：每个编号一行 | 能 |
# | `dim` $D$ | 层与层之间代表一个 token 的向量的长度 | 能 |
# | `n_layers` $L$ | 有多少个块前后相接 | 能，看名字 |
# | `n_heads` $N$、`head_dim` $H$ | 注意力分成 $N$ 份来做，每份 $H$ 个数 | 不拆头的文件里只看得出 $N H$ |
# | `n_kv_heads` $K$ | 键和值只有 $K$ 份，每份由 $N/K$ 个头共用 | 同样的文件里只看得出 $K H$ |
# | `ffn_dim` $F$ | 前馈网络内部的宽度 | 能 |
# | `norm_eps` $\varepsilon$ | 每个归一化的根号里加的一个很小的数 | **不能** |
# | `rope_theta`、`rope_scaling` | 位置以多快的速度转动注意力里的向量（第 05 课） | **不能** |
# | `max_seq_len` | 模型所适用的最长文本；不出现在任何公式里 | **不能** |
# | `tie_embeddings` | 输出矩阵*就是*嵌入，只存一份 | 能：少一个张量 |
#
# 关键在最后一列。`dim` 错了会立刻停下；`norm_eps` 或 `rope_theta` 错了照样能跑，还会写出通顺的文字。至于头的几个字段，不拆头的文件只
# 显示乘积，所以 9 个 64 维的头与 18 个 32 维的头配得上同一个矩阵。
# %% id="config_code"
for field in dataclasses.fields(config):
    print(f"{field.name:<16} {getattr(config, field.name)}")

flat = layer.wq.reshape(-1, D)
assert flat.shape == (N * H, D)
assert flat.reshape(2 * N, H // 2, D).shape == (2 * N, H // 2, D)
assert config.tie_embeddings == (params.output is None)
assert N % K == 0
# %% [markdown] id="multiple_of" lang="en"
# ## Where $F$ comes from: `multiple_of`
#
# Meta's own files have no `ffn_dim`. They have `multiple_of` and `ffn_dim_multiplier`, and $F$ is computed:
#
# 1. The classical width is $4D$, with two matrices: $2 \cdot 4D \cdot D = 8D^2$ numbers. Here there are three matrices, so the
#    width is cut to two thirds, and $3 \cdot \tfrac{8}{3} D \cdot D$ is again $8 D^2$.
# 2. This is multiplied by `ffn_dim_multiplier`, if there is one, and the fraction dropped.
# 3. The result is rounded **up** to a multiple of `multiple_of`.
#
# So `multiple_of` is a grain for rounding, and it is used nowhere else. It sets no other size. (That the keys of one token are
# $K H = 8 \cdot 128 = 1024$ numbers in Llama 3 8B, too, is a coincidence: in 70B they are 1024 as well, and `multiple_of` is
# 4096.) Round widths suit the hardware and divide evenly among devices. For Llama 3 8B: $D = 4096$, multiplier 1.3, multiple 1024.
# %% [markdown] id="multiple_of" lang="zh" of="fca30029"
# ## $F$ 从哪里来：`multiple_of`
#
# Meta 自己的文件里没有 `ffn_dim`，只有 `multiple_of` 和 `ffn_dim_multiplier`，$F$ 由它们算出：
#
# 1. 传统的宽度是 $4D$，配两个矩阵，共 $2 \cdot 4D \cdot D = 8D^2$ 个数。这里有三个矩阵，所以宽度缩到三分之二，
#    $3 \cdot \tfrac{8}{3} D \cdot D$ 又是 $8 D^2$。
# 2. 再乘以 `ffn_dim_multiplier`（如果有），并舍去小数。
# 3. 结果**向上**取整到 `multiple_of` 的倍数。
#
# 可见 `multiple_of` 只是取整的粒度，别处都不用，不决定任何别的大小。（Llama 3 8B 中一个 token 的键恰好也有
# $K H = 8 \cdot 128 = 1024$ 个数，这是巧合：70B 也是 1024，而它的 `multiple_of` 是 4096。）整齐的宽度适合硬件，也便于平均分给多个设备。
# Llama 3 8B 的数值是：$D = 4096$，倍率 1.3，粒度 1024。
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
# A norm divides a vector by the root of the mean of its squares (lesson 03). For a vector of zeros that is 0/0. So $\varepsilon$
# is added to the mean of squares, **inside** the root: $\sqrt{\operatorname{mean}(x^2) + \varepsilon}$. It is not added to $x$, nor to
# the result of the division. It is not a precision or an error bound, and not a free choice: the weights were trained
# with it. It counts as soon as the mean of squares is small, as in the rows of an embedding.
# %% [markdown] id="eps" lang="zh" of="64ac37be"
# ## `norm_eps` 是什么
#
# 归一化把向量除以其平方平均值的平方根（第 03 课）。若向量全为零，就成了 0/0。所以把 $\varepsilon$ 加在平方的平均值上，位于根号
# **里面**：$\sqrt{\operatorname{mean}(x^2) + \varepsilon}$。它不加在 $x$ 上，也不加在除法的结果上。它不是精度，不是误差界，也不能随意
# 选取：权重就是带着它训练出来的。只要平方的平均值很小，它就有影响，嵌入的各行正是如此。
# %% id="eps_code"
eps = config.norm_eps
assert eps > 0
assert not is_default or eps == 1e-5
zeros = np.zeros(D, np.float32)
with np.errstate(invalid="ignore"):
    assert np.isnan(zeros / np.sqrt((zeros**2).mean())).all()
assert (zeros / np.sqrt((zeros**2).mean() + eps) == 0).all()

mean_squares = np.asarray(jnp.mean(params.embedding**2, axis=1))
share = eps / (np.median(mean_squares) + eps)
print(f"eps is {share:.3%} of what stands under the root for a typical row of the embedding")
if is_default:
    assert 1e-4 < share < 1e-2
# %% [markdown] id="bytes" lang="en"
# ## Numbers as bytes
#
# A float32 takes four bytes. Published models mostly use **bfloat16**, which is simply the upper half of a float32: the
# same sign and exponent, so the same range, but 8 bits of precision in place of 24. To widen it is exact, to narrow it
# rounds. With 8 bits one cannot count one by one past 256.
# %% [markdown] id="bytes" lang="zh" of="252688b5"
# ## 数存成字节
#
# 一个 float32 占四个字节。公开的模型大多用 **bfloat16**，它就是 float32 的上半部分：符号和指数相同，所以范围相同，但有效位是 8 位而不是
# 24 位。加宽是精确的，变窄则要舍入。八位有效位数到 256 就不能再逐一往下数了。
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
# %% [markdown] id="quantised" lang="en"
# Fewer bytes still: a **quantised** file keeps a few bits per number and one scale per block of numbers. The common home of such
# files is **GGUF**, llama.cpp's format: config, tokenizer and tensors in one file. The default model comes from one, with 4 bits
# in most matrices: of each 32 neighbours every number is `minimum + scale * q`, with `q` from 0 to 15. That leaves a
# trace that we can see after it was widened to float32: a block of 32 holds at most 16 different values.
# %% [markdown] id="quantised" lang="zh" of="ef0435b2"
# 还可以更省：**量化**（quantised）的文件每个数只留几位，每一块数共用一个缩放系数。这类文件通常是 **GGUF** 格式，它来自 llama.cpp：
# config、分词器和张量都在一个文件里。默认模型就来自这样的文件，多数矩阵用 4 位：每 32 个相邻的数都写成 `minimum + scale * q`，其中 `q` 从 0 到 15。
# 展开成 float32 之后仍留有痕迹：一块 32 个数里最多有 16 个不同的值。
# %% id="quantised_code"
blocks = np.asarray(layer.w_up).reshape(-1, 32)
different = [len(set(block)) for block in blocks[:1000].tolist()]
print("different values in a block of 32: at most", max(different))
if is_default:
    assert max(different) <= 16
# %% [markdown] id="mapped" lang="en"
# ## Loading without reading
#
# A safetensors file is so simple that we read it by hand: eight bytes with the length of a header, the header (JSON: name, type,
# shape, first and last byte of each tensor), then the bytes of all tensors.
#
# The bytes need not be copied into a buffer first. The file is **memory-mapped**: the operating system gives its bytes an address, and
# fetches a page of the file only when somebody looks at that address. Opening costs nothing, whatever the size, and what is never
# looked at is never read. So the converter goes through a source far larger than memory. (`load` maps as well: on a CPU a large
# tensor that keeps its number format *is* the pages of its file, and JAX computes with them.)
# %% [markdown] id="mapped" lang="zh" of="425a9b8b"
# ## 不读就加载
#
# safetensors 文件非常简单，亲手就能读：八个字节给出文件头的长度，接着是文件头（JSON：每个张量的名字、类型、形状、起止字节），再往后是所有
# 张量的字节。
#
# 不必先把这些字节复制进缓冲区，可以使用**内存映射**（memory-mapped）：操作系统给文件的字节分配地址，只有当有人访问某个地址时，才取来
# 文件里对应的那一页。不论文件多大，打开都不花代价；从未访问的部分从不读取。所以转换器能处理比内存大得多的源文件。（`load`
# 也用映射：在 CPU 上，不改变数值格式的大张量*就是*文件的那些页，JAX 直接用它们计算。）
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

# en: A file as large as Llama 3 8B in bfloat16, all holes: to map it and read its end takes no time and no memory.
# zh: 一个与 bfloat16 的 Llama 3 8B 一样大的文件，全是空洞：映射它并读取末尾，不花时间也不占内存。
size = 2 * jax_llama3.count_params(preset("llama3-8b"))
with open(work / "large", "wb") as file:
    file.truncate(size)
large = np.memmap(work / "large", np.uint8, "r")
assert large.nbytes == size
assert large[-1] == 0
print(f"mapped {large.nbytes:,} bytes")
del large, embedding
# %% [markdown] id="pickle" lang="en"
# ## Why not pickle
#
# PyTorch's `.pth` files are zip archives that hold a **pickle**, Python's format for objects. A pickle is not a table but a program
# for a small machine, and one of its instructions is "call this function with these arguments". Whoever made the file chose the
# function. To load such a file is to run it: it can delete your files before you have seen a single weight.
# %% [markdown] id="pickle" lang="zh" of="fc5196fd"
# ## 为什么不用 pickle
#
# PyTorch 的 `.pth` 文件是 zip 压缩包，里面有一份 **pickle**，即 Python 存放对象的格式。pickle 不是表格，而是一台小机器的程序，其中一条
# 指令是“用这些参数调用这个函数”，调用什么函数由文件的作者决定。加载这样的文件就等于运行它：你还没看到一个权重，它就可以删掉你的文件。
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
# A safetensors file has nothing that could be called: a header of JSON, then plain bytes. The converter of this project looks at
# the instructions of a pickle as text first: if they name anything but plain tensors, the file is refused before any of them is run.
# %% [markdown] id="pickle_rest" lang="zh" of="3261f106"
# safetensors 文件里没有任何可以调用的东西：一段 JSON 文件头，后面全是普通的字节。本项目的转换器先把 pickle
# 的指令当作文本来看：只要其中点名了普通张量以外的东西，一条指令也不执行，直接拒绝整个文件。
# %% [markdown] id="pytree" lang="en"
# ## Pytrees
#
# In JAX a model is no object with methods. Weights are data and the network is a function, `forward(params, tokens, config)`. What
# then is `params`? A **pytree**: containers in containers (tuples, lists, dicts, named tuples), and at the ends the leaves, here
# arrays. There is no class to inherit from. JAX walks through any such nest, and three functions are enough for nearly all of it:
#
# - `jax.tree.leaves(tree)` gives the leaves in a fixed order;
# - `jax.tree.map(function, tree, ...)` applies a function to every leaf and keeps the nest;
# - `jax.tree.structure(tree)` gives the nest without leaves; with new leaves, `jax.tree.unflatten` makes a tree of it again.
#
# `None` is an empty container, not a leaf: that is how a tied model has no output matrix and all code still works.
# %% [markdown] id="pytree" lang="zh" of="5650d642"
# ## pytree
#
# 在 JAX 里，模型不是带方法的对象。权重是数据，网络是函数：`forward(params, tokens, config)`。那么 `params` 是什么？是一棵 **pytree**：
# 容器套容器（元组、列表、字典、具名元组），末端是叶子，这里就是数组。不需要继承任何类，JAX 能走遍任何这样的嵌套结构。三个函数几乎够用了：
#
# - `jax.tree.leaves(tree)` 按固定次序给出所有叶子；
# - `jax.tree.map(function, tree, ...)` 对每片叶子应用一个函数，结构不变；
# - `jax.tree.structure(tree)` 给出去掉叶子的结构；配上新的叶子，`jax.tree.unflatten` 又得到一棵树。
#
# `None` 是空容器，不是叶子：共享嵌入的模型因此没有输出矩阵，而所有代码照常工作。
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

# en: The model is the same, only larger. Its key paths are the names in the files.
# zh: 模型也是如此，只是更大。它的键路径就是文件里的名字。
assert [name for name, _ in named_leaves(params)][:3] == [
    "embedding",
    "layers.0.attn_norm",
    "layers.0.wq",
]
assert {name for name, _ in named_leaves(params)} == set(keys)

# en: One line casts all tensors, another counts their bytes.
# zh: 一行代码转换全部张量的类型，再一行数出字节数。
halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
assert sum(leaf.nbytes for leaf in jax.tree.leaves(halved)) == total // 2
assert jax.tree.structure(halved) == jax.tree.structure(params)
print(f"{total:,} bytes in float32, half of it in bfloat16")
del halved
# %% [markdown] id="contract" lang="en"
# The nest has a form without any numbers: leaves that are only shapes. `abstract_params` makes it from the config. This is the contract
# between the checkpoint and the program, and it costs no memory, whatever the model. We use it to make a model of our own: two
# layers, 24 wide, random everywhere, the norms too, so that no two tensors can be exchanged unseen.
# %% [markdown] id="contract" lang="zh" of="aa10afcf"
# 这个结构也可以完全不带数：叶子只是形状。`abstract_params` 由 config 造出它。这就是检查点与程序之间的契约，不论模型多大都不占内存。我们用它
# 造一个自己的模型：两层、宽 24，处处随机，归一化的权重也随机，这样任何两个张量对调都会露馅。
# %% id="contract_code"
contract = jax_llama3.abstract_params(config, jnp.float32)
assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, contract)

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
contract = jax_llama3.abstract_params(small, jnp.float32)
original = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), contract)
assert len(jax.tree.leaves(original)) == 9 * small.n_layers + 3
# %% [markdown] id="orders" lang="en"
# ## Two orders of the same rows
#
# One thing separates the formats that a shape cannot show. Attention treats the $H$ numbers of a head of q and k as $H/2$ **pairs**,
# and turns each pair by an angle (lesson 05). There are two conventions for which numbers form a pair:
#
# - **interleaved**, in Meta's and GGUF files: neighbours, (0, 1), (2, 3), (4, 5);
# - **half-split**, in Hugging Face's files and here: $H/2$ apart, (0, 3), (1, 4), (2, 5).
#
# Both compute the same, if the rows of `wq` and `wk` lie in the matching order. From interleaved to half-split take first the even
# rows of each head, then the odd ones: 0 2 4 1 3 5. The inverse undoes that: 0 3 1 4 2 5. Nothing turns v, so its rows stay.
#
# Why may rows be reordered at all? Attention uses q and k only through sums of products over a head, $\sum_i q_i k_i$. A sum does not
# care about the order of its terms, as long as q and k have the same.
# %% [markdown] id="orders" lang="zh" of="26a23991"
# ## 同样的行，两种次序
#
# 各种格式之间有一处差别，从形状上看不出来。注意力把 q 和 k 每个头的 $H$ 个数看成 $H/2$ **对**，把每一对转过一个角度（第 05 课）。哪两个数
# 算一对，有两种约定：
#
# - **交错**（interleaved），用于 Meta 和 GGUF 文件：相邻的两个，(0, 1)、(2, 3)、(4, 5)；
# - **对半**（half-split），用于 Hugging Face 文件和本库：相隔 $H/2$，(0, 3)、(1, 4)、(2, 5)。
#
# 只要 `wq` 和 `wk` 的行按相应的次序排列，两者算出来一样。从交错到对半：每个头先取偶数行，再取奇数行，即 0 2 4 1 3 5。逆变换把它还原：
# 0 3 1 4 2 5。v 不被转动，所以它的行不动。
#
# 为什么行可以重排？注意力只通过一个头内的乘积之和 $\sum_i q_i k_i$ 使用 q 和 k。只要 q 和 k 的次序相同，求和与各项的次序无关。
# %% id="orders_code"
h = small.head_dim
to_half = [*range(0, h, 2), *range(1, h, 2)]
to_interleaved = [to_half.index(i) for i in range(h)]
print("half-split from interleaved:", to_half)
print("interleaved from half-split:", to_interleaved)
assert to_half == [0, 2, 4, 1, 3, 5]
assert to_interleaved == [0, 3, 1, 4, 2, 5]


def reorder(flat, order):
    # en: The heads apart, the rows of each reordered, the heads together again.
    # zh: 拆开各个头，重排每个头的行，再合起来。
    heads = flat.reshape(-1, len(order), flat.shape[-1])
    return heads[:, order].reshape(flat.shape)


flat = original.layers[0].wq.reshape(-1, small.dim)
np.testing.assert_array_equal(reorder(flat, to_half), half_split(flat, h))
np.testing.assert_array_equal(reorder(flat, to_interleaved), interleaved(flat, h))
np.testing.assert_array_equal(reorder(reorder(flat, to_half), to_interleaved), flat)

# en: Twice in the same direction is not the inverse, and q k is the same only if both are reordered.
# zh: 同一方向做两次并不是逆变换；只有两者都重排，q k 才不变。
assert (reorder(reorder(flat, to_half), to_half) != flat).any()
q, k = rng.standard_normal((2, h))
assert math.isclose(q[to_half] @ k[to_half], q @ k)
assert not math.isclose(q[to_half] @ k, q @ k)
# %% id="orders_picture"
figure, axes = canvas(16, 5.4)
for i in range(h):
    colour = (BLUE, ORANGE, "#d9ead3")[i // 2]
    box(axes, 2 * i + 3.5, 3.7, 1.4, 1, str(i), colour)
    position = to_half.index(i)
    box(axes, 2 * position + 3.5, 0.5, 1.4, 1, str(i), colour)
    arrow(axes, (2 * i + 4.2, 3.7), (2 * position + 4.2, 1.5))
axes.text(3.2, 4.2, "interleaved", ha="right", va="center", fontsize=9)
axes.text(3.2, 1.0, "half-split", ha="right", va="center", fontsize=9)
show(
    figure,
    en="Six rows of a head in three coloured pairs: neighbours in the upper order, three places apart in the lower one.",
    zh="一个头的六行分成三对，用颜色区分：上面的次序里成对的两行相邻，下面的次序里相隔三个位置。",
)
# %% [markdown] id="formats" lang="en"
# ## Three formats, one tree
#
# Now the same small model in all three formats. Their names differ, their matrices are flat, and in two of them q and k are interleaved.
# The table below is all there is to know. With it a checkpoint becomes a tree in a few lines: look up the name, reorder if it is
# q or k, split the heads out.
# %% [markdown] id="formats" lang="zh" of="7240b71f"
# ## 三种格式，一棵树
#
# 现在把这个小模型写成三种格式。它们的名字不同，矩阵都不拆头，其中两种的 q 和 k 是交错的。要知道的全在下面这张表里。有了它，几行代码就能把
# 检查点变成树：查名字；若是 q 或 k 就重排；拆开各个头。
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
    for name, leaf in named_leaves(contract):
        array = np.asarray(tensors[their_name(name, form)])
        if is_reordered(name, form):
            array = reorder(array, order)
        leaves.append(array.reshape(leaf.shape))
    return jax.tree.unflatten(jax.tree.structure(contract), leaves)


print(their_name("layers.1.wq", "huggingface"))
print(their_name("layers.1.wq", "meta"))
print(their_name("layers.1.wq", "gguf"))
# %% [markdown] id="written" lang="en"
# The Hugging Face and Meta folders are written by the converter's `to-hf` and `to-meta`; the GGUF file we write with its own library.
# Each is then read back by the library of its format, and made a tree by our few lines. "Equal" means every bit.
# %% [markdown] id="written" lang="zh" of="7096e6da"
# Hugging Face 和 Meta 的文件夹由转换器的 `to-hf` 和 `to-meta` 写出；GGUF 文件用它自己的库来写。然后各用自己格式的库读回来，再由我们的几行
# 代码变成树。这里的“相等”是指每一位都相同。
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
# The converter does the same, with checks, for any size: it names every tensor that is missing, unknown or of a wrong shape,
# before it writes anything. Its three results equal the original too, bit for bit, config included. And back again: `to-meta` of what came
# from Meta's format gives Meta's tensors.
# %% [markdown] id="converter" lang="zh" of="a834dec1"
# 转换器做的是同一件事，但带检查，且不限大小：动笔之前，先报出所有缺少的、未知的或形状不对的张量。它的三个结果也与原来的逐位相同，config
# 也一样。反过来也成立：从 Meta 格式转来的模型再用 `to-meta` 写出，得到的就是 Meta 的张量。
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
# ## The slip that no check sees
#
# What if the reordering is forgotten? All names are there, all shapes fit, all sums and histograms of the weights are the same. Only `wq` and
# `wk` of every layer differ.
# %% [markdown] id="forgotten" lang="zh" of="e9fc9915"
# ## 任何检查都看不出的错误
#
# 如果忘了重排会怎样？名字齐全，形状相符，权重的总和与直方图也一样。只有每一层的 `wq` 和 `wk` 不同。
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
# And the answer? We put the rows of the real model into the wrong order and run the network, which is still a black box to us. In
# the first row both q and k are wrong, as after a forgotten step; then one of them; then v, whose rows must not be touched.
# %% [markdown] id="wrong_logits" lang="zh" of="107c7078"
# 那么答案呢？我们把真实模型的行换成错误的次序，再运行网络（目前它对我们还是黑盒）。第一行里 q 和 k 都错，正如忘了一步；然后只错其中之一；
# 最后是 v，它的行本来就不该动。
# %% id="wrong_logits_code"
ids = model.tokenizer.encode("The capital of France is", bos=True)


def logits_of(params):
    return np.asarray(jax_llama3.forward(params, np.array([ids]), config)[0][0])


def with_rows(function, *names):
    def changed(layer):
        new = {}
        for name in names:
            weight = getattr(layer, name)
            flat = np.asarray(weight).reshape(-1, D)
            new[name] = jnp.asarray(function(flat, H).reshape(weight.shape))
        return layer._replace(**new)

    return params._replace(layers=tuple(changed(layer) for layer in params.layers))


right = logits_of(params)
print(f"right       -> {model.tokenizer.decode([int(right[-1].argmax())])!r}")
differences, tops = {}, {}
for names in (("wq", "wk"), ("wq",), ("wk",), ("wv",)):
    wrong = logits_of(with_rows(interleaved, *names))
    differences[names] = np.abs(wrong - right).max(axis=-1)
    tops[names] = int(wrong[-1].argmax())
    numbers = " ".join(f"{difference:5.1f}" for difference in differences[names])
    print(
        f"{' '.join(names):<11} -> {model.tokenizer.decode([tops[names]])!r:<9} largest: {numbers}"
    )

# en: At position 0 nothing is turned and there is one key only: no order of q and k can matter.
# zh: 位置 0 不转动，也只有一个键：q 和 k 的次序不会有影响。
assert differences["wq", "wk"][0] < 1e-3 < 0.1 < differences["wv",][0]
assert min(differences[names][1:].max() for names in differences) > 1
if is_default:
    assert differences["wq", "wk"][1:].min() > 2
    assert tops["wq", "wk"] == int(right[-1].argmax())
    assert tops["wq",] != int(right[-1].argmax())

# en: The inverse puts every row back, and with it every logit.
# zh: 逆变换让每一行归位，每个 logit 也随之复原。
undone = jnp.asarray(half_split(interleaved(np.asarray(layer.wq).reshape(-1, D), H), H))
np.testing.assert_array_equal(undone.reshape(layer.wq.shape), layer.wq)
# %% [markdown] id="wrong_logits_rest" lang="en"
# Each number is the largest difference of a logit at one position. With the default model the forgotten step moves logits by
# several units at every position but the first, and the next token is still " Paris". Nothing crashed, and one prompt looked fine.
# This is why the converted bits are compared, and why lesson 08 compares logits at every position.
# %% [markdown] id="wrong_logits_rest" lang="zh" of="4bcfa0e6"
# 每个数是某个位置上 logit 的最大差。对默认模型，忘掉这一步会让除第一个位置之外的所有 logits 变动好几个单位，而下一个 token 仍然是
# “ Paris”。没有报错，单看一个提示也没问题。所以转换之后要逐位比较，所以第 08 课要在每个位置上比较 logits。
# %% [markdown] id="count" lang="en"
# ## Counting
#
# How many parameters are there? From the shapes of a layer, and the embedding once or twice ($t = 1$ if tied, else $2$):
#
# $$P = t\,V D + L\,\bigl(\underbrace{2 N H D}_{w_q,\,w_o} + \underbrace{2 K H D}_{w_k,\,w_v}
#  + \underbrace{3 F D}_{\text{feed-forward}} + \underbrace{2 D}_{\text{norms}}\bigr) + D .$$
#
# It must equal the number of numbers in the leaves, and `count_params`, which works on the contract alone.
# %% [markdown] id="count" lang="zh" of="340ff24b"
# ## 数一数
#
# 一共有多少参数？由一层的各个形状，加上一份或两份嵌入（共享时 $t = 1$，否则 $t = 2$）：
#
# $$P = t\,V D + L\,\bigl(\underbrace{2 N H D}_{w_q,\,w_o} + \underbrace{2 K H D}_{w_k,\,w_v}
#  + \underbrace{3 F D}_{\text{FFN}} + \underbrace{2 D}_{\text{norms}}\bigr) + D .$$
#
# 它必须等于所有叶子里数的总个数，也必须等于 `count_params` 的结果，后者只用契约来算。
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
print(f"this model       {P:>15,}")
assert not is_default or P == 134_515_008
for name, expected in {"llama3.2-1b": 1_235_814_400, "llama3-8b": 8_030_261_248}.items():
    assert sum(parts(preset(name)).values()) == expected
    print(f"{name:<16} {expected:>15,}")
# %% id="count_picture"
figure, axes = plt.subplots(figsize=(7, 2.8))
shapes = {"this model": config} | {
    name: preset(name) for name in ("llama3.2-1b", "llama3-8b", "llama3-70b")
}
left = np.zeros(len(shapes))
for part in ("embedding, output", "attention", "feed-forward"):
    shares = np.array([100 * parts(c)[part] / sum(parts(c).values()) for c in shapes.values()])
    axes.barh(list(shapes), shares, left=left, label=part)
    left += shares
assert (left > 99.9).all()
axes.invert_yaxis()
axes.set_xlabel("share of all parameters, %")
axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=3, frameon=False)
show(
    figure,
    en="Stacked bars for four models: the embedding's share is a fifth in the two small models and shrinks in the large ones; the feed-forward network's grows from three fifths to four.",
    zh="四个模型的堆叠条形图：嵌入在两个小模型里占五分之一，在大模型里更小；前馈网络的份额则从五分之三增到五分之四。",
)
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Write a function of a tree that casts every matrix to bfloat16 and leaves the vectors (the norms) in float32.
# %% [markdown] id="exercises" lang="zh" of="c096eb2e"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 写一个以树为参数的函数：把所有矩阵转成 bfloat16，向量（归一化的权重）仍保持 float32。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    result = answer(original)
    assert jax.tree.structure(result) == jax.tree.structure(original)
    for name, leaf in named_leaves(result):
        assert leaf.dtype == (np.float32 if name.endswith("norm") else jnp.bfloat16), name


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(
    1,
    lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.ndim > 1 else a, tree),
    check_1,
)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** How many times must the even-rows-first reordering be done, always in the same direction, until a head of 64 rows is back as it was?
# %% [markdown] id="exercise_2_text" lang="zh" of="51a422c0"
# **2.** “先偶数行、后奇数行”的重排始终朝同一方向做，要做多少次，一个 64 行的头才恢复原样？
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    rows = np.arange(64)[:, None]
    for count in range(1, answer + 1):
        rows = half_split(rows, 64)
        assert (rows[:, 0] == np.arange(64)).all() == (count == answer), count


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
# en: Position 2 i goes to i: the index is halved modulo 63, and 2 ** 6 = 64 = 1 modulo 63.
# zh: 位置 2 i 移到 i：下标模 63 减半，而 2 ** 6 = 64，模 63 等于 1。
exercise(2, 6, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** How many bytes do the weights of Llama 3 70B take in bfloat16? Its output matrix is not tied. The shape is `preset("llama3-70b")`.
# %% [markdown] id="exercise_3_text" lang="zh" of="505e90ce"
# **3.** Llama 3 70B 的权重用 bfloat16 存放要多少字节？它的输出矩阵不与嵌入共享。形状见 `preset("llama3-70b")`。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    assert answer == 2 * jax_llama3.count_params(preset("llama3-70b"))


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, 2 * 70_553_706_496, check_3)
scratch.cleanup()
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - The safetensors format, [github.com/huggingface/safetensors](https://github.com/huggingface/safetensors)
# - JAX, *Pytrees*, [docs.jax.dev](https://docs.jax.dev/en/latest/pytrees.html)
# - Python, *pickle*, with its warning, [docs.python.org](https://docs.python.org/3/library/pickle.html)
# - Touvron et al., *LLaMA*, 2023, the family's architecture, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# Next: lesson 03 uses the first of these weights, the embedding and a norm.
# %% [markdown] id="sources" lang="zh" of="fefd67d4"
# ## 来源
#
# - safetensors 格式，[github.com/huggingface/safetensors](https://github.com/huggingface/safetensors)
# - JAX，*Pytrees*，[docs.jax.dev](https://docs.jax.dev/en/latest/pytrees.html)
# - Python，*pickle* 及其警告，[docs.python.org](https://docs.python.org/3/library/pickle.html)
# - Touvron 等，*LLaMA*，2023，这一家族的架构，[arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# 下一课：第 03 课用上这些权重中最先用到的：嵌入和一个归一化。
