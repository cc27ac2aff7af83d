# %% [markdown] id="title" lang="en"
# # 03 · Embedding and RMSNorm
#
# *Reading time 12 minutes. Before it: lesson 02. What it proves: the first two steps of the network, done by hand, are those
# of `jax_llama3`, and where each number in them comes from.*
#
# We have the ids of a prompt (lesson 01) and the weights of the model (lesson 02). Now the first weights are used. An id is
# only a name: nothing about 504 says what it means. The **embedding** gives each id a vector of $D$ numbers, and from here
# on the network works with vectors alone.
# %% [markdown] id="title" lang="zh" of="f9ae25ff"
# # 03 · 嵌入与 RMSNorm
#
# *阅读时间 12 分钟。前置：第 02 课。本课证明：亲手完成的网络前两步与 `jax_llama3` 的结果一致，并弄清其中每个数的来历。*
#
# 我们已经有了提示的编号（第 01 课）和模型的权重（第 02 课），现在第一次用上权重。编号只是名字：504 这个数本身不带任何含义。
# **嵌入**（embedding）给每个编号一个由 $D$ 个数组成的向量，从这里开始，网络只与向量打交道。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jax_llama3_course import close, exercise, load_model, show, trace

model = load_model()
config, params = model.config, model.params
D, V = config.dim, config.vocab_size
ids = model.tokenizer.encode("The capital of France is", bos=True)
T = len(ids)
print([model.tokenizer.decode([i]) for i in ids], ids)
# %% [markdown] id="lookup" lang="en"
# ## Looking up rows
#
# The embedding is a matrix with one row per id, $V$ rows of $D$ numbers. To embed a prompt of $T$ ids is to pick $T$ rows:
#
# $$x_t = E_{\,\mathrm{id}_t}, \qquad E \in \mathbb{R}^{V \times D},\quad x \in \mathbb{R}^{T \times D}.$$
#
# Textbooks write the same as a product of a one-hot row with $E$. The product is right but wasteful: it reads all of $E$ to
# keep $T$ rows of it. We check once that both agree, and then index.
# %% [markdown] id="lookup" lang="zh" of="c41d28a1"
# ## 查表
#
# 嵌入是一个矩阵，每个编号占一行，共 $V$ 行、每行 $D$ 个数。嵌入一个长度为 $T$ 的提示，就是取出其中 $T$ 行：
#
# $$x_t = E_{\,\mathrm{id}_t}, \qquad E \in \mathbb{R}^{V \times D},\quad x \in \mathbb{R}^{T \times D}.$$
#
# 教科书常把它写成独热行向量与 $E$ 的乘积。结果没错，却很浪费：为了 $T$ 行要读完整个 $E$。我们只验证一次两者相等，之后直接用下标。
# %% id="lookup_code"
E = trace("E", params.embedding, "V D", V=V, D=D)
x = trace("x", E[jnp.array(ids)], "T D", T=T, D=D)

one_hot = jax.nn.one_hot(jnp.array(ids), V)
assert one_hot.shape == (T, V)
close(one_hot @ E, x, atol=0)
# %% [markdown] id="same_rows" lang="en"
# Two things follow at once. The same token always gets the same vector, wherever it stands: at this point the network knows
# nothing of order (lesson 05 brings it in). And an id outside the table has no row. JAX does not complain then: a
# computed index that is too large silently gives the last row. That is why `jax_llama3` checks ids first.
# %% [markdown] id="same_rows" lang="zh" of="38cad994"
# 由此立即得到两点。其一，同一个 token 不论出现在哪里，得到的向量都一样：此时网络对顺序一无所知（第 05 课才引入）。其二，表外的
# 编号没有对应的行，而 JAX 不会报错：算出来的下标太大时，它会悄悄取最后一行。所以 `jax_llama3` 先检查编号。
# %% id="same_rows_code"
import jax_llama3

twice = E[jnp.array([ids[0], ids[1], ids[0]])]
assert (twice[0] == twice[2]).all()

# en: A wrong id becomes the last row, without a word.
# zh: 错误的编号变成了最后一行，没有任何提示。
silent = E[jnp.array(V + 5)]
assert (silent == E[V - 1]).all()

# en: The library refuses it instead.
# zh: 本库则会拒绝。
try:
    jax_llama3.forward(params, np.array([[V + 5]]), config)
    raise AssertionError("an id outside the vocabulary was accepted")
except ValueError as error:
    assert str(V + 5) in str(error)
    print("refused:", error)
# %% [markdown] id="why_norm" lang="en"
# ## Why a norm
#
# Look at how long these vectors are. They differ from token to token, and they grow as the layers add to them. A product
# with a weight matrix passes the length on, so without a brake some tokens would speak many times louder than others.
# A norm removes the length and keeps the direction.
#
# **RMSNorm** divides each vector by its root mean square, and then multiplies each of the $D$ numbers by a learned weight:
#
# $$\mathrm{RMSNorm}(x)_d = \frac{x_d}{\sqrt{\frac1D \sum_{j} x_j^2 + \varepsilon}}\; w_d .$$
#
# Two details are often told wrongly. $\varepsilon$ stands **under the root**, added to the mean of squares; it is not added
# to $x$ nor to the result. And it is a property of the checkpoint: Llama 3 and this model use $10^{-5}$, others $10^{-6}$.
# %% [markdown] id="why_norm" lang="zh" of="7771eec4"
# ## 为什么需要归一化
#
# 先看看这些向量有多长。不同 token 的长度不同，而且每过一层都会加上新的内容，长度还会增长。与权重矩阵相乘会把长度原样传下去，若没有
# 刹车，某些 token 的声音会比别的响很多倍。归一化去掉长度，保留方向。
#
# **RMSNorm** 把每个向量除以它自己的均方根，再给 $D$ 个数各乘一个学到的权重：
#
# $$\mathrm{RMSNorm}(x)_d = \frac{x_d}{\sqrt{\frac1D \sum_{j} x_j^2 + \varepsilon}}\; w_d .$$
#
# 有两处常被讲错。$\varepsilon$ 在**根号里面**，加在平方的平均值上；它不加在 $x$ 上，也不加在结果上。另外它是检查点自带的属性：
# Llama 3 和本模型用 $10^{-5}$，也有模型用 $10^{-6}$。
# %% id="by_hand"
eps = config.norm_eps
w = trace("w", params.layers[0].attn_norm, "D", D=D)
root_mean_square = jnp.sqrt(jnp.mean(x**2, axis=-1))
for token, value in zip(ids, root_mean_square, strict=True):
    print(f"{model.tokenizer.decode([token]):>10}  root mean square {value:.3f}")

# en: Row by row, exactly as the formula says.
# zh: 逐行计算，与公式逐字对应。
rows = []
for row in x:
    mean_of_squares = sum(row**2) / D
    rows.append(row / jnp.sqrt(mean_of_squares + eps) * w)
by_rows = trace("by_rows", jnp.stack(rows), "T D", T=T, D=D)

# en: All rows at once.
# zh: 所有行一次完成。
normed = x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * w
close(by_rows, normed, atol=1e-4)
# %% [markdown] id="library" lang="en"
# The library's own function is `jax_llama3.model.layers.rms_norm`, and its first use in the network is what layer 0's attention
# sees. A **tap** is how we look inside the real network: a function that every named activation passes through. What
# goes into the norm is called `embed`; what comes out has no name, so we compare it with the function's result.
# %% [markdown] id="library" lang="zh" of="df86be25"
# 本库对应的函数是 `jax_llama3.model.layers.rms_norm`，它在网络中第一次出现，就是第 0 层注意力的输入。要看真实网络的内部，用**探针**（tap）：
# 一个让每个有名字的激活都经过的函数。归一化之前的激活名为 `embed`；归一化之后没有名字，所以直接与函数比较。
# %% id="library_code"
from jax_llama3.model import layers as network


def rms_norm(x, weight, eps):
    # en: The library's function takes a batch, [B T D]; ours is a batch of one.
    # zh: 库函数处理的是一批，[B T D]；我们只有一行，即 B = 1。
    return network.rms_norm(x[None], weight, eps)[0]


seen = {}


def tap(name, array):
    seen[name] = array
    return array


jax_llama3.forward(params, np.array([ids]), config, tap=tap)
close(seen["embed"][0], x, atol=0)
close(rms_norm(x, w, eps), normed, atol=1e-5)
# %% [markdown] id="properties" lang="en"
# ## What it keeps and what it removes
#
# Without its weights the norm gives every vector a root mean square of one. Scaling the input changes nothing, as long as
# $\varepsilon$ is small beside the mean of squares. Of tiny vectors $\varepsilon$ is what is left: it keeps a row of zeros
# from becoming 0/0.
# %% [markdown] id="properties" lang="zh" of="01c3e2dd"
# ## 保留了什么，去掉了什么
#
# 去掉权重后，归一化让每个向量的均方根等于 1。只要 $\varepsilon$ 相对平方的平均值足够小，缩放输入不会改变结果。向量非常小时起作用的
# 就是 $\varepsilon$：它防止全零的行变成 0/0。
# %% id="properties_code"
ones = jnp.ones(D)
unit = rms_norm(x, ones, eps)
close(jnp.sqrt(jnp.mean(unit**2, axis=-1)), jnp.ones(T), atol=1e-2)
close(rms_norm(1000 * x, ones, 0.0), rms_norm(x, ones, 0.0), atol=1e-4)
assert (rms_norm(jnp.zeros((1, D)), ones, eps) == 0).all()
assert jnp.isnan(rms_norm(jnp.zeros((1, D)), ones, 0.0)).all()

# en: eps outside the root is another function, and on the small vectors of an embedding it shows.
# zh: 把 eps 放到根号外就成了另一个函数；嵌入的向量很小，差别看得出来。
outside = x / (jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) + eps) * w
assert jnp.abs(outside - normed).max() > 1e-4
# %% [markdown] id="layernorm" lang="en"
# ## Against LayerNorm
#
# The older **LayerNorm** first subtracts the mean of the $D$ numbers and has a second learned vector, a bias. RMSNorm drops
# both. If the mean is zero already, the two are equal but for the bias; so centring by hand turns one into the other.
# %% [markdown] id="layernorm" lang="zh" of="2c72dddf"
# ## 与 LayerNorm 相比
#
# 更早的 **LayerNorm** 先减去 $D$ 个数的平均值，还多一个学到的偏置向量。RMSNorm 两者都省了。若平均值本来就是零，除偏置外两者相等；所以先亲手
# 中心化，一个就变成了另一个。
# %% id="layernorm_code"


def layer_norm(x, weight, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight


centred = x - x.mean(-1, keepdims=True)
close(layer_norm(x, w, eps), rms_norm(centred, w, eps), atol=1e-4)
shift = float(jnp.abs(layer_norm(x, w, eps) - normed).max())
assert shift > 1e-4
print(f"on the vectors as they are, the two norms differ by up to {shift:.3f}")
# %% [markdown] id="precision" lang="en"
# ## In float32, always
#
# Weights and activations are often bfloat16: 8 bits of precision, about 2.4 digits. The sum of $D$ squares must not be
# computed in it. When the sum has reached 256, adding 1 gives 256 again, for the step between neighbouring numbers is 2
# there. So the library widens to float32 inside the norm and rounds once at the end.
#
# Below, both are compared with float64 on the same bfloat16 input.
# %% [markdown] id="precision" lang="zh" of="2aebbbeb"
# ## 一律用 float32
#
# 权重和激活常用 bfloat16：8 位有效二进制位，约合 2.4 位十进制。$D$ 个平方之和绝不能用它来累加。和达到 256 之后，再加 1 还是 256，因为
# 那里相邻两个数相差 2。所以本库在归一化内部加宽到 float32，最后只舍入一次。
#
# 下面在同样的 bfloat16 输入上，把两种做法都与 float64 比较。
# %% id="precision_code"
assert jnp.bfloat16(256) + jnp.bfloat16(1) == jnp.bfloat16(256)

narrow = x.astype(jnp.bfloat16)
exact = np.asarray(narrow, np.float64)
exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + eps)

# en: One number after the other, the running sum kept in bfloat16.
# zh: 一个接一个地累加，中间的和保存为 bfloat16。
total = jnp.zeros(T, jnp.bfloat16)
for d in range(D):
    total = total + narrow[:, d] ** 2
in_bfloat16 = narrow / jnp.sqrt(total / D + eps)[:, None]
in_float32 = rms_norm(narrow, jnp.ones(D, jnp.bfloat16), eps)
assert in_float32.dtype == jnp.bfloat16

errors = {
    "sum in bfloat16": np.abs(np.asarray(in_bfloat16, np.float64) - exact),
    "sum in float32": np.abs(np.asarray(in_float32, np.float64) - exact),
}
for name, error in errors.items():
    print(f"{name}: mean error {error.mean():.5f}")
assert errors["sum in bfloat16"].mean() > 3 * errors["sum in float32"].mean()
# %% [markdown] id="picture_text" lang="en"
# The picture shows what the norm did to our prompt: the vectors' sizes before and after, for each token.
# %% [markdown] id="picture_text" lang="zh" of="2183d85b"
# 下图展示归一化对这个提示做了什么：每个 token 的向量在前后的大小。
# %% id="picture"
figure, axes = plt.subplots(figsize=(7, 3))
positions = np.arange(T)
axes.bar(positions - 0.2, root_mean_square, 0.4, label="x")
axes.bar(positions + 0.2, jnp.sqrt(jnp.mean(unit**2, -1)), 0.4, label="RMSNorm(x), w = 1")
axes.set_xticks(positions, [model.tokenizer.decode([i]) for i in ids])
axes.set_ylabel("root mean square")
axes.set_ylim(0, 1.4)
axes.legend(ncols=2)
show(
    figure,
    en="Bars for five tokens: before the norm their root mean squares are small and unequal, after it all are one.",
    zh="五个 token 的柱状图：归一化之前均方根小且各不相同，之后全都等于 1。",
)
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Write the norm with a single call of `jnp.linalg.norm`: a function of `x`, `w` and `eps`, where eps is zero.
# %% [markdown] id="exercises" lang="zh" of="dcb8e672"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 只调用一次 `jnp.linalg.norm` 写出归一化：以 `x`、`w`、`eps` 为参数的函数，这里 eps 为零。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    np.testing.assert_allclose(answer(x, w, 0.0), rms_norm(x, w, 0.0), atol=1e-4)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda x, w, eps: x / jnp.linalg.norm(x, axis=-1, keepdims=True) * D**0.5 * w, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** How many bytes does the embedding of this model take in float32? And what share of all parameters is it?
# Answer with a pair.
# %% [markdown] id="exercise_2_text" lang="zh" of="d6f73dea"
# **2.** 本模型的嵌入用 float32 存放要多少字节？占全部参数的多大比例？用一个二元组回答。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    nbytes, share = answer
    assert nbytes == params.embedding.nbytes
    assert abs(share - params.embedding.size / jax_llama3.count_params(config)) < 1e-3


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, (4 * V * D, V * D / jax_llama3.count_params(config)), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** The norm's weight can be folded into the matrix that follows: for `q = norm(x) @ W.T`, give a matrix `W2` such that
# the norm with all weights one and `W2` give the same `q`.
# %% [markdown] id="exercise_3_text" lang="zh" of="fb7c48c1"
# **3.** 归一化的权重可以并入紧随其后的矩阵：对于 `q = norm(x) @ W.T`，给出一个矩阵 `W2`，使权重全为 1 的归一化配上 `W2` 得到同样的 `q`。
# %% id="exercise_3"
W = params.layers[0].wq.reshape(-1, D)
answer_3 = None


def check_3(answer):
    expected = rms_norm(x, w, eps) @ W.T
    np.testing.assert_allclose(rms_norm(x, ones, eps) @ answer.T, expected, atol=1e-3)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, W * w, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)
# - Ba, Kiros and Hinton, *Layer Normalization*, 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
#
# Next: in lesson 04 the tokens look at each other for the first time.
# %% [markdown] id="sources" lang="zh" of="39c3dfd7"
# ## 来源
#
# - Zhang、Sennrich，*Root Mean Square Layer Normalization*，2019，[arXiv:1910.07467](https://arxiv.org/abs/1910.07467)
# - Ba、Kiros、Hinton，*Layer Normalization*，2016，[arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
#
# 下一课：第 04 课里，token 之间第一次互相看见。
