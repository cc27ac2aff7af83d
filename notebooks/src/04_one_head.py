# %% [markdown] id="title" lang="en"
# # 04 · One attention head by hand
#
# *Reading time 20 minutes. Before it: lesson 03. What it proves: every number of one head of the first layer, from
# three matrix products to its output, can be worked out by hand, and no later token can change an earlier output by a
# single bit.*
#
# How does "is" find out that "France" came before it? So far it cannot. The embedding looks up one row at a time, the norm
# works on one row at a time, and every token is alone. But the word that comes next depends on all of them. Attention is the
# only place in the network where one position reads another, and an **attention head** is its smallest working part.
# %% [markdown] id="title" lang="zh" of="54aa02a6"
# # 04 · 手算一个注意力头
#
# *阅读时间 20 分钟。前置：第 03 课。本课证明：第一层里一个头的每一个数，从三次矩阵乘法直到输出，都能手算出来；后面的 token 连一个比
# 特都改变不了前面的结果。*
#
# “is”怎么知道前面出现过“France”？到目前为止它无从知道。嵌入一次查一行，归一化一次算一行，每个 token 都是孤立的。可下一个词取决于前
# 面所有的词。注意力是网络中唯一让一个位置读到另一个位置的地方，**注意力头**（attention head）则是其中最小的工作单元。
# %% id="setup"
import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.model.attention import attention, causal_mask
from jax_llama3.model.layers import rms_norm
from jax_llama3_course import close, exercise, load_model, on_default_model, show, trace
from jax_llama3_course.figures import one_head as figures

model = load_model()
config, params = model.config, model.params
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
# %% [markdown] id="idea" lang="en"
# ## A look-up with shades of grey
#
# Think of a dictionary in Python: if a key equals what we ask for, its value is the answer. A head does the same with
# vectors. From its row of $x$, every position makes three vectors of $H$ numbers each:
#
# - a **query**: what this position is looking for;
# - a **key**: what it can be found by;
# - a **value**: what it hands over when it is found.
#
# Two vectors are hardly ever equal, so a match is a matter of degree. The dot product of a query and a key is their
# **score**. A softmax turns the scores of one query into weights that add up to one. The answer is the sum of all values,
# each multiplied by its weight. The weights of all queries together are the head's **pattern**.
#
# The drawing below is the whole lesson. $T$ is the number of tokens, $D$ the length of a row, and $H$ the length of a
# head's vectors.
# %% [markdown] id="idea" lang="zh" of="cae3842d"
# ## 一种有程度之分的查找
#
# 想一想 Python 的字典：如果某个键等于所问的内容，它的值就是答案。一个头用向量做同样的事。每个位置由自己那一行 $x$ 得到三个向量，各
# 有 $H$ 个数：
#
# - **查询**（query）：这个位置在找什么；
# - **键**（key）：别人凭什么找到它；
# - **值**（value）：被找到时交出什么。
#
# 两个向量几乎不会相等，所以匹配有程度之分。查询与键的点积就是它们的**分数**（score）。softmax 把一个查询的所有分数变成和为 1 的权重。
# 答案是所有的值各乘以自己的权重，再求和。全部查询的权重合起来，就是这个头的**模式**（pattern）。
#
# 下图就是整节课的内容。$T$ 是 token 个数，$D$ 是一行的长度，$H$ 是头内向量的长度。
# %% id="drawing"
show(
    figures.head_map(),
    en="One head: x goes through three matrices to q, k and v; q and k give scores, then mask and softmax; "
    "the pattern weighs v and gives z.",
    zh="一个头：x 经三个矩阵得到 q、k、v；q 与 k 得到分数，再经掩码与 softmax；所得的模式对 v 加权求和，得到 z。",
)
# %% [markdown] id="rows" lang="en"
# We begin where lesson 03 ended: with one normalised row for each token of our prompt. This is what the attention of
# the first layer sees.
# %% [markdown] id="rows" lang="zh" of="01980b1a"
# 从第 03 课结束的地方开始：提示里的每个 token 对应归一化之后的一行。这就是第一层注意力看到的内容。
# %% id="rows_code"
ids = model.tokenizer.encode("The capital of France is", bos=True)
words = [model.tokenizer.decode([i]).strip() for i in ids]
T = len(ids)
layer = params.layers[0]


def normed_rows(ids):
    return rms_norm(params.embedding[jnp.array(ids)][None], layer.attn_norm, config.norm_eps)[0]


x = trace("x", normed_rows(ids), "T D", T=T, D=D)
# %% [markdown] id="unfold" lang="en"
# ## Unfolding the weights
#
# A checkpoint in PyTorch's format keeps the query weights of all $N$ heads in one matrix with $N \cdot H$ rows: the
# first $H$ rows are head 0, the next $H$ rows are head 1, and so on. Unfolding it is a reshape to $[N\,H\,D]$, which is
# how `jax_llama3` stores it. Keys and values have $K$ heads, often fewer than $N$. Lesson 06 says which of them serves
# which query heads; the first few query heads all share head 0 of the keys and values, and we take one of those.
#
# Each row of a weight matrix makes one output, so the product needs the transpose: $q = x\,W_q^{\top}$.
# %% [markdown] id="unfold" lang="zh" of="e15d18c5"
# ## 展开权重
#
# PyTorch 格式的检查点把全部 $N$ 个头的查询权重放在一个 $N \cdot H$ 行的矩阵里：前 $H$ 行是 0 号头，接下来 $H$ 行是 1 号头，依此类
# 推。展开就是 reshape 成 $[N\,H\,D]$，`jax_llama3` 正是这样存的。键和值有 $K$ 个头，往往比 $N$ 少。哪个查询头用哪一个，第 06 课再
# 讲；最前面的几个查询头共用键和值的 0 号头，我们从中取一个。
#
# 权重矩阵的每一行产生一个输出，所以乘法里要用转置：$q = x\,W_q^{\top}$。
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
# Are these the network's own vectors? The values are. The queries and keys are not quite: before they meet, the network
# turns each of them by angles that depend on its position. Lesson 05 derives that turn, and this lesson leaves it out.
# At position 0 the turn does nothing, which gives us a fair way to compare: hand our tokens to the library as $T$
# prompts of one token each. Every token then stands at position 0, and the taps of the first layer must show what we
# computed. (`close` asserts that two arrays agree in every number, and prints how closely.)
# %% [markdown] id="position" lang="zh" of="cc9c29c0"
# 这些就是网络自己的向量吗？值是的。查询和键还差一步：在它们相遇之前，网络会按位置把每个向量转过一些角度。第 05 课推导这个转动，本课
# 先不考虑。位置 0 上的转动什么也不改变，于是有一个公平的比较办法：把这些 token 当作 $T$ 个提示交给本库，每个提示只有一个 token。这
# 样每个 token 都在位置 0，第一层的探针看到的就应当与我们算出的一致。（`close` 断言两个数组的每个数都一致，并打印一致到什么程度。）
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
# The score of query $i$ and key $j$ is a dot product: $s_{ij} = \sum_h q_{ih}\, k_{jh}$. Both vectors are rows. To get all
# $T \times T$ scores at once we need rows against rows, but a matrix product takes rows against columns. So the keys are
# transposed: $S = q\,k^{\top}$. Row $i$ holds what position $i$ thinks of each key.
#
# If you forget the transpose, the shapes usually protest. But not always: with exactly $H$ tokens both matrices are square,
# the product runs, and every number in it is wrong.
# %% [markdown] id="scores" lang="zh" of="c4ea4106"
# ## 分数，以及其中的转置
#
# 查询 $i$ 与键 $j$ 的分数是一个点积：$s_{ij} = \sum_h q_{ih}\, k_{jh}$。两个向量都是行。要一次得到全部 $T \times T$ 个分数，就要行
# 对行，而矩阵乘法是行对列，所以要把键转置：$S = q\,k^{\top}$。第 $i$ 行是位置 $i$ 给每个键打的分。
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
# Weights should be positive and add up to one. The exponential makes any score positive, and a division does the rest:
#
# $$p_{ij} = \frac{e^{s_{ij}}}{\sum_{m} e^{s_{im}}} .$$
#
# Only the differences within a row count: adding a number $c$ to all scores of a row multiplies every term by $e^c$, which
# cancels. That is useful, because in float32 the exponential of 89 is already infinite. Subtract the row's largest score
# first, and the largest exponential is $e^0 = 1$.
# %% [markdown] id="softmax" lang="zh" of="abd2fb91"
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
# ## Why divide by the square root of H?
#
# The drawing divides the scores by $\sqrt H$, and so far we have not. Why divide at all, and why by this number?
#
# The softmax reacts to the differences between scores, so what matters is how far the scores spread. A score is a sum of
# $H$ products, and a longer sum spreads further. If the numbers in $q$ and $k$ are independent, with mean 0 and variance 1
# (roughly how a fresh network starts), a score spreads by $\sqrt H$. Dividing by $\sqrt H$ brings the spread back to 1,
# whatever $H$ is.
#
# <details><summary>Why the spread is the square root of H (may be skipped)</summary>
#
# Take one term of the dot product:
#
# $$\mathrm{E}[q_h k_h] = \mathrm{E}[q_h]\,\mathrm{E}[k_h] = 0, \qquad
# \mathrm{Var}(q_h k_h) = \mathrm{E}[q_h^2]\,\mathrm{E}[k_h^2] = 1 .$$
#
# Variances of independent terms add up, so the score, a sum of $H$ terms, has variance $H$. Its spread, the standard
# deviation, is the square root of that.
#
# </details>
#
# What happens if the spread is wrong? Let us count how many keys a query really uses. For a row of weights $p$ the
# *effective number of keys* is
#
# $$n_{\mathrm{eff}} = \frac{1}{\sum_j p_j^2} .$$
#
# It is 1 if one key has all the weight, and $n$ if $n$ keys share it equally. Now three claims:
#
# - **Not divided**, the softmax collapses towards a single key, and a larger $H$ makes it worse.
# - **Divided by $H$**, the scores shrink to almost nothing. The softmax becomes nearly uniform: every key gets almost
#   the same weight, and the query no longer chooses.
# - **Divided by $\sqrt H$**, the number of keys stays about the same for every $H$: neither one nor all.
#
# <details><summary>Why a collapsed softmax is hard to train (may be skipped)</summary>
#
# Training moves a weight a little and watches the result. The derivative of $p_i$ with respect to its own score is
# $p_i (1 - p_i)$. Added up over a row, this is
#
# $$1 - \sum_i p_i^2 = 1 - \frac{1}{n_{\mathrm{eff}}},$$
#
# which goes to 0 as the effective number of keys goes to 1. A function that does not respond gives training nothing to
# follow. (In the cell below, `jax.jacobian(f)(x)` is the matrix of the derivatives of every output with respect to
# every input.)
#
# </details>
#
# We measure all of it on random vectors: 400 queries, 100 keys, heads from 16 to 4096 numbers.
# %% [markdown] id="scale" lang="zh" of="cfca9286"
# ## 为什么除以 H 的平方根？
#
# 图中的分数除以了 $\sqrt H$，而我们到现在还没有除。为什么要除，又为什么偏偏除以它？
#
# softmax 对分数之间的差起反应，所以要紧的是分数散布得有多开。分数是 $H$ 个乘积之和，项数越多，散布越大。如果 $q$ 和 $k$ 里的数相互独
# 立，均值为 0、方差为 1（刚初始化的网络大致如此），分数的散布就是 $\sqrt H$。除以 $\sqrt H$，不论 $H$ 是多少，散布都回到 1。
#
# <details><summary>为什么散布是 H 的平方根（可以跳过）</summary>
#
# 看点积中的一项：
#
# $$\mathrm{E}[q_h k_h] = \mathrm{E}[q_h]\,\mathrm{E}[k_h] = 0, \qquad
# \mathrm{Var}(q_h k_h) = \mathrm{E}[q_h^2]\,\mathrm{E}[k_h^2] = 1 .$$
#
# 独立项的方差可以相加，分数是 $H$ 项之和，所以方差为 $H$。散布即标准差，是方差的平方根。
#
# </details>
#
# 散布不对会怎样？我们来数一数，一个查询真正用到了多少个键。对一行权重 $p$，*有效键数*定义为
#
# $$n_{\mathrm{eff}} = \frac{1}{\sum_j p_j^2} .$$
#
# 如果一个键占了全部权重，它等于 1；如果 $n$ 个键平分权重，它等于 $n$。下面是三个论断：
#
# - **不除**：softmax 塌缩到单独一个键，$H$ 越大越严重。
# - **除以 $H$**：分数缩得几乎没有了，softmax 接近均匀，每个键的权重几乎一样，查询不再做选择。
# - **除以 $\sqrt H$**：不论 $H$ 是多少，用到的键数都差不多，既不是一个，也不是全部。
#
# <details><summary>为什么塌缩的 softmax 难以训练（可以跳过）</summary>
#
# 训练就是把权重稍稍挪动，再看结果。$p_i$ 对自己那个分数的导数是 $p_i (1 - p_i)$，一行之和是
#
# $$1 - \sum_i p_i^2 = 1 - \frac{1}{n_{\mathrm{eff}}},$$
#
# 有效键数趋于 1 时，它趋于 0。没有反应的函数，训练就无从下手。（下面的代码里，`jax.jacobian(f)(x)` 是每个输出对每个输入的导数组成的矩
# 阵。）
#
# </details>
#
# 下面用随机向量逐一测量：400 个查询，100 个键，头的大小从 16 到 4096。
# %% id="scale_code"
def effective_keys(weights):
    return 1 / (weights**2).sum(axis=-1)


n_keys = 100
close(effective_keys(jnp.eye(n_keys)), np.ones(n_keys))
close(effective_keys(jnp.full(n_keys, 1 / n_keys)), n_keys, atol=1e-3)

divisors = {"1": lambda h: 1, "sqrt(H)": lambda h: h**0.5, "H": lambda h: h}
sizes = [16, 64, 256, 1024, 4096]
spread, effective = [], {name: [] for name in divisors}
for h in sizes:
    random = np.random.default_rng(h)
    dots = random.normal(size=(400, h)) @ random.normal(size=(n_keys, h)).T
    spread.append(float(dots.std()))
    for name, divisor in divisors.items():
        weights = softmax(jnp.asarray(dots / divisor(h)))
        effective[name].append(float(effective_keys(weights).mean()))
    print(f"H = {h:>4}: spread {spread[-1]:5.1f}, sqrt(H) = {h**0.5:2.0f}; effective keys", end=" ")
    print(", ".join(f"{values[-1]:5.1f} (/ {name})" for name, values in effective.items()))
    assert abs(spread[-1] / h**0.5 - 1) < 0.1

# en: The three claims: it collapses, it becomes uniform, it stays about the same.
# zh: 三个论断：塌缩，接近均匀，大致不变。
assert effective["1"] == sorted(effective["1"], reverse=True)
assert effective["1"][-1] < 1.2
assert effective["H"] == sorted(effective["H"])
assert effective["H"][-1] > 0.99 * n_keys
assert 40 < min(effective["sqrt(H)"]) <= max(effective["sqrt(H)"]) < 46

# en: All derivatives of one row by JAX itself, to check the formula for their sum.
# zh: 由 JAX 求出一行的全部导数，验证上面的求和公式。
row = raw[-1]
derivatives = jax.jacobian(softmax)(row)
close(jnp.trace(derivatives), 1 - 1 / effective_keys(softmax(row)), atol=1e-5)
# %% [markdown] id="scale_real" lang="en"
# And in the trained model? Its numbers are neither independent nor centred, so the derivation says where training
# starts, not where it arrives. We take our head, give it a text of 100 tokens, let every query see all 100 keys, and
# count again.
#
# The same three things happen. That is no accident: multiplying all scores by a number above 1 always sharpens a
# softmax, and dividing by such a number always flattens it. With $\sqrt H$ this head uses 45 of 100 keys, close to the
# number for random vectors. Training does not guarantee that; it is free to make a head sharper or flatter.
# %% [markdown] id="scale_real" lang="zh" of="5ec61829"
# 那么训练好的模型呢？那里的数既不独立，均值也不为 0，所以上面的推导说的是训练的起点，不是终点。取我们的这个头，给它一
# 段 100 个 token 的文本，让每个查询都看到全部 100 个键，再数一遍。
#
# 发生的还是那三件事。这不是碰巧：把所有分数乘以一个大于 1 的数，softmax 总会更尖锐；除以这样的数，总会更平坦。除以 $\sqrt H$ 时，这个
# 头用到 100 个键中的 45 个，与随机向量差不多。训练并不保证这一点：它完全可以让一个头更尖锐，或更平坦。
# %% id="scale_real_code"
text = (
    "A lighthouse keeper once kept a notebook of everything that passed his window. Ships, birds, clouds and, on "
    "clear nights, the planets. He wrote down the time, the wind and one short remark. After forty years the shelf "
    "was full, and a student from the city came to copy the numbers. She found that the remarks were worth more than "
    "the figures: he had noticed which captains were afraid, which summers came early, and when the fish began to "
    "leave the bay. Nobody had asked him to look, and so he had looked at all of it."
)
long_x = normed_rows(model.tokenizer.encode(text, bos=True)[:n_keys])
trace("long x", long_x, "S D", S=n_keys, D=D)
long_raw = (long_x @ wq_head.T) @ (long_x @ wk_head.T).T

real = {}
for name, divisor in divisors.items():
    real[name] = float(effective_keys(softmax(long_raw / divisor(H))).mean())
    print(f"divided by {name}: {real[name]:.1f} of {n_keys} keys")
assert real["1"] < real["sqrt(H)"] < real["H"]

# en: On the course's own model the numbers are known; another model has others.
# zh: 在课程自带的模型上，这些数是已知的；别的模型数值不同。
if on_default_model():
    assert real["1"] < 6
    assert round(real["sqrt(H)"]) == 45
    assert real["H"] > 95

# en: From here on, the scores of our prompt are scaled.
# zh: 从这里起，提示的分数都经过缩放。
scaled = trace("scaled", raw / H**0.5, "T S", T=T, S=T)
# %% id="scale_picture"
show(
    figures.scale(sizes, spread, effective, H, real, n_keys),
    en="Left: the spread of the dot product follows sqrt(H). Right: the effective number of keys over H. Not divided, "
    "it falls to one; divided by H, it rises to all 100; divided by sqrt(H), it stays level near 42. Diamonds mark "
    "a real head.",
    zh="左：点积的散布与 sqrt(H) 重合。右：有效键数随 H 的变化。不除时降到 1；除以 H 时升到全部 100 个；除以 sqrt(H) 时一直在 42 附近。菱形是一个真实的头。",
)
# %% [markdown] id="mask" lang="en"
# ## The causal mask
#
# The network is trained to predict the next token at every position at once. If "of" could read "France", predicting what
# follows "of" would be copying. So position $i$ may read the keys $j \le i$ and no others. This is the **causal mask**.
#
# It is applied to the scores, **before** the softmax, and the value it puts in is **minus infinity**. Then $e^{-\infty}$ is
# exactly 0: the key gets no weight, and it is missing from the sum in the denominator as well, as if it did not exist. The
# diagonal is always allowed, so every row keeps at least one finite score. That matters: a row of nothing but minus
# infinity gives $0/0$.
# %% [markdown] id="mask" lang="zh" of="ab7bb5b1"
# ## 因果掩码
#
# 网络的训练目标，是在每个位置上同时预测下一个 token。如果“of”能读到“France”，预测“of”之后的词就成了抄答案。所以位置 $i$ 只能
# 读 $j \le i$ 的键：这就是**因果掩码**（causal mask）。
#
# 它作用在分数上，在 softmax **之前**，填入的值是**负无穷**。这样 $e^{-\infty}$ 恰好等于 0：那个键得不到权重，分母的求和里也没有它，就
# 像不存在一样。对角线总是允许的，所以每行至少留有一个有限的分数。这一点很重要：整行都是负无穷就成了 $0/0$。
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
# ## What a zero would do
#
# Two wrong masks look harmless.
#
# **Zero instead of minus infinity, before the softmax.** Zero is a score like any other, and $e^0 = 1$ earns its share of
# the weight. Where the allowed scores are negative, the forbidden keys even get more than the allowed ones.
#
# **Zero after the softmax.** Now the forbidden weights are gone, but they were already counted in the denominator. The rows
# no longer add up to one, and what they add up to depends on the future.
#
# On paper, dividing each row by its sum would repair the second mask. In float32 it fails when a forbidden score is
# much larger than the allowed ones: the exponentials of the allowed ones have already become zero, and all that is left
# is $0/0$.
# %% [markdown] id="zero" lang="zh" of="4ba556da"
# ## 填零会怎样
#
# 有两种错误的掩码看上去无害。
#
# **在 softmax 之前填零，而不是负无穷**。零也是一个普普通通的分数，$e^0 = 1$，照样分得权重。如果允许的分数是负的，被禁止的键得到的甚至
# 比允许的还多。
#
# **在 softmax 之后填零**。被禁止的权重没有了，可它们已经算进了分母。各行之和不再是 1，而和是多少又取决于未来。
#
# 理论上，把每一行再除以它的和，就能补救第二种。但在 float32 里，若被禁止的分数比允许的大得多，就会失败：允许的那些分数的指数早已变
# 成零，只剩下 $0/0$。
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
# Row $i$ of the output is a weighted average of the values that $i$ may see: $z_i = \sum_j p_{ij}\, v_j$, or $Z = P\,v$ for
# all rows at once. Position 0 sees only itself, so its weight is 1 and its output is its own value, bit for bit. And an
# average never leaves the range of what it averages; we check that too.
# %% [markdown] id="sum" lang="zh" of="747f3269"
# ## 加权和
#
# 输出的第 $i$ 行，是 $i$ 能看到的各个值的加权平均：$z_i = \sum_j p_{ij}\, v_j$，对所有行就是 $Z = P\,v$。位置 0 只看得到自己，权重
# 是 1，输出就是它自己的值，一个比特都不差。平均值不会超出被平均的那些数的范围，这一点也一并检查。
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
# ## One head in three pictures
#
# What does an attention head do? It lets each token collect something from the tokens before it. Every token holds a
# *query* (what it is looking for), a *key* (what it can be found by) and a *value* (what it hands over). The three pictures
# show one head of layer 0 at work on the five tokens of "The capital of France is". Each row is a token that
# asks, each column a token that is asked.
#
# 1. **Scores.** The number in a cell is the dot product of the row's query and the column's key, divided by $\sqrt H$,
#    where $H$ is the number of entries of a query. The larger, the better they match. So far every token asks every token.
# 2. **Mask.** A token may look back and at itself, but never ahead. All cells above the diagonal become $-\infty$.
# 3. **Pattern.** The softmax turns each row into weights that add up to one. Minus infinity becomes a weight of exactly 0.
#    With these weights the head then adds up the values.
#
# Read the third picture row by row: a row says where its token takes its values from. "The" has no choice, it sees only
# itself. With this model, "of" takes 84 percent of its sum from itself. "is" takes most of its sum from "of", "The" and
# "France", and hardly anything from itself. So the row of "is" now carries a part of what "France" handed over: this is
# how tokens learn of each other.
#
# Do not look for grammar in the numbers. This is one of 270 heads (9 in each of 30 layers), in the very first layer, and it
# does not know yet in which order the words stand; that is lesson 05. And what is handed over need not be used: lesson 09
# shows that the answer depends on the row of "France" itself up to layer 22; then another head fetches what counts.
# %% [markdown] id="maps" lang="zh" of="0e9fdbe1"
# ## 三幅图看懂一个头
#
# 注意力头做什么？它让每个 token 从前面的 token 那里收集一些东西。每个 token 都有一个*查询*（在找什么）、一个*键*（凭什么被找到）和一
# 个*值*（交出什么）。下面三幅图是第 0 层的一个头处理“The capital of France is”五个 token 的情形。每行是一个提问的 token，每列是一个被问
# 的 token。
#
# 1. **分数**。格子里的数是该行的查询与该列的键的点积，再除以 $\sqrt H$，$H$ 是查询的维数。数越大，两者越匹配。此时每个 token 都在问所有的 token。
# 2. **掩码**。一个 token 可以往回看，也可以看自己，但绝不能往前看。对角线以上的格子全部变成 $-\infty$。
# 3. **模式**。softmax 把每一行变成和为 1 的权重。负无穷变成的权重恰好是 0。然后这个头按这些权重把各个值加起来。
#
# 请逐行看第三幅图：一行说明这个 token 从哪里取值。“The”别无选择，只看得到自己。在本模型上，“of”的和有 84% 来自它自己。“is”的和大部
# 分取自“of”、“The”和“France”，几乎不取自己。于是“is”这一行就带上了“France”交出的一部分内容：token 之间就是这样互通消息的。
#
# 不要在这些数里找语法。这只是 270 个头（30 层，每层 9 个）中的一个，位于最前面的一层，而且还不知道词的先后次序；那是第 05 课的内容。交出的东西也未必用得上：第 09 课会看到，直到第 22 层，答案靠的都是“France”自己那一行，随后由另一个头把要紧的内容取走。
# %% id="heat_maps"
show(
    figures.three_maps(scaled, masked, pattern, words),
    en="Three heat maps of queries against keys: all scores; the same with minus infinity above the diagonal; "
    "the weights after the softmax, zero above the diagonal.",
    zh="三幅查询对键的热图：全部分数；对角线以上为负无穷的分数；softmax 之后的权重，对角线以上为零。",
)

# en: What we read off the third picture, on the course's own model; another model has other numbers.
# zh: 从第三幅图读出的内容，只对课程自带的模型成立；别的模型数值不同。
if on_default_model():
    of, last = words.index("of"), T - 1
    assert round(float(pattern[of, of]), 2) == 0.84
    assert pattern[last, jnp.array([0, 2, 3])].sum() > 0.9
    assert pattern[last, last] < 0.05
    assert N * config.n_layers == 270
# %% [markdown] id="library" lang="en"
# ## The library's own attention
#
# Here are all the steps in one function. `jax_llama3.model.attention.attention` does the same for all heads at once;
# with a batch of one and a single head we can compare. It takes queries and keys as they come, turned or not, and shows
# its scores and its pattern to a tap.
# %% [markdown] id="library" lang="zh" of="c67f5574"
# ## 本库自己的注意力
#
# 下面把所有步骤合成一个函数。`jax_llama3.model.attention.attention` 对所有头一次做完同样的事；让一批只有一行，又只有一个头，就可以
# 比较。它照原样接收查询和键，不管有没有转动过，并让探针看到分数和模式。
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
# Now the whole prompt, in order, through the real network. The taps show queries and keys after their turn by position.
# We take those as given and compute the rest with our own function: the scores, the pattern and the output of this head
# must match the taps in every layer.
# %% [markdown] id="real" lang="zh" of="321207bf"
# ## 网络中真正工作的头
#
# 现在让整个提示按顺序走过真实的网络。探针看到的是按位置转动之后的查询和键。我们直接取用，其余的步骤都用自己的函数：在每一层，这个头的
# 分数、模式和输出都必须与探针一致。
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

# en: In the first layer the values are ours; the queries differ by the turn, except at position 0.
# zh: 第一层的值就是我们算的；查询只差那个转动，位置 0 除外。
close(v, seen["layers.0.attn.v"][0, :, 0])
close(q[0], seen["layers.0.attn.q"][0, 0, head])
assert jnp.abs(q[1:] - seen["layers.0.attn.q"][0, 1:, head]).max() > 0.1
# %% [markdown] id="causal" lang="en"
# ## Causality, bit for bit
#
# The mask promises that a later token cannot touch an earlier output, not even slightly. A score of minus infinity
# gives a weight of exactly zero, and zero times any finite value adds exactly nothing. So we may demand equal bits. We
# replace the token at each position $t$ in turn: all outputs before $t$ must stay exactly as they are, and the output
# at $t$ must change. First we try our head, then the logits of the whole library. The masks with a zero fail the same
# test.
# %% [markdown] id="causal" lang="zh" of="26f3ed5a"
# ## 因果性：逐比特检验
#
# 掩码保证后面的 token 碰不到前面的输出，丝毫都碰不到。负无穷的分数给出的权重恰好是零，零乘任何有限值再加上去，恰好什么也没加。所以
# 我们可以要求比特相同。依次替换每个位置 $t$ 的 token：$t$ 之前的输出必须原封不动，$t$ 处的输出必须改变。先看我们的头，再看整个库的
# logits。填零的掩码通不过同样的检验。
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
    # en: How many positions before a replaced token were affected, summed over all places of the replacement.
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
# Without the turn, our head has a gap. Exchange two tokens that come before the last one: the last query meets the same
# keys and the same values, only in another order, and a sum does not care about order. Its output stays the same. To
# this head, "The capital of France is" and "France of capital The is" end alike. The real network turns its vectors by
# position and can tell the two apart. How it does that is the subject of lesson 05.
# %% [markdown] id="order" lang="zh" of="13a5aabc"
# ## 这个头不知道什么
#
# 少了转动，我们的头有一个缺口。交换最后一个 token 之前的两个 token：最后一个查询遇到的还是同样的键、同样的值，只是次序不同，而求和与
# 次序无关，所以输出不变。对这个头来说，“The capital of France is”与“France of capital The is”的结尾没有区别。真实的网络按位置转动
# 向量，所以分得清两者。它是怎么做到的，正是第 05 课的主题。
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
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Below are seven ways to change the queries and keys of our head. Which of them leave its pattern unchanged?
# Predict first, then answer with a set of letters, such as `{"b", "e"}`. The check tries all seven.
# %% [markdown] id="exercises" lang="zh" of="6f0a8a20"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 下面列出七种改动查询和键的办法。哪些不改变这个头的模式？先预测，再用字母的集合回答，例如 `{"b", "e"}`。检查时七种都会试一遍。
# %% id="exercise_1"
ones = jnp.ones(H)
changes = {
    "a": lambda q, k: (q, k + ones),
    "b": lambda q, k: (q + ones, k),
    "c": lambda q, k: (2 * q, k),
    "d": lambda q, k: (2 * q, k / 2),
    "e": lambda q, k: (-q, -k),
    "f": lambda q, k: (q[:, ::-1], k[:, ::-1]),
    "g": lambda q, k: (k, q),
}
answer_1 = None


def check_1(answer):
    unchanged = set()
    for name, change in changes.items():
        difference = jnp.abs(one_head(*change(q, k), v)[1] - pattern).max()
        if difference < 1e-4:
            unchanged.add(name)
        print(f"{name}: weights change by up to {difference:.2f}")
    assert answer == unchanged, "this is not what happened"


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Write down how one score $q_i \cdot k_j$ changes. If every score of a row changes by the same amount, what does the
# softmax do?
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="298b31e3"
# <details><summary>线索</summary>
#
# 写出一个分数 $q_i \cdot k_j$ 怎样变化。如果一行里的每个分数都改变同样多，softmax 会怎样？
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, {"a", "d", "e", "f"}, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Some models let a position see only itself and the few positions before it. Write a function `(length, window)`
# that gives the square matrix of what each position may see: each query sees at most `window` keys, its own included,
# and none from the future. Then predict: if a network had a single layer, and this mask with `window=2`, which tokens
# could reach the last position? And with two such layers, one after the other?
# %% [markdown] id="exercise_2_text" lang="zh" of="d710c3d3"
# **2.** 有些模型只让一个位置看到自己和之前的少数几个位置。写一个函数 `(length, window)`，给出一个方阵，说明每个位置能看到什么：每个
# 查询最多看 `window` 个键，包括它自己，不看未来。再预测一下：如果网络只有一层，用的是 `window=2` 的这种掩码，哪些 token 能影响最后
# 一个位置？前后相接的两层呢？
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    np.testing.assert_array_equal(answer(T, T), visible)
    for window in (1, 3):
        seen_by = np.asarray(answer(8, window), bool)
        assert [list(np.flatnonzero(row)) for row in seen_by] == [
            list(range(max(0, i - window + 1), i + 1)) for i in range(8)
        ]
    # en: Through two layers, a position sees what the positions that it sees can see.
    # zh: 经过两层，一个位置能看到的，就是它看到的那些位置所能看到的。
    one = np.asarray(answer(8, 2), int)
    print("one layer:", np.flatnonzero(one[-1]), "two layers:", np.flatnonzero((one @ one)[-1]))


exercise(2, answer_2, check_2)


# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# The matrix of `i - j`, how far key $j$ lies behind query $i$, comes from two `jnp.arange` with an axis added to each.
# It must be at least 0 and less than `window`.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="aef2b4e9"
# <details><summary>线索</summary>
#
# 矩阵 `i - j` 表示键 $j$ 在查询 $i$ 之前多远，可以由两个各加一个轴的 `jnp.arange` 得到。它应当不小于 0，且小于 `window`。
#
# </details>
# %% id="solution_2" tags=["solution"]
def windowed(length, window):
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    return (back >= 0) & (back < window)


exercise(2, windowed, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Long prompts can be processed in pieces. The keys of one query are cut into two parts. For each part you have
# only two things: `z`, the output of a softmax over that part alone, and `total`, the sum of its exponentials (of the
# scores themselves, with nothing subtracted). Write a function `(z_a, total_a, z_b, total_b)` that gives the output
# over all keys.
# %% [markdown] id="exercise_3_text" lang="zh" of="fedbbe61"
# **3.** 很长的提示可以分段处理。一个查询的键被切成两部分，每部分只留下两样东西：`z`，即只对该部分做 softmax 得到的输出；`total`，即该
# 部分指数之和（直接对分数取指数，不减任何数）。写一个函数 `(z_a, total_a, z_b, total_b)`，给出对全部键的输出。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    last, cut = scaled[-1], 2
    parts = []
    for part in (slice(0, cut), slice(cut, T)):
        parts += [softmax(last[part]) @ v[part], jnp.exp(last[part]).sum()]
    np.testing.assert_allclose(answer(*parts), z[-1], atol=1e-4)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# `z * total` is the sum of the values, each times its exponential, before any division. Sums of two parts can be added.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="a9dc747a"
# <details><summary>线索</summary>
#
# `z * total` 是每个值乘以自己的指数之后的和，还没有做除法。两部分的和可以相加。
#
# </details>
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
# - Bahdanau、Cho、Bengio，*Neural Machine Translation by Jointly Learning to Align and Translate*，2014，[arXiv:1409.0473](https://arxiv.org/abs/1409.0473)：加权查找的想法
#
# 下一课：第 05 课推导那个转动，它让查询和键知道自己站在哪里。
