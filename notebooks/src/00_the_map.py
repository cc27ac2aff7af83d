# %% [markdown] id="title" lang="en"
# # 00 · One prompt, one token, the whole map
#
# *Reading time 14 minutes. Before it: nothing but Python and matrix products. What it proves: a language model is one
# function from numbers to numbers, and the map below is the map of the function that really runs.*
#
# A language model does one thing. It is given the beginning of a text, the **prompt**, and says how likely each possible
# continuation is. It does not read words: the text is cut into pieces, each a word, a part of a word or a sign. Such a piece
# is called a **token**, and what the model judges is the next one.
#
# This course takes one prompt, "The capital of France is", through the whole of such a network by hand. This lesson goes the
# way once from end to end, quickly, and draws the map. All that follows opens its boxes one by one.
# %% [markdown] id="title" lang="zh" of="a246bdb3"
# # 00 · 一个提示、一个 token、一张全图
#
# *阅读时间 14 分钟。前置：只需 Python 与矩阵乘法。本课证明：语言模型就是一个从数到数的函数，而下面这张图画的，正是真正运行的
# 那个函数。*
#
# 语言模型只做一件事：给它一段文本的开头，即**提示**（prompt），它说出每一种可能的后续有多大可能。它读的不是单词：文本先被切成小段，
# 每段可以是一个词、词的一部分或一个符号。这样的一小段叫作 **token**，模型判断的就是下一个 token。
#
# 本课程带着一个提示 “The capital of France is”，亲手走完整个网络。这一课先从头到尾快速走一遍，并画出全图；后面的课再把图中的
# 方框一个个打开。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3_course import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    arrow,
    box,
    canvas,
    close,
    exercise,
    load_model,
    show,
    trace,
)

model = load_model()
print(model.config)
# %% [markdown] id="model_text" lang="en"
# ## What a model consists of
#
# `load_model` gave us three things.
#
# - `model.config` says how the network is built: how many numbers here, how many repetitions there. It is a plain record of
#   a dozen values, printed above.
# - `model.params` holds the **parameters**: all the numbers that training has found. Everything the model knows is in them.
# - `model.tokenizer` turns text into numbers and back.
#
# Nothing else is hidden anywhere. The network itself is a function, `jax_llama3.forward`, that takes parameters and numbers
# and returns numbers; called twice with the same, it returns the same.
# %% [markdown] id="model_text" lang="zh" of="2a132aad"
# ## 模型由什么组成
#
# `load_model` 给了我们三样东西。
#
# - `model.config` 说明网络的构造：这里有多少个数，那里重复多少次。它只是一个普通的记录，有十来个值，已打印在上面。
# - `model.params` 存放**参数**（parameter）：训练得到的所有数。模型知道的一切都在其中。
# - `model.tokenizer` 是分词器（tokenizer），把文本变成数，再变回来。
#
# 除此之外，没有任何东西藏在别处。网络本身是一个函数 `jax_llama3.forward`：传入参数与一串数，返回一串数；用同样的输入调用两次，
# 结果相同。
# %% id="model_code"
config, params, tokenizer = model
D, V, L = config.dim, config.vocab_size, config.n_layers
is_default = config == preset("smollm2-135m")

# en: `jax.tree.leaves` lists all arrays in `params`; lesson 02 explains such trees.
# zh: `jax.tree.leaves` 列出 `params` 里的所有数组；这样的树第 02 课会讲。
n_parameters = sum(array.size for array in jax.tree.leaves(params))
assert n_parameters == jax_llama3.count_params(config)
assert not is_default or n_parameters == 134_515_008
print(f"{n_parameters:,} parameters")

# en: Llama 3 8B has the same form and is about sixty times as large.
# zh: Llama 3 8B 的构造相同，大约有它的六十倍大。
ratio = jax_llama3.count_params(preset("llama3-8b")) / n_parameters
assert not is_default or 59 < ratio < 61
# %% [markdown] id="ids_text" lang="en"
# ## Text becomes ids
#
# The network computes with numbers only. So there is a fixed list of all tokens that the model knows, its **vocabulary**, and
# each has its place in that list: its **token id**. The tokenizer cuts our prompt into tokens and gives their ids. Look at the
# blanks: they belong to the tokens, so the texts of the tokens joined together are the prompt again, exactly. How the cut is
# found is the subject of lesson 01.
# %% [markdown] id="ids_text" lang="zh" of="f05fa06d"
# ## 文本变成编号
#
# 网络只会用数来计算。因此有一张固定的清单，列出模型认识的所有 token，这就是**词表**（vocabulary）；每个 token 在清单中的位置就是
# 它的**编号**（token id）。分词器把提示切成 token，并给出它们的编号。注意空格：空格属于 token，所以把各个 token 的文本连起来，
# 恰好就是原来的提示。怎样找到这种切法，是第 01 课的内容。
# %% id="ids_code"
prompt = "The capital of France is"
# en: `bos=True` puts the mark for the beginning of a text in front, if the model wants one; this one does not (lesson 01).
# zh: `bos=True` 在前面放上表示文本开头的标记，如果模型需要；这个模型不需要（第 01 课）。
ids = tokenizer.encode(prompt, bos=True)
T = len(ids)
for token in ids:
    print(f"{token:>7}  {tokenizer.decode([token])!r}")

assert tokenizer.decode(ids, skip_special=True) == prompt
assert all(0 <= token < V for token in ids)
assert not is_default or ids == [504, 3575, 282, 4649, 314]
# %% [markdown] id="arrays_text" lang="en"
# ## Arrays, as JAX has them
#
# Everything in the network is an **array**: numbers of one kind (its `dtype`) in a box with a given number of rows, columns and
# so on (its `shape`). A vector has one axis, a matrix two, and there may be more. If you know NumPy you know nearly all of it:
# `jax.numpy`, always imported as `jnp`, has the same functions by the same names.
#
# If you do not: operations work number by number. `x.mean(-1)` averages along the last axis, so $[T\ D]$ becomes $[T]$; with
# `keepdims=True` it becomes $[T\ 1]$. `None` in an index adds an axis of size 1, `...` stands for all axes that are not named.
# Where two shapes differ, an axis of size 1 is repeated to fit, which is called **broadcasting**: $[T\ D] / [T\ 1]$ divides each
# row by its own number.
#
# Four things are different in JAX.
#
# 1. *Arrays never change.* `x[0] = 5` is an error. `x.at[0].set(5)` returns a new array and leaves `x` as it was. So no
#    function can spoil your data, and what you print is what went in.
# 2. *Numbers have 32 bits unless you ask.* Where NumPy makes `float64`, JAX makes `float32`: about 7 decimal digits.
# 3. *Arrays live on a device*, the processor or a graphics card, and the same code runs on either. `np.asarray` brings one
#    back to NumPy.
# 4. *A call returns before the work is done.* You notice only when you measure time; printing an array, or turning it into a
#    Python number or truth value (as `assert` does), waits for its numbers.
#
# We give each axis a letter and keep to it in the whole course: $T$ tokens, $D$ numbers for each token, $V$ tokens in the
# vocabulary, $L$ layers. The function `trace` checks that an array has the axes that we claim, and prints them. (What a
# **layer** is, the map will show: a part of the network that is repeated, each time with parameters of its own.)
# %% [markdown] id="arrays_text" lang="zh" of="0079ad70"
# ## JAX 的数组
#
# 网络中的一切都是**数组**（array）：同一种类的数（`dtype`），排成有若干行、若干列等等的形状（`shape`）。向量有一个轴，矩阵有
# 两个，还可以更多。会用 NumPy 就几乎全会了：`jax.numpy`（总是以 `jnp` 的名字导入）有同样的函数、同样的名字。
#
# 没用过也不要紧：运算对每个数逐一进行。`x.mean(-1)` 沿最后一个轴取平均，$[T\ D]$ 变成 $[T]$；加上 `keepdims=True` 则是 $[T\ 1]$。下标里的
# `None` 增加一个大小为 1 的轴，`...` 代表没有写出的所有轴。两个形状不同时，大小为 1 的轴会重复到合适的大小，这叫**广播**（broadcasting）：
# $[T\ D] / [T\ 1]$ 把每一行除以它自己的那个数。
#
# JAX 有四点不同。
#
# 1. *数组永不改变。* `x[0] = 5` 会报错；`x.at[0].set(5)` 返回一个新数组，`x` 保持原样。所以没有函数能弄坏你的数据，
# 打印出来的就是当初传进去的。
# 2. *不特别说明，数就是 32 位。* NumPy 给出 `float64` 的地方，JAX 给出 `float32`：大约 7 位十进制有效数字。
# 3. *数组位于某个设备上*：处理器或显卡，同样的代码在两者上都能运行。`np.asarray` 把数组取回 NumPy。
# 4. *函数返回时，计算可能还没完成。* 只有测时间时才会察觉；打印数组，或把它变成 Python 的数或真假值（如 `assert`），会等它的数算好。
#
# 每个轴用一个字母表示，全课程统一：$T$ 个 token，每个 token 有 $D$ 个数，词表里有 $V$ 个 token，共 $L$ 层。函数 `trace` 检查数组的轴
# 是否如我们所说，并打印出来。（**层**（layer）是什么，看图就明白：网络中重复出现的一部分，每次用各自的参数。）
# %% id="arrays_code"
x = jnp.array([1.0, 2.0, 3.0])
try:
    x[0] = 5.0
    raise AssertionError("an array has changed")
except TypeError:
    print("x[0] = 5.0 is refused")
y = x.at[0].set(5.0)
print("x", x, " y", y)
assert x[0] == 1
assert y[0] == 5

assert x.dtype == jnp.float32
assert np.array([1.0]).dtype == np.float64
assert jnp.arange(3).dtype == jnp.int32

# en: A matrix product, with shapes: [2 3] @ [3 4] is [2 4].
# zh: 矩阵乘法的形状：[2 3] @ [3 4] 得到 [2 4]。
matrix = jnp.ones((2, 3)) @ jnp.ones((3, 4))
trace("matrix", matrix, "2 4")
assert (np.asarray(matrix) == 3).all()

table = jnp.array([[1.0, 3.0], [10.0, 30.0]])
assert (table / table.mean(-1, keepdims=True) == jnp.array([[0.5, 1.5], [0.5, 1.5]])).all()
# %% [markdown] id="forward_text" lang="en"
# ## Ids become logits
#
# Now the whole network, in one call. `forward` takes a batch, several rows of ids at once, so our one row goes in as a matrix
# $[1\;T]$. Out comes, for each of the $T$ positions, a number for each of the $V$ tokens of the vocabulary. These numbers are the
# **logits**. The larger a token's logit, the more the model expects this token *next after this position*. So row 0 speaks of
# what may follow the first token, and the last row of what may follow the whole prompt.
# %% [markdown] id="forward_text" lang="zh" of="ec478d0f"
# ## 编号变成 logits
#
# 现在一次调用就走完整个网络。`forward` 一次处理一批，即若干行编号；我们只有一行，所以传入一个 $[1\;T]$ 的矩阵。出来的是：在 $T$ 个
# 位置的每一处，给词表中 $V$ 个 token 各一个数。这些数就是 **logits**。某个 token 的 logit 越大，模型就越认为它是*紧接这个位置之后*的
# token。所以第 0 行说的是第一个 token 之后可能是什么，最后一行说的是整个提示之后可能是什么。
# %% id="forward_code"
batch = trace("ids", jnp.array([ids]), "1 T", T=T)
# en: The second result is a cache, which we do not use before lesson 10.
# zh: 第二个结果是缓存，第 10 课才用到。
logits, _ = jax_llama3.forward(params, batch, config)
trace("logits", logits, "1 T V", T=T, V=V)

# en: After each position: the token with the largest logit.
# zh: 每个位置之后：logit 最大的 token。
for t in range(T):
    guess = int(logits[0, t].argmax())
    print(f"after {tokenizer.decode(ids[: t + 1])!r:<28} {tokenizer.decode([guess])!r}")
# %% [markdown] id="softmax_text" lang="en"
# ## Logits become probabilities
#
# Logits may be negative and sum to nothing in particular. To make probabilities of them, numbers from 0 to 1 whose sum is 1,
# there is the **softmax**: take the exponential, which is always positive, and divide by the sum,
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}.$$
#
# A constant added to all logits cancels in this fraction, so only differences count: a token whose logit is larger by 1 is
# $e \approx 2.72$ times as likely. We use the same fact to subtract the largest logit first, since $e^{100}$ is too large for
# `float32`.
# %% [markdown] id="softmax_text" lang="zh" of="f8d504d5"
# ## Logits 变成概率
#
# Logits 可以是负数，加起来也没有固定的和。要把它们变成概率（0 到 1 之间、总和为 1 的数），就用 **softmax**：先取指数，指数总是正的，
# 再除以总和，
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}.$$
#
# 给所有 logits 加上同一个常数，会在这个分式中约掉，所以只有差值起作用：一个 token 的 logit 大 1，概率就是 $e \approx 2.72$ 倍。我们也
# 利用这一点先减去最大的 logit，因为 $e^{100}$ 超出了 `float32` 的范围。
# %% id="softmax_code"
last = logits[0, -1]


def softmax(z):
    powers = jnp.exp(z - z.max())
    return powers / powers.sum()


p = trace("p", softmax(last), "V", V=V)
close(p, jax.nn.softmax(last), atol=1e-6)
close(p.sum(), 1.0, atol=1e-4)
close(softmax(last + 7), p, atol=1e-5)
assert jnp.isinf(jnp.exp(jnp.float32(100)))

likeliest = [int(i) for i in jax.lax.top_k(p, 5)[1]]
for token in likeliest:
    print(f"{token:>7}  {tokenizer.decode([token])!r:<10} {p[token]:.3f}")
# %% id="picture"
figure, axes = plt.subplots(figsize=(6, 2.6))
labels = [repr(tokenizer.decode([token])) for token in likeliest]
axes.barh(range(5), p[jnp.array(likeliest)])
axes.set_yticks(range(5), labels)
axes.invert_yaxis()
axes.set_xlim(0, 1)
axes.set_xlabel("probability of being the next token")
show(
    figure,
    en="Horizontal bars: the probabilities of the five likeliest next tokens; the first is by far the longest.",
    zh="横向柱状图：五个最可能的下一个 token 的概率，第一个远远长于其余。",
)
# %% [markdown] id="greedy_text" lang="en"
# ## Probabilities become a token, and the token a text
#
# The simplest choice is to take the likeliest token. This is called **greedy** choice; lesson 12 has others. The softmax does
# not change the order, so the largest logit will do.
#
# To go on, append the chosen token to the ids and run the network again. That is all there is to writing a text: one token at a
# time, each time the same function. We do it by hand and compare with `jax_llama3.generate`, which is much faster (lessons 10
# and 11 say how) but must give the same ids.
# %% [markdown] id="greedy_text" lang="zh" of="5770c002"
# ## 概率变成 token，token 变成文本
#
# 最简单的选法是取最可能的 token，这叫**贪心**（greedy）选法；第 12 课还有别的选法。Softmax 不改变大小顺序，所以直接取最大的 logit
# 就行。
#
# 要继续写下去，就把选出的 token 接到编号后面，再运行一次网络。写出一段文本不过如此：每次一个 token，每次都是同一个函数。我们亲手做
# 一遍，再与 `jax_llama3.generate` 比较：后者快得多（原因见第 10、11 课），但必须给出同样的编号。
# %% id="greedy_code"
chosen = int(last.argmax())
assert chosen == int(p.argmax())
assert not is_default or (chosen, tokenizer.decode([chosen])) == (7042, " Paris")
assert not is_default or abs(float(p[chosen]) - 0.773) < 1e-3

text = [*ids]
for _ in range(2):
    all_logits, _ = jax_llama3.forward(params, jnp.array([text]), config)
    text.append(int(all_logits[0, -1].argmax()))
print(tokenizer.decode(text))

completion = jax_llama3.generate(model, prompt, max_new_tokens=2, ignore_eos=True)
assert text[T:] == list(completion.tokens)
# %% [markdown] id="map_text" lang="en"
# ## The map
#
# What happened inside `forward`? From the bottom up:
#
# - The **embedding** is a table with one row of $D$ numbers for each token of the vocabulary. Each id is replaced by its row:
#   $T$ ids become an array $[T\;D]$.
# - This array is the start of the **residual stream**, the thick line: $D$ numbers for each position, which run from bottom to
#   top. The parts at its side *read* the stream and *add* their result to it. None of them replaces it.
# - A layer has two such parts. **Attention** lets a position read earlier ones beside itself; it is the only part that carries
#   anything from one token to another. The **feed-forward network** works on each position alone. Both see the stream through
#   a norm, which brings its numbers to a common size.
# - After $L$ layers a last norm and one matrix turn each position's $D$ numbers into $V$ logits.
#
# Two points of this drawing are worth a second look, since many drawings have them wrong. A part's input branches off *before*
# its norm, and the stream itself goes past the norm untouched. And each layer has *two* additions: the feed-forward network
# reads what attention has just added.
# %% [markdown] id="map_text" lang="zh" of="bc8f3113"
# ## 全图
#
# `forward` 里面发生了什么？从下往上看：
#
# - **嵌入**（embedding）是一张表，词表中的每个 token 占一行，每行 $D$ 个数。每个编号换成它的那一行：$T$ 个编号变成 $[T\;D]$ 的数组。
# - 这个数组是**残差流**（residual stream）的起点，也就是图中的粗线：每个位置 $D$ 个数，从下流到上。旁边的部件从流中*读*，
# 再把结果*加*回流中，谁也不会替换它。
# - 每一层有两个这样的部件。**注意力**（attention）让一个位置除自己之外还读取更早的位置，只有它能把信息从一个 token 传给
# 另一个。**前馈网络**（feed-forward network）则对每个位置单独计算。两者都隔着一次归一化来看残差流，归一化把其中的数调到
# 统一的大小。
# - 经过 $L$ 层之后，最后一次归一化和一个矩阵把每个位置的 $D$ 个数变成 $V$ 个 logits。
#
# 图中有两处值得再看一眼，许多图在这里画错了。部件的输入在归一化*之前*分出，残差流本身从归一化旁边原样流过。另外，每层有*两次*加法：
# 前馈网络读到的，是注意力刚刚加过之后的流。
# %% id="map"
figure, axes = canvas(17, 18.6, inches=0.45)
x0, middle = 3, 13.2


def plus(y):
    style = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "#333333"}
    axes.text(x0, y, "+", ha="center", va="center", fontsize=11, bbox=style, zorder=3)


def branch(y, name, colour):
    axes.plot([x0], [y], "o", color="#333333", markersize=4, zorder=3)
    box(axes, 6.2, y - 0.5, 2.8, 1, "norm", GREY)
    box(axes, 10.6, y - 0.5, 5.2, 1, name, colour)
    arrow(axes, (x0, y), (6.2, y))
    arrow(axes, (9, y), (10.6, y))
    arrow(axes, (middle, y + 0.5), (middle, y + 1.8), (x0 + 0.28, y + 1.8))
    axes.text(6.2, y + 1.9, "add", fontsize=8, va="bottom")
    plus(y + 1.8)


axes.plot([x0, x0], [3, 11.6], color="#6fa8dc", linewidth=5, zorder=0.5, solid_capstyle="butt")
axes.plot([1, 16.4, 16.4, 1, 1], [3.9, 3.9, 10.9, 10.9, 3.9], "--", color="#888888", linewidth=1)
axes.text(16.2, 10.5, "one layer, L times", fontsize=9, ha="right", va="center")
axes.text(3.4, 3.45, "residual stream [T D]", fontsize=9, va="center", color="#2f6fa8")
branch(4.9, "attention", ORANGE)
branch(8.1, "feed-forward network", GREEN)

box(axes, 0.5, 0.2, 5, 1, "token ids [T]", GREY)
box(axes, 0.5, 2, 5, 1, "embedding [V D]", BLUE)
box(axes, 0.5, 11.6, 5, 1, "norm", GREY)
box(axes, 0.5, 13.4, 5, 1, "output matrix [V D]", BLUE)
box(axes, 0.5, 15.2, 5, 1, "logits [T V]", GREY)
box(axes, 0.5, 17, 5, 1, "softmax of the last row", GREY)
box(axes, 8, 17, 5, 1, "next token", GREY)
for y in (1.2, 12.6, 14.4, 16.2):
    arrow(axes, (x0, y), (x0, y + 0.8))
arrow(axes, (5.5, 17.5), (8, 17.5))
arrow(axes, (x0, 11.0), (x0, 11.6))
show(
    figure,
    en="The network from bottom to top: ids, embedding, then a thick line, the residual stream. In each layer two branches "
    "leave it, go through a norm and attention, or a norm and the feed-forward network, and are added back. Above: norm, "
    "output matrix, logits, softmax, next token.",
    zh="自下而上的网络：编号、嵌入，然后是一条粗线，即残差流。每层有两条支路从它分出，分别经过归一化与注意力、归一化与前馈网络，"
    "再加回去。上方依次是归一化、输出矩阵、logits、softmax、下一个 token。",
)
# %% [markdown] id="proof_text" lang="en"
# ## The map is true
#
# A drawing proves nothing, so we check it against the network that ran. `forward` hands every intermediate array, with its
# name, to a function of ours, here `look`; it keeps them in a dictionary. Lesson 03 says more about this window. The names:
# `resid_pre` is the stream where it enters a layer, `resid_mid` between the two additions, `resid_post` where it leaves;
# `attn.out` and `mlp.out` are what the two parts add.
#
# If the map is right, each addition is exactly an addition, and the stream at the top is the embedding plus everything that
# all layers have added.
# %% [markdown] id="proof_text" lang="zh" of="75484c2d"
# ## 这张图是真的
#
# 图本身证明不了什么，所以我们拿真正运行过的网络来检验它。`forward` 会把每个中间数组连同名字交给我们的一个函数，这里叫 `look`，它把
# 数组存进字典。这扇“窗”在第 03 课细说。名字的含义：`resid_pre` 是进入一层时的残差流，`resid_mid` 是两次加法之间的，
# `resid_post` 是离开这一层时的；`attn.out` 与 `mlp.out` 是两个部件加进去的内容。
#
# 如果图是对的，那么每次加法都恰好是加法，顶端的残差流就等于嵌入加上所有层加进去的一切。
# %% id="proof_code"
seen = {}


def look(name, array):
    seen[name] = array
    return array


jax_llama3.forward(params, batch, config, tap=look)
stream = trace("stream", seen["embed"], "1 T D", T=T, D=D)
close(stream[0], params.embedding[jnp.array(ids)], atol=0)
for layer in range(L):
    at = f"layers.{layer}."
    assert (seen[at + "resid_pre"] == stream).all()
    stream = stream + seen[at + "attn.out"]
    assert (seen[at + "resid_mid"] == stream).all()
    stream = stream + seen[at + "mlp.out"]
    assert (seen[at + "resid_post"] == stream).all()
    assert stream.shape == (1, T, D)
print(f"{L} layers, {2 * L} additions, not a bit of difference")

# en: The top of the map: last norm, output matrix.
# zh: 图的顶端：最后的归一化与输出矩阵。
mean_of_squares = (stream**2).mean(-1, keepdims=True)
normed = stream / jnp.sqrt(mean_of_squares + config.norm_eps) * params.norm
output = params.embedding if params.output is None else params.output
close(normed @ output.T, logits, atol=1e-3)
# %% [markdown] id="wrong_map_text" lang="en"
# The check can fail: had the stream gone *through* the norm, as wrong drawings have it, the sums would be others. We try that
# map on the first layer.
#
# And one more claim of the map. Only attention connects positions, and it never reads a later one. So when the last token of
# the prompt is another, everything before the last position must stay as it was.
# %% [markdown] id="wrong_map_text" lang="zh" of="6e0c6445"
# 这个检验是会失败的：假如残差流真像错误的图那样*穿过*归一化，和就会是另外的数。我们在第一层上试试那种图。
#
# 图里还有一个论断：只有注意力连接不同的位置，而且从不读更晚的位置。因此把提示的最后一个 token 换掉，最后一个位置之前的一切都必须保持
# 原样。
# %% id="wrong_map_code"
start = seen["layers.0.resid_pre"]
through = start / jnp.sqrt((start**2).mean(-1, keepdims=True) + config.norm_eps)
through = through * params.layers[0].attn_norm + seen["layers.0.attn.out"]
difference = float(jnp.abs(through - seen["layers.0.resid_mid"]).max())
assert difference > 0.1
print("the wrong map differs by more than 0.1")

other = batch.at[0, -1].set(ids[0])
other_logits, _ = jax_llama3.forward(params, other, config)
assert (other_logits[:, :-1] == logits[:, :-1]).all()
assert not (other_logits[:, -1] == logits[:, -1]).all()
# %% [markdown] id="course" lang="en"
# ## What the lessons open
#
# | Lesson | Opens |
# |---|---|
# | 01 | "text → ids": how the cut into tokens is found |
# | 02 | the parameters: files of weights from several makers, and how they become one tree of arrays |
# | 03 | the embedding, and the norm in front of every part |
# | 04 | attention: what one position takes from the earlier ones |
# | 05 | how attention knows the order of the tokens |
# | 06 | why attention runs several times side by side, and what is shared |
# | 07 | the feed-forward network, and the whole map as code |
# | 08 | how to know that a network is right: a plausible answer proves little |
# | 09 | experiments: what the stream says half way up, what happens when something is changed |
# | 10 | writing many tokens without computing the old ones again |
# | 11 | the same, compiled: fast because no shape ever changes |
# | 12 | choosing the next token in other ways than greedy; conversations |
# | 13 | several prompts of different lengths at once |
# | 14 | what all this costs in operations and in memory traffic |
# | 15 | a model sixty times as large: the same map, the same code |
# %% [markdown] id="course" lang="zh" of="783910fa"
# ## 各课打开什么
#
# | 课 | 打开的内容 |
# |---|---|
# | 01 | “文本 → 编号”：怎样决定在哪里切开，得到 token |
# | 02 | 参数：几种来源的权重文件，怎样变成同一棵数组的树 |
# | 03 | 嵌入，以及每个部件前面的归一化 |
# | 04 | 注意力：一个位置从更早的位置取来什么 |
# | 05 | 注意力怎样知道 token 的顺序 |
# | 06 | 注意力为什么要并排做多次，其中又共用什么 |
# | 07 | 前馈网络，以及写成代码的全图 |
# | 08 | 怎样知道网络是对的：看似合理的回答说明不了什么 |
# | 09 | 实验：残差流在半路上说些什么，改动某处会怎样 |
# | 10 | 连续写出许多 token，而不重算旧的 |
# | 11 | 同一件事，编译之后：形状从不改变，所以快 |
# | 12 | 用贪心之外的方法选下一个 token；对话 |
# | 13 | 同时处理多个长短不一的提示 |
# | 14 | 这一切的代价：运算量与内存读写量 |
# | 15 | 大六十倍的模型：同一张图，同样的代码 |
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Write a function of a logits row and two token ids that says how many times as likely the first token is as the second.
# Use no softmax and no sum.
# %% [markdown] id="exercises" lang="zh" of="2e0924a9"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 写一个函数，传入一行 logits 与两个编号，返回第一个 token 的可能性是第二个的多少倍。不要用 softmax，也不要求和。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    for first, second in zip(likeliest, [*likeliest[1:], likeliest[0]], strict=True):
        np.testing.assert_allclose(answer(last, first, second), p[first] / p[second], rtol=1e-3)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda z, first, second: jnp.exp(z[first] - z[second]), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a function that takes the array of ids $[1\;T]$, a position and an id, and returns the array with this id in
# this position. The array that is passed in must not change.
# %% [markdown] id="exercise_2_text" lang="zh" of="4d2da9c2"
# **2.** 写一个函数，传入编号数组 $[1\;T]$、一个位置和一个编号，返回在该位置换成该编号的数组。传入的数组不得改变。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    made = answer(batch, 1, 7)
    assert [*map(int, made[0])] == [ids[0], 7, *ids[2:]]
    assert [*map(int, batch[0])] == ids
    assert isinstance(made, jax.Array)
    assert made.shape == batch.shape


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, lambda array, position, token: array.at[0, position].set(token), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Write a function of a layer's number that returns everything this layer adds to the stream, $[1\;T\;D]$, from the arrays
# in `seen`. There are two ways to get it.
# %% [markdown] id="exercise_3_text" lang="zh" of="9ac83ec9"
# **3.** 写一个函数，传入层的序号，利用 `seen` 中的数组返回这一层加进残差流的全部内容，形状为 $[1\;T\;D]$。有两种求法。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    for layer in (0, L // 2):
        at = f"layers.{layer}."
        expected = seen[at + "resid_post"] - seen[at + "resid_pre"]
        np.testing.assert_allclose(answer(layer), expected, atol=1e-2)
        assert jnp.abs(expected).max() > 0.1


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, lambda i: seen[f"layers.{i}.attn.out"] + seen[f"layers.{i}.mlp.out"], check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani and others, *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - He and others, *Deep Residual Learning for Image Recognition*, 2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Meta, *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
#
# Next: lesson 01 opens the first arrow, from text to ids.
# %% [markdown] id="sources" lang="zh" of="1d9399cd"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - He 等，*Deep Residual Learning for Image Recognition*，2015，[arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Meta，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
#
# 下一课：第 01 课打开第一个箭头，从文本到编号。
