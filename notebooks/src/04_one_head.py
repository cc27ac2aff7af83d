# %% [markdown] id="title" lang="en"
# # 04 · One attention head by hand
#
# *Reading time 20 minutes. Before it: lesson 03. What it proves: every number that one head of the first layer computes,
# from three matrix products to its output, and that no later token can change an earlier one by a single bit.*
#
# So far every token has been alone. The embedding looks up one row at a time, the norm works on one row at a time, and
# what happens to "is" does not depend on "France". But the word that comes next depends on all of them. Attention is the
# only place in the network where one position reads another, and an **attention head** is its smallest working part.
# %% [markdown] id="title" lang="zh" of="579fa730"
# # 04 · 手算一个注意力头
#
# *阅读时间 20 分钟。前置：第 03 课。本课证明：第一层里一个头算出的每一个数，从三次矩阵乘法直到输出；并且后面的 token 连一个比特
# 都改变不了前面的结果。*
#
# 到目前为止，每个 token 都是孤立的。嵌入一次查一行，归一化一次算一行，“is” 的结果与 “France” 毫无关系。可下一个词取决于所有的词。
# 注意力是网络中唯一让一个位置读到另一个位置的地方，**注意力头**（attention head）则是其中最小的工作单元。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.model.attention import attention, causal_mask
from jax_llama3.model.layers import rms_norm
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
is_default = config == preset("smollm2-135m")

ids = model.tokenizer.encode("The capital of France is", bos=True)
words = [model.tokenizer.decode([i]).strip() for i in ids]
T = len(ids)
layer = params.layers[0]


def normed_rows(ids):
    # en: Lesson 03: what the first layer's attention sees.
    # zh: 第 03 课：第一层注意力看到的内容。
    return rms_norm(params.embedding[jnp.array(ids)][None], layer.attn_norm, config.norm_eps)[0]


x = trace("x", normed_rows(ids), "T D", T=T, D=D)
# %% [markdown] id="idea" lang="en"
# ## A look-up that is not all or nothing
#
# Think of a dictionary in Python: a key is found if it equals what we ask for, and its value is the answer. A head does
# the same with vectors. From its row of $x$ every position makes three vectors of $H$ numbers:
#
# - a **query**: what this position asks for;
# - a **key**: what it can be found by;
# - a **value**: what it hands over when it is found.
#
# Two vectors are hardly ever equal, so a match is a matter of degree. The dot product of a query with a key is their
# **score**; a softmax turns the scores of one query into weights that add up to one; the answer is the sum of all values
# by these weights. The weights of all queries together are the head's *pattern*. The drawing is the whole lesson. $T$ is the
# number of tokens, $D$ the length of a row, $H$ that of a head's vectors.
# %% [markdown] id="idea" lang="zh" of="1e4e1168"
# ## 一种不是非此即彼的查找
#
# 想一想 Python 的字典：键与所问的内容相等就算找到，对应的值就是答案。一个头用向量做同样的事。每个位置由自己那一行 $x$ 得到三个
# 向量，各有 $H$ 个数：
#
# - **查询**（query）：这个位置在问什么；
# - **键**（key）：别人凭什么找到它；
# - **值**（value）：被找到时交出什么。
#
# 两个向量几乎不会相等，所以匹配有程度之分。查询与键的点积就是它们的**分数**（score）；softmax 把一个查询的所有分数变成和为 1 的权重；
# 答案是所有值按这些权重求和。全部查询的权重合起来，称为这个头的
# *pattern*（权重图）。下图就是整节课的内容。$T$ 是 token 个数，$D$ 是一行的长度，$H$ 是头内向量的长度。
# %% id="drawing"
figure, axes = canvas(22.5, 8, inches=0.45)
box(axes, 0.2, 3.3, 1.8, 1.4, "x\n[T D]", GREY)
for name, low, colour in [("q", 6, BLUE), ("k", 3.3, BLUE), ("v", 0.6, ORANGE)]:
    middle = low + 0.7
    corner = [] if name == "k" else [(3, 4), (3, middle)]
    arrow(axes, (2, 4), *corner, (4, middle))
    box(axes, 4, low, 2.2, 1.4, f"$W_{name}$\n[H D]", GREY)
    arrow(axes, (6.2, middle), (7.4, middle))
    box(axes, 7.4, low, 2, 1.4, f"{name}\n[T H]", colour)
box(axes, 11, 4.5, 3.2, 1.8, "scores\n$q\\,k^T / \\sqrt{H}$\n[T T]", BLUE)
arrow(axes, (9.4, 6.7), (10.2, 6.7), (10.2, 5.8), (11, 5.8))
arrow(axes, (9.4, 4), (10.2, 4), (10.2, 5), (11, 5))
arrow(axes, (14.2, 5.4), (15.1, 5.4))
box(axes, 15.1, 4.5, 2.5, 1.8, "mask\nfuture: $-\\infty$\n[T T]", GREY)
arrow(axes, (17.6, 5.4), (18.5, 5.4))
box(axes, 18.5, 4.5, 2.6, 1.8, "softmax\nby row\n[T T]", BLUE)
box(axes, 16.2, 0.6, 3, 1.4, "pattern $\\cdot$ v", ORANGE)
arrow(axes, (19.8, 4.5), (19.8, 3.2), (17.7, 3.2), (17.7, 2))
arrow(axes, (9.4, 1.3), (16.2, 1.3))
arrow(axes, (19.2, 1.3), (20.2, 1.3))
box(axes, 20.2, 0.6, 2, 1.4, "z\n[T H]", GREEN)
show(
    figure,
    en="One head: x goes through three matrices to q, k and v; q and k give scores, then mask and softmax; "
    "the pattern weighs v and gives z.",
    zh="一个头：x 经三个矩阵得到 q、k、v；q 与 k 得到分数，再经掩码与 softmax；所得权重对 v 加权求和，得到 z。",
)
# %% [markdown] id="unfold" lang="en"
# ## Unfolding the weights
#
# A checkpoint in PyTorch's format holds the queries' weights of all $N$ heads in one matrix with $N \cdot H$ rows: the
# first $H$ rows are head 0, the next $H$ rows head 1, and so on. To unfold it is a reshape to $[N\,H\,D]$, and this is how
# `jax_llama3` stores it. Keys and values have $K$ heads, often fewer than $N$; which of them serves which query head is a
# matter for lesson 06. The first few query heads share head 0 of the keys and values, and we take one of these.
#
# Rows are outputs, so the product needs the weights' transpose: $q = x\,W_q^{\top}$.
# %% [markdown] id="unfold" lang="zh" of="3990759d"
# ## 展开权重
#
# PyTorch 格式的检查点把全部 $N$ 个头的查询权重放在一个 $N \cdot H$ 行的矩阵里：前 $H$ 行是 0 号头，接下来 $H$ 行是 1 号头，依此
# 类推。展开就是变形为 $[N\,H\,D]$，`jax_llama3` 正是这样存的。键和值有 $K$ 个头，往往比 $N$ 少；哪个查询头用哪一个，留到第 06 课。
# 最前面的几个查询头共用键和值的 0 号头，我们从中取一个。
#
# 权重的每一行对应一个输出，所以乘法里要用权重的转置：$q = x\,W_q^{\top}$。
# %% id="unfold_code"
flat_q = trace("flat wq", layer.wq.reshape(N * H, D), "R D", R=N * H, D=D)
wq = trace("wq", flat_q.reshape(N, H, D), "N H D", N=N, H=H, D=D)
wk = trace("wk", layer.wk, "K H D", K=K, H=H, D=D)
wv = trace("wv", layer.wv, "K H D", K=K, H=H, D=D)

head = min(2, N // K - 1)
wq_head, wk_head, wv_head = wq[head], wk[0], wv[0]
np.testing.assert_array_equal(wq_head, flat_q[head * H : (head + 1) * H])

q = trace("q", x @ wq_head.T, "T H", T=T, H=H)
k = trace("k", x @ wk_head.T, "T H", T=T, H=H)
v = trace("v", x @ wv_head.T, "T H", T=T, H=H)
# %% [markdown] id="position" lang="en"
# Are these the network's own vectors? The values are. Queries and keys are not quite: before they meet, the network turns
# each by an angle that depends on its position, and lesson 05 derives that turn. This lesson leaves it out. At position 0
# the turn does nothing, so there is a fair way to compare: give the library our tokens as $T$ prompts of one token each.
# Then every token stands at position 0, and the first layer's taps must show exactly what we computed.
# %% [markdown] id="position" lang="zh" of="427dee84"
# 这些就是网络自己的向量吗？值是的。查询和键还差一步：在它们相遇之前，网络会按位置把每个向量转动一个角度，第 05 课推导这个转动，本课
# 先不考虑。位置 0 上的转动什么也不改变，于是有一个公平的比较办法：把这些 token 当作 $T$ 个提示交给本库，每个提示只有一个 token。这样
# 每个 token 都在位置 0，第一层的探针看到的就应当与我们算出的完全一致。
# %% id="position_code"


def taps_of(prompts):
    seen = {}

    def tap(name, array):
        seen[name] = array
        return array

    logits, _ = jax_llama3.forward(params, np.array(prompts), config, tap=tap)
    return seen, logits


alone, _ = taps_of([[i] for i in ids])
close(q, alone["layers.0.attn.q"][:, 0, head])
close(k, alone["layers.0.attn.k"][:, 0, 0])
close(v, alone["layers.0.attn.v"][:, 0, 0])
# %% [markdown] id="scores" lang="en"
# ## Scores, and the transpose in them
#
# The score of query $i$ with key $j$ is a dot product, $s_{ij} = \sum_h q_{ih}\, k_{jh}$. Both vectors lie in rows. To have
# all $T \times T$ scores at once we need rows against rows, and a matrix product takes rows against columns. So the keys
# are transposed: $S = q\,k^{\top}$. Row $i$ holds what position $i$ thinks of each key.
#
# If the transpose is forgotten, the shapes usually protest. Not always: with as many tokens as $H$ both matrices are
# square, the product runs, and every number is wrong.
# %% [markdown] id="scores" lang="zh" of="a5393c8f"
# ## 分数，以及其中的转置
#
# 查询 $i$ 与键 $j$ 的分数是一个点积：$s_{ij} = \sum_h q_{ih}\, k_{jh}$。两个向量都是行。要一次得到全部 $T \times T$ 个分数，就要行对行，
# 而矩阵乘法是行对列，所以要把键转置：$S = q\,k^{\top}$。第 $i$ 行是位置 $i$ 对每个键的评价。
#
# 忘了转置，形状通常会报错。但不总是：当 token 个数恰好等于 $H$，两个矩阵都是方阵，乘法照样能跑，每个数却都是错的。
# %% id="scores_code"
by_loops = np.zeros((T, T))
for i in range(T):
    for j in range(T):
        by_loops[i, j] = sum(a * b for a, b in zip(np.asarray(q[i]), np.asarray(k[j]), strict=True))

raw = trace("raw scores", q @ k.T, "T S", T=T, S=T)
close(by_loops, raw)

# en: What i thinks of j is not what j thinks of i.
# zh: i 对 j 的评价不等于 j 对 i 的评价。
assert jnp.abs(raw - raw.T).max() > 1

try:
    q @ k
    assert T == H, "the product without the transpose ran"
except TypeError as error:
    print("without the transpose:", str(error).split(",")[0])

square_q, square_k = jnp.resize(q, (H, H)), jnp.resize(k, (H, H))
assert (square_q @ square_k).shape == (square_q @ square_k.T).shape
assert jnp.abs(square_q @ square_k - square_q @ square_k.T).max() > 1
# %% [markdown] id="softmax" lang="en"
# ## Softmax by hand
#
# Weights should be positive and add up to one. An exponential makes any score positive, a division does the rest:
#
# $$p_{ij} = \frac{e^{s_{ij}}}{\sum_{m} e^{s_{im}}} .$$
#
# Only differences within a row count: adding a number $c$ to all its scores multiplies every term by $e^c$, which cancels.
# That is useful, for in float32 the exponential of 89 is already infinite. Subtract the row's largest score first, and the
# largest exponential is $e^0 = 1$.
# %% [markdown] id="softmax" lang="zh" of="1276d204"
# ## 手算 softmax
#
# 权重应当为正，且和为 1。指数函数把任何分数变成正数，再做一次除法即可：
#
# $$p_{ij} = \frac{e^{s_{ij}}}{\sum_{m} e^{s_{im}}} .$$
#
# 起作用的只有一行之内的差：给一行的分数都加上同一个数 $c$，每一项都乘以 $e^c$，正好约掉。这很有用，因为在 float32 里 89 的指数已经是
# 无穷大。先减去该行最大的分数，最大的指数就是 $e^0 = 1$。
# %% id="softmax_code"


def softmax(scores):
    powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


close(softmax(raw), jax.nn.softmax(raw), atol=1e-6)
close(softmax(raw).sum(axis=-1), np.ones(T), atol=1e-6)
close(softmax(raw + 100), softmax(raw), atol=1e-4)
assert jnp.isfinite(jnp.exp(jnp.float32(88)))
assert jnp.isinf(jnp.exp(jnp.float32(89)))
# %% [markdown] id="scale" lang="en"
# ## Why the square root of H
#
# Suppose the numbers in $q$ and $k$ are independent, with mean 0 and variance 1; this is roughly how a fresh network
# starts. Take one term of the dot product:
#
# $$\mathrm{E}[q_h k_h] = \mathrm{E}[q_h]\,\mathrm{E}[k_h] = 0, \qquad
# \mathrm{Var}(q_h k_h) = \mathrm{E}[q_h^2]\,\mathrm{E}[k_h^2] = 1 .$$
#
# Variances of independent terms add, so the score, a sum of $H$ terms, has variance $H$ and spreads by $\sqrt H$. Dividing
# by $\sqrt H$ brings the spread back to 1 for any $H$.
#
# Why does the spread matter? The softmax takes exponentials. When scores lie many units apart, the largest takes
# nearly all the weight: the softmax is saturated. Then it picks one key instead of weighing all, and it hardly moves when a
# score moves: the derivative of $p_i$ by its own score is $p_i (1 - p_i)$, and over a row these add up to
# $1 - \sum_i p_i^2$, which goes to 0 as one weight goes to 1. A network cannot learn through a function that does not
# respond. Dividing by $H$ instead errs the other way: the scores shrink to nothing and all keys weigh the same.
#
# We measure all of it with random vectors: the variance, and then a softmax over 256 keys with three divisors.
# (`jax.jacobian(f)(x)` is the matrix of the derivatives of every output by every input.)
# %% [markdown] id="scale" lang="zh" of="a05605b9"
# ## 为什么是 H 的平方根
#
# 假设 $q$ 和 $k$ 里的数相互独立，均值为 0、方差为 1；刚初始化的网络大致如此。看点积中的一项：
#
# $$\mathrm{E}[q_h k_h] = \mathrm{E}[q_h]\,\mathrm{E}[k_h] = 0, \qquad
# \mathrm{Var}(q_h k_h) = \mathrm{E}[q_h^2]\,\mathrm{E}[k_h^2] = 1 .$$
#
# 独立项的方差可以相加，分数是 $H$ 项之和，所以方差为 $H$，散布的尺度为 $\sqrt H$。除以 $\sqrt H$，不论 $H$ 是多少，尺度都回到 1。
#
# 尺度为什么要紧？因为 softmax 取指数。分数之间相差许多时，最大的那个几乎拿走全部权重，这叫饱和。此时它只挑一个键，不再权衡所有的键；
# 而且分数变了它也几乎不动：$p_i$ 对自己那个分数的导数是 $p_i (1 - p_i)$，一行之和是 $1 - \sum_i p_i^2$，某个权重趋于 1 时它趋于 0。
# 没有反应的函数，网络无法通过它学习。除以 $H$ 则错在另一边：分数缩得几乎没有了，所有键的权重都一样。
#
# 下面用随机向量逐一测量：先测方差，再看 256 个键上的 softmax 配三种除数的表现。（`jax.jacobian(f)(x)` 是每个输出对每个输入的导数
# 组成的矩阵。）
# %% id="scale_code"
sizes = [4, 16, 64, 256, 1024]
divisors = {"1": lambda h: 1, "sqrt(H)": lambda h: h**0.5, "H": lambda h: h}
variance, largest, response = [], {d: [] for d in divisors}, {d: [] for d in divisors}
for h in sizes:
    random = np.random.default_rng(h)
    variance.append(
        (random.normal(size=(20_000, h)) * random.normal(size=(20_000, h))).sum(-1).var()
    )
    dots = random.normal(size=(256, h)) @ random.normal(size=(256, h)).T
    for name, divisor in divisors.items():
        weights = softmax(jnp.asarray(dots / divisor(h)))
        largest[name].append(float(weights.max(axis=-1).mean()))
        response[name].append(float((1 - (weights**2).sum(axis=-1)).mean()))

for h, measured in zip(sizes, variance, strict=True):
    print(f"H = {h:>4}: variance of the dot product {measured:8.1f}, over H {measured / h:.2f}")
    assert abs(measured / h - 1) < 0.06
assert largest["1"][-1] > 0.8
assert max(largest["sqrt(H)"]) < 0.1
assert response["1"][-1] < 0.2
assert min(response["sqrt(H)"]) > 0.9
assert abs(largest["H"][-1] - 1 / 256) < 1e-3

# en: All derivatives of one row by JAX itself, to check the formula for their sum.
# zh: 由 JAX 求出一行的全部导数，验证上面的求和公式。
row = raw[-1]
derivatives = jax.jacobian(softmax)(row)
close(jnp.trace(derivatives), 1 - (softmax(row) ** 2).sum(), atol=1e-5)
# %% id="scale_picture"
figure, panels = plt.subplots(1, 3, figsize=(11, 3.2))
panels[0].loglog(sizes, np.sqrt(variance), "o-", base=2, label="measured")
panels[0].loglog(sizes, np.sqrt(sizes), "k:", base=2, label="sqrt(H)")
panels[0].set_title("spread of q . k")
for panel, table in [(panels[1], largest), (panels[2], response)]:
    for name, values in table.items():
        panel.semilogx(sizes, values, "o-", base=2, label=f"divided by {name}")
    panel.set_ylim(-0.05, 1.05)
panels[1].set_title("largest weight of 256")
panels[2].set_title("response: 1 - sum of squared weights")
for panel in panels:
    panel.set_xlabel("H")
panels[0].legend()
panels[1].legend(fontsize=8)
show(
    figure,
    en="Three plots over H: the spread of the dot product follows sqrt(H); undivided, the largest weight rises towards one "
    "and the response falls; divided by sqrt(H), both stay level.",
    zh="三幅随 H 变化的图：点积的散布尺度与 sqrt(H) 重合；不做除法时最大权重趋近 1、反应下降；除以 sqrt(H) 时两者保持平稳。",
)
# %% [markdown] id="scale_real" lang="en"
# And in the trained model? There the numbers are neither independent nor centred, so the derivation says where training
# started, not where it arrived. The scores below have a mean far from 0 and a spread of their own. What the scale does is
# the same: without it the largest weight of every row is larger still. That is not chance: multiplying all scores by a
# number above 1 can only sharpen a softmax.
# %% [markdown] id="scale_real" lang="zh" of="d6d9b2bd"
# 那么训练好的模型呢？那里的数既不独立，均值也不为 0，所以上面的推导说的是训练的起点，不是终点。下面分数的均值离 0 很远，散布也另有
# 大小。缩放的作用却一样：没有它，每一行的最大权重都更大。这不是碰巧：把所有分数乘以一个大于 1 的数，softmax 只会更尖锐。
# %% id="scale_real_code"
scaled = trace("scaled", raw / H**0.5, "T S", T=T, S=T)
print(f"raw: mean {raw.mean():.1f}, spread {raw.std():.1f}")
print(f"scaled: mean {scaled.mean():.2f}, spread {scaled.std():.2f}")
for word, without, with_scale in zip(words, softmax(raw), softmax(scaled), strict=True):
    print(f"{word:>10}: largest weight {without.max():.2f}, scaled {with_scale.max():.2f}")
    assert without.max() > with_scale.max()
# %% [markdown] id="mask" lang="en"
# ## The causal mask
#
# The network is to predict the next token at every position at once. If "of" could read "France", predicting what follows
# "of" would be copying. So position $i$ may read the keys $j \le i$ and no others: this is the **causal mask**.
#
# It is applied to the scores, **before** the softmax, and the value that it puts in is **minus infinity**. Then
# $e^{-\infty} = 0$ exactly: the key gets no weight, and it is missing from the sum below the fraction as well, as if it did
# not exist. The diagonal is always allowed, so every row keeps at least one finite score. That matters: a row of nothing but
# minus infinity is $0/0$.
# %% [markdown] id="mask" lang="zh" of="814c9426"
# ## 因果掩码
#
# 网络要在每个位置上同时预测下一个 token。如果 “of” 能读到 “France”，预测 “of” 之后的词就成了抄答案。所以位置 $i$ 只能读 $j \le i$ 的
# 键：这就是**因果掩码**（causal mask）。
#
# 它作用在分数上，在 softmax **之前**，填入的值是**负无穷**。这样 $e^{-\infty}$ 恰好等于 0：那个键得不到权重，分母的求和里也没有它，
# 就像不存在一样。对角线总是允许的，所以每行至少留有一个有限的分数。这一点很重要：整行都是负无穷就成了 $0/0$。
# %% id="mask_code"
positions = jnp.arange(T)
visible = trace("visible", positions[None, :] <= positions[:, None], "T S", T=T, S=T)
print(visible.astype(int))
np.testing.assert_array_equal(visible, causal_mask(positions[None], T)[0])

masked = jnp.where(visible, scaled, -jnp.inf)
pattern = trace("pattern", softmax(masked), "T S", T=T, S=T)
assert (pattern[~visible] == 0).all()
close(pattern.sum(axis=-1), np.ones(T), atol=1e-6)
assert jnp.isnan(softmax(jnp.full(T, -jnp.inf))).all()

# en: Row by row it is the softmax of the allowed scores alone.
# zh: 逐行来看，就是只对允许的分数做 softmax。
for i in range(T):
    np.testing.assert_allclose(pattern[i, : i + 1], softmax(scaled[i, : i + 1]), atol=1e-6)
# %% [markdown] id="zero" lang="en"
# ## What a zero does instead
#
# Two wrong masks look harmless.
#
# **Zero in place of minus infinity, before the softmax.** A zero is a score like any other, and $e^0 = 1$: it is a fair
# claim to weight. Where the allowed scores are negative, the forbidden keys even get more than the allowed ones.
#
# **Zero after the softmax.** Now the forbidden weights are gone, but they had been counted in the sum below the fraction.
# The rows no longer add up to one, and what they add up to depends on the future.
#
# Dividing each row once more would repair the second on paper. In float32 it fails when a forbidden score is much
# larger than the allowed ones: their exponentials vanish first, and $0/0$ is all that is left.
# %% [markdown] id="zero" lang="zh" of="03fb0ee5"
# ## 填零会怎样
#
# 有两种错误的掩码看上去无害。
#
# **在 softmax 之前填零，而不是负无穷。** 零也是一个普普通通的分数，$e^0 = 1$，照样分得权重。如果允许的分数是负的，被禁止的键得到的甚至
# 比允许的还多。
#
# **在 softmax 之后填零。** 被禁止的权重没有了，可它们已经算进了分母。各行之和不再是 1，而和是多少又取决于未来。
#
# 再除一次，理论上可以补救第二种。但在 float32 里，若被禁止的分数比允许的大得多就会失败：允许的那些指数先变成零，只剩下 $0/0$。
# %% id="zero_code"
zero_before = softmax(jnp.where(visible, scaled, 0))
zero_after = jnp.where(visible, softmax(scaled), 0)
for i, word in enumerate(words):
    leaked = zero_before[i, i + 1 :].sum()
    total = zero_after[i].sum()
    print(
        f"{word:>10}: zero before: {leaked:.2f} on the future; zero after: the row sums to {total:.2f}"
    )
    if i < T - 1:
        assert leaked > 0
        assert total < 1

negative = softmax(jnp.where(visible, -jnp.ones((T, T)), 0))
assert negative[0, 1] > negative[0, 0]

close(zero_after / zero_after.sum(axis=-1, keepdims=True), pattern, atol=1e-5)
loud = jnp.array([[0.0, 200.0], [0.0, 0.0]])
after = softmax(loud) * jnp.tril(jnp.ones((2, 2)))
assert jnp.isnan((after / after.sum(axis=-1, keepdims=True))[0]).any()
assert softmax(jnp.where(jnp.tril(jnp.ones((2, 2))) > 0, loud, -jnp.inf))[0, 0] == 1
# %% [markdown] id="sum" lang="en"
# ## The weighted sum
#
# Row $i$ of the output is the average of the values that $i$ may see, by its weights: $z_i = \sum_j p_{ij}\, v_j$, or
# $Z = P\,v$ for all rows. Position 0 sees only itself; its weight is 1 and its output is its own value, bit for bit. An average
# cannot leave the range of what it averages, and we check that too.
# %% [markdown] id="sum" lang="zh" of="346c8fc7"
# ## 加权和
#
# 输出的第 $i$ 行，是 $i$ 能看到的各个值按权重的平均：$z_i = \sum_j p_{ij}\, v_j$，对所有行就是 $Z = P\,v$。位置 0 只看得到自己，权重是 1，
# 输出就是它自己的值，一个比特都不差。平均值不会超出被平均的那些数的范围，这一点也一并检查。
# %% id="sum_code"
sums = []
for i in range(T):
    sums.append(sum(pattern[i, j] * v[j] for j in range(i + 1)))

z = trace("z", pattern @ v, "T H", T=T, H=H)
close(jnp.stack(sums), z, atol=1e-5)
assert (z[0] == v[0]).all()
assert (z <= v.max(axis=0) + 1e-5).all()
assert (z >= v.min(axis=0) - 1e-5).all()
# %% [markdown] id="maps" lang="en"
# ## Three pictures of one head
#
# Each row is a query, each column a key. On the left are the scores, on all pairs; in the middle the future is struck out;
# on the right every row adds up to one. Read the right picture row by row: it says from where each token takes
# its value. The first row has no choice. With the default model, "of" keeps mostly to itself, while "is" divides its weight
# among "The", "of" and "France", and hardly takes anything from itself.
# %% [markdown] id="maps" lang="zh" of="6dd373ed"
# ## 一个头的三幅图
#
# 每行是一个查询，每列是一个键。左图是所有配对的分数；中图划掉了未来；右图每一行的和为 1。请逐行看右图：它说明每个 token 从哪里取值。
# 第一行别无选择。在默认模型上，“of” 主要看自己，“is” 则把权重分给 “The”、“of” 和 “France”，几乎不取自己。
# %% id="heat_maps"


def heat(panel, values, title, low, high):
    shown = np.ma.masked_invalid(np.asarray(values))
    colours = plt.get_cmap("Blues").copy()
    colours.set_bad("#dddddd")
    panel.imshow(shown, cmap=colours, vmin=low, vmax=high)
    panel.set_xticks(range(T), words, rotation=30)
    panel.set_yticks(range(T), words)
    panel.set_xlabel("key")
    panel.set_title(title)
    for i in range(T):
        for j in range(T):
            value = float(values[i, j])
            text = f"{value:.2f}" if np.isfinite(value) else r"$-\infty$"
            dark = np.isfinite(value) and value > low + 0.6 * (high - low)
            panel.text(j, i, text, ha="center", va="center", color="white" if dark else "black")


figure, panels = plt.subplots(1, 3, figsize=(12, 4.2))
low, high = float(scaled.min()), float(scaled.max())
heat(panels[0], scaled, "scores", low, high)
heat(panels[1], masked, "scores, masked", low, high)
heat(panels[2], pattern, "pattern", 0, 1)
panels[0].set_ylabel("query")
show(
    figure,
    en="Three heat maps of queries against keys: all scores; the same with minus infinity above the diagonal; "
    "the weights after the softmax, zero above the diagonal.",
    zh="三幅查询对键的热图：全部分数；对角线以上为负无穷的分数；softmax 之后的权重，对角线以上为零。",
)

if is_default:
    of, last = words.index("of"), T - 1
    assert pattern[of, of] > 0.8
    assert pattern[last, jnp.array([0, 2, 3])].sum() > 0.9
    assert pattern[last, last] < 0.05
# %% [markdown] id="library" lang="en"
# ## The library's own attention
#
# All steps in one function. `jax_llama3.model.attention.attention` does the same for all heads at once; a batch of one and a
# single head make it comparable. It takes queries and keys as they come, turned or not, and hands out scores and
# pattern through its tap.
# %% [markdown] id="library" lang="zh" of="3e1044cd"
# ## 本库自己的注意力
#
# 把所有步骤合成一个函数。`jax_llama3.model.attention.attention` 对所有头一次做完同样的事；取一批一行、一个头，就可以比较。它照原样接收查询
# 和键，不管有没有转动过，并通过探针交出分数和权重（pattern）。
# %% id="library_code"


def one_head(q, k, v):
    scores = q @ k.T / q.shape[-1] ** 0.5
    steps = jnp.arange(len(q))
    allowed = steps[None, :] <= steps[:, None]
    scores = jnp.where(allowed, scores, -jnp.inf)
    weights = softmax(scores)
    return scores, weights, weights @ v


close(one_head(q, k, v)[2], z, atol=1e-6)

inside = {}


def tap_inside(name, array):
    inside[name] = array[0, 0]
    return array


library_z = attention(
    q[None, :, None],
    k[None, :, None],
    v[None, :, None],
    causal_mask(positions[None], T),
    tap_inside,
)[0, :, 0]


def same_scores(ours, theirs):
    # en: Minus infinity in the same places, and equal numbers elsewhere.
    # zh: 负无穷的位置相同，其余的数相等。
    np.testing.assert_array_equal(jnp.isinf(ours), jnp.isinf(theirs))
    close(jnp.where(jnp.isinf(ours), 0, ours), jnp.where(jnp.isinf(theirs), 0, theirs))


same_scores(masked, inside["scores"])
close(pattern, inside["pattern"], atol=1e-5)
close(z, library_z, atol=1e-5)
# %% [markdown] id="real" lang="en"
# ## The head at work in the network
#
# Now the whole prompt, in order, through the real network. The taps show queries and keys after their turn by position. We
# take them as given, and everything behind them by our own function: scores, pattern and output of this head must be those
# of the taps, in every layer.
# %% [markdown] id="real" lang="zh" of="32848920"
# ## 网络中真正工作的头
#
# 现在让整个提示按顺序走过真实的网络。探针看到的是按位置转动之后的查询和键。我们直接取用，后面的步骤都用自己的函数：在每一层，这个头的
# 分数、权重和输出都必须与探针一致。
# %% id="real_code"
seen, logits = taps_of([ids])
for index in range(config.n_layers):
    name = f"layers.{index}.attn."
    turned_q = seen[name + "q"][0, :, head]
    turned_k, values = seen[name + "k"][0, :, 0], seen[name + "v"][0, :, 0]
    scores, weights, out = one_head(turned_q, turned_k, values)
    finite = jnp.isfinite(scores)
    np.testing.assert_array_equal(finite, jnp.isfinite(seen[name + "scores"][0, head]))
    np.testing.assert_allclose(scores[finite], seen[name + "scores"][0, head][finite], atol=1e-3)
    np.testing.assert_allclose(weights, seen[name + "pattern"][0, head], atol=1e-4)
    np.testing.assert_allclose(out, seen[name + "z"][0, :, head], atol=1e-3)
print(f"head {head}: scores, pattern and output agree in {config.n_layers} layers")

# en: In the first layer the values are ours; the queries differ by the turn, but for position 0.
# zh: 第一层的值就是我们算的；查询只差那个转动，位置 0 除外。
close(v, seen["layers.0.attn.v"][0, :, 0])
close(q[0], seen["layers.0.attn.q"][0, 0, head])
assert jnp.abs(q[1:] - seen["layers.0.attn.q"][0, 1:, head]).max() > 0.1
# %% [markdown] id="causal" lang="en"
# ## Causality, bit for bit
#
# The mask promises that a later token cannot touch an earlier output. Not "hardly": not at all. A score of minus infinity
# gives a weight of exactly zero, and zero times any finite value adds exactly nothing. So we demand equal bits. We
# replace the token at each position $t$, one at a time: all outputs before $t$ must stay as they are, and the output at $t$
# must move. First our head, then the logits of the whole library. The masks with a zero fail the same test.
# %% [markdown] id="causal" lang="zh" of="60aafa0a"
# ## 因果性：逐比特检验
#
# 掩码保证后面的 token 碰不到前面的输出。不是“几乎碰不到”，而是完全碰不到。负无穷的分数给出的权重恰好是零，零乘任何有限值再加上去，
# 恰好什么也没加。所以我们要求比特相同。依次替换每个位置 $t$ 的 token：$t$ 之前的输出必须原封不动，$t$ 处的输出必须改变。先看我们的头，
# 再看整个库的 logits。填零的掩码通不过同样的检验。
# %% id="causal_code"
other = model.tokenizer.encode(" Rome", bos=False)[0]
assert other not in ids


def heads_output(ids, weights_of):
    x = normed_rows(ids)
    q, k, v = x @ wq_head.T, x @ wk_head.T, x @ wv_head.T
    return weights_of(q, k, v) @ v


def minus_infinity(q, k, v):
    return one_head(q, k, v)[1]


def zero_before_softmax(q, k, v):
    return softmax(jnp.where(visible, q @ k.T / H**0.5, 0))


def zero_after_softmax(q, k, v):
    return jnp.where(visible, softmax(q @ k.T / H**0.5), 0)


def broken(output, original):
    # en: How many positions before a changed token saw the change, over all places of it.
    # zh: 在替换位置之前、却受到影响的位置数，对所有替换位置求和。
    count = 0
    for t in range(1, T):
        changed = output([*ids[:t], other, *ids[t + 1 :]])
        assert (changed[t] != original[t]).any()
        count += int((changed[:t] != original[:t]).any(axis=-1).sum())
    return count


earlier = T * (T - 1) // 2
for weights_of in (minus_infinity, zero_before_softmax, zero_after_softmax):
    found = broken(lambda ids, w=weights_of: heads_output(ids, w), heads_output(ids, weights_of))
    print(f"{weights_of.__name__:<20} {found} of {earlier} earlier outputs changed")
    assert (found == 0) == (weights_of is minus_infinity)

assert broken(lambda ids: taps_of([ids])[1][0], logits[0]) == 0
print(f"the library's logits: 0 of {earlier} earlier rows changed")
# %% [markdown] id="order" lang="en"
# ## What this head cannot know
#
# Our head, without the turn, has a gap. Exchange two tokens before the last: the last query meets the same keys and the
# same values, only in another order, and a sum does not care about order. Its output stays the same. For this head,
# "The capital of France is" and "France of capital The is" end alike. The real network, with its turn by position, tells
# them apart. How, is the subject of lesson 05.
# %% [markdown] id="order" lang="zh" of="fcf9c76c"
# ## 这个头不知道什么
#
# 少了转动，我们的头有一个缺口。交换最后一个 token 之前的两个 token：最后一个查询遇到的还是同样的键、同样的值，只是次序不同，而求和与
# 次序无关，所以输出不变。对这个头来说，“The capital of France is” 与 “France of capital The is” 的结尾没有区别。真实的网络按位置转动，
# 所以分得清。它是怎么做到的，正是第 05 课的主题。
# %% id="order_code"
backwards = [*ids[-2::-1], ids[-1]]
assert sorted(backwards) == sorted(ids)
close(heads_output(backwards, minus_infinity)[-1], z[-1], atol=1e-5)

turned, _ = taps_of([backwards])
forth = seen["layers.0.attn.pattern"][0, head, -1]
back = turned["layers.0.attn.pattern"][0, head, -1]
back = jnp.append(back[-2::-1], back[-1])
print("weights of the last query in the real network, in both orders:")
for word, one, two in zip(words, forth, back, strict=True):
    print(f"{word:>10}: {one:.3f}  {two:.3f}")
assert jnp.abs(forth - back).max() > 1e-2
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** The numbers in $q$ have standard deviation 2, those in $k$ have 3, means are 0, all are independent, and $H$ is
# 128. By which number must the scores be divided to have variance 1?
# %% [markdown] id="exercises" lang="zh" of="ea3adba0"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** $q$ 中的数标准差为 2，$k$ 中的数标准差为 3，均值都是 0，全部独立，$H$ 为 128。要让分数的方差为 1，应当除以哪个数？
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    random = np.random.default_rng(0)
    products = 2 * random.normal(size=(50_000, 128)) * 3 * random.normal(size=(50_000, 128))
    assert abs((products.sum(axis=-1) / answer).var() - 1) < 0.03


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, 2 * 3 * 128**0.5, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Some models let a position see only itself and the few before it. Write a function `(length, window)` that gives
# the square matrix of what may be seen: at most `window` keys for each query, its own included, none from the future.
# %% [markdown] id="exercise_2_text" lang="zh" of="58f1b3b6"
# **2.** 有些模型只让一个位置看到自己和之前的少数几个位置。写一个函数 `(length, window)`，给出可见矩阵：每个查询
# 最多看 `window` 个键，包括它自己，不看未来。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    np.testing.assert_array_equal(answer(T, T), visible)
    for window in (1, 3):
        seen_by = np.asarray(answer(8, window), bool)
        assert [list(np.flatnonzero(row)) for row in seen_by] == [
            list(range(max(0, i - window + 1), i + 1)) for i in range(8)
        ]


exercise(2, answer_2, check_2)


# %% id="solution_2" tags=["solution"]
def windowed(length, window):
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    return (back >= 0) & (back < window)


exercise(2, windowed, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Long prompts are worked off in pieces. A query's keys are cut into two parts, and from each part you have only two
# things: `z`, its output by a softmax over that part alone, and `total`, the sum of its exponentials (of the scores
# themselves, nothing subtracted). Write a function `(z_a, total_a, z_b, total_b)` that gives the output over all keys.
# %% [markdown] id="exercise_3_text" lang="zh" of="49b3a32a"
# **3.** 很长的提示要分段处理。一个查询的键被切成两部分，每部分只留下两样东西：`z`，即只对该部分做 softmax 得到的输出；`total`，即该部分
# 指数之和（直接对分数取指数，不减任何数）。写一个函数 `(z_a, total_a, z_b, total_b)`，给出对全部键的输出。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    last, cut = scaled[-1], 2
    parts = []
    for part in (slice(0, cut), slice(cut, T)):
        parts += [softmax(last[part]) @ v[part], jnp.exp(last[part]).sum()]
    np.testing.assert_allclose(answer(*parts), z[-1], atol=1e-4)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, lambda za, a, zb, b: (a * za + b * zb) / (a + b), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): the head, its
#   scale and its mask
# - Bahdanau, Cho and Bengio, *Neural Machine Translation by Jointly Learning to Align and Translate*, 2014,
#   [arXiv:1409.0473](https://arxiv.org/abs/1409.0473): the idea of a weighted look-up
#
# Next: lesson 05 derives the turn that tells queries and keys where they stand.
# %% [markdown] id="sources" lang="zh" of="0226c56f"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)：注意力头、缩放与掩码
# - Bahdanau、Cho、Bengio，*Neural Machine Translation by Jointly Learning to Align and Translate*，2014，
#   [arXiv:1409.0473](https://arxiv.org/abs/1409.0473)：加权查找的想法
#
# 下一课：第 05 课推导那个转动，它让查询和键知道自己站在哪里。
