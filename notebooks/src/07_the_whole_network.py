# %% [markdown] id="title" lang="en"
# # 07 · SwiGLU, residuals, the whole network
#
# *Reading time 25 minutes. Before it: lessons 03 to 06. What it proves: a block written by hand in a few lines, run once for
# every layer, gives the logits of `jax_llama3` at every position, and the token that follows from them.*
#
# Attention carries information from one position to another. And then? Something has to work with what has arrived. That
# is the other half of each layer, the feed-forward network, which looks at each position alone. This lesson builds it,
# joins both halves by two additions, repeats the result once for each layer, and gets a whole language model. On the way
# it asks three questions: why not just matrices, why add instead of replace, and what is the second half good for?
# %% [markdown] id="title" lang="zh" of="6b2c3c88"
# # 07 · SwiGLU、残差、完整网络
#
# *阅读时间 25 分钟。前置：第 03 至 06 课。本课证明：用几行代码手写一个块，每层运行一次，就能在每个位置得到与 `jax_llama3` 相同的
# logits，并由此得到下一个 token。*
#
# 注意力把信息从一个位置搬到另一个位置。然后呢？总得有什么来加工搬来的内容。这就是每一层的另一半：前馈网络，它只看单个位置。本课搭出
# 前馈网络，用两次加法把两半接起来，每层重复一次，就得到一个完整的语言模型。一路上要问三个问题：为什么不能只用矩阵？为什么是相加而不
# 是替换？这后一半又有什么用？
# %% id="setup"
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.model import layers as network
from jax_llama3.model.rope import rope_frequencies
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import whole_network as figures

config, params, tokenizer = load_model()
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
F, V, L = config.ffn_dim, config.vocab_size, config.n_layers
ids = tokenizer.encode("The capital of France is", bos=True)
words = [tokenizer.decode([i]).strip() for i in ids]
T = len(ids)


def run(ids):
    # en: The library's logits of one prompt, and every activation that has a name.
    # zh: 本库对一个提示算出的 logits，以及每一个有名字的激活。
    seen = {}

    def tap(name, array):
        seen[name] = array[0]
        return array

    logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=tap)
    return logits[0], seen


def rms_norm(x, weight):
    # en: Lesson 03.
    # zh: 第 03 课。
    return network.rms_norm(x[None], weight, config.norm_eps)[0]


def far(ours, theirs):
    # en: The size of the difference relative to the second argument.
    # zh: 差的大小，相对于第二个参数。
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


reference, seen = run(ids)
trace("reference", reference, "T V", T=T, V=V)
print(len(seen), "named activations in", L, "layers")
# %% [markdown] id="bend" lang="en"
# ## Why not just matrices?
#
# The second half of a layer should compute something from each row. The simplest way is to multiply by a matrix, and two
# matrices should do more than one. Do they? Widen the row from $D$ to $F$ numbers with $A$, come back to $D$ with $B$:
#
# $$B\,(A\,h) = (B A)\,h .$$
#
# The two are one matrix, $BA$, of size $D \times D$. All the extra width has gained nothing. And it does not help to
# stack more of them: thirty layers of matrices, with additions between, are still one matrix.
#
# What is missing is a function between the two that is not linear, something that bends. It takes very little. A linear
# function has $f(-a) = -f(a)$, so no number of matrices makes the absolute value $|a|$. With $\max(a, 0)$ between them,
# two matrices give it at once: $|a| = \max(a, 0) + \max(-a, 0)$.
# %% [markdown] id="bend" lang="zh" of="83a14a24"
# ## 为什么不能只用矩阵？
#
# 一层的后一半要从每一行算出点什么。最简单的计算是乘一个矩阵，两个矩阵想必比一个更强。真的吗？用 $A$ 把一行从 $D$ 个数拓宽到
# $F$ 个，再用 $B$ 回到 $D$ 个：
#
# $$B\,(A\,h) = (B A)\,h .$$
#
# 这两个矩阵其实是一个 $D \times D$ 的矩阵 $BA$，多出来的宽度毫无用处。再多叠几个也没用：三十层矩阵，中间加上加法，仍然只是一个矩
# 阵。
#
# 缺的是两者之间一个非线性的函数，一个能“弯”一下的东西。要求不高。线性函数满足 $f(-a) = -f(a)$，所以再多的矩阵也得不到绝对值 $|a|$。
# 而在两个矩阵之间放上 $\max(a, 0)$，立刻就有了：$|a| = \max(a, 0) + \max(-a, 0)$。
# %% id="bend_code"
layer0 = params.layers[0]
mid = seen["layers.0.resid_mid"]
ffn_in = trace("ffn_in", rms_norm(mid, layer0.ffn_norm), "T D", T=T, D=D)

# en: Two matrices of the model with nothing between them are one.
# zh: 模型的两个矩阵，中间什么都没有，就是一个矩阵。
one = trace("one", layer0.w_down @ layer0.w_up, "D D", D=D)
assert far(ffn_in @ one.T, (ffn_in @ layer0.w_up.T) @ layer0.w_down.T) < 1e-4
# en: So are thirty of them, even with the additions.
# zh: 三十个也一样，有加法也不例外。
x, whole = ffn_in, jnp.eye(D)
for layer in params.layers:
    small = layer.w_down @ layer.w_up / 100
    x, whole = x + x @ small.T, whole + small @ whole
assert far(ffn_in @ whole.T, x) < 1e-3

# en: One bend, and two matrices can do what no matrix can.
# zh: 弯一下，两个矩阵就能做到任何矩阵都做不到的事。
a = jnp.array([[-2.0], [0.0], [3.0]])
there, back = jnp.array([[1.0], [-1.0]]), jnp.array([[1.0, 1.0]])
print("with max(a, 0) between:", (jnp.maximum(a @ there.T, 0) @ back.T)[:, 0])
assert (jnp.maximum(a @ there.T, 0) @ back.T == jnp.abs(a)).all()
assert ((a @ there.T) @ back.T == 0).all()
# %% [markdown] id="swiglu" lang="en"
# ## The feed-forward network of Llama
#
# Llama bends in a way of its own, with three matrices. One, $W_{\text{up}}$, makes $F$ numbers. A second,
# $W_{\text{gate}}$, makes a factor for each of them, which says how much of it is let through. Such a factor is a
# **gate**. The third, $W_{\text{down}}$, comes back to $D$. With $h$ the normed row of one position:
#
# $$\mathrm{FFN}(h) = W_{\text{down}}\,\bigl(\mathrm{SiLU}(W_{\text{gate}}\,h) \odot W_{\text{up}}\,h\bigr),$$
#
# $$\mathrm{SiLU}(a) = a \cdot \sigma(a) = \frac{a}{1 + e^{-a}} .$$
#
# $\odot$ multiplies number by number. **SiLU** is close to zero for very negative $a$ and close to $a$ for large $a$, with a
# smooth passage in between. So the bend sits in the gate. A gated network with this function is called **SwiGLU** (SiLU is
# also called Swish, and GLU is a gated linear unit). Meta's code calls the three matrices w1 (gate), w3 (up) and w2 (down).
# %% [markdown] id="swiglu" lang="zh" of="07afa631"
# ## Llama 的前馈网络
#
# Llama 有自己的“弯”法，用了三个矩阵。第一个 $W_{\text{up}}$ 产生 $F$ 个数；第二个 $W_{\text{gate}}$ 为其中每个数产生一个系数，决定放行
# 多少，这样的系数就是**门控**（gate）；第三个 $W_{\text{down}}$ 再回到 $D$ 个数。设 $h$ 为某个位置归一化后的行：
#
# $$\mathrm{FFN}(h) = W_{\text{down}}\,\bigl(\mathrm{SiLU}(W_{\text{gate}}\,h) \odot W_{\text{up}}\,h\bigr),$$
#
# $$\mathrm{SiLU}(a) = a \cdot \sigma(a) = \frac{a}{1 + e^{-a}} .$$
#
# $\odot$ 表示逐元素相乘。**SiLU** 在 $a$ 远小于零时接近零，在 $a$ 很大时接近 $a$，中间平滑过渡。所以“弯”在门控这一路。使用这个函数
# 的门控网络称为 **SwiGLU**（SiLU 又名 Swish，GLU 是门控线性单元）。在 Meta 的代码里，三个矩阵分别叫 w1（gate）、w3（up）和
# w2（down）。
# %% id="swiglu_picture"
show(
    figures.swiglu(),
    en="From h two ways: up through W_gate and SiLU, down through W_up. The two results of F numbers are multiplied number by "
    "number, and W_down takes the product back to D numbers.",
    zh="从 h 分成两路：上路经过 W_gate 和 SiLU，下路经过 W_up。两路各得 F 个数，逐元素相乘，乘积再由 W_down 变回 D 个数。",
)
# %% id="swiglu_code"
trace("w_gate", layer0.w_gate, "F D", F=F, D=D)
trace("w_up", layer0.w_up, "F D", F=F, D=D)
trace("w_down", layer0.w_down, "D F", F=F, D=D)


def silu(a):
    return a / (1 + jnp.exp(-a))


gate = trace("gate", ffn_in @ layer0.w_gate.T, "T F", T=T, F=F)
up = trace("up", ffn_in @ layer0.w_up.T, "T F", T=T, F=F)
inner = trace("inner", silu(gate) * up, "T F", T=T, F=F)
ffn_out = trace("ffn_out", inner @ layer0.w_down.T, "T D", T=T, D=D)

close(gate, seen["layers.0.mlp.gate"], atol=1e-3)
close(up, seen["layers.0.mlp.up"], atol=1e-3)
close(ffn_out, seen["layers.0.mlp.out"], atol=1e-3)
# %% [markdown] id="silu_text" lang="en"
# Here is the curve of SiLU, next to that of $\max(a, 0)$, the older and simpler choice, which is called ReLU. SiLU dips a
# little below zero, and it is smooth everywhere, even at zero.
# %% [markdown] id="silu_text" lang="zh" of="a93854de"
# SiLU 的曲线如下，旁边是更早、更简单的 $\max(a, 0)$，名为 ReLU。SiLU 会略低于零，而且处处光滑，在零点也一样。
# %% id="silu_picture"
points = jnp.linspace(-6, 4, 401)
close(silu(points), jax.nn.silu(points), atol=1e-6)
assert silu(points).min() < 0
assert abs(silu(jnp.array(-20.0))) < 1e-6
print(f"lowest value {silu(points).min():.3f} at a = {points[silu(points).argmin()]:.2f}")
show(
    figures.curves(points, {"SiLU(a)": silu(points), "ReLU(a)": jnp.maximum(points, 0)}),
    en="SiLU and ReLU from -6 to 4: both grow like a on the right; SiLU dips a little below zero left of zero.",
    zh="SiLU 与 ReLU 在 -6 到 4 上的曲线：右侧都近似等于 a；SiLU 在零的左侧略低于零。",
)
# %% [markdown] id="alone" lang="en"
# The feed-forward network treats each position on its own. Feed in one row alone, or all rows in another order, and each
# row's result stays the same. And the network really is not linear: twice the input is not twice the output.
# %% [markdown] id="alone" lang="zh" of="ff30b5ee"
# 前馈网络对每个位置各算各的：单独送入一行，或者把各行打乱顺序送入，每一行的结果都不变。而且它确实不是线性的：输入加倍，输出并不加
# 倍。
# %% id="alone_code"


def feed_forward(layer, h):
    return (silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T


together = feed_forward(layer0, ffn_in)
one_by_one = jnp.concatenate([feed_forward(layer0, ffn_in[t : t + 1]) for t in range(T)])
close(one_by_one, together, atol=1e-3)
close(feed_forward(layer0, ffn_in[::-1]), together[::-1], atol=1e-3)

share = far(feed_forward(layer0, 2 * ffn_in), 2 * together)
print(f"FFN(2h) is away from 2 FFN(h) by {share:.2f} of its size")
assert share > 0.1
# %% [markdown] id="memory" lang="en"
# ## What is it good for?
#
# Attention moves things. What does the feed-forward network do with them? Write its last product as a sum. Let $g_f$ and
# $u_f$ be row $f$ of $W_{\text{gate}}$ and of $W_{\text{up}}$, and $d_f$ *column* $f$ of $W_{\text{down}}$. Then
#
# $$\mathrm{FFN}(h) = \sum_{f=0}^{F-1} a_f\, d_f, \qquad a_f = \mathrm{SiLU}(g_f \cdot h)\,(u_f \cdot h) .$$
#
# This looks like a look-up. $g_f$ is a key that asks: does $h$ match? $d_f$ is a value: what is added if it does. There
# are $F$ such pairs, learnt in training, the same for every text. That much is arithmetic. What the pairs stand for is a
# question for experiments. Geva and others (2021) took apart a model with an older kind of feed-forward network. They
# found that keys respond to patterns of text that people can recognise, and that in the upper layers values push up the
# tokens that tend to come next. So the feed-forward network *is thought to* work as a **key-value memory** and to hold
# much of what a model knows. How far this goes is still under study.
#
# We look at our own model in two ways. First: does every pair answer every question? We keep only the pairs with the
# largest terms, position by position, and compare with equally many pairs drawn at random. Second: take the largest term
# of layer 22 at the last position, and ask the output matrix which tokens it pushes up most.
# %% [markdown] id="memory" lang="zh" of="5ae3fd61"
# ## 它有什么用？
#
# 注意力负责搬运，前馈网络拿到之后做什么？把它最后的乘法写成求和。设 $g_f$ 和 $u_f$ 是 $W_{\text{gate}}$ 和 $W_{\text{up}}$ 的第 $f$
# 行，$d_f$ 是 $W_{\text{down}}$ 的第 $f$ *列*，则
#
# $$\mathrm{FFN}(h) = \sum_{f=0}^{F-1} a_f\, d_f, \qquad a_f = \mathrm{SiLU}(g_f \cdot h)\,(u_f \cdot h) .$$
#
# 这看起来像一次查找。$g_f$ 是键，它问：$h$ 匹配吗？$d_f$ 是值：匹配时就加上它。这样的键值对有 $F$ 个，由训练得到，对任何文本都相
# 同。以上只是算术。这些键值对代表什么，要靠实验来回答。Geva 等人（2021）剖析了一个用旧式前馈网络的模型，发现键会对人能辨认的文本模
# 式作出反应，而在靠上的层里，值会抬高往往出现在后面的 token。所以*一般认为*，前馈网络起的是**键值记忆**（key-value memory）的作用，
# 模型的知识有很大一部分存放在其中。这个说法在多大程度上成立，仍在研究之中。
#
# 我们从两方面看看自己的模型。第一，每个键值对对每个问题都有反应吗？我们在每个位置只保留最大的那些项，并与随机抽取的同样多的键值对比
# 较。第二，取第 22 层在最后一个位置上最大的一项，用输出矩阵看它把哪些 token 抬得最高。
# %% id="memory_code"


def terms_of(layer, h):
    # en: a_f for all pairs, and the length of each term a_f d_f.
    # zh: 所有键值对的 a_f，以及每一项 a_f d_f 的长度。
    factors = silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)
    return factors, jnp.abs(factors) * jnp.linalg.norm(layer.w_down, axis=0)


middle = L // 2
layer = params.layers[middle]
factors, lengths = terms_of(layer, rms_norm(seen[f"layers.{middle}.resid_mid"], layer.ffn_norm))
everything = factors @ layer.w_down.T
close(everything, seen[f"layers.{middle}.mlp.out"], atol=1e-2)
summed = (factors[-1][:, None] * layer.w_down.T).sum(axis=0)
assert far(summed, everything[-1]) < 1e-3

shares = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0]
places = {
    "the largest": jnp.argsort(jnp.argsort(-lengths, axis=-1), axis=-1),
    "drawn at random": jnp.argsort(jax.random.uniform(jax.random.key(0), (T, F)), axis=-1),
}
errors = {
    name: [far((factors * (place < share * F)) @ layer.w_down.T, everything) for share in shares]
    for name, place in places.items()
}
show(
    figures.kept(shares, errors),
    en="Two falling curves over the share of terms kept. With the largest terms the error is small from a quarter on; "
    "with terms drawn at random it stays near one until almost all are kept.",
    zh="误差随保留比例下降的两条曲线：保留最大的项时，四分之一起误差就很小；随机保留时，误差一直接近一，直到几乎全部保留。",
)
print(f"layer {middle}, a quarter of the terms:", {n: f"{e[3]:.2f}" for n, e in errors.items()})
if on_default_model():
    assert errors["the largest"][3] < 0.4 < 0.7 < errors["drawn at random"][3]

which = min(22, L - 1)
layer = params.layers[which]
factors, lengths = terms_of(layer, rms_norm(seen[f"layers.{which}.resid_mid"], layer.ffn_norm))
pair = int(lengths[-1].argmax())
output = params.embedding if params.output is None else params.output
pushed = (factors[-1, pair] * layer.w_down[:, pair] * params.norm) @ output.T
names = [tokenizer.decode([int(i)]) for i in jax.lax.top_k(pushed, 8)[1]]
print(f"layer {which}, pair {pair}, pushes up:", *map(repr, names))
expect({" city", " City", " population", " streets"} <= set(names), True)
# %% [markdown] id="memory_read" lang="en"
# A quarter of the pairs does most of the work, if it is the right quarter; which quarter that is depends on the row. And
# the pair with the largest term in layer 22, after "The capital of France is", is about cities. Do not read too much into
# this. We chose this layer because its answer can be read; the largest terms of many other layers push up tokens that
# make no sense to us. Lesson 17 looks further.
# %% [markdown] id="memory_read" lang="zh" of="fbe0c8a5"
# 只要选对了，四分之一的键值对就能完成大部分工作；而哪四分之一才对，取决于这一行。在“The capital of France is”之后，第 22 层反应最强
# 的那个键值对与城市有关。不要过度解读：我们选这一层，是因为它的结果读得懂；在许多别的层里，最大的项抬高的 token，我们看不出什么意
# 思。第 17 课会继续看。
# %% [markdown] id="width" lang="en"
# ## Where 14336 comes from
#
# In Llama 3 8B, $D$ is 4096 and $F$ is 14336. Why that number? Meta's configuration does not even contain it. It holds three
# others, `dim`, `ffn_dim_multiplier` and `multiple_of`, and $F$ follows:
#
# 1. A network of two matrices usually has the width $4D$, so $2 \cdot D \cdot 4D = 8D^2$ weights.
# 2. Three matrices of width $F$ have $3DF$ weights. The two counts are equal when $F = \tfrac{8}{3}D$, two thirds of
#    $4D$.
# 3. Llama 3 widens this by `ffn_dim_multiplier` (1.3 for 8B and 70B) and drops the fraction.
# 4. Last, the width is rounded **up** to a multiple of `multiple_of`. So `multiple_of` multiplies nothing. It sets a
#    grid: multiples of 1024 or 4096 split evenly over the tiles of a chip and over several devices.
#
# For 8B: $4 \cdot 4096 = 16384$. Two thirds of it, rounded down, are 10922. Times 1.3, rounded down: 14198. The next multiple
# of 1024 is $14 \cdot 1024 = 14336$.
# %% [markdown] id="width" lang="zh" of="b8802764"
# ## 14336 从何而来
#
# Llama 3 8B 的 $D$ 是 4096，$F$ 是 14336。为什么偏偏是这个数？Meta 的配置里根本没有它，只有另外三个：`dim`、`ffn_dim_multiplier` 和
# `multiple_of`，$F$ 由它们推出：
#
# 1. 两个矩阵的网络通常宽 $4D$，权重数为 $2 \cdot D \cdot 4D = 8D^2$。
# 2. 宽度为 $F$ 的三个矩阵共有 $3DF$ 个权重。两者相等时 $F = \tfrac{8}{3}D$，也就是 $4D$ 的三分之二。
# 3. Llama 3 再乘以 `ffn_dim_multiplier` 加宽（8B 和 70B 为 1.3），并舍去小数。
# 4. 最后**向上**取整到 `multiple_of` 的倍数。所以 `multiple_of` 并不乘什么，它定的是网格：1024 或 4096 的倍数能均匀地分给芯片上的各
#    个分块，也能均匀地分给多台设备。
#
# 以 8B 为例：$4 \cdot 4096 = 16384$；三分之二向下取整是 10922；乘 1.3 向下取整是 14198；下一个 1024 的倍数是 $14 \cdot 1024 = 14336$。
# %% id="width_code"


def ffn_width(dim, multiplier, multiple_of):
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return -(-width // multiple_of) * multiple_of


assert int(2 * 16384 / 3) == 10922
assert int(1.3 * 10922) == 14198
assert 14 * 1024 == 14336
family = [
    ("llama3-8b", 1.3, 1024, 14336),
    ("llama3-70b", 1.3, 4096, 28672),
    ("llama3.1-405b", 1.2, 4096, 53248),
    ("llama3.2-1b", 1.5, 256, 8192),
    ("llama3.2-3b", 1.0, 256, 8192),
]
for name, multiplier, multiple_of, expected in family:
    shape = preset(name)
    width = ffn_width(shape.dim, multiplier, multiple_of)
    assert width == expected == shape.ffn_dim
    print(f"{name:<14} D = {shape.dim:<6} F = {width:<6} F / D = {width / shape.dim:.2f}")

# en: The course's own model keeps the plain eight thirds; 3 D F is then exactly 8 D^2.
# zh: 课程自己的模型就用三分之八，此时 3 D F 恰好等于 8 D^2。
expect(F, ffn_width(D, None, 256))
expect(3 * D * F, 8 * D * D)
print(f"this model     D = {D:<6} F = {F:<6} F / D = {F / D:.2f}")
# %% [markdown] id="attention" lang="en"
# ## Attention in three functions
#
# Here is the attention of lesson 06 once more, cut into the three parts that matter now: the scores, the pattern that the
# softmax makes of them, and the mixing of values by that pattern. Every step is a function that returns something new.
# %% [markdown] id="attention" lang="zh" of="b7924899"
# ## 三个函数写成的注意力
#
# 这里再写一遍第 06 课的注意力，并切成此刻要紧的三段：分数、softmax 由分数得到的模式、按模式混合各个值。每一步都是一个函数，返回新的
# 数组。
# %% id="attention_code"


def rope(x):
    # en: Lesson 05: turn pair r, which is (x[r], x[r + H/2]), by position times frequency.
    # zh: 第 05 课：把第 r 对 (x[r], x[r + H/2]) 旋转“位置乘频率”的角度。
    angles = np.arange(x.shape[0])[:, None, None] * rope_frequencies(config)
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def scores_of(layer, h):
    q = rope(jnp.einsum("td,nhd->tnh", h, layer.wq))
    k = rope(jnp.einsum("td,khd->tkh", h, layer.wk))
    k = jnp.repeat(k, N // K, axis=1)
    scores = jnp.einsum("tnh,snh->nts", q, k)
    return scores / H**0.5


def pattern_of(layer, h):
    allowed = jnp.tril(jnp.ones((len(h), len(h)), bool))
    scores = jnp.where(allowed, scores_of(layer, h), -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def mix(layer, pattern, h):
    v = jnp.repeat(jnp.einsum("td,khd->tkh", h, layer.wv), N // K, axis=1)
    z = jnp.einsum("nts,snh->tnh", pattern, v)
    return jnp.einsum("tnh,dnh->td", z, layer.wo)


def attention(layer, h):
    return mix(layer, pattern_of(layer, h), h)


attention_in = rms_norm(seen["embed"], layer0.attn_norm)
close(pattern_of(layer0, attention_in), seen["layers.0.attn.pattern"], atol=1e-4)
close(attention(layer0, attention_in), seen["layers.0.attn.out"], atol=1e-3)
# %% [markdown] id="linear" lang="en"
# ## Is attention linear?
#
# It is often said that attention is only a weighted sum, "only linear", and that all bending is left to the feed-forward
# network. With a *fixed* pattern that is true: `mix` is linear in $h$. But the pattern is not fixed. It is computed from
# the same $h$:
#
# $$\mathrm{Attention}(h) = \mathrm{softmax}\!\left(\frac{q(h)\,k(h)^{\top}}{\sqrt H}\right) v(h) .$$
#
# The scores are **bilinear**: linear in the query's row and linear in the key's row. So they are of degree two in $h$,
# and twice the input gives four times the scores. Then come an exponential and a division. We test it with the rows $a$
# and $b$ of two different prompts. The scores grow fourfold. With the pattern held fixed, $f(a + b) = f(a) + f(b)$. With
# the real pattern, the two sides differ by more than a tenth.
# %% [markdown] id="linear" lang="zh" of="b6e6e95c"
# ## 注意力是线性的吗？
#
# 常有人说注意力只是加权求和，“只是线性的”，弯曲全靠前馈网络。如果模式*固定*，这话没错：`mix` 关于 $h$ 是线性的。可模式并不固定，它由
# 同一个 $h$ 算出：
#
# $$\mathrm{Attention}(h) = \mathrm{softmax}\!\left(\frac{q(h)\,k(h)^{\top}}{\sqrt H}\right) v(h) .$$
#
# 分数是**双线性**的：对查询所在的行是线性的，对键所在的行也是线性的。所以它关于 $h$ 是二次的：输入加倍，分数变成四倍。随后还有指数
# 和除法。我们用两个不同提示的行 $a$ 和 $b$ 来测试：分数变成四倍；模式固定时 $f(a + b) = f(a) + f(b)$；用真实的模式则相差一成以上。
# %% id="linear_code"
# en: The rows of another prompt, reversed, so that a and b differ at every position.
# zh: 另一个提示的各行，次序颠倒，使 a 与 b 在每个位置都不同。
_, other = run([*ids[:-2], *tokenizer.encode(" Japan is")])
a, b = attention_in, rms_norm(other["embed"], layer0.attn_norm)[::-1]
assert a.shape == b.shape

close(scores_of(layer0, 2 * a), 4 * scores_of(layer0, a), atol=1e-2)

fixed = pattern_of(layer0, a)
close(mix(layer0, fixed, a + b), mix(layer0, fixed, a) + mix(layer0, fixed, b), atol=1e-3)

additive = far(attention(layer0, a + b), attention(layer0, a) + attention(layer0, b))
scaling = far(attention(layer0, 2 * a), 2 * attention(layer0, a))
print(f"f(a + b) is away from f(a) + f(b) by {additive:.2f} of its size")
print(f"f(2a)    is away from 2 f(a)      by {scaling:.2f} of its size")
assert additive > 0.1
assert scaling > 0.1
# %% [markdown] id="residual" lang="en"
# ## One layer and its two residuals
#
# A layer does not replace its input. It **adds** to it, twice. With $x$ the row that comes in:
#
# $$x' = x + \mathrm{Attention}(\mathrm{RMSNorm}_1(x)), \qquad x'' = x' + \mathrm{FFN}(\mathrm{RMSNorm}_2(x')) .$$
#
# What exactly is added to what? The norm stands **inside** the branch. The straight line carries $x$ as it was **before** the
# norm; only attention and the feed-forward network ever see the normed rows. From the embedding to the last layer there is
# one line on which nothing happens but additions: the residual stream.
# %% [markdown] id="residual" lang="zh" of="ea0f6850"
# ## 一层和它的两次残差
#
# 一层并不替换它的输入，而是在输入上**加**两次。设进来的行为 $x$：
#
# $$x' = x + \mathrm{Attention}(\mathrm{RMSNorm}_1(x)), \qquad x'' = x' + \mathrm{FFN}(\mathrm{RMSNorm}_2(x')) .$$
#
# 究竟是什么加到什么上？归一化位于支路**内部**。直线上走的是归一化**之前**的 $x$；归一化后的行只有注意力和前馈网络看得到。从嵌入到最后
# 一层有一条线，线上除了加法什么也不发生：这就是残差流。
# %% id="residual_picture"
show(
    figures.residual(),
    en="A straight line from x through two additions. Before each, a branch leaves the line, goes through a norm "
    "and then attention or the feed-forward network, and is added to the line, which was not normed.",
    zh="一条直线从 x 经过两次加法。每次加法之前，一条支路离开直线，先经归一化，再经注意力或前馈网络，然后加回未归一化的直线上。",
)
# %% [markdown] id="residual_check" lang="en"
# Do the numbers agree with the drawing? We take layer 0 apart with the library's own activations. With the rows before
# the norm, both additions come out right; with the normed rows, they are off by far more than rounding. In this layer the
# second error is the smaller one, because here what the feed-forward network adds is much larger than what was there.
# Over all layers the errors pile up, as we shall see.
# %% [markdown] id="residual_check" lang="zh" of="dd3f3b72"
# 数与图一致吗？我们用库自己的激活把第 0 层拆开。两次加法都用归一化之前的行，结果正确；换成归一化之后的行，误差远远超出舍入。这一层
# 的第二个误差较小，因为这里前馈网络加上的内容远大于线上原有的；但各层的误差会累积，下文可见。
# %% id="residual_code"
pre, mid, post = (seen[f"layers.0.resid_{where}"] for where in ("pre", "mid", "post"))
attention_out, ffn_out = seen["layers.0.attn.out"], seen["layers.0.mlp.out"]
close(pre, seen["embed"], atol=0)
close(pre + attention_out, mid, atol=1e-5)
close(mid + ffn_out, post, atol=1e-5)

wrong_mid = rms_norm(pre, layer0.attn_norm) + attention_out
wrong_post = rms_norm(mid, layer0.ffn_norm) + ffn_out
errors = [far(wrong_mid, mid), far(wrong_post, post)]
print(f"normed rows added instead: off by {errors[0]:.2f} and {errors[1]:.2f} of the size")
assert min(errors) > 0.01
expect(bool(jnp.linalg.norm(ffn_out) > 3 * jnp.linalg.norm(mid)), True)
# %% [markdown] id="whole" lang="en"
# ## The whole network
#
# Now we put all of it together, from ids to logits, in a dozen lines. Every token starts as its row of the embedding.
# Each layer, the function `block`, adds to these rows twice: first what `attention` brings from earlier positions, then
# what `feed_forward` makes of each row by itself. Both see the rows through `rms_norm`, which brings them to a common
# size. (These three are the functions of lessons 03 to 06 and of the cells above.) The network is a loop over the layers.
#
# After the last layer comes one more norm, and then the output matrix. It has one row for each token of the vocabulary.
# The dot product of that row with a position's final row is the token's logit: the larger it is, the more the model
# expects that token next. (The function `head` does both. It is the end of the network, not an attention head.) In our model the output matrix *is* the embedding. The two are **tied**, and the parameters
# hold `None` in place of the second. Llama 3 8B has two different matrices.
#
# Is this really the network? The last line compares it with the library: all $T$ positions, all $V$ tokens.
# %% [markdown] id="whole" lang="zh" of="b12325fc"
# ## 完整的网络
#
# 现在把一切合起来，从编号到 logits，不过十来行。每个 token 从嵌入中属于它的那一行出发。每一层就是函数 `block`，往这些行里加两次：先
# 加 `attention` 从更早的位置取来的内容，再加 `feed_forward` 对每一行单独算出的内容。两者看到的都是经过 `rms_norm` 的行，它把各行调
# 到统一的大小。（这三个函数来自第 03 至 06 课和上面的单元格。）网络就是对各层的循环。
#
# 最后一层之后再做一次归一化，然后是输出矩阵。词表中的每个 token 在其中占一行，这一行与某个位置最终的行做点积，就是该 token 的 logit：
# 它越大，模型就越认为接下来是这个 token。（这两步就是函数 `head`：它是网络的末端，不是注意力头。）我们这个模型的输出矩阵*就是*嵌入矩阵：两者**共享**（tied），参数里第二个矩阵的位置是 `None`。Llama 3
# 8B 用的是两个不同的矩阵。
#
# 这真的就是那个网络吗？最后一行拿它与库比较：全部 $T$ 个位置，全部 $V$ 个 token。
# %% id="whole_code"


def block(layer, x):
    middle = x + attention(layer, rms_norm(x, layer.attn_norm))
    return middle + feed_forward(layer, rms_norm(middle, layer.ffn_norm))


def head(x):
    output = params.embedding if params.output is None else params.output
    return rms_norm(x, params.norm) @ output.T


def whole_network(ids):
    x = params.embedding[jnp.array(ids)]
    for layer in params.layers:
        x = block(layer, x)
    return head(x)


logits = trace("logits", whole_network(ids), "T V", T=T, V=V)
assert (params.output is None) == config.tie_embeddings
assert not preset("llama3-8b").tie_embeddings
close(logits, reference, atol=1e-3)
# %% [markdown] id="token" lang="en"
# ## The next token
#
# What does the model say? The logits of the last position say what comes next. The largest one wins, and the tokenizer
# turns its id back into text. The other positions are predictions as well: position $t$ says what follows the first
# $t + 1$ tokens. All of them come out of the same run.
# %% [markdown] id="token" lang="zh" of="8a783610"
# ## 下一个 token
#
# 模型说了什么？最后一个位置的 logits 预测接下来会出现什么。取最大的那个，分词器把它的编号变回文本。其他位置同样是预测：位置 $t$ 预
# 测前 $t + 1$ 个 token 之后的内容。它们都来自同一次运行。
# %% id="token_code"
best = np.asarray(jnp.argmax(logits, axis=-1))
np.testing.assert_array_equal(best, jnp.argmax(reference, axis=-1))
for position in range(T):
    text = tokenizer.decode(ids[: position + 1])
    print(f"{text!r:<28} -> {tokenizer.decode([int(best[position])])!r}")
expect(int(best[-1]), 7042)
expect(tokenizer.decode([int(best[-1])]), " Paris")
# %% [markdown] id="each_layer" lang="en"
# ## Right at every layer
#
# Equal logits could still hide two errors that cancel, so we look at every layer as well. The rows differ in size by more
# than a factor of a hundred, so we compare relative to the size of each row. Then we run the network with the wrong
# residuals, to see whether it matters that the line carries the rows from before the norm.
# %% [markdown] id="each_layer" lang="zh" of="6e69a3e6"
# ## 每一层都对
#
# logits 相等仍可能掩盖两个互相抵消的错误，所以再逐层检查。各行的大小相差一百倍以上，因此按每行的大小做相对比较。最后再运行一次残差
# 接错的网络，看看线上用归一化之前的行是否要紧。
# %% id="each_layer_code"


def compare_layers(ids, seen):
    # en: The final rows, and the largest difference on the way, relative to the row.
    # zh: 最终的各行，以及途中最大的差（相对于行的大小）。
    x = params.embedding[jnp.array(ids)]
    worst = 0.0
    for index, layer in enumerate(params.layers):
        x = block(layer, x)
        theirs = seen[f"layers.{index}.resid_post"]
        worst = max(worst, *(far(ours, row) for ours, row in zip(x, theirs, strict=True)))
    return x, worst


last_rows, worst = compare_layers(ids, seen)
assert worst < 1e-3
print(f"✓ {L} layers, every row within 0.001 of its size")
if on_default_model():
    lengths = jnp.linalg.norm(seen[f"layers.{L // 2}.resid_post"], axis=-1)
    assert lengths.max() > 100 * lengths.min()

final = trace("final", rms_norm(last_rows, params.norm), "T D", T=T, D=D)
close(final, seen["final_norm"], atol=1e-3)


def wrong_network(ids):
    # en: The same but for the residuals: the line carries normed rows.
    # zh: 只有残差不同：直线上走的是归一化之后的行。
    x = params.embedding[jnp.array(ids)]
    for layer in params.layers:
        normed = rms_norm(x, layer.attn_norm)
        middle = rms_norm(normed + attention(layer, normed), layer.ffn_norm)
        x = middle + feed_forward(layer, middle)
    return head(x)


wrong = wrong_network(ids)
print(f"residuals from after the norm: logits off by {far(wrong, reference):.2f} of their size")
assert far(wrong, reference) > 0.1
# %% [markdown] id="scan" lang="en"
# ## Thirty layers, written once: `lax.scan`
#
# The loop in `whole_network` is a Python loop. When JAX records a function for the compiler (`jax.make_jaxpr`, lesson 06),
# Python runs the body once for each layer, and the record holds $L$ copies of the same block. The compiler has to work
# through all of them, and the time it takes grows with $L$. Can we tell it that they are the same?
#
# `jax.lax.scan(step, start, things)` is a loop that is recorded as a loop. `step` takes the current state and one slice
# of `things`, and returns the next state and something to collect (here nothing). It is recorded once, however many
# slices there are. The price is that all slices must have the same shapes; layers do. So we stack each weight of all
# layers into one array with a new first axis of size $L$; `jax.tree.map` does that for all nine weights of a `Layer` at
# once.
#
# The result is the same, and the program is many times smaller. (`jax_llama3` keeps the Python loop all the same: it offers
# a tap every activation of each layer under a name of its own, and a recorded loop has only one name for all of them.)
# %% [markdown] id="scan" lang="zh" of="433a23cc"
# ## 三十层只写一次：`lax.scan`
#
# `whole_network` 里的循环是 Python 循环。JAX 为编译器记录一个函数时（`jax.make_jaxpr`，第 06 课），Python 每层运行一遍循环体，于是记录里
# 有同一个块的 $L$ 份副本。编译器要逐份处理，所需时间随 $L$ 增长。能不能告诉它，这些都是一样的？
#
# `jax.lax.scan(step, start, things)` 是一个按循环记录下来的循环。`step` 接收当前状态和 `things` 的一个切片，返回下一个状态和要收集
# 的东西（这里没有）。不管有多少个切片，它只记录一次。代价是所有切片的形状必须相同，而各层正是如此。所以我们把所有层的每个权重叠成一
# 个数组，新的第一个轴大小为 $L$；`jax.tree.map` 一次就为 `Layer` 的九个权重全部做好。
#
# 结果相同，程序却小了许多倍。（`jax_llama3` 仍然保留 Python 循环：它要把每一层的每个激活以各自的名字交给探针，而记录成循环之后，所有层
# 只剩一个名字。）
# %% id="scan_code"
stacked = jax.tree.map(lambda *weights: jnp.stack(weights), *params.layers)
trace("all w_gate", stacked.w_gate, "L F D", L=L, F=F, D=D)
start = params.embedding[jnp.array(ids)]


def by_loop(layers, x):
    for layer in layers:
        x = block(layer, x)
    return x


def by_scan(stacked, x):
    x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, stacked)
    return x


by_two_ways = by_loop(params.layers, start), by_scan(stacked, start)
assert far(by_two_ways[1], by_two_ways[0]) < 1e-3
close(head(by_two_ways[1]), reference, atol=1e-3)

products, lines, lowered = {}, {}, {}
for name, function, weights in [("loop", by_loop, params.layers), ("scan", by_scan, stacked)]:
    products[name] = str(jax.make_jaxpr(function)(weights, start)).count("dot_general")
    # en: What the compiler is given, as text.
    # zh: 交给编译器的内容，以文本表示。
    lowered[name] = jax.jit(function).lower(weights, start)
    lines[name] = len(lowered[name].as_text().splitlines())
    print(f"{name}: {products[name]:>3} matrix products, {lines[name]:>6,} lines for the compiler")
assert products["loop"] == L * products["scan"]
assert lines["loop"] > L / 4 * lines["scan"]
# %% id="compile_times" tags=["measured"]
# en: How long the compiler takes on this machine, in seconds.
# zh: 编译器在这台机器上所用的时间（秒）。
for name, program in lowered.items():
    before = time.perf_counter()
    program.compile()
    print(f"{name}: {time.perf_counter() - before:.1f} s")
# %% [markdown] id="add" lang="en"
# ## Why add, and not replace?
#
# A layer could also return a new row in place of the old one. Why do these networks add? There are two reasons, and we
# can test both.
#
# **Nothing gets lost on the way.** A layer that replaces its input must carry everything that later layers need through
# its own matrices. A layer that adds writes only a correction, and what it does not touch passes by unharmed. A layer
# that has nothing to say adds nothing. If that is so, a missing layer should be a missing correction, and not a broken
# chain. So we skip each layer in turn: its factor in `keep` becomes 0, and its rows come out as they went in. (The step
# of the scan takes the factor as a second slice; `jax.jit` compiles the function once for all these runs, see lesson 11.)
# How likely is " Paris" without it?
# %% [markdown] id="add" lang="zh" of="873351d2"
# ## 为什么是相加，而不是替换？
#
# 一层也可以返回一个新的行来取代旧的。这些网络为什么要相加？理由有两条，我们都能检验。
#
# **途中什么也不会丢。** 如果是替换，一层就必须把后面各层需要的一切都从自己的矩阵里传过去。如果是相加，一层只写下一个修正，没有碰到
# 的内容原样从旁边通过；无话可说的层就什么也不加。果真如此，少了一层就只是少了一个修正，而不是链条断裂。所以我们轮流跳过每一层：它在
# `keep` 中的系数变成 0，各行怎么进来就怎么出去。（扫描的每一步都把这个系数作为第二个切片；`jax.jit` 为所有这些运行只编译一次，见
# 第 11 课。）少了这一层，“ Paris”的概率还有多大？
# %% id="add_code"


@jax.jit
def partly(stacked, x, keep):
    def step(x, part):
        layer, factor = part
        return x + factor * (block(layer, x) - x), None

    return jax.lax.scan(step, x, (stacked, keep))[0]


def without(layers):
    keep = np.ones(L, np.float32)
    keep[list(layers)] = 0
    return partly(stacked, start, keep)


def next_token(rows):
    return jax.nn.softmax(head(rows[-1:])[0])


assert far(without([]), by_two_ways[1]) < 1e-3
close(without(range(L)), start, atol=0)
whole = float(next_token(without([]))[best[-1]])
chances = [next_token(without([index])) for index in range(L)]
skipped = [float(chance[best[-1]]) for chance in chances]
same = [int(chance.argmax()) == best[-1] for chance in chances]
show(
    figures.skipped(skipped, whole, f"P({tokenizer.decode([int(best[-1])])!r})"),
    en="A bar for each skipped layer: the probability of the answer. Most bars are high, a few are higher than with all "
    "layers, and those of layers 0, 1, 8, 11 and 23 are near zero.",
    zh="每个被跳过的层一根柱：答案的概率。多数柱子很高，少数甚至高于不跳过任何层时，而第 0、1、8、11、23 层的接近零。",
)
print(f"the same answer without one of them: {sum(same)} of {L} layers")
if on_default_model():
    assert sum(same) >= 20
    assert max(skipped) > whole
    assert {index for index in range(L) if skipped[index] < 0.05} == {0, 1, 8, 11, 23}
# %% [markdown] id="gradient" lang="en"
# At least two out of three layers can go, one at a time, and the answer stays; without some of them, it even becomes more
# likely. Only a few are indispensable, the first two among them.
#
# **Training gets through.** Training asks how the result changes when a weight changes, and that effect has to pass
# through all later layers. Each layer multiplies it by its derivative. Thirty factors that are all a bit too large, or a
# bit too small, make a product that is huge or next to nothing. Adding puts a 1 into each factor: the derivative of
# $x + f(x)$ is $1 + f'(x)$.
#
# <details><summary>Why this is so (may be skipped)</summary>
#
# Let $J_l$ be the matrix of derivatives of layer $l$'s branch, the part that is added. By the chain rule, the effect of row
# $x_0$ on row $x_L$ is
#
# $$\frac{\partial x_L}{\partial x_0} = (1 + J_{L-1}) \cdots (1 + J_1)(1 + J_0)
# = 1 + \sum_l J_l + \sum_{l > m} J_l J_m + \cdots,$$
#
# and without the additions it is only the last of these terms, the product $J_{L-1} \cdots J_0$ of all. If every $J_l$
# shrinks lengths by a factor $c < 1$, that product shrinks them by $c^L$: for $c = 1/2$ and $L = 30$, to a billionth. The
# sum still has its 1, the path along the line, on which nothing is multiplied at all.
#
# </details>
#
# We measure it on a small network with fresh random weights, such as training starts from. At the entry of each layer we
# ask: if all rows are nudged by a small part of their size, how far can the result move? (`jax.grad` gives the derivative
# of a number with respect to every entry of an array.) With the line, all layers have about the same influence. Without
# it, the first layer has more than a thousand times the influence of the last, and a training step that suits the first
# is useless for the last.
# %% [markdown] id="gradient" lang="zh" of="ded9cd06"
# 至少三分之二的层可以单独去掉而答案不变；去掉其中几层，答案的概率甚至更高。只有少数几层不可缺少，最前面的两层就在其中。
#
# **训练传得过去。** 训练要问：一个权重变了，结果会怎样变？这个影响必须穿过后面所有的层，每一层都用自己的导数去乘它。三十个因子，如
# 果个个都偏大一点或偏小一点，乘积就会大得吓人，或者几乎为零。相加则在每个因子里放进一个 1：$x + f(x)$ 的导数是 $1 + f'(x)$。
#
# <details><summary>为什么是这样（可以跳过）</summary>
#
# 设 $J_l$ 是第 $l$ 层支路（即被加上的那部分）的导数矩阵。由链式法则，行 $x_0$ 对行 $x_L$ 的影响是
#
# $$\frac{\partial x_L}{\partial x_0} = (1 + J_{L-1}) \cdots (1 + J_1)(1 + J_0)
# = 1 + \sum_l J_l + \sum_{l > m} J_l J_m + \cdots,$$
#
# 没有加法时，就只剩下其中的最后一项，即全部因子的乘积 $J_{L-1} \cdots J_0$。如果每个 $J_l$ 都把长度缩小为 $c < 1$ 倍，这个乘积就缩小为
# $c^L$ 倍：$c = 1/2$、$L = 30$ 时是十亿分之一。而上面的和里总有那个 1，也就是沿着直线的那条路，在这条路上什么也不用乘。
#
# </details>
#
# 我们在一个随机初始化的小网络上测量，训练就是从这样的网络开始的。在每一层的入口问：如果各行都按自身大小的一小部分变动，结果最多会变
# 多少？（`jax.grad` 给出一个数对数组中每个元素的导数。）有这条线，各层的影响差不多。没有它，第一层的影响是最后一层的一千倍以上，适
# 合第一层的训练步长，对最后一层毫无用处。
# %% id="gradient_code"
width = 64
small = dataclasses.replace(config, dim=width, ffn_dim=3 * width, vocab_size=T)
fresh = jax_llama3.init_params(jax.random.key(0), small, jnp.float32)
fresh_stack = jax.tree.map(lambda *weights: jnp.stack(weights), *fresh.layers)
direction = jax.random.normal(jax.random.key(1), (width,))


def result(nudges, line):
    # en: `line` is 1 with the residual stream and 0 without it.
    # zh: 有残差流时 `line` 为 1，没有时为 0。
    def step(x, part):
        layer, nudge = part
        x = x + nudge
        middle = line * x + attention(layer, rms_norm(x, layer.attn_norm))
        return line * middle + feed_forward(layer, rms_norm(middle, layer.ffn_norm)), x

    last, entries = jax.lax.scan(step, fresh.embedding, (fresh_stack, nudges))
    return rms_norm(last, fresh.norm)[-1] @ direction, entries


derivative = jax.jit(jax.grad(result, has_aux=True))
say = {}
for name, line in {"with the line": 1.0, "without it": 0.0}.items():
    gradient, entries = derivative(jnp.zeros((L, T, width)), line)
    say[name] = jnp.linalg.norm(gradient, axis=(1, 2)) * jnp.linalg.norm(entries, axis=(1, 2))
    ratio = float(f"{say[name].max() / say[name].min():.1g}")
    print(f"{name:<13}: largest over smallest about {ratio:,.0f}")
show(
    figures.depth(say),
    en="Two curves over the layers on a logarithmic scale: with the residual line the effect is level; without it, it falls by "
    "orders of magnitude from the first layer to the last.",
    zh="随层变化的两条曲线，对数坐标：有残差线时影响基本持平；没有时，从第一层到最后一层下降好几个数量级。",
)
if on_default_model():
    assert say["with the line"].max() < 5 * say["with the line"].min()
    assert say["without it"][0] > 1000 * say["without it"][-1]

# en: The 1 in each factor: a nudge passes a block unchanged, and what its branch makes of it is added.
# zh: 每个因子里的 1：微小的变动原样穿过一个块，再加上支路对它的作用。
nudge = 0.01 * start
_, through = jax.jvp(lambda x: block(layer0, x), (start,), (nudge,))
_, branch = jax.jvp(lambda x: block(layer0, x) - x, (start,), (nudge,))
assert far(nudge + branch, through) < 1e-4
# %% [markdown] id="sum" lang="en"
# ## What the line carries
#
# Because every layer only adds, we can write the final row out as a sum: the embedding, and two terms for each layer.
#
# $$x_{\text{final}} = x_{\text{embed}} + \sum_{l=0}^{L-1} \left(\text{attn}_l + \text{mlp}_l\right)$$
#
# No term is ever removed; a later layer can only add its opposite. How large do the rows become? One of them grows out of
# all proportion: the first. Lesson 09 asks why.
# %% [markdown] id="sum" lang="zh" of="9b80ba79"
# ## 线上承载着什么
#
# 因为每层只做加法，最终的行可以完全写开成一个和：嵌入，加上每层两项。
#
# $$x_{\text{final}} = x_{\text{embed}} + \sum_{l=0}^{L-1} \left(\text{attn}_l + \text{mlp}_l\right)$$
#
# 没有哪一项会被删除；后面的层只能再加上它的相反数。各行会变得多大？其中一行大得出奇，就是第一行，原因留到第 09 课。
# %% id="sum_code"
terms = [seen["embed"]]
for index in range(L):
    terms += [seen[f"layers.{index}.attn.out"], seen[f"layers.{index}.mlp.out"]]
assert len(terms) == 2 * L + 1
last = seen[f"layers.{L - 1}.resid_post"]
assert far(sum(terms), last) < 1e-3

streams = [seen["embed"], *(seen[f"layers.{index}.resid_post"] for index in range(L))]
sizes = np.sqrt(np.mean(np.square(np.stack(streams)), axis=-1))
trace("sizes", sizes, "P T", P=L + 1, T=T)
show(
    figures.sizes(sizes, words),
    en="The size of each token's row after each layer, on a logarithmic scale: four rows grow slowly from below "
    "one to about twenty-five, the first one jumps far above them.",
    zh="每个 token 的行在各层之后的大小，对数坐标：四行从不到 1 缓慢增长到二十几，第一行则远远跳到它们之上。",
)
if on_default_model():
    assert sizes[:, 0].max() > 20 * sizes[:, 1:].max()
# %% [markdown] id="again" lang="en"
# ## Running a cell twice
#
# Notebooks have a trap that has nothing to do with mathematics. A cell that reads a name and binds the same name again changes
# the state each time it runs. Run `x = rms_norm(x, w)` twice, and you have normalised twice. Run `x = block(layer, x)` twice,
# and your network has a layer too many. There is no error, only other numbers.
#
# JAX's arrays cannot be changed in place, but that does not help: it is the *name* that now means something else. The next
# cell runs a cell of the bad kind twice, and then one of the good kind.
# %% [markdown] id="again" lang="zh" of="6cc96c6f"
# ## 把一个单元格运行两次
#
# 笔记本有一个与数学无关的陷阱。如果一个单元格读取某个名字，又重新绑定同一个名字，那么每运行一次，状态就变一次。把
# `x = rms_norm(x, w)` 运行两次，就归一化了两次；把 `x = block(layer, x)` 运行两次，网络就多了一层。不会报错，只是数不同了。
#
# JAX 的数组不能就地修改，但这帮不上忙：变的是*名字*所指的东西。下面先把一个坏写法的单元格运行两次，再把一个好写法的运行两次。
# %% id="again_code"


def run_twice(cell, name):
    world = {"rms_norm": rms_norm, "x": seen["embed"], "weight": params.layers[0].attn_norm}
    results = []
    for _ in range(2):
        exec(cell, world)
        results.append(world[name])
    return results


# en: The trap: the name on the left also stands on the right.
# zh: 陷阱：左边的名字也出现在右边。
first, second = run_twice("x = rms_norm(x, weight)", "x")
print(f"trap: the second run is off by {far(second, first):.2f} of its size")
assert far(second, first) > 0.1

# en: The fix: a new name for a new thing.
# zh: 解法：新的东西用新的名字。
first, second = run_twice("normed = rms_norm(x, weight)", "normed")
np.testing.assert_array_equal(first, second)

# en: Even better: everything inside a function, whose names are gone when it returns.
# zh: 更好：全部放进函数，函数返回后其中的名字就消失了。
np.testing.assert_array_equal(whole_network(ids), whole_network(ids))

# en: An array itself cannot be changed in place.
# zh: 数组本身不能就地修改。
try:
    seen["embed"][0, 0] = 1.0
    raise AssertionError("a JAX array was changed in place")
except TypeError:
    print("refused: an array cannot be changed in place")
# %% [markdown] id="again_end" lang="en"
# That is why the loop lives inside `whole_network`: its `x` is rebound many times, but only inside the function. You may
# run every cell of this lesson again, as often as you like.
# %% [markdown] id="again_end" lang="zh" of="5eaf6dc1"
# 所以循环放在 `whole_network` 里：其中的 `x` 虽被反复绑定，却只在函数内部。本课的每个单元格都可以随意重复运行。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. If you are stuck, open the hint; the solution is folded below it.
#
# **1. How many layers can go at once?** Give a list of at least five layers that can be skipped *together*, so that the
# network still gives the same next token. First look at the picture of skipped layers and predict how far you will get.
# %% [markdown] id="exercises" lang="zh" of="c5be7ad5"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。卡住了可以打开线索；解答折叠在线索下面。
#
# **1. 一次能去掉多少层？** 给出一个至少包含五层的列表，把这些层*一起*跳过之后，网络给出的下一个 token 仍然相同。先看看跳过各层的那张图，
# 预测一下你能走多远。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    assert len(set(answer)) >= 5
    token = int(next_token(without(answer)).argmax())
    print(f"without {sorted(set(answer))}: {tokenizer.decode([token])!r}")
    assert token == best[-1]


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# The picture says which layers can go alone. It does not say whether two can go together. Drop one more at a time, and
# put it back if the answer changes.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="68cd4568"
# <details><summary>线索</summary>
#
# 图上说明了哪些层可以单独去掉。两层能否一起去掉，图上看不出来：每次再多去掉一层，答案变了就放回去。
#
# </details>
# %% id="solution_1" tags=["solution"]
dropped = []
for index in sorted(range(L), key=lambda index: -skipped[index]):
    if int(next_token(without([*dropped, index])).argmax()) == best[-1]:
        dropped.append(index)
exercise(1, dropped, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2. A layer that does nothing.** Write a function that takes a `Layer` and returns one whose block changes nothing:
# what goes in comes out, bit for bit. Predict first how many of the nine weights you have to touch.
# (`layer._replace(name=array)` gives a changed copy.)
# %% [markdown] id="exercise_2_text" lang="zh" of="aab65015"
# **2. 什么也不做的一层。** 写一个函数，接收一个 `Layer`，返回另一个 `Layer`，使它的块什么也不改变：进去什么就出来什么，逐比特相同。先
# 预测：九个权重里要动几个？（`layer._replace(name=array)` 返回修改后的副本。）
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for layer in (params.layers[0], params.layers[-1]):
        np.testing.assert_array_equal(block(answer(layer), seen["embed"]), seen["embed"])


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Each half ends with one matrix, and what that matrix returns is added. What has to come out of it so that the addition
# changes nothing?
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="0efe7bc9"
# <details><summary>线索</summary>
#
# 每一半都以一个矩阵结尾，加上去的就是它的结果。这个结果应当是什么，加法才不改变任何东西？
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(
    2,
    lambda layer: layer._replace(wo=jnp.zeros_like(layer.wo), w_down=jnp.zeros_like(layer.w_down)),
    check_2,
)
# %% [markdown] id="exercise_3_text" lang="en"
# **3. Other weights, the same function.** Write a function that takes a `Layer` and returns one in which all numbers of
# `w_up` are three times as large, and yet the feed-forward network is the same function. (With `w_gate` this would not
# work. Why?)
# %% [markdown] id="exercise_3_text" lang="zh" of="9848351c"
# **3. 权重不同，函数相同。** 写一个函数，接收一个 `Layer`，返回另一个 `Layer`：`w_up` 的所有数都是原来的三倍，前馈网络却仍是同一个
# 函数。（换成 `w_gate` 就不行，为什么？）
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    layer = params.layers[0]
    rows = rms_norm(seen["layers.0.resid_mid"], layer.ffn_norm)
    changed = answer(layer)
    np.testing.assert_allclose(changed.w_up, 3 * layer.w_up, rtol=1e-6)
    np.testing.assert_allclose(feed_forward(changed, rows), feed_forward(layer, rows), atol=1e-3)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Follow `up` through the picture of the feed-forward network: it is multiplied by something, and then by `w_down`. A
# factor of 3 can be undone on the way. `gate` goes through SiLU first, and $\mathrm{SiLU}(3a)$ is not
# $3\,\mathrm{SiLU}(a)$.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="ceac9b20"
# <details><summary>线索</summary>
#
# 在前馈网络的图上跟着 `up` 走：它先乘上某个东西，再乘 `w_down`。因子 3 可以在途中取消。`gate` 则先经过 SiLU，而 $\mathrm{SiLU}(3a)$
# 不等于 $3\,\mathrm{SiLU}(a)$。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, lambda layer: layer._replace(w_up=3 * layer.w_up, w_down=layer.w_down / 3), check_3)
assert far(silu(3 * gate), 3 * silu(gate)) > 0.1
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Shazeer, *GLU Variants Improve Transformer*, 2020, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)
# - Elfwing, Uchibe and Doya, *Sigmoid-Weighted Linear Units*, 2017, [arXiv:1702.03118](https://arxiv.org/abs/1702.03118)
# - Geva and others, *Transformer Feed-Forward Layers Are Key-Value Memories*, 2021,
#   [arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - He and others, *Deep Residual Learning for Image Recognition*, 2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Touvron and others, *LLaMA*, 2023, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# Next: lesson 08 asks how much the right answer proves, and finds: little.
# %% [markdown] id="sources" lang="zh" of="bc02b6d9"
# ## 来源
#
# - Shazeer，*GLU Variants Improve Transformer*，2020，[arXiv:2002.05202](https://arxiv.org/abs/2002.05202)
# - Elfwing、Uchibe、Doya，*Sigmoid-Weighted Linear Units*，2017，[arXiv:1702.03118](https://arxiv.org/abs/1702.03118)
# - Geva 等，*Transformer Feed-Forward Layers Are Key-Value Memories*，2021，[arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - He 等，*Deep Residual Learning for Image Recognition*，2015，[arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Touvron 等，*LLaMA*，2023，[arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# 下一课：第 08 课追问“答案正确”能证明多少，结论是：很少。
