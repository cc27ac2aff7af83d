# %% [markdown] id="title" lang="en"
# # 07 · SwiGLU, residuals, the whole network
#
# *Reading time 22 minutes. Before it: lessons 03 to 06. What it proves: a block written by hand in a few lines, run once for
# every layer, gives the logits of `jax_llama3` at every position, and the token that follows from them.*
#
# Attention (lessons 04 to 06) is one half of a layer. It carries information from position to position. The other half, the
# feed-forward network, looks at each position alone and works on what attention has brought there. This lesson builds that
# second half, joins both by two additions, and then repeats the whole as often as the model has layers. Nothing else is
# missing but one last norm and one last product.
# %% [markdown] id="title" lang="zh" of="7df3a1af"
# # 07 · SwiGLU、残差、完整网络
#
# *阅读时间 22 分钟。前置：第 03 至 06 课。本课证明：用寥寥几行手写一个块，每层运行一次，就能在每个位置得到与 `jax_llama3` 相同的
# logits，并由此得到下一个 token。*
#
# 注意力（第 04 至 06 课）只是一层的一半，它在位置之间搬运信息。另一半是前馈网络，它只看单个位置，加工注意力搬来的内容。本课先完成
# 这后一半，再用两次加法把两者接起来，然后有多少层就重复多少次。除此之外，只差最后一次归一化和最后一次乘法。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.model import layers as network
from jax_llama3.model.rope import rope_frequencies
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
config, params = model.config, model.params
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
F, V, L = config.ffn_dim, config.vocab_size, config.n_layers
is_default = config == preset("smollm2-135m")
ids = model.tokenizer.encode("The capital of France is", bos=True)
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


reference, seen = run(ids)
trace("reference", reference, "T V", T=T, V=V)
print(len(seen), "named activations in", L, "layers")
# %% [markdown] id="swiglu" lang="en"
# ## The feed-forward network
#
# The simplest network that is not linear has two matrices with a function between them: widen each row from $D$ to $F$
# numbers, bend every number by a function, go back to $D$. Llama has a third matrix. One matrix makes the numbers, a second
# one makes, for each of them, a factor that says how much of it is let through. Such a factor is a **gate**. With $h$ the
# normed row of one position:
#
# $$\mathrm{FFN}(h) = W_{\text{down}}\,\bigl(\mathrm{SiLU}(W_{\text{gate}}\,h) \odot W_{\text{up}}\,h\bigr),$$
#
# $$\mathrm{SiLU}(a) = a \cdot \sigma(a) = \frac{a}{1 + e^{-a}} .$$
#
# $\odot$ multiplies number by number. **SiLU** is close to zero for very negative $a$ and close to $a$ for large $a$, with a
# smooth passage between. A gated network with this function is called **SwiGLU** (SiLU is also called Swish, and GLU is a
# gated linear unit). In Meta's code the three matrices are called w1 (gate), w3 (up) and w2 (down).
# %% [markdown] id="swiglu" lang="zh" of="fe971902"
# ## 前馈网络
#
# 最简单的非线性网络有两个矩阵，中间夹一个函数：把每一行从 $D$ 个数拓宽到 $F$ 个，用函数把每个数“弯”一下，再回到 $D$ 个。Llama 有
# 第三个矩阵：一个矩阵产生这些数，另一个矩阵为其中每个数产生一个系数，决定放行多少。这样的系数就是**门控**（gate）。设 $h$ 为某个位置
# 归一化后的行：
#
# $$\mathrm{FFN}(h) = W_{\text{down}}\,\bigl(\mathrm{SiLU}(W_{\text{gate}}\,h) \odot W_{\text{up}}\,h\bigr),$$
#
# $$\mathrm{SiLU}(a) = a \cdot \sigma(a) = \frac{a}{1 + e^{-a}} .$$
#
# $\odot$ 表示逐元素相乘。**SiLU** 在 $a$ 很负时接近零，在 $a$ 很大时接近 $a$，中间平滑过渡。使用这个函数的门控网络称为
# **SwiGLU**（SiLU 又名 Swish，GLU 是门控线性单元）。在 Meta 的代码里，三个矩阵分别叫 w1（gate）、w3（up）和 w2（down）。
# %% id="swiglu_code"
layer0 = params.layers[0]
trace("w_gate", layer0.w_gate, "F D", F=F, D=D)
trace("w_up", layer0.w_up, "F D", F=F, D=D)
trace("w_down", layer0.w_down, "D F", F=F, D=D)


def silu(a):
    return a / (1 + jnp.exp(-a))


mid = seen["layers.0.resid_mid"]
ffn_in = trace("ffn_in", rms_norm(mid, layer0.ffn_norm), "T D", T=T, D=D)
gate = trace("gate", ffn_in @ layer0.w_gate.T, "T F", T=T, F=F)
up = trace("up", ffn_in @ layer0.w_up.T, "T F", T=T, F=F)
inner = trace("inner", silu(gate) * up, "T F", T=T, F=F)
ffn_out = trace("ffn_out", inner @ layer0.w_down.T, "T D", T=T, D=D)

close(gate, seen["layers.0.mlp.gate"], atol=1e-3)
close(up, seen["layers.0.mlp.up"], atol=1e-3)
close(ffn_out, seen["layers.0.mlp.out"], atol=1e-3)
# %% [markdown] id="alone" lang="en"
# Each position is on its own here. A row that is fed in alone, or among rows in another order, gives the same result. And
# the network is truly not linear: twice the input is not twice the output.
# %% [markdown] id="alone" lang="zh" of="cbaeb473"
# 在这里每个位置各算各的：单独送入一行，或者把各行打乱顺序送入，结果都一样。并且它确实不是线性的：输入加倍，输出并不加倍。
# %% id="alone_code"


def feed_forward(layer, h):
    return (silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T


def far(ours, theirs):
    # en: The size of the difference relative to the second argument.
    # zh: 差的大小，相对于第二个参数。
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


together = feed_forward(layer0, ffn_in)
one_by_one = jnp.concatenate([feed_forward(layer0, ffn_in[t : t + 1]) for t in range(T)])
close(one_by_one, together, atol=1e-3)
close(feed_forward(layer0, ffn_in[::-1]), together[::-1], atol=1e-3)

share = far(feed_forward(layer0, 2 * ffn_in), 2 * together)
print(f"FFN(2h) is away from 2 FFN(h) by {share:.2f} of its size")
assert share > 0.1
# %% [markdown] id="silu_text" lang="en"
# The curve: SiLU beside ReLU, the older and simpler choice, which is $\max(a, 0)$. SiLU dips below zero and is
# smooth everywhere, also at zero.
# %% [markdown] id="silu_text" lang="zh" of="ed876d32"
# 曲线如下：SiLU 与更早、更简单的 ReLU，即 $\max(a, 0)$。SiLU 会略低于零，而且处处光滑，在零点也一样。
# %% id="silu_picture"
points = jnp.linspace(-6, 4, 401)
close(silu(points), jax.nn.silu(points), atol=1e-6)
assert silu(points).min() < 0
assert abs(silu(jnp.array(-20.0))) < 1e-6
print(f"lowest value {silu(points).min():.3f} at a = {points[silu(points).argmin()]:.2f}")

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(points, silu(points), label="SiLU(a)")
axes.plot(points, jnp.maximum(points, 0), "--", label="ReLU(a)")
axes.axhline(0, color="grey", linewidth=0.5)
axes.set_xlabel("a")
axes.legend()
show(
    figure,
    en="SiLU and ReLU from -6 to 4: both grow like a on the right; SiLU dips a little below zero left of zero.",
    zh="SiLU 与 ReLU 在 -6 到 4 上的曲线：右侧都近似等于 a；SiLU 在零的左侧略低于零。",
)
# %% [markdown] id="width" lang="en"
# ## Where 14336 comes from
#
# In Llama-3-8B $D$ is 4096 and $F$ is 14336. Meta's configuration does not hold that number. It holds three others: `dim`,
# `ffn_dim_multiplier` and `multiple_of`, and $F$ follows:
#
# 1. The two-matrix network that the gated one replaces has the width $4D$ by custom, so $2 \cdot D \cdot 4D = 8D^2$ weights.
# 2. Three matrices of width $F$ have $3DF$ weights. They are as many when $F = \tfrac{8}{3}D$, that is two thirds of $4D$.
# 3. Llama 3 then widens this by `ffn_dim_multiplier` (1.3 for 8B and 70B), and drops the fraction.
# 4. Last it is rounded **up** to a multiple of `multiple_of`. So `multiple_of` is not a multiplier, it is a grid: widths
#    that are multiples of 1024 or 4096 split evenly over tiles of the hardware and over devices.
#
# For 8B: $4 \cdot 4096 = 16384$; two thirds, rounded down, are 10922; times 1.3, rounded down, 14198; the next multiple of
# 1024 is $14 \cdot 1024 = 14336$.
# %% [markdown] id="width" lang="zh" of="8797f487"
# ## 14336 从何而来
#
# Llama-3-8B 的 $D$ 是 4096，$F$ 是 14336。Meta 的配置里并没有这个数，只有另外三个：`dim`、`ffn_dim_multiplier` 和 `multiple_of`，
# $F$ 由它们推出：
#
# 1. 门控网络所取代的两矩阵网络，惯例宽度为 $4D$，权重数为 $2 \cdot D \cdot 4D = 8D^2$。
# 2. 宽度为 $F$ 的三个矩阵共有 $3DF$ 个权重。两者相等时 $F = \tfrac{8}{3}D$，也就是 $4D$ 的三分之二。
# 3. Llama 3 再乘以 `ffn_dim_multiplier` 加宽（8B 和 70B 为 1.3），并舍去小数。
# 4. 最后**向上**取整到 `multiple_of` 的倍数。所以 `multiple_of` 不是乘数，而是网格：1024 或 4096 的倍数能均匀地分给硬件的分块，
#    也能均匀地分给多台设备。
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

# en: The default model keeps the plain eight thirds; 3 D F is then exactly 8 D^2.
# zh: 默认模型就用三分之八，此时 3 D F 恰好等于 8 D^2。
if is_default:
    assert ffn_width(D, None, 256) == F
    assert 3 * D * F == 8 * D * D
print(f"this model     D = {D:<6} F = {F:<6} F / D = {F / D:.2f}")
# %% [markdown] id="attention" lang="en"
# ## Attention in three functions
#
# Here is the attention of lesson 06 again, cut at the two places that matter now: the scores, the pattern that softmax makes
# of them, and the mixing of values by that pattern. Every step is a function that returns something new.
# %% [markdown] id="attention" lang="zh" of="a1c48f90"
# ## 三个函数写成的注意力
#
# 这里再写一遍第 06 课的注意力，并在此刻要紧的两处切开：分数、softmax 由分数得到的权重、用权重混合各个值。每一步都是一个函数，
# 返回新的数组。
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
# One reads that attention only takes weighted sums, that it is "only linear", and that the feed-forward network is needed to
# bring in the first non-linear function. The first half is true of a *fixed* pattern: `mix` is linear in $h$. But the pattern
# is not fixed. It is computed from the same $h$:
#
# $$\mathrm{Attention}(h) = \mathrm{softmax}\!\left(\frac{q(h)\,k(h)^{\top}}{\sqrt H}\right) v(h) .$$
#
# The scores are **bilinear**: linear in the query's row and linear in the key's row, hence of degree two in $h$, so twice the
# input gives four times the scores. Then comes an exponential and a division. Three tests, on two different prompts' rows
# $a$ and $b$: the scores grow fourfold; with the pattern held fixed, $f(a + b) = f(a) + f(b)$; with the real pattern it is
# far from that.
# %% [markdown] id="linear" lang="zh" of="54d2ff6d"
# ## 注意力是线性的吗？
#
# 常有人说注意力只是加权求和，“只是线性的”，第一个非线性要靠前馈网络带来。前半句对*固定*的权重成立：`mix` 关于 $h$ 是线性的。可权重
# 并不固定，它由同一个 $h$ 算出：
#
# $$\mathrm{Attention}(h) = \mathrm{softmax}\!\left(\frac{q(h)\,k(h)^{\top}}{\sqrt H}\right) v(h) .$$
#
# 分数是**双线性**的：对查询所在的行是线性的，对键所在的行也是线性的，所以关于 $h$ 是二次的：输入加倍，分数变成四倍。随后还有指数和
# 除法。用两个不同提示的行 $a$ 和 $b$ 做三个测试：分数变成四倍；权重固定时 $f(a + b) = f(a) + f(b)$；用真实的权重时则相差很远。
# %% id="linear_code"
# en: The rows of another prompt, reversed, so that a and b differ at every position.
# zh: 另一个提示的各行，次序颠倒，使 a 与 b 在每个位置都不同。
_, other = run([*ids[:-2], *model.tokenizer.encode(" Japan is")])
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
# ## One block and its two residuals
#
# A layer does not replace its input. It **adds** to it, twice. With $x$ the row that comes in:
#
# $$x' = x + \mathrm{Attention}(\mathrm{RMSNorm}_1(x)), \qquad x'' = x' + \mathrm{FFN}(\mathrm{RMSNorm}_2(x')) .$$
#
# Look closely at what is added to what. The norm stands **inside** the branch. The straight line carries $x$ as it was
# **before** the norm; the normed rows are seen by attention or the feed-forward network and by nobody else. From the
# embedding to the last layer there is one line on which nothing but additions happens: the residual stream.
# %% [markdown] id="residual" lang="zh" of="da9e42b7"
# ## 一个块和它的两次残差
#
# 一层并不替换它的输入，而是在输入上**加**两次。设进来的行为 $x$：
#
# $$x' = x + \mathrm{Attention}(\mathrm{RMSNorm}_1(x)), \qquad x'' = x' + \mathrm{FFN}(\mathrm{RMSNorm}_2(x')) .$$
#
# 请看清楚是什么加到什么上。归一化位于支路**内部**。直线上走的是归一化**之前**的 $x$；归一化后的行只给注意力或前馈网络看，别处用不到。
# 从嵌入到最后一层有一条线，线上除了加法什么也不发生：这就是残差流。
# %% id="residual_picture"
figure, axes = canvas(25, 6.6, inches=0.42)


def plus(x, y):
    axes.add_patch(plt.Circle((x, y), 0.45, facecolor=GREEN, edgecolor="#333333", zorder=3))
    axes.text(x, y - 0.04, "+", ha="center", va="center", fontsize=13, zorder=4)


for start, end, name, weight, colour in [
    (2.4, 12, "attention", "attn_norm", BLUE),
    (13.6, 23.2, "feed-forward", "ffn_norm", ORANGE),
]:
    axes.plot(start, 5, "o", color="#333333", markersize=5)
    arrow(axes, (start, 5), (start, 1.4), (start + 0.8, 1.4))
    box(axes, start + 0.8, 0.5, 3.4, 1.8, f"RMSNorm\n{weight}", GREY)
    arrow(axes, (start + 4.2, 1.4), (start + 5, 1.4))
    box(axes, start + 5, 0.5, 3.4, 1.8, name, colour)
    arrow(axes, (start + 8.4, 1.4), (end, 1.4), (end, 4.55))
    plus(end, 5)
arrow(axes, (0.2, 5), (11.55, 5))
arrow(axes, (12.45, 5), (22.75, 5))
arrow(axes, (23.65, 5), (24.9, 5))
for x, text in [(1.3, "$x$"), (6.8, "resid_pre, not normed"), (17.8, "resid_mid, not normed")]:
    axes.text(x, 5.25, text, ha="center", fontsize=10)
axes.text(24.2, 5.6, "resid_post", ha="center", fontsize=9)
show(
    figure,
    en="A straight line from x through two additions. Before each, a branch leaves the line, goes through a norm "
    "and then attention or the feed-forward network, and is added to the line, which was not normed.",
    zh="一条直线从 x 经过两次加法。每次加法之前，一条支路离开直线，先经归一化，再经注意力或前馈网络，然后加回未归一化的直线上。",
)
# %% [markdown] id="residual_check" lang="en"
# The drawing must hold on numbers. We take layer 0 apart with the library's own activations: both additions with the rows
# before the norm are right, and the same additions with the normed rows are off by far more than rounding. In this layer
# the second error is the smaller one, because here the feed-forward network adds much more than there was; over all
# layers the errors pile up, as we shall see.
# %% [markdown] id="residual_check" lang="zh" of="f4d0b71e"
# 图要用数来验证。我们用库自己的激活把第 0 层拆开：两次加法都用归一化之前的行，结果正确；换成归一化之后的行，误差
# 远远超出舍入。这一层的第二个误差较小，因为这里前馈网络加上的远比原有的多；但所有层的误差会累积，下文可见。
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
if is_default:
    assert jnp.linalg.norm(ffn_out) > 3 * jnp.linalg.norm(mid)
# %% [markdown] id="whole" lang="en"
# ## All layers
#
# The block is two lines, and the network is a loop over it. After the last layer comes one more norm, with a weight of its
# own, and then the output matrix: row $i$ of it is compared, by a dot product, with the final row of each position, and the
# result is the logit of id $i$. In the default model the output matrix *is* the embedding: they are **tied**, and the tree
# holds `None` in its place. A model of 8 billion parameters has two different matrices there.
# %% [markdown] id="whole" lang="zh" of="cd20395b"
# ## 所有的层
#
# 块只有两行，网络就是对它的循环。最后一层之后再做一次归一化，它有自己的权重；然后是输出矩阵：它的第 $i$ 行与每个位置最终的行做点积，
# 结果就是编号 $i$ 的 logit。默认模型的输出矩阵*就是*嵌入矩阵：两者**共享**（tied），权重树里相应位置是 `None`。80 亿参数的模型
# 在这里用两个不同的矩阵。
# %% id="whole_code"


def block(layer, x):
    middle = x + attention(layer, rms_norm(x, layer.attn_norm))
    return middle + feed_forward(layer, rms_norm(middle, layer.ffn_norm))


def whole_network(ids):
    x = params.embedding[jnp.array(ids)]
    for layer in params.layers:
        x = block(layer, x)
    output = params.embedding if params.output is None else params.output
    return rms_norm(x, params.norm) @ output.T


logits = trace("logits", whole_network(ids), "T V", T=T, V=V)
assert (params.output is None) == config.tie_embeddings
close(logits, reference, atol=1e-3)
# %% [markdown] id="each_layer" lang="en"
# That is the network: not a model of the model but the same function, equal at all $T$ positions and all $V$ ids. Equal
# logits could still hide two errors that cancel, so we look at every layer as well. The rows differ in size by a factor of
# hundreds, and so we compare relative to the size of the row. And we
# run the network with the wrong residuals, to see that the drawing matters.
# %% [markdown] id="each_layer" lang="zh" of="0555a6da"
# 这就是整个网络：不是模型的模型，而是同一个函数，在全部 $T$ 个位置、全部 $V$ 个编号上都相等。logits 相等仍可能掩盖两个互相抵消的错误，
# 所以再逐层检查。各行的大小相差数百倍，因此按行的大小做相对比较。最后再运行一次
# 残差接错的网络，看看那张图有多要紧。
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
print(L, "layers: every row within a thousandth of its size")

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
    output = params.embedding if params.output is None else params.output
    return rms_norm(x, params.norm) @ output.T


wrong = wrong_network(ids)
print(f"residuals from behind the norm: logits off by {far(wrong, reference):.2f} of their size")
assert far(wrong, reference) > 0.1
# %% [markdown] id="token" lang="en"
# ## The next token
#
# The logits of the last position speak of what comes next. The largest wins; its id goes back through the tokenizer. The
# other positions are predictions as well: position $t$ says what follows the first $t + 1$ tokens. All of them came out of
# the same pass.
# %% [markdown] id="token" lang="zh" of="251e8e04"
# ## 下一个 token
#
# 最后一个位置的 logits 说的是接下来会出现什么。最大者胜出，它的编号经分词器变回文本。其他位置同样是预测：位置 $t$ 预测前 $t + 1$ 个
# token 之后的内容。它们都来自同一次计算。
# %% id="token_code"
best = np.asarray(jnp.argmax(logits, axis=-1))
np.testing.assert_array_equal(best, jnp.argmax(reference, axis=-1))
for position in range(T):
    text = model.tokenizer.decode(ids[: position + 1])
    print(f"{text!r:<28} -> {model.tokenizer.decode([int(best[position])])!r}")
if is_default:
    assert best[-1] == 7042
    assert model.tokenizer.decode([7042]) == " Paris"
# %% [markdown] id="sum" lang="en"
# ## What the line carries
#
# Because every layer only adds, the final row is a sum that we can write out: the embedding, and two terms per layer.
#
# $$x_{\text{final}} = x_{\text{embed}} + \sum_{l=0}^{L-1} \left(\text{attn}_l + \text{mlp}_l\right)$$
#
# No term is ever removed; a later layer can only add its opposite. The picture shows how large the rows become. One of
# them is out of all proportion, the first, and lesson 09 asks why.
# %% [markdown] id="sum" lang="zh" of="c7fd04d4"
# ## 线上承载着什么
#
# 因为每层只做加法，最终的行是一个可以完全写开的和：嵌入，加上每层两项。
#
# $$x_{\text{final}} = x_{\text{embed}} + \sum_{l=0}^{L-1} \left(\text{attn}_l + \text{mlp}_l\right)$$
#
# 没有哪一项会被删除；后面的层只能再加上它的相反数。下图展示各行变得有多大。其中一行大得不成比例，那是第一行，原因留到第 09 课。
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
figure, axes = plt.subplots(figsize=(7, 3.4))
for position in range(T):
    word = model.tokenizer.decode([ids[position]]).strip()
    axes.semilogy(sizes[:, position], marker=".", label=f"{position}: {word}")
axes.set_xlabel("layers done")
axes.set_ylabel("root mean square of the row")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
show(
    figure,
    en="The size of each token's row after each layer, on a logarithmic scale: four rows grow slowly from below "
    "one to about twenty-five, the first one jumps far above them.",
    zh="每个 token 的行在各层之后的大小，对数坐标：四行从不到 1 缓慢增长到二十几，第一行则远远跳到它们之上。",
)
if is_default:
    assert sizes[:, 0].max() > 20 * sizes[:, 1:].max()
# %% [markdown] id="again" lang="en"
# ## Running a cell twice
#
# Notebooks have a trap that has nothing to do with mathematics. A cell that reads a name and binds the same name again
# changes the world each time it runs. Someone who runs `x = rms_norm(x, w)` twice has normalised twice; someone who runs
# `x = block(layer, x)` twice has a network with a layer too many. No error appears, only other numbers.
#
# JAX's arrays cannot be changed in place, but that does not help: it is the *name* that now means something else. The next
# cell plays a reader who runs one cell twice, first with a cell of the bad kind and then with one of the good kind.
# %% [markdown] id="again" lang="zh" of="6b266ca0"
# ## 把一个单元格运行两次
#
# 笔记本有一个与数学无关的陷阱。如果一个单元格读取某个名字，又重新绑定同一个名字，那么每运行一次，状态就变一次。把
# `x = rms_norm(x, w)` 运行两次，就归一化了两次；把 `x = block(layer, x)` 运行两次，网络就多了一层。不会报错，只是数不同了。
#
# JAX 的数组不能就地修改，但这帮不上忙：变的是*名字*的含义。下面的单元格扮演一位把同一个单元格运行了两次的读者，先用坏的写法，再用好的写法。
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
print(f"trap: the second run is off by {far(second, first):.2f}")
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
# This is why the loop above lives in `whole_network`: its `x` is bound anew many times, but only inside the function. The
# layer check is a function for the same reason. Every cell of this lesson may be run again, as often as one likes.
# %% [markdown] id="again_end" lang="zh" of="b83efc42"
# 所以上面的循环放在 `whole_network` 里：其中的 `x` 虽被反复绑定，却只在函数内部。逐层检查也因此写成函数。本课的每个单元格
# 都可以随意重复运行。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** A model of the first Llama generation has `dim` 5120, no multiplier, and `multiple_of` 256. How wide is its
# feed-forward network, and how many weights do its three matrices have in one layer? Answer with a pair.
# %% [markdown] id="exercises" lang="zh" of="64fe7884"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 第一代 Llama 中有一个模型的 `dim` 为 5120，没有 multiplier，`multiple_of` 为 256。它的前馈网络有多宽？一层中三个矩阵共有多少
# 权重？用一个二元组回答。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    width, weights = answer
    assert width == ffn_width(5120, None, 256)
    assert weights == 3 * 5120 * width


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, (13824, 3 * 5120 * 13824), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Give a function that takes a `Layer` and returns one whose block changes nothing: what goes in comes out, bit for
# bit. Hint: `layer._replace(name=array)` gives a changed copy.
# %% [markdown] id="exercise_2_text" lang="zh" of="24ea4ee6"
# **2.** 给出一个函数，接收一个 `Layer`，返回另一个 `Layer`，使它的块什么也不改变：进去什么就出来什么，逐比特相同。提示：
# `layer._replace(name=array)` 返回修改后的副本。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for layer in (params.layers[0], params.layers[-1]):
        np.testing.assert_array_equal(block(answer(layer), seen["embed"]), seen["embed"])


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(
    2,
    lambda layer: layer._replace(wo=jnp.zeros_like(layer.wo), w_down=jnp.zeros_like(layer.w_down)),
    check_2,
)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** The same function can have other weights. Give a function that takes a `Layer` and returns one with all numbers of
# `w_up` three times as large, and yet the same feed-forward network. (With `w_gate` this would not work. Why?)
# %% [markdown] id="exercise_3_text" lang="zh" of="8cc5654c"
# **3.** 同一个函数可以有不同的权重。给出一个函数，接收一个 `Layer`，返回另一个 `Layer`：`w_up` 的所有数都是原来的三倍，前馈网络却
# 完全相同。（换成 `w_gate` 就不行，为什么？）
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    layer = params.layers[0]
    rows = rms_norm(seen["layers.0.resid_mid"], layer.ffn_norm)
    changed = answer(layer)
    np.testing.assert_allclose(changed.w_up, 3 * layer.w_up, rtol=1e-6)
    np.testing.assert_allclose(feed_forward(changed, rows), feed_forward(layer, rows), atol=1e-3)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, lambda layer: layer._replace(w_up=3 * layer.w_up, w_down=layer.w_down / 3), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Shazeer, *GLU Variants Improve Transformer*, 2020, [arXiv:2002.05202](https://arxiv.org/abs/2002.05202)
# - Elfwing, Uchibe and Doya, *Sigmoid-Weighted Linear Units*, 2017, [arXiv:1702.03118](https://arxiv.org/abs/1702.03118)
# - He and others, *Deep Residual Learning*, 2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Touvron and others, *LLaMA*, 2023, [arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# Next: lesson 08 asks how much the right answer proves, and finds that it is little.
# %% [markdown] id="sources" lang="zh" of="9ce0da30"
# ## 来源
#
# - Shazeer，*GLU Variants Improve Transformer*，2020，[arXiv:2002.05202](https://arxiv.org/abs/2002.05202)
# - Elfwing、Uchibe、Doya，*Sigmoid-Weighted Linear Units*，2017，[arXiv:1702.03118](https://arxiv.org/abs/1702.03118)
# - He 等，*Deep Residual Learning*，2015，[arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - Touvron 等，*LLaMA*，2023，[arXiv:2302.13971](https://arxiv.org/abs/2302.13971)
#
# 下一课：第 08 课追问“答案正确”能证明多少，结论是：很少。
