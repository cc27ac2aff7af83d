# %% [markdown] id="title" lang="en"
# # 05 · RoPE from first principles
#
# *Reading time 25 minutes. Before it: lessons 03 and 04. What it proves: turning pairs of numbers by an angle that grows
# with the position makes every score depend on the distance between two tokens and on nothing else about their places;
# four ways to compute it give the queries and keys of `jax_llama3`.*
#
# "The dog bites the man" and "the man bites the dog" have the same words. The head of lesson 04 cannot tell them apart.
# So how does a network know where a word stands? Llama's answer is **RoPE**, the rotary position embedding: a short
# computation with a longer explanation, though school trigonometry is all it takes. The proofs are in boxes that you may
# skip, and every step of them is run.
#
# Three letters keep their meaning throughout: $m$ is the position of a query, $n$ that of a key, and $r$ counts pairs of
# numbers, from $0$ to $R-1$ with $R = H/2$.
# %% [markdown] id="title" lang="zh" of="994b62cc"
# # 05 · 从原理推导 RoPE
#
# *阅读时间 25 分钟。前置：第 03、04 课。本课证明：把数两两配对，每一对转过一个随位置增长的角度，分数就只取决于两个 token 的距离，与它
# 们各自的位置再无关系；四种算法得到的查询和键都与 `jax_llama3` 一致。*
#
# “狗咬人”和“人咬狗”用的是同样几个字，第 04 课的注意力头却分不清它们。那么网络怎么知道一个词在什么位置？Llama 的办法
# 是 **RoPE**（rotary position embedding，**旋转位置编码**）：计算很短，道理却要讲上一阵，不过只用到中学的三角函数。证明放在可以跳过
# 的框里，每一步都会运行验证。
#
# 三个字母的含义贯穿全课：$m$ 是查询的位置，$n$ 是键的位置，$r$ 是数对的序号，从 $0$ 到 $R-1$，其中 $R = H/2$。
# %% id="setup"
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import jax_llama3
from jax_llama3.model import layers as network
from jax_llama3.model.config import RopeScaling
from jax_llama3.model.rope import apply_rope, rope_frequencies, rope_tables
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import rope as figures

model = load_model()
config, params = model.config, model.params
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
R = H // 2
# %% [markdown] id="no_order" lang="en"
# ## Attention does not see order
#
# A head compares one query with each key, turns the scores into weights and adds up the values. A sum does not care about
# the order of its terms. Shuffle the earlier tokens, keys and values together, and the last token gets the same result: to
# this head, "The capital of France is" and "France capital of The is" are one bag of words. The causal mask only says which
# tokens are earlier, not how much earlier.
#
# (With many layers, the mask alone does let some order through: a token early in the text has fewer tokens to look at.
# Models can be trained with that hint alone, as the last source below shows. Llama is told the positions.)
# %% [markdown] id="no_order" lang="zh" of="82c30eca"
# ## 注意力看不见顺序
#
# 一个头把一个查询与每个键比较，把分数变成权重，再把值加权求和。求和不在乎各项的先后。把前面的 token 打乱（键和值一起动），最后一
# 个 token 得到的结果不变：在这个头看来，“The capital of France is”与“France capital of The is”是同一个词袋。因果掩码只说明哪
# 些 token 在前面，并不说明在前面多远。
#
# （层数多了以后，单凭掩码也会透露一点顺序信息：越靠前的 token，能看到的 token 越少。单凭这点线索也能训练出模型，见文末来源的最后一
# 篇。Llama 则把位置明确地告诉网络。）
# %% id="head_code"
ids = model.tokenizer.encode("The capital of France is", bos=True)
T = len(ids)
seen = {}


def tap(name, array):
    seen[name] = array
    return array


logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=tap)

# en: Query, key and value of head 0 in layer 0, before anything is done about positions.
# zh: 第 0 层第 0 个头的查询、键和值，此时还没有加入任何位置信息。
layer = params.layers[0]
x = network.rms_norm(params.embedding[jnp.array([ids])], layer.attn_norm, config.norm_eps)[0]
wq, wk, wv = layer.wq[0], layer.wk[0], layer.wv[0]
q = trace("q", x @ wq.T, "T H", T=T, H=H)
k = trace("k", x @ wk.T, "T H", T=T, H=H)
v = trace("v", x @ wv.T, "T H", T=T, H=H)
# %% id="no_order_code"


def last_token(q, k, v):
    weights = jax.nn.softmax(q[-1] @ k.T / H**0.5)
    return weights @ v


shuffled = jnp.array([T - 2, *range(1, T - 2), 0, T - 1])
print([model.tokenizer.decode([ids[t]]) for t in shuffled])
close(last_token(q, k[shuffled], v[shuffled]), last_token(q, k, v), atol=1e-5)


# %% [markdown] id="wish" lang="en"
# ## Where should the position go?
#
# The first idea is to **add** it. Give every position $m$ a vector $p_m$, and add it to the token's row at the very
# beginning, **before** the projections $W_q$ and $W_k$. This is what the first transformer did. A projection is linear, so
# the query becomes $W_q(x + p_m) = q + a_m$ with $a_m = W_q\,p_m$, and the key becomes $k + b_n$ with $b_n = W_k\,p_n$.
# Multiply out their score:
#
# $$(q + a_m)\cdot(k + b_n) = q\cdot k + q\cdot b_n + a_m\cdot k + a_m\cdot b_n .$$
#
# The two terms in the middle depend on one position each. So the same two words, three apart, score differently at the
# start of a text and on its tenth page. Would it help to add the vectors **after** the projections, to $q$ and $k$
# themselves? No: the same four terms come out, only with other vectors. The trouble is not where we add, but that we add.
#
# RoPE differs in both respects. It works **after** the projections, on queries and keys alone, just before they are
# multiplied, and it does so again in every layer. And it turns instead of adding. No position is ever added to a token's
# row.
#
# To see why turning is the answer, look for a function $f(x, m)$ that puts a position into a query or a key, and ask for
# three things.
#
# 1. **Only the distance counts**: $f(q, m)\cdot f(k, n)$ is a function of $q$, $k$ and $m - n$.
# 2. **No position is louder than another**: $f(x, m)$ is as long as $x$.
# 3. **It is simple**: $f(x, m)$ is linear in $x$, that is, $x$ times a matrix which depends on $m$ alone.
#
# For a vector of two numbers these wishes leave one kind of function: $f$ is a **rotation** of the plane by an angle
# $\varphi(m)$. The next sections find the angle, and then go from two numbers to all $H$.
#
# <details><summary>Why only rotations are left (may be skipped)</summary>
#
# Let $M_m$ be the matrix of position $m$, and $M_0 = 1$ (a fixed matrix for all positions would only change $q$ and $k$).
# Wish 1 says that $M_m^\top M_n$ depends on $n - m$ alone, so it equals $M_0^\top M_{n-m} = M_{n-m}$. Wish 2 says
# $M_m^\top M_m = 1$, and so $M_n = M_m M_{n-m}$: every step multiplies by the same matrix, $M_n = (M_1)^n$.
#
# The linear maps of the plane that keep all lengths are rotations about the origin and reflections. Two equal reflections
# cancel, so if $M_1$ were one we could only tell odd distances from even ones. That leaves rotations.
#
# </details>
# %% [markdown] id="wish" lang="zh" of="7de491c1"
# ## 位置该放在哪里？
#
# 最先想到的是**相加**。给每个位置 $m$ 一个向量 $p_m$，一开始就加到 token 的那一行上，也就是在投影 $W_q$、$W_k$ **之前**。最早
# 的 transformer 就是这样做的。投影是线性的，所以查询变成 $W_q(x + p_m) = q + a_m$，其中 $a_m = W_q\,p_m$；键变成 $k + b_n$，其
# 中 $b_n = W_k\,p_n$。把分数展开：
#
# $$(q + a_m)\cdot(k + b_n) = q\cdot k + q\cdot b_n + a_m\cdot k + a_m\cdot b_n .$$
#
# 中间两项各自只依赖一个位置。于是同样两个词、同样相隔三个位置，在文章开头和在第十页得到的分数就不同。那么改在投影**之后**，直接加到
# $q$ 和 $k$ 上呢？没有用：展开后还是这四项，只是换了向量。问题不在加在哪里，而在相加本身。
#
# RoPE 在两点上都不同。它作用在投影**之后**、查询与键相乘之前，只动这两者，而且每一层都重新做一次。另外，它不是相加，而是转
# 动：token 的那一行里从不加入位置。
#
# 为什么是转动？我们要找一个函数 $f(x, m)$，把位置放进查询或键里，并提出三个要求。
#
# 1. **只看距离**：$f(q, m)\cdot f(k, n)$ 是 $q$、$k$ 和 $m - n$ 的函数。
# 2. **长度不变**：$f(x, m)$ 与 $x$ 一样长，哪个位置都不比别的更响。
# 3. **简单**：$f(x, m)$ 对 $x$ 是线性的，即 $x$ 乘以一个只由 $m$ 决定的矩阵。
#
# 对只有两个数的向量，满足这些要求的函数只剩一类：$f$ 是平面上转过角度 $\varphi(m)$ 的**旋转**（rotation）。接下来几节求出这个角度，然
# 后从两个数走到全部 $H$ 个数。
#
# <details><summary>为什么只剩下旋转（可以跳过）</summary>
#
# 记位置 $m$ 的矩阵为 $M_m$，并设 $M_0 = 1$（对所有位置都一样的矩阵只会改变 $q$ 和 $k$ 本身）。要求 1 说 $M_m^\top M_n$ 只
# 由 $n - m$ 决定，所以等于 $M_0^\top M_{n-m} = M_{n-m}$。要求 2 说 $M_m^\top M_m = 1$，于是 $M_n = M_m M_{n-m}$：每前进一步都乘以同一
# 个矩阵，$M_n = (M_1)^n$。
#
# 平面上保持所有长度不变的线性映射，只有绕原点的旋转和反射两类。同一个反射做两次就抵消了，如果 $M_1$ 是反射，就只能分清距离是奇数还是
# 偶数。于是只剩下旋转。
#
# </details>
# %% id="wish_code"
def position_vector(m, size):
    """The first transformer's: sines and cosines of the position at size / 2 speeds."""
    angles = np.asarray(m)[..., None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
    return np.sqrt(2) * np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


# en: As loud as the rows themselves. The rows are those that the projections read, after the norm.
# zh: 与各行本身一样响。这里的行是投影读到的，即归一化之后的。
loudness = float(jnp.sqrt(jnp.mean(x**2)))
scores = {}
for m, n in [(3, 0), (1003, 1000)]:
    p_m, p_n = (loudness * position_vector(place, D) for place in (m, n))
    a_m, b_n = wq @ p_m, wk @ p_n
    terms = [q[-1] @ k[0], q[-1] @ b_n, a_m @ k[0], a_m @ b_n]
    scores[m, n] = float((wq @ (x[-1] + p_m)) @ (wk @ (x[0] + p_n)))
    close(scores[m, n], sum(terms), atol=1e-2)
    print(f"m = {m}, n = {n}: score {scores[m, n]:.1f} =", " + ".join(f"({t:.1f})" for t in terms))
assert abs(scores[3, 0] - scores[1003, 1000]) > 1
# %% [markdown] id="complex" lang="en"
# ## Turning a pair of numbers
#
# To turn a pair $(a, b)$ by the angle $\varphi$, anticlockwise, compute
#
# $$a' = a\cos\varphi - b\sin\varphi, \qquad b' = a\sin\varphi + b\cos\varphi .$$
#
# We need three facts about this. The pair keeps its length. Two turns, one after the other, are one turn by the sum of
# their angles. And the dot product of two pairs depends only on their lengths and on the angle between them: it is the
# product of the lengths, times the cosine of that angle. The cell below checks all three.
#
# <details><summary>The same with complex numbers (may be skipped)</summary>
#
# Write the pair $(a, b)$ as the complex number $z = a + b\,\mathrm{i}$. Here $\mathrm{i}$ is the imaginary unit,
# $\mathrm{i}^2 = -1$, and never an index; Python spells it `1j`. Then the two operations that we need become one
# multiplication each.
#
# **A turn.** Let $e^{\mathrm{i}\varphi} = \cos\varphi + \mathrm{i}\sin\varphi$, the point at angle $\varphi$ on the circle of
# radius one. Multiply out, with $\mathrm{i}^2 = -1$:
#
# $$z\,e^{\mathrm{i}\varphi} = (a\cos\varphi - b\sin\varphi) + \mathrm{i}\,(a\sin\varphi + b\cos\varphi).$$
#
# That is the pair turned by $\varphi$. Two turns add up:
# $e^{\mathrm{i}\alpha}e^{\mathrm{i}\beta} = e^{\mathrm{i}(\alpha+\beta)}$, which is the addition theorem of sine and
# cosine.
#
# **A dot product.** The conjugate $w^{*}$ of $w = c + d\,\mathrm{i}$ is $c - d\,\mathrm{i}$. Then
#
# $$\mathrm{Re}(z\,w^{*}) = \mathrm{Re}\big((a + b\,\mathrm{i})(c - d\,\mathrm{i})\big) = ac + bd ,$$
#
# the dot product of the two pairs. Conjugation reverses an angle:
# $(e^{\mathrm{i}\varphi})^{*} = e^{-\mathrm{i}\varphi}$.
#
# </details>
# %% [markdown] id="complex" lang="zh" of="1c130f1b"
# ## 转动一对数
#
# 把数对 $(a, b)$ 逆时针转过角度 $\varphi$，就是计算
#
# $$a' = a\cos\varphi - b\sin\varphi, \qquad b' = a\sin\varphi + b\cos\varphi .$$
#
# 我们需要三个事实。转动不改变数对的长度。连续两次转动等于一次转动，角度相加。两个数对的点积只取决于各自的长度和两者的夹角：等于长度之
# 积乘以夹角的余弦。下面的代码逐一检验。
#
# <details><summary>用复数再说一遍（可以跳过）</summary>
#
# 把数对 $(a, b)$ 写成复数 $z = a + b\,\mathrm{i}$。这里的 $\mathrm{i}$ 是虚数单位，$\mathrm{i}^2 = -1$，绝不用作下标；Python 把它写
# 作 `1j`。这样，我们需要的两种运算就都变成了一次乘法。
#
# **转动**。令 $e^{\mathrm{i}\varphi} = \cos\varphi + \mathrm{i}\sin\varphi$，即单位圆上角度为 $\varphi$ 的点。利
# 用 $\mathrm{i}^2 = -1$ 展开：
#
# $$z\,e^{\mathrm{i}\varphi} = (a\cos\varphi - b\sin\varphi) + \mathrm{i}\,(a\sin\varphi + b\cos\varphi).$$
#
# 这正是把数对转过 $\varphi$。连续两次转动，角度相加：$e^{\mathrm{i}\alpha}e^{\mathrm{i}\beta} = e^{\mathrm{i}(\alpha+\beta)}$，也就是
# 正弦、余弦的和角公式。
#
# **点积**。$w = c + d\,\mathrm{i}$ 的共轭是 $w^{*} = c - d\,\mathrm{i}$。于是
#
# $$\mathrm{Re}(z\,w^{*}) = \mathrm{Re}\big((a + b\,\mathrm{i})(c - d\,\mathrm{i})\big) = ac + bd ,$$
#
# 正是两个数对的点积。取共轭会使角度反号：$(e^{\mathrm{i}\varphi})^{*} = e^{-\mathrm{i}\varphi}$。
#
# </details>
# %% id="complex_code"
a, b, c, d = 2.0, 1.0, -0.5, 3.0
alpha, beta = 0.7, 1.9


def turn_matrix(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


turned = turn_matrix(alpha) @ [a, b]
np.testing.assert_allclose(np.hypot(*turned), np.hypot(a, b))
np.testing.assert_allclose(turn_matrix(alpha) @ turn_matrix(beta), turn_matrix(alpha + beta))
between = np.arctan2(b, a) - np.arctan2(d, c)
np.testing.assert_allclose(a * c + b * d, np.hypot(a, b) * np.hypot(c, d) * np.cos(between))
print(f"({a}, {b}) turned by {alpha} radians: ({turned[0]:.3f}, {turned[1]:.3f})")

# en: The same with complex numbers.
# zh: 用复数再算一遍。
z, w = a + b * 1j, c + d * 1j
np.testing.assert_allclose(z * np.exp(1j * alpha), turned[0] + 1j * turned[1])
np.testing.assert_allclose((z * np.conj(w)).real, a * c + b * d)
# %% [markdown] id="angle" lang="en"
# ## Which angle? The position times a constant
#
# Turn a pair of the query by $\varphi(m)$ and the same pair of the key by $\varphi(n)$. Their dot product depends on
# their lengths, which do not change, and on the angle between them, which changes by $\varphi(m) - \varphi(n)$. The first
# wish says that this change may depend on the distance $m - n$ only. In particular, one step ahead always adds the same
# angle. Call it $\omega$. Then, starting from no turn at position 0,
#
# $$\varphi(m) = m\,\omega :$$
#
# **the angle is the position times a constant.** The only freedom left for a pair is the number $\omega$, its frequency.
# The query and the key must use the same one, or the positions would not cancel.
#
# **Radians.** Angles are in radians, as `cos` and `sin` expect them: a whole turn is $2\pi \approx 6.283$, and one radian is
# $180/\pi \approx 57.3$ degrees. With $\omega = 1$, position 1 is turned by 57.3 degrees and not by one degree.
#
# <details><summary>The same as one formula (may be skipped)</summary>
#
# Let $z$ be the pair of the query and $w$ that of the key, as complex numbers. Turn both and take the dot product:
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}\varphi(m)}\;\big(w\,e^{\mathrm{i}\varphi(n)}\big)^{*}\Big)
# = \mathrm{Re}\Big(z\,w^{*}\;e^{\mathrm{i}(\varphi(m)-\varphi(n))}\Big).$$
#
# By the first wish this depends on $m-n$ only, whatever $z$ and $w$ are. So $\varphi(m)-\varphi(n)$ itself, up to whole
# turns, depends on $m - n$ only, and
#
# $$\varphi(m) - \varphi(m-1) = \omega \quad\text{for every } m, \qquad\text{hence}\qquad \varphi(m) = \varphi(0) + m\,\omega .$$
#
# $\varphi(0)$ cancels in every difference, so we set it to zero; whole turns change nothing. What remains is
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}m\omega}\;\big(w\,e^{\mathrm{i}n\omega}\big)^{*}\Big)
# = \mathrm{Re}\Big(z\,w^{*}\;e^{\mathrm{i}(m-n)\omega}\Big) .$$
#
# </details>
# %% [markdown] id="angle" lang="zh" of="88bf38bf"
# ## 用什么角度？位置乘以一个常数
#
# 把查询中的一对数转过 $\varphi(m)$，键中同一位置的一对转过 $\varphi(n)$。点积取决于两者的长度和夹角：长度不变，夹角改变
# 了 $\varphi(m) - \varphi(n)$。第一个要求说，这个改变量只能依赖距离 $m - n$。特别地，位置每前进一步，增加的角度总是相同，记
# 作 $\omega$。位置 0 不转，于是
#
# $$\varphi(m) = m\,\omega :$$
#
# **角度只能是位置乘以一个常数**。对一对数来说，剩下的自由只有 $\omega$ 这一个数，即它的频率。查询和键必须用同一个 $\omega$，否则各自
# 的位置就抵消不掉。
#
# **弧度**。角度一律用弧度，`cos` 和 `sin` 要的就是弧度：一整圈是 $2\pi \approx 6.283$，一弧度是 $180/\pi \approx 57.3$ 度。
# 当 $\omega = 1$ 时，位置 1 转过的是 57.3 度，而不是一度。
#
# <details><summary>写成一个公式（可以跳过）</summary>
#
# 设 $z$ 是查询中的一对数，$w$ 是键中对应的一对，都写成复数。两者都转动，再求点积：
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}\varphi(m)}\;\big(w\,e^{\mathrm{i}\varphi(n)}\big)^{*}\Big)
# = \mathrm{Re}\Big(z\,w^{*}\;e^{\mathrm{i}(\varphi(m)-\varphi(n))}\Big).$$
#
# 按第一个要求，不论 $z$、$w$ 取什么值，结果都只依赖 $m-n$。因此 $\varphi(m)-\varphi(n)$ 本身（不计整圈）也只依赖 $m-n$，而且
#
# $$\varphi(m) - \varphi(m-1) = \omega \quad\text{对任意 } m, \qquad\text{故}\qquad \varphi(m) = \varphi(0) + m\,\omega .$$
#
# $\varphi(0)$ 在任何差里都会抵消，不妨取零；整圈则没有任何影响。剩下的就是
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}m\omega}\;\big(w\,e^{\mathrm{i}n\omega}\big)^{*}\Big)
# = \mathrm{Re}\Big(z\,w^{*}\;e^{\mathrm{i}(m-n)\omega}\Big) .$$
#
# </details>
# %% id="angle_code"
for omega in (1.0, 0.1):
    at = {
        (m, n): (z * np.exp(1j * m * omega) * np.conj(w * np.exp(1j * n * omega))).real
        for m, n in [(3, 0), (103, 100), (0, 3)]
    }
    print(
        f"frequency {omega}: " + ", ".join(f"m, n = {m}, {n}: {s:.3f}" for (m, n), s in at.items())
    )
    np.testing.assert_allclose(at[3, 0], at[103, 100])

    # en: The sign of the distance counts: three before is not three after.
    # zh: 距离有正负之分：同样相隔三个位置，在前和在后并不相同。
    assert abs(at[3, 0] - at[0, 3]) > 0.1

np.testing.assert_allclose(np.rad2deg(1.0), 57.3, atol=0.01)
assert abs(np.cos(1.0) - np.cos(np.deg2rad(1.0))) > 0.4
# %% [markdown] id="many" lang="en"
# ## From a plane to a whole head
#
# A head has $H$ numbers, not two. So cut them into $R = H/2$ pairs, and turn each pair in a plane of its own, with a
# frequency $\omega_r$ of its own. That is a leap, and it raises two questions.
#
# **Why pairs?** Could there be a cleverer way to turn a vector of $H$ numbers? No. Seen along suitable axes, every
# rotation of an $H$-dimensional space is nothing but $R$ planes that turn side by side, each by an angle of its own. And
# the suitable axes come for free: they are one fixed change of coordinates for queries and keys alike, which $W_q$ and
# $W_k$ absorb in training. Working in pairs loses nothing.
#
# **Why many frequencies?** A single pair is a clock with one hand, and it repeats. After 710 positions a hand of
# $\omega = 1$ has made 113 turns, to within a ten-thousandth of a radian: distance 710 looks like distance 0. A slow hand
# does not come round so soon, but it cannot tell neighbours apart. So use hands of many speeds, as a clock does for
# hours, minutes and seconds. RoPE spaces them evenly on a logarithmic scale:
#
# $$\omega_r = \Theta^{-2r/H}, \qquad r = 0, 1, \ldots, R-1 ,$$
#
# in radians per position. $\Theta$ is the base, `rope_theta` in the config. The first pair always has $\omega_0 = 1$,
# each pair is slower than the one before it by the same ratio $\Theta^{2/H}$, and even the last is faster than
# $1/\Theta$. (Papers write $\theta_i$ for the frequencies and $\theta$ for the base. That $i$ is easily confused with the
# imaginary unit, which is why the pair's index is $r$ here.)
#
# <details><summary>Why every rotation is a set of turning planes (may be skipped)</summary>
#
# By the wishes, $M_n = (M_1)^n$ with $M_1^\top M_1 = 1$, in any number of dimensions. The eigenvalues of such a matrix have
# absolute value 1. Those that are not real come in conjugate pairs $e^{\pm\mathrm{i}\omega}$, and the real and the imaginary
# part of the eigenvector span a plane in which $M_1$ turns by $\omega$. The real ones are $1$ and $-1$: two of the former
# make a plane that is turned by 0, two of the latter one that is turned by $\pi$. (If a single $1$ and a single $-1$ are
# left over, the matrix mirrors one direction. As in the plane, that would tell odd distances from even ones and no more.)
#
# Let the columns of $S$ be these axes. Then $M_n = S\,B_n S^\top$, where $B_n$ turns plane $r$ by $n\,\omega_r$, and
#
# $$(M_m q)\cdot(M_n k) = (B_m\,S^\top q)\cdot(B_n\,S^\top k) .$$
#
# With $S^\top W_q$ and $S^\top W_k$ as the weights, the axes have disappeared and only the planes are left. Two cells
# below, a random rotation of eight dimensions is taken apart in this way.
#
# </details>
# %% [markdown] id="many" lang="zh" of="7abd22f1"
# ## 从一个平面到整个头
#
# 一个头有 $H$ 个数，不是两个。于是把它们分成 $R = H/2$ 对，每一对在自己的平面里转动，有自己的频率 $\omega_r$。这一步跨得不小，要回答
# 两个问题。
#
# **为什么是一对一对**？转动一个有 $H$ 个数的向量，会不会有更巧妙的办法？没有。沿着合适的坐标轴看，$H$ 维空间的任何旋转都不过是
# $R$ 个平面各自转动，各有各的角度。而合适的坐标轴不用花任何代价：那只是一次固定的坐标变换，对查询和键都一样，$W_q$ 和 $W_k$ 在训练
# 时自然就吸收了。两两配对没有任何损失。
#
# **为什么要许多频率**？单独一对数就像只有一根指针的钟，会重复。经过 710 个位置，$\omega = 1$ 的指针几乎正好转了 113 圈，误差不到万
# 分之一弧度：距离 710 看上去就像距离 0。较慢的指针不会这么快转回来，却分不清相邻的位置。所以要用快慢不同的许多指针，就像钟表有时
# 针、分针和秒针。RoPE 让它们的频率在对数尺度上均匀分布：
#
# $$\omega_r = \Theta^{-2r/H}, \qquad r = 0, 1, \ldots, R-1 ,$$
#
# 单位是弧度每位置。$\Theta$ 是底数，即配置里的 `rope_theta`。第一对总有 $\omega_0 = 1$，此后每一对的频率都是前一对
# 的 $\Theta^{-2/H}$ 倍，最后一对也仍然快于 $1/\Theta$。（论文里频率写作 $\theta_i$，底数写作 $\theta$；那个 $i$ 很容易与虚数单位混
# 淆，所以这里数对的序号用 $r$。）
#
# <details><summary>为什么任何旋转都是一组转动的平面（可以跳过）</summary>
#
# 由那三个要求，不论维数是多少，都有 $M_n = (M_1)^n$ 且 $M_1^\top M_1 = 1$。这种矩阵的特征值绝对值都是 1。不是实数的特征值成对出现，互
# 为共轭：$e^{\pm\mathrm{i}\omega}$；特征向量的实部和虚部张成一个平面，$M_1$ 在其中转过 $\omega$。实的特征值只有 $1$ 和 $-1$：两
# 个 $1$ 合成一个转过 0 的平面，两个 $-1$ 合成一个转过 $\pi$ 的平面。（如果最后剩下单独一个 $1$ 和单独一个 $-1$，矩阵就在一个方向上做
# 了反射。与平面的情形一样，这只能分清距离的奇偶。）
#
# 把这些坐标轴作为 $S$ 的列，则 $M_n = S\,B_n S^\top$，其中 $B_n$ 把第 $r$ 个平面转过 $n\,\omega_r$，于是
#
# $$(M_m q)\cdot(M_n k) = (B_m\,S^\top q)\cdot(B_n\,S^\top k) .$$
#
# 把 $S^\top W_q$ 和 $S^\top W_k$ 当作权重，坐标轴就消失了，只剩下那些平面。下面第二个代码单元格就用这个办法拆开一个随机的八维旋转。
#
# </details>
# %% id="frequencies"
# en: Without the scaling of Llama 3.1, which comes later in this lesson.
# zh: 先不考虑 Llama 3.1 的缩放，后面会讲到。
unscaled = dataclasses.replace(config, rope_scaling=None)
omega = np.array([config.rope_theta ** (-2 * r / H) for r in range(R)])
trace("omega", omega, "R", R=R)
np.testing.assert_allclose(omega, rope_frequencies(unscaled), rtol=1e-6)
np.testing.assert_allclose(omega[:-1] / omega[1:], config.rope_theta ** (2 / H))
assert omega[0] == 1
assert omega[-1] > 1 / config.rope_theta
for r in (0, 1, R // 2, R - 1):
    print(f"pair {r:>3}: {omega[r]:.6f} radians = {np.rad2deg(omega[r]):.4f} degrees per position")

# en: A fast hand repeats. A slow one does not, but it cannot tell neighbours apart.
# zh: 快的指针会重复；慢的指针不重复，却分不清相邻的位置。
assert abs(710 - 113 * 2 * np.pi) < 1e-4
assert np.cos(710 * omega[0]) > 0.9999
assert np.cos(710 * omega[-1]) < np.cos(omega[-1])
assert np.cos(omega[-1]) > 1 - 1e-9
# %% id="planes_code"
# en: A random rotation of eight dimensions: `schur` finds the axes along which it is four planes.
# zh: 一个随机的八维旋转：`schur` 找出坐标轴，沿着它们看就是四个平面。
random = np.random.default_rng(0).normal(size=(8, 8))
rotation = scipy.linalg.expm(random - random.T)
blocks, axes = scipy.linalg.schur(rotation, output="real")
plane_angles = [np.arctan2(blocks[i + 1, i], blocks[i, i]) for i in range(0, 8, 2)]
print("turned by", ", ".join(f"{angle:.2f}" for angle in plane_angles), "radians")


def planes(n):
    return scipy.linalg.block_diag(*[turn_matrix(n * angle) for angle in plane_angles])


close(rotation.T @ rotation, np.eye(8), atol=1e-12)
close(axes.T @ axes, np.eye(8), atol=1e-12)
close(blocks, planes(1), atol=1e-12)
close(np.linalg.matrix_power(rotation, 5), axes @ planes(5) @ axes.T, atol=1e-12)
# %% [markdown] id="circle_text" lang="en"
# ## RoPE in one picture: arrows that turn
#
# Here is all that RoPE does. A token has a query, the vector by which it asks, and a key, the vector by which others find
# it. Cut the query into pairs of numbers and draw each pair as an arrow. Before the query meets any key, turn every arrow
# by an angle: the token's position times the speed of that pair (`omega` in the code, in radians). Do the same with the keys. The speeds differ from pair
# to pair, like the hands of a clock: pair 0 turns by one radian, 57.3 degrees, per position, and every later pair is
# slower.
#
# The upper row shows one arrow at positions 1, 3 and 5 (the dashed line is position 0), for three of the faster pairs. Pair 0
# makes nearly a whole turn in six positions; the others lag behind. The last pairs, not shown, barely move in a short text:
# they measure long distances.
#
# The lower row shows why it works. A query (blue) asks a key (orange) that stands two positions before it: at the
# beginning of the text, a little later, and far into it. Both arrows have turned, but the angle between them is the same,
# twice 57.3 degrees. (Here the two arrows start in the same direction. If they start apart, that angle is added, and stays
# the same as well.) How well a query fits a key is their dot product. That is a sum over the pairs, in which each pair
# counts by the lengths of its two arrows and the angle between them. So the score knows how far apart two tokens are, but nothing else about their places.
# %% [markdown] id="circle_text" lang="zh" of="3e50776b"
# ## 一幅图看懂 RoPE：转动的箭头
#
# RoPE 做的事全在这里。token 有一个查询，即它用来提问的向量，还有一个键，即别的 token 用来找到它的向量。把查询分成一对一对的数，每一
# 对画成一个箭头。在查询遇到任何键之前，把每个箭头转过一个角度：token 的位置乘以这一对的速度（代码里的 `omega`，以弧度计）。对键也这样做。各对的速度不同，就像钟表
# 的指针：第 0 对每个位置转一弧度，即 57.3 度，后面的数对一对比一对慢。
#
# 上排从较快的数对里取三对，画出同一个箭头在位置 1、3、5 上转到哪里（虚线是位置 0）。第 0 对走六个位置就差不多转完一圈，另外两对落在后
# 面。没有画出的最后几对，在短文本里几乎不动：它们量的是长距离。
#
# 下排说明它为什么有效。查询（蓝）去问它前面第二个位置上的键（橙）：分别在文本开头、稍后一点和很靠后的地方。两个箭头都转了，夹角却总
# 是一样，是 57.3 度的两倍。（这里两个箭头的起始方向相同；若不同，夹角里就多出这个差，它同样不变。）查询与键有多匹配，看的是两者的点积：
# 它对各对求和，每一对的贡献只取决于两个箭头的长度和夹角。所以分数只知道两个 token 相距多远，
# 不知道它们各自在哪里。
# %% id="circle"
places = [(2, 0), (5, 3), (1002, 1000)]
show(
    figures.circles(omega, (0, R // 16, R // 8), (1, 3, 5), places),
    en="Above, three unit circles with arrows for positions 1, 3 and 5: widely spread for the fast pair 0, closer together "
    "for a slower pair, within a quarter circle for the slowest of the three. Below, the arrows of a query and of a "
    "key two positions before it, at three places: the angle between them is always 114.6 degrees.",
    zh="上排是三个单位圆，各有位置 1、3、5 的三个箭头：快的第 0 对散得很开，较慢的一对靠得较近，最慢的一对都在四分之一圆之内。"
    "下排是一个查询与它前面第二个位置上的键的箭头，画在三处：夹角总是 114.6 度。",
)

degrees = {m: float(np.rad2deg(m * omega[0])) for m in (1, 3, 5)}
print({m: round(value, 1) for m, value in degrees.items()})
np.testing.assert_allclose(list(degrees.values()), [57.3, 171.9, 286.5], atol=0.05)
for m, n in places:
    query, key = turn_matrix(m * omega[0]) @ [1, 0], turn_matrix(n * omega[0]) @ [1, 0]
    np.testing.assert_allclose(np.rad2deg(np.arccos(query @ key)), 2 * 57.3, atol=0.05)
# %% [markdown] id="distance_text" lang="en"
# ## How the score depends on distance
#
# What do many frequencies buy? Take a query and a key with the same content, so that they are equal before any turn, and
# move them apart. At distance 0 every arrow of the query lies on the key's, and the score is as large as it can be. At
# distance $d$ each pair still gives $\cos(d\,\omega_r)$ of its share.
#
# **Left, one pair alone.** Pair 0 tells distances 0, 1 and 2 apart, but it is back after about six positions. A slow pair does
# not repeat within the picture, but to it all neighbours look alike.
#
# **Right, all pairs together.** Only at distance 0 do they all agree, and the score never comes back to that. It falls
# over thousands of positions, because the pairs get out of step one after the other, from the fastest to the slowest. The
# second curve is a real key, that of " France": its pairs have unequal strength, so it is less even, but its peak is at 0
# too. The same few pairs measure both near and far.
# %% [markdown] id="distance_text" lang="zh" of="4e35b4d6"
# ## 分数随距离的变化
#
# 许多频率带来了什么？取内容相同的查询和键，即转动之前两者相等，再让它们逐渐远离。距离为 0 时，查询的每个箭头都与键的重合，分数达到最
# 大。距离为 $d$ 时，每一对还剩下自己那一份的 $\cos(d\,\omega_r)$ 倍。
#
# **左图：单独一对**。第 0 对分得清距离 0、1 和 2，但大约六个位置之后就转回来了。慢的一对在图的范围内不重复，可在它看来，相邻的距离都
# 差不多。
#
# **右图：全部数对合在一起**。只有距离为 0 时它们才全部重合，分数再也回不到那么高。它在几千个位置的范围内逐渐下降，因为数对从最快到
# 最慢，一对接一对地错开了。第二条曲线是一个真实的键，即“ France”的键：各对的强弱不同，所以曲线没有那么平整，但峰值同样在 0 处。远近
# 都靠这同样几对数来量。
# %% id="distance"
apart = np.arange(8192)
each_pair = np.cos(apart[:, None] * omega)
all_pairs = each_pair.mean(axis=-1)

# en: A real key against itself: each pair weighs as much as the square of its length.
# zh: 真实的键与它自己：每一对的分量是其长度的平方。
france = np.stack([k[3, :R], k[3, R:]], axis=-1)
strength = (france**2).sum(axis=-1)
real_key = each_pair @ strength / strength.sum()
by_turning = sum((turn_matrix(5 * omega[r]) @ france[r]) @ france[r] for r in range(R))
close(real_key[5], by_turning / strength.sum(), atol=1e-5)

assert all_pairs[0] == 1 > 0.9999 > all_pairs[1:].max()
assert np.argmax(real_key) == 0
if on_default_model():
    for distance, most in [(1, 0.98), (10, 0.75), (100, 0.65), (1000, 0.54)]:
        print(f"from distance {distance} on: at most {all_pairs[distance:].max():.3f}")
        assert all_pairs[distance:].max() < most

show(
    figures.score_over_distance(
        {f"pair {r}: {omega[r]:.3f} rad": each_pair[:61, r] for r in (0, R // 8, R // 2)},
        {"all pairs of equal strength": all_pairs, "a key of the model": real_key},
    ),
    en="Left, the score of one pair over the distance: a fast wave, a slower one, and one that is nearly flat. Right, all "
    "pairs together on a logarithmic axis: from one at distance 0 the score falls unevenly, over thousands of positions.",
    zh="左：单独一对的分数随距离的变化：一条快的波，一条较慢的波，一条几乎是平的。右：对数坐标上全部数对之和，"
    "从距离 0 处的 1 起伏着下降，跨越几千个位置。",
)
# %% [markdown] id="half_split" lang="en"
# ## Now the real query
#
# Which numbers form a pair? Any fixed choice will do, as long as queries and keys make the same one. `jax_llama3` pairs the
# first half of a vector with the second: $(x_r, x_{r+R})$. This order is called **half-split**. Write the two formulas of the
# turn for all pairs at once, and what remains is four products, a sum and a difference:
#
# $$x'_r = x_r\cos m\omega_r - x_{r+R}\sin m\omega_r, \qquad x'_{r+R} = x_r\sin m\omega_r + x_{r+R}\cos m\omega_r .$$
#
# Everything happens element by element: $[T\,R]$ times $[T\,R]$ gives $[T\,R]$. There is no dot product here, and no pair
# ever touches another pair. The dot product comes later, between the rotated query and the rotated key.
#
# `jax_llama3.model.rope` does just this: `rope_tables` makes the cosines and sines once per forward pass, and
# `apply_rope` uses them for the queries and keys of all heads in all layers. The tables contain no weights: RoPE has
# nothing to learn.
# %% [markdown] id="half_split" lang="zh" of="dfe4dd90"
# ## 现在轮到真正的查询
#
# 哪两个数配成一对？任何固定的配法都行，只要查询和键配得一样。`jax_llama3` 把向量的前一半与后一半配对，即 $(x_r, x_{r+R})$，这种排列
# 叫**对半**排列（half-split）。把转动的两个公式对所有数对一次写出，就只剩下四次乘法、一次加法和一次减法：
#
# $$x'_r = x_r\cos m\omega_r - x_{r+R}\sin m\omega_r, \qquad x'_{r+R} = x_r\sin m\omega_r + x_{r+R}\cos m\omega_r .$$
#
# 全部逐元素进行：$[T\,R]$ 乘 $[T\,R]$ 仍得 $[T\,R]$。这里没有点积，任何一对数都不会碰到另一对。点积要到后面才出现，是在转过的查询与转
# 过的键之间。
#
# `jax_llama3.model.rope` 正是这样做的：`rope_tables` 在每次前向计算时只算一次余弦和正弦，`apply_rope` 把它们用到所有层、所有头的查询
# 和键上。这些表里没有任何权重：RoPE 没有可学的参数。
# %% id="half_split_code"
# en: From here on the model's own frequencies: a model of Llama 3.1 has scaled ones.
# zh: 从这里起使用模型自己的频率：Llama 3.1 的模型用的是缩放后的频率。
omega = rope_frequencies(config)
positions = jnp.arange(T)


def rope(x, positions):
    angles = positions[:, None] * omega
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[:, :R], x[:, R:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


q_turned = trace("q rotated", rope(q, positions), "T H", T=T, H=H)
close(q_turned, seen["layers.0.attn.q"][0, :, 0], atol=1e-4)
close(rope(k, positions), seen["layers.0.attn.k"][0, :, 0], atol=1e-4)

# en: Position 0 is not turned, no length has changed, and without RoPE these are not the model's queries.
# zh: 位置 0 没有转动，所有长度都没变；而不做 RoPE 就得不到模型的查询。
close(q_turned[0], q[0], atol=1e-6)
close(jnp.linalg.norm(q_turned, axis=-1), jnp.linalg.norm(q, axis=-1), atol=1e-4)
assert jnp.abs(q - seen["layers.0.attn.q"][0, :, 0]).max() > 0.1

# en: The library's functions; they take a batch, [B T] positions and [B T heads H] vectors.
# zh: 库函数处理的是一批：位置是 [B T]，向量是 [B T 头 H]。
tables = rope_tables(positions[None], config)
trace("cosines", tables[0], "B T R", B=1, T=T, R=R)
close(apply_rope(q[None, :, None], *tables)[0, :, 0], q_turned, atol=1e-5)

# en: All heads turn by the same angles.
# zh: 所有的头都转过同样的角度。
all_q = jnp.stack([rope(x @ layer.wq[head].T, positions) for head in range(N)], axis=1)
all_k = jnp.stack([rope(x @ layer.wk[head].T, positions) for head in range(K)], axis=1)
close(trace("all q", all_q, "T N H", T=T, N=N, H=H), seen["layers.0.attn.q"][0], atol=1e-4)
close(trace("all k", all_k, "T K H", T=T, K=K, H=H), seen["layers.0.attn.k"][0], atol=1e-4)
# %% [markdown] id="elementwise" lang="en"
# ## The same with complex numbers
#
# The published code of Llama writes the same thing as one product of complex numbers. Take the pairs of a query as $R$ complex
# numbers, $z_r = x_r + \mathrm{i}\,x_{r+R}$. For $T$ tokens
#
# $$z \in \mathbb{C}^{T\times R}, \qquad \text{turns}_{m,r} = e^{\mathrm{i}\,m\,\omega_r} \in \mathbb{C}^{T\times R}, \qquad
# \text{rotated} = z \odot \text{turns}.$$
#
# $\odot$ multiplies **element by element**. As above, nothing is summed.
# %% [markdown] id="elementwise" lang="zh" of="0d8d59c1"
# ## 用复数再算一遍
#
# Llama 公开的代码把同一件事写成一次复数乘法。把查询的各对写成 $R$ 个复数，$z_r = x_r + \mathrm{i}\,x_{r+R}$。对 $T$ 个 token 有
#
# $$z \in \mathbb{C}^{T\times R}, \qquad \text{turns}_{m,r} = e^{\mathrm{i}\,m\,\omega_r} \in \mathbb{C}^{T\times R}, \qquad
# \text{rotated} = z \odot \text{turns}.$$
#
# $\odot$ 是**逐元素**相乘。与上面一样，这里没有任何求和。
# %% id="elementwise_code"
angles = trace("angles", positions[:, None] * omega, "T R", T=T, R=R)
turns = trace("turns", jnp.exp(1j * angles), "T R", T=T, R=R)


def to_complex(x):
    return x[:, :R] + 1j * x[:, R:]


def to_real(z):
    return jnp.concatenate([z.real, z.imag], axis=-1)


z = trace("z", to_complex(q), "T R", T=T, R=R)
close(to_real(z * turns), q_turned, atol=1e-5)
# %% [markdown] id="matrices" lang="en"
# ## The same with 2 × 2 matrices
#
# Without complex numbers, each pair at each position has a little matrix of its own:
#
# $$\begin{pmatrix}x'_r\\ x'_{r+R}\end{pmatrix} =
# \begin{pmatrix}\cos m\omega_r & -\sin m\omega_r\\ \sin m\omega_r & \cos m\omega_r\end{pmatrix}
# \begin{pmatrix}x_r\\ x_{r+R}\end{pmatrix}.$$
#
# Put together, the little matrices of one position form one large matrix $\mathcal{R}_m$ of $H \times H$ numbers, nearly
# all of them zero. Nobody builds that matrix to compute with, but it makes proofs short.
# %% [markdown] id="matrices" lang="zh" of="9fd0c081"
# ## 用 2 × 2 矩阵再算一遍
#
# 不用复数的话，每个位置上的每一对数都有一个自己的小矩阵：
#
# $$\begin{pmatrix}x'_r\\ x'_{r+R}\end{pmatrix} =
# \begin{pmatrix}\cos m\omega_r & -\sin m\omega_r\\ \sin m\omega_r & \cos m\omega_r\end{pmatrix}
# \begin{pmatrix}x_r\\ x_{r+R}\end{pmatrix}.$$
#
# 把同一位置的小矩阵拼在一起，就是一个 $H \times H$ 的大矩阵 $\mathcal{R}_m$，其中几乎全是零。实际计算从不构造这个矩阵，但用它写证明
# 很简短。
# %% id="matrices_code"
cos, sin = jnp.cos(angles), jnp.sin(angles)
matrices = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
trace("matrices", matrices, "T R 2 2", T=T, R=R)
pairs = trace("pairs", jnp.stack([q[:, :R], q[:, R:]], -1), "T R 2", T=T, R=R)
moved = (matrices @ pairs[..., None])[..., 0]
close(jnp.concatenate([moved[..., 0], moved[..., 1]], axis=-1), q_turned, atol=1e-5)


def big_matrix(m):
    """R_m, of H by H numbers, in the half-split order."""
    c, s = np.diag(np.cos(m * np.float64(omega))), np.diag(np.sin(m * np.float64(omega)))
    return np.block([[c, -s], [s, c]])


big = trace("R_3", big_matrix(3), "H H", H=H)
print(f"{(big == 0).mean():.1%} of it is zero")
close(big @ np.asarray(q[3]), q_turned[3], atol=1e-4)
# %% [markdown] id="interleaved" lang="en"
# ## The other order: interleaved
#
# Meta's own code pairs neighbours, $(x_{2r}, x_{2r+1})$: the **interleaved** order. Both are right. They differ by a fixed
# reordering of the $H$ numbers, and a dot product does not change when both vectors are reordered alike. So the rows of the
# query and key matrices can be reordered once, when a checkpoint is converted (lesson 02), and the scores stay what they were.
#
# But never rotate vectors in one order if they were trained in the other. The shapes fit, no error is raised, and the
# scores are wrong.
# %% [markdown] id="interleaved" lang="zh" of="53843c43"
# ## 另一种排列：交错
#
# Meta 自己的代码让相邻的数配对，即 $(x_{2r}, x_{2r+1})$，叫**交错**排列（interleaved）。两种都对，只相差一次固定的重排；而两个向量
# 以同样的方式重排，点积不变。因此只要在转换检查点时，把查询和键的矩阵按行重排一次（第 02 课），分数就与原来一样。
#
# 但千万不能把按一种排列训练的向量，按另一种排列旋转。形状都对得上，不会报错，分数却是错的。
# %% id="interleaved_code"


def rope_interleaved(x, positions):
    angles = positions[:, None] * omega
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    even, odd = x[:, 0::2], x[:, 1::2]
    pairs = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return pairs.reshape(x.shape)


# en: half = interleaved[order] and interleaved = half[inverse]
# zh: 对半 = 交错[order]，交错 = 对半[inverse]
order = np.concatenate([np.arange(0, H, 2), np.arange(1, H, 2)])
inverse = np.argsort(order)
q_other, k_other = q[:, inverse], k[:, inverse]
close(rope_interleaved(q_other, positions)[:, order], rope(q, positions), atol=1e-5)

right = rope(q, positions) @ rope(k, positions).T
close(rope_interleaved(q_other, positions) @ rope_interleaved(k_other, positions).T, right, 1e-3)
wrong = rope_interleaved(q, positions) @ rope_interleaved(k, positions).T
print(f"without the reordering, scores are off by up to {jnp.abs(wrong - right).max():.1f}")
assert jnp.abs(wrong - right).max() > 1
# %% [markdown] id="proof" lang="en"
# ## Only the distance counts: the proof for whole vectors
#
# The dot product of two vectors is the sum of the dot products of their pairs. For each pair the score depends on the
# positions only through the angle between query and key, and that angle changes by $(m-n)\,\omega_r$. So the whole score
# depends on $m - n$ alone. We put in the absolute position of each token, and only the distance comes out.
#
# Give names to what a pair brings along: $|z_r|$ and $\alpha_r$ are the length and the angle of the query's pair, $|w_r|$ and
# $\beta_r$ those of the key's. Then the score is a sum of waves over the distance:
#
# $$f(q, m)\cdot f(k, n) = \sum_r |z_r||w_r| \cos\big((m-n)\,\omega_r + \alpha_r - \beta_r\big).$$
#
# What the two tokens are decides how strong each wave is and where it peaks. So a head can learn to look, for example,
# one token back: if all phases are $\alpha_r - \beta_r = -\omega_r$, all waves peak together at distance 1. The cell
# builds such a query by hand.
#
# <details><summary>The proof in formulas (may be skipped)</summary>
#
# The formula for one pair, summed over all pairs, gives
#
# $$f(q, m)\cdot f(k, n) = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,e^{\mathrm{i}m\omega_r}\;\big(w_r\,e^{\mathrm{i}n\omega_r}\big)^{*}\Big)
# = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,w_r^{*}\;e^{\mathrm{i}(m-n)\omega_r}\Big) .$$
#
# On the right, $m$ and $n$ occur only as $m - n$. That is the whole proof. With matrices it reads as follows. Transposing a
# rotation reverses it, $\mathcal{R}_m^{\top} = \mathcal{R}_{-m}$, and rotations add up,
# $\mathcal{R}_a\mathcal{R}_b = \mathcal{R}_{a+b}$; so
#
# $$(\mathcal{R}_m q)^{\top}(\mathcal{R}_n k) = q^{\top}\mathcal{R}_m^{\top}\mathcal{R}_n\,k = q^{\top}\mathcal{R}_{n-m}\,k .$$
#
# With $z_r = |z_r| e^{\mathrm{i}\alpha_r}$ and $w_r = |w_r| e^{\mathrm{i}\beta_r}$ the first formula becomes the sum of waves.
#
# </details>
# %% [markdown] id="proof" lang="zh" of="e1264d59"
# ## 只看距离：整个向量的证明
#
# 两个向量的点积，等于各对数的点积之和。对每一对，分数只通过查询与键的夹角依赖位置，而夹角改变了 $(m-n)\,\omega_r$。所以整个分数只依
# 赖 $m - n$。放进去的是每个 token 的绝对位置，出来的却只有距离。
#
# 给每一对数的长度和角度起个名字：$|z_r|$ 和 $\alpha_r$ 是查询那一对的长度和角度，$|w_r|$ 和 $\beta_r$ 是键那一对的。于是分数是一组
# 波之和，自变量是距离：
#
# $$f(q, m)\cdot f(k, n) = \sum_r |z_r||w_r| \cos\big((m-n)\,\omega_r + \alpha_r - \beta_r\big).$$
#
# 每个波有多强、峰在哪里，由两个 token 的内容决定。因此一个头可以学会总是看前一个 token：只要相位都是
# $\alpha_r - \beta_r = -\omega_r$，所有的波就在距离 1 处同时达到峰值。下面的单元格亲手造一个这样的查询。
#
# <details><summary>用公式写出的证明（可以跳过）</summary>
#
# 把一对数的公式对所有数对求和，得到
#
# $$f(q, m)\cdot f(k, n) = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,e^{\mathrm{i}m\omega_r}\;\big(w_r\,e^{\mathrm{i}n\omega_r}\big)^{*}\Big)
# = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,w_r^{*}\;e^{\mathrm{i}(m-n)\omega_r}\Big) .$$
#
# 等号右边的 $m$ 和 $n$ 只以 $m - n$ 的形式出现，证毕。用矩阵来写则是：旋转的转置就是反向旋
# 转，$\mathcal{R}_m^{\top} = \mathcal{R}_{-m}$；连续旋转时位置相加，$\mathcal{R}_a\mathcal{R}_b = \mathcal{R}_{a+b}$。所以
#
# $$(\mathcal{R}_m q)^{\top}(\mathcal{R}_n k) = q^{\top}\mathcal{R}_m^{\top}\mathcal{R}_n\,k = q^{\top}\mathcal{R}_{n-m}\,k .$$
#
# 令 $z_r = |z_r| e^{\mathrm{i}\alpha_r}$、$w_r = |w_r| e^{\mathrm{i}\beta_r}$，第一个公式就成了上面的波之和。
#
# </details>
# %% id="proof_code"
np.testing.assert_allclose(big_matrix(7).T, big_matrix(-7))
np.testing.assert_allclose(big_matrix(7) @ big_matrix(5), big_matrix(12), atol=1e-12)
np.testing.assert_allclose(big_matrix(7).T @ big_matrix(5), big_matrix(-2), atol=1e-12)

# en: One query and one key, placed at every pair of 32 positions.
# zh: 同一个查询和同一个键，放到 32 个位置的所有组合上。
M = 32
places = jnp.arange(M)
query, key = q[-1], k[0]
at_places = rope(jnp.tile(query, (M, 1)), places) @ rope(jnp.tile(key, (M, 1)), places).T
trace("scores", at_places, "M M", M=M)
for distance in range(-M + 1, M):
    diagonal = np.diagonal(at_places, -distance)
    assert np.ptp(diagonal) < 1e-3 * np.abs(at_places).max()

# en: The sum of waves gives the same numbers, and needs only the distance, not the positions.
# zh: 波的叠加得到同样的数，而且只需要距离，不需要位置。
z, w = to_complex(query[None])[0], to_complex(key[None])[0]
far = places[:, None] - places[None]
phases = jnp.angle(z) - jnp.angle(w)
waves = (jnp.abs(z) * jnp.abs(w) * jnp.cos(far[..., None] * omega + phases)).sum(-1)
close(waves, at_places, atol=1e-3)

# en: A query made for this key: its score is highest when the key is one position back.
# zh: 为这个键造一个查询：键在前一个位置时分数最高。
one_back = to_real((w * jnp.exp(-1j * omega))[None])
liking = (rope(one_back, places[-1:]) @ rope(jnp.tile(key, (M, 1)), places).T)[0]
assert liking.argmax() == M - 2
# %% [markdown] id="toeplitz_text" lang="en"
# ## What the proof looks like
#
# Take one query and one key of the model, put them at every pair of 32 positions, and colour the scores. What we have just
# asserted means that each diagonal, which is one distance, has one colour. Such a matrix is called a **Toeplitz** matrix.
#
# - **Left, RoPE**: both vectors are rotated after the projections. Straight stripes.
# - **Middle, added before the projections**: the position vectors of the first transformer, sines and cosines, are added to
#   the token's rows, and $W_q$ and $W_k$ read the sum.
# - **Right, added after the projections**: the same kind of vectors, added to $q$ and $k$ themselves.
#
# Both sums break the stripes, because of the two middle terms in the first formula of this lesson; in the middle picture
# they show as bands along rows and columns. Adding before or after the projections makes no difference to that.
# %% [markdown] id="toeplitz_text" lang="zh" of="cc7679ca"
# ## 证明的样子
#
# 取模型中的一个查询和一个键，放到 32 个位置的所有组合上，把分数画成颜色。刚才断言的意思是：每条对角线对应一个距离，上面只有一种颜色。
# 这样的矩阵叫 **Toeplitz** 矩阵。
#
# - **左图，RoPE**：两个向量在投影之后旋转。一道道笔直的斜纹。
# - **中图，投影之前相加**：把最早的 transformer 用的位置向量（正弦和余弦）加到 token 的行上，$W_q$ 和 $W_k$ 读到的是两者之和。
# - **右图，投影之后相加**：同一类向量，直接加到 $q$ 和 $k$ 上。
#
# 两种相加都打乱了斜纹，原因就是本课第一个公式的中间两项；在中图里，它们显现为横向和纵向的条带。在投影之前加还是之后加，在这一点上没
# 有区别。
# %% id="toeplitz"
here = loudness * position_vector(places, D)
loudness_q, loudness_k = (float(jnp.sqrt(jnp.mean(each**2))) for each in (query, key))
here_head = position_vector(places, H)
ways = {
    "RoPE: rotated": at_places,
    "added before the projections": ((x[-1] + here) @ wq.T) @ ((x[0] + here) @ wk.T).T,
    "added after the projections": (query + loudness_q * here_head)
    @ (key + loudness_k * here_head).T,
}
uneven = {
    name: max(np.ptp(np.diagonal(matrix, -d)) for d in range(-M + 1, M)) / np.ptp(matrix)
    for name, matrix in ways.items()
}
for name, value in uneven.items():
    print(f"{name}: within a diagonal, scores differ by up to {value:.2f} of the whole range")
rotated, *added = uneven.values()
assert rotated < 1e-3 < 0.1 < min(added)

show(
    figures.toeplitz(ways),
    en="Three heat maps of scores over query and key position. Rotated: straight diagonal stripes. Position vectors added, "
    "before or after the projections: irregular patterns that change along the diagonals.",
    zh="三张分数热图，纵轴是查询位置，横轴是键位置。旋转：笔直的斜条纹。在投影之前或之后加位置向量：沿对角线也有变化的不规则图案。",
)
# %% [markdown] id="attention" lang="en"
# ## The head of lesson 04, now complete
#
# Scores, mask and softmax are as before; only the queries and keys are rotated first. Now the pattern is the network's, and
# so is the head's output. And the bag of words is gone: in the shuffled prompt, the last token gives the same words
# different weights.
# %% [markdown] id="attention" lang="zh" of="0ed42f80"
# ## 第 04 课的注意力头，现在完整了
#
# 分数、掩码和 softmax 都照旧，只是先把查询和键旋转一下。现在模式与网络中的一致，头的输出也一致。“词袋”也不复存在：打乱提示之后，最
# 后一个 token 给同样几个词的权重就变了。
# %% id="attention_code"


def attend(q, k, v, positions):
    q_turned, k_turned = rope(q, positions), rope(k, positions)
    scores = q_turned @ k_turned.T / H**0.5
    mask = jnp.tril(jnp.ones((len(q), len(k)), bool))
    scores = jnp.where(mask, scores, -jnp.inf)
    pattern = jax.nn.softmax(scores, axis=-1)
    return pattern, pattern @ v


pattern, z_head = attend(q, k, v, positions)
trace("pattern", pattern, "T T", T=T)
trace("z", z_head, "T H", T=T, H=H)
close(pattern, seen["layers.0.attn.pattern"][0, 0], atol=1e-4)
close(z_head, seen["layers.0.attn.z"][0, :, 0], atol=1e-4)

# en: The last token's weights for the same words: in the prompt, and with "The" and " France" exchanged.
# zh: 最后一个 token 给同样几个词的权重：原来的提示，以及“The”与“ France”对调之后。
of_shuffled, _ = attend(q[shuffled], k[shuffled], v[shuffled], positions)
by_word = of_shuffled[-1][jnp.argsort(shuffled)]
for t in range(T):
    word = model.tokenizer.decode([ids[t]])
    print(f"{word:>10}  weight {pattern[-1, t]:.3f}, shuffled {by_word[t]:.3f}")
assert jnp.abs(by_word - pattern[-1]).max() > (1e-2 if on_default_model() else 1e-3)
# %% [markdown] id="shift" lang="en"
# ## Move everything by 1000 positions
#
# If only distances count, then nothing should change when the same prompt stands at positions 1000, 1001, ... For our
# head that is one line of code. For the whole network there are two ways, and neither touches the library's code.
#
# **By a tap.** A tap may replace what passes through it. Rotations add up,
# $\mathcal{R}_{1000}\mathcal{R}_m = \mathcal{R}_{m+1000}$, so a tap that turns every query and key by another 1000
# positions, in every layer, moves the whole prompt. If it turns only the queries, the distances change, and so do the logits.
#
# **By telling the network that 1000 tokens came before.** `forward` can append to a store of keys and values of earlier tokens
# (lesson 10 derives it; here we need just one property). If the store says that it holds 1000 tokens, the next token is at
# position 1000, and `rope_tables` gets exactly that number. But the store is empty: its 1000 keys and values are zeros that
# stand for no token. A zero key is not invisible. Its score is 0, which the softmax turns into a positive weight. So a tap
# sets the scores of these places to $-\infty$, as the causal mask does with the future.
# %% [markdown] id="shift" lang="zh" of="f52184ab"
# ## 全部平移 1000 个位置
#
# 既然只看距离，那么同一个提示放到位置 1000、1001、……上，什么都不该变。对我们的头，一行代码就能验证。对整个网络有两种办法，都不必改
# 动库的代码。
#
# **用探针**。探针可以替换经过它的数组。旋转可以叠加，$\mathcal{R}_{1000}\mathcal{R}_m = \mathcal{R}_{m+1000}$，所以只要一个探针在每一
# 层都把查询和键再多转 1000 个位置，整个提示就平移了。如果只转查询，距离就变了，logits 也随之改变。
#
# **告诉网络前面已有 1000 个 token。** `forward` 可以接在一份存储好的键和值之后继续算（第 10 课推导，这里只用它的一个性质）。如果这
# 份存储声称已有 1000 个 token，下一个 token 的位置就是 1000，`rope_tables` 得到的正是这个数。但这份存储其实是空的：那 1000 个键和值
# 全是零，并不代表任何 token。零键并非不可见：它的分数是 0，经过 softmax 会得到正的权重。所以还要用探针把这些位置的分数设为
# $-\infty$，就像因果掩码对待未来那样。
# %% id="shift_code"
shift = 1000
moved_pattern, moved_head = attend(q, k, v, positions + shift)
close(moved_pattern, pattern, atol=1e-3)
close(moved_head, z_head, atol=1e-3)

# en: First way: turn the real queries and keys further, in every layer.
# zh: 第一种：在每一层把真正的查询和键再多转一些。
further = rope_tables(jnp.full((1, T), shift), config)


def turn_further(*names):
    return lambda name, array: apply_rope(array, *further) if name.endswith(names) else array


tokens = np.array([ids])
by_tap, _ = jax_llama3.forward(params, tokens, config, tap=turn_further("attn.q", "attn.k"))
close(by_tap, logits, atol=2e-3)
queries_only, _ = jax_llama3.forward(params, tokens, config, tap=turn_further("attn.q"))
assert jnp.abs(queries_only - logits).max() > 1

# en: Second way: the library's own positions 1000, 1001, ..., with the empty places hidden.
# zh: 第二种：让库自己使用位置 1000、1001……，并遮住空的位置。
moved_seen = {}


def hide_empty(name, array):
    moved_seen[name] = array
    return array.at[..., :shift].set(-jnp.inf) if name.endswith("attn.scores") else array


store = jax_llama3.init_cache(config, 1, shift + T, jnp.float32)
store = store._replace(lengths=jnp.array([shift]))
by_store, _ = jax_llama3.forward(params, tokens, config, store, tap=hide_empty)
close(by_store, logits, atol=2e-3)

# en: The network did see other positions: its keys are those of position 1000 onwards.
# zh: 网络看到的位置确实不同：它的键就是位置 1000 及之后的键。
close(moved_seen["layers.0.attn.k"][0, :, 0], rope(k, positions + shift), atol=1e-3)
assert jnp.abs(moved_seen["layers.0.attn.k"] - seen["layers.0.attn.k"]).max() > 0.1

# en: If they are not hidden, the 1000 empty places take part, and the logits change.
# zh: 不遮住的话，1000 个空位置也会参与，logits 就变了。
not_hidden, _ = jax_llama3.forward(params, tokens, config, store, tap=lambda name, array: array)
assert jnp.abs(not_hidden - logits).max() > 1
# %% [markdown] id="shift_rounding" lang="en"
# "Equal" here means to within 0.002, where the largest logits are above 20. In exact arithmetic the difference would be
# zero. In float32 the angle of position 1003 is rounded more coarsely than that of position 3, as the section on float32
# below shows.
#
# Do not read more into this than it says. RoPE itself knows only distances. A model can still find out where a text
# begins, because nothing comes before the first token. And that a prompt may stand anywhere does not mean that distances
# longer than those of training work well.
# %% [markdown] id="shift_rounding" lang="zh" of="e712c873"
# 这里的“相等”是指相差不超过 0.002，而最大的 logits 在 20 以上。若计算没有舍入，差就是零。在 float32 里，位置 1003 的角度舍入得比位
# 置 3 的更粗，见下文讲 float32 的一节。
#
# 也不要过度解读。RoPE 本身只知道距离，但模型仍能看出文本从哪里开始，因为第一个 token 前面什么也没有。另外，提示可以放在任何位置，并
# 不等于比训练时更长的距离也能处理得好。
# %% id="shift_size"
print(f"largest logit {float(logits.max()):.0f}")
if on_default_model():
    assert logits.max() > 20
assert (by_store != logits).any()
spacing = {m: float(np.spacing(np.float32(m))) for m in (3, 1003)}
assert spacing[1003] > 100 * spacing[3]
# %% [markdown] id="values" lang="en"
# ## Why values are not rotated
#
# A query and a key meet in a dot product, and there the absolute positions cancel. Values meet no other vector. They are
# weighted and added up, and the sum goes on through one more matrix into the residual stream. If they were rotated, the
# result for position $m$ would be
#
# $$\sum_n a_{mn}\,\mathcal{R}_n v_n ,$$
#
# where $a_{mn}$ are the weights of the pattern. Nothing cancels $\mathcal{R}_n$: the output turns as the text moves, and the
# same words would mean something else on another page. Left alone, $\sum_n a_{mn} v_n$ contains positions only through
# $a_{mn}$, and thus only as distances. Position decides *how much* is taken from each token, not *what* is taken.
# %% [markdown] id="values" lang="zh" of="8737fdac"
# ## 为什么不旋转值
#
# 查询与键在点积里相遇，绝对位置在那里抵消。值却不与任何向量相遇：它们只被加权求和，结果再经过一个矩阵进入残差流。如果把值也旋转，位
# 置 $m$ 的结果是
#
# $$\sum_n a_{mn}\,\mathcal{R}_n v_n ,$$
#
# 其中 $a_{mn}$ 是模式里的权重。没有什么能抵消 $\mathcal{R}_n$：文本一平移，输出就跟着转，同样的词换一页意思就变了。不旋转的
# 话，$\sum_n a_{mn} v_n$ 只通过 $a_{mn}$ 依赖位置，也就只依赖距离。位置决定从每个 token 取*多少*，而不决定取*什么*。
# %% id="values_code"
rotated_here = pattern @ rope(v, positions)
rotated_there = moved_pattern @ rope(v, positions + shift)
change = float(jnp.abs(rotated_here - rotated_there).max())
print(f"with rotated values, the move changes the output by up to {change:.3f}")
assert change > 1e-2 > 1e-3 > jnp.abs(moved_head - z_head).max()

# en: The network's own values are not rotated.
# zh: 网络自己的值没有旋转过。
close(v, seen["layers.0.attn.v"][0, :, 0], atol=1e-4)


# %% [markdown] id="wavelengths_text" lang="en"
# ## Wavelengths
#
# How far does a pair go before it repeats? Its **wavelength** is the number of positions in one whole turn:
#
# $$\lambda_r = \frac{2\pi}{\omega_r} = 2\pi\,\Theta^{2r/H} .$$
#
# It grows from $2\pi$ positions and stays below $2\pi\Theta$. Compare it with the context length, that of the longest
# texts in training. A pair whose wavelength is longer never makes a whole turn within the context: it gives a coarse but
# unambiguous measure of distance. In the default model this holds for 12 of 32 pairs. A larger base makes all pairs but
# the first slower, which is why bases have grown with the texts that models are meant to read: 10,000 in the first paper,
# 500,000 in Llama 3. Here it is 100,000.
# %% [markdown] id="wavelengths_text" lang="zh" of="152eaca4"
# ## 波长
#
# 一对数走多远才会重复？转完一整圈所需的位置数，叫它的**波长**（wavelength）：
#
# $$\lambda_r = \frac{2\pi}{\omega_r} = 2\pi\,\Theta^{2r/H} .$$
#
# 它从 $2\pi$ 个位置开始增长，但始终小于 $2\pi\Theta$。再与上下文长度（训练时最长文本的长度）比较：波长更长的数对在上下文里转不满一
# 圈，量出的距离虽粗，却没有歧义。默认模型的 32 对里有 12 对如此。底数越大，除第一对外，其余各对就转得越慢。所以随着模型要读的文本越
# 来越长，底数也越来越大：最早的论文是 10,000，Llama 3 是 500,000。本模型是 100,000。
# %% id="wavelengths"
def variant(head_dim, theta, scaling=None):
    """This model's config with another RoPE: the frequencies depend on nothing else."""
    return dataclasses.replace(
        config, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling, max_seq_len=131072
    )


rows = {
    "first paper's base 10,000, H = 64": variant(64, 10_000.0),
    "default model: base 100,000, H = 64": variant(64, 100_000.0),
    "Llama 3 8B: base 500,000, H = 128": variant(128, 500_000.0),
}
context = 8192
lengths = {name: 2 * np.pi / rope_frequencies(row) for name, row in rows.items()}
beyond = {}
for name, row in rows.items():
    np.testing.assert_allclose(lengths[name][0], 2 * np.pi, rtol=1e-6)
    assert lengths[name][-1] < 2 * np.pi * row.rope_theta
    beyond[name] = int((lengths[name] > context).sum())
    print(f"{name}: longest {lengths[name][-1]:>10,.0f}, beyond the context {beyond[name]} pairs")
assert list(beyond.values())[1] == 12

# en: The middle one is indeed the course's own model.
# zh: 中间那一个确实就是课程自带的模型。
expect((config.rope_theta, R, config.max_seq_len), (100_000, 32, context))
show(
    figures.wavelengths(lengths, context),
    en="Wavelengths of the pairs on a logarithmic axis: three straight lines that start together near 6 "
    "and rise more steeply with a larger base, crossing a dashed line at 8192 positions.",
    zh="对数坐标下各数对的波长：三条直线都从 6 附近出发，底数越大上升越陡，并穿过 8192 个位置处的虚线。",
)
# %% [markdown] id="scaling_text" lang="en"
# ## Stretching the context: the scaling of Llama 3.1 and 3.2
#
# Llama 3 was trained on texts of up to 8192 tokens. Llama 3.1 reads up to 131,072 tokens. At such distances the slow
# pairs reach angles that they never had in training, and the answer is to turn them more slowly. The fast pairs made many
# turns in the old context, so they have reached every angle, and they tell neighbours apart; they should stay as they
# are. So the pairs are sorted by the number of turns that they make in the original context $C = 8192$,
# $\;t_r = C/\lambda_r$:
#
# | region | turns in the original context | wavelength | new frequency |
# |---|---|---|---|
# | fast | $t_r > 4$ | below 2048 | $\omega_r$, kept |
# | between | $1 \le t_r \le 4$ | 2048 to 8192 | mixed, see below |
# | slow | $t_r < 1$ | above 8192 | $\omega_r / F$ |
#
# In the middle region the new frequency is
#
# $$(1-s)\,\frac{\omega_r}{F} + s\,\omega_r \quad\text{with}\quad s = \frac{t_r - 1}{4 - 1} .$$
#
# The limits 1 and 4 are `low_freq_factor` and `high_freq_factor` in the config. $F$ is `factor` here, not a width: **8**
# in Llama 3.1 and **32** in Llama 3.2. $s$ runs from 0 to 1 across the middle region, so the formula meets the regions on
# both sides without a jump. Note that it mixes frequencies, not wavelengths. The scaling is always on, for short texts
# too: it changes the frequencies once and for all.
# %% [markdown] id="scaling_text" lang="zh" of="6329aa13"
# ## 拉长上下文：Llama 3.1 与 3.2 的缩放
#
# Llama 3 训练时的文本最长 8192 个 token，Llama 3.1 则能读 131,072 个。在这么长的距离上，慢的数对会转到训练中从未出现过的角度，办法是
# 让它们转得更慢。而快的数对在原来的上下文里转了许多圈，各种角度都见过，又负责分清相邻的位置，应当保持原样。所以按照各对在原上下
# 文 $C = 8192$ 里转的圈数 $t_r = C/\lambda_r$，把它们分成三个区：
#
# | 区 | 在原上下文中的圈数 | 波长 | 新频率 |
# |---|---|---|---|
# | 快 | $t_r > 4$ | 小于 2048 | $\omega_r$，不变 |
# | 中间 | $1 \le t_r \le 4$ | 2048 到 8192 | 两者混合，见下 |
# | 慢 | $t_r < 1$ | 大于 8192 | $\omega_r / F$ |
#
# 中间区的新频率是
#
# $$(1-s)\,\frac{\omega_r}{F} + s\,\omega_r, \quad\text{其中}\quad s = \frac{t_r - 1}{4 - 1} .$$
#
# 界限 1 和 4 就是配置里的 `low_freq_factor` 和 `high_freq_factor`；这里的 $F$ 是 `factor`，不是宽
# 度：Llama 3.1 为 **8**，Llama 3.2 为 **32**。$s$ 在中间区从 0 变到 1，所以与两边的区都衔接得上，没有跳变。注意混合的是频率，不是波
# 长。缩放始终生效，对短文本也一样：它一次性地改掉了频率。
# %% id="scaling_code"


def scale_by_hand(frequencies, factor, low=1.0, high=4.0, original=8192):
    scaled, regions = [], []
    for frequency in frequencies:
        turns = original / (2 * np.pi / frequency)
        if turns > high:
            scaled.append(frequency)
            regions.append("fast")
        elif turns < low:
            scaled.append(frequency / factor)
            regions.append("slow")
        else:
            s = (turns - low) / (high - low)
            scaled.append((1 - s) * frequency / factor + s * frequency)
            regions.append("between")
    return np.array(scaled), np.array(regions)


family = {"Llama 3.1 8B, factor 8": (128, 8.0), "Llama 3.2 1B, factor 32": (64, 32.0)}
results = {}
for name, (head_dim, factor) in family.items():
    before = np.float64(rope_frequencies(variant(head_dim, 500_000.0)))
    after, regions = scale_by_hand(before, factor)
    library = variant(head_dim, 500_000.0, RopeScaling(factor, 1.0, 4.0, 8192))
    np.testing.assert_allclose(after, rope_frequencies(library), rtol=1e-5)
    results[name] = before, after, regions
    counts = {region: int((regions == region).sum()) for region in ("fast", "between", "slow")}
    print(name, counts)
    for r in (0, *np.flatnonzero(regions == "between"), head_dim // 2 - 1):
        old, new = 2 * np.pi / before[r], 2 * np.pi / after[r]
        print(f"  pair {r:>2} {regions[r]:>8}: wavelength {old:>12,.1f} -> {new:>14,.1f}")
    assert (after[regions == "fast"] == before[regions == "fast"]).all()
    np.testing.assert_allclose(after[regions == "slow"] * factor, before[regions == "slow"])

# en: No jump at the two limits.
# zh: 两个界限处都没有跳变。
for turns in (1.0, 4.0):
    at_limit = 2 * np.pi * turns / 8192
    near, _ = scale_by_hand([at_limit * (1 - 1e-9), at_limit * (1 + 1e-9)], 8.0)
    np.testing.assert_allclose(near[0], near[1], rtol=1e-6)
# %% [markdown] id="scaling_picture_text" lang="en"
# The upper row shows frequencies before and after, the lower row how many times slower each pair has become. In the new
# context of 131,072 positions, the slowest pairs of Llama 3.1 turn as far as they did in $131072/8 = 16384$ positions
# before, and those of Llama 3.2 as far as in $131072/32 = 4096$. The former is still beyond 8192, so the formula does not
# do everything: the model was also trained further, on long texts.
# %% [markdown] id="scaling_picture_text" lang="zh" of="8f266b65"
# 上排是缩放前后的频率，下排是各对变慢的倍数。在 131,072 个位置的新上下文里，Llama 3.1 最慢的数对转过的角度，相当于缩放前
# $131072/8 = 16384$ 个位置转过的角度；Llama 3.2 则相当于缩放前的 $131072/32 = 4096$ 个。前者仍然超过 8192，可见只靠公式还不够，模型
# 还在长文本上继续训练过。
# %% id="scaling_picture"
for name, (before, after, _) in results.items():
    np.testing.assert_allclose(131072 * after[-1], 131072 / family[name][1] * before[-1])
show(
    figures.scaling(results),
    en="For Llama 3.1 and 3.2: frequencies before and after scaling, equal in the fast region, bending away "
    "in the middle, lower by the factor in the slow region; below, the slowing rises from 1 to 8 and to 32.",
    zh="Llama 3.1 与 3.2 缩放前后的频率：快区相同，中间区逐渐分开，慢区低了一个倍数；下排的变慢倍数分别从 1 升到 8 和 32。",
)
# %% [markdown] id="scaling_silent_text" lang="en"
# A forgotten or wrong scaling is a silent error. To show it, we give this model a scaling that it was not trained with.
# On five tokens the logits hardly move, and the top token stays: at such short distances only the fast pairs turn
# noticeably, and those were kept. So look for such errors at large distances and in all logits; one short answer will not
# show them.
# %% [markdown] id="scaling_silent_text" lang="zh" of="577d4aaf"
# 漏掉缩放或用错倍数，都不会报错。为了看清这一点，我们给本模型加上一个它训练时没有用过的缩放。在五个 token 上，logits 几乎不动，最可能
# 的 token 也没变：距离这么短，明显转动的只有快的数对，而它们没有改动。所以查这类错误要看远距离、看全部 logits，绝不能只看一个简短的回
# 答。
# %% id="scaling_silent"
wrong_config = dataclasses.replace(unscaled, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
if config.rope_scaling is None:
    wrong, _ = jax_llama3.forward(params, tokens, wrong_config)
    change = float(jnp.abs(wrong - logits).max())
    print(f"a wrong scaling changes logits by up to {change:.2f}, the top token by nothing")
    assert wrong[0, -1].argmax() == logits[0, -1].argmax()
    assert 2e-3 < change < 0.5

# en: The same two vectors, 5 and 5000 positions apart: the scaling shows only far apart.
# zh: 同样两个向量，相隔 5 个和 5000 个位置：只有离得远时缩放才显出来。
differences = {}
for distance in (5, 5000):
    scores = [
        (z * jnp.conj(w) * jnp.exp(1j * distance * rope_frequencies(each))).real.sum()
        for each in (unscaled, wrong_config)
    ]
    differences[distance] = abs(float(scores[0] - scores[1]))
print({distance: round(value, 3) for distance, value in differences.items()})
assert differences[5000] > 10 * differences[5]
# %% [markdown] id="precision" lang="en"
# ## Angles in float32
#
# A bfloat16 number has 8 bits of precision, so it cannot count beyond 256 without gaps: **position 257 becomes 256**. The
# angle of the first pair is then wrong by a whole radian, 57.3 degrees, and token 257 seems to stand where token 256
# stands. Of the positions 0 to 8191, only 897 distinct values are left. So positions, angles, cosines and sines are
# float32 even where all weights are bfloat16; `apply_rope` widens the vector, turns it and rounds once, at the end.
#
# float32 is not exact either. It counts without gaps up to $2^{24}$, so positions are safe, but the product $m\,\omega_r$
# is rounded: near 100,000, neighbouring numbers are about 0.008 apart. That is why two implementations agree at long
# distances only if they round the frequencies in the same way, and why the logits after the move by 1000 were not equal
# to the last bit.
# %% [markdown] id="precision" lang="zh" of="c63e23b8"
# ## 角度用 float32
#
# bfloat16 的精度只有 8 比特，数到 256 以上就会漏数：**位置 257 变成 256**。于是第一对的角度错了整整一弧度，即 57.3 度，token 257 看
# 上去就与 token 256 站在同一处。位置 0 到 8191，最后只剩 897 个不同的值。因此即使所有权重都是 bfloat16，位置、角度、余弦和正弦也要
# 用 float32；`apply_rope` 先把向量转成 float32，旋转之后，只在最后舍入一次。
#
# float32 也不是精确的。它能不漏地数到 $2^{24}$，所以位置没有问题；但乘积 $m\,\omega_r$ 会舍入：在 100,000 附近，相邻两个数相差
# 约 0.008。所以在长距离上，两个实现只有以同样的方式舍入频率，结果才会一致；平移 1000 之后 logits 没有逐比特相等，原因也在这里。
# %% id="precision_code"
assert jnp.bfloat16(257) == jnp.bfloat16(256)
every = jnp.arange(8192)
narrow = every.astype(jnp.bfloat16)
assert (np.unique(np.asarray(narrow, np.float32)).size, np.unique(every).size) == (897, 8192)
assert np.float32(2**24 - 1) + np.float32(1) == 2**24
assert np.float32(2**24) + np.float32(1) == 2**24
assert 0.007 < np.spacing(np.float32(100_000)) < 0.008

exact = np.cos(np.arange(8192)[:, None] * np.float64(omega))
in_float32 = rope_tables(every[None], config)[0][0]
in_bfloat16 = jnp.cos((narrow[:, None] * omega.astype(jnp.bfloat16)).astype(jnp.float32))
error = {
    "float32": float(np.abs(in_float32 - exact).max()),
    "bfloat16": float(np.abs(in_bfloat16 - exact).max()),
}
print(
    f"largest error of a cosine: float32 {error['float32']:.0e}, bfloat16 {error['bfloat16']:.1f}"
)
assert error["float32"] < 1e-3 < 1 < error["bfloat16"]

# en: In the library the tables stay float32, and a bfloat16 vector comes back as bfloat16.
# zh: 在本库中，表始终是 float32；传入 bfloat16 的向量，返回的也是 bfloat16。
assert tables[0].dtype == tables[1].dtype == jnp.float32
assert apply_rope(q[None, :, None].astype(jnp.bfloat16), *tables).dtype == jnp.bfloat16
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Switch the positions off in the whole network. Write a tap, a function of `name` and `array`, that undoes the rotation
# of every query and key in every layer and leaves everything else alone. Predict first: does the model still know the capital
# of France?
# %% [markdown] id="exercises" lang="zh" of="0ffdfef2"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面都有折叠起来的线索和解答。
#
# **1.** 在整个网络里关掉位置。写一个探针，即以 `name` 和 `array` 为参数的函数，它在每一层都取消查询和键的旋转，其余一概不动。先预测：
# 模型还知道法国的首都吗？
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    unturned = {"q": layer.wq, "k": layer.wk}
    for name, weights in unturned.items():
        expected = jnp.einsum("td,nhd->tnh", x, weights)
        found = answer(f"layers.0.attn.{name}", seen[f"layers.0.attn.{name}"])[0]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert answer("layers.0.attn.v", v) is v
    without, _ = jax_llama3.forward(params, tokens, config, tap=answer)
    for title, row in {"with positions": logits[0, -1], "without": without[0, -1]}.items():
        best = [int(i) for i in jnp.argsort(-row)[:3]]
        chances = jax.nn.softmax(row)
        print(f"{title:>15}:", [f"{model.tokenizer.decode([i])} {chances[i]:.2f}" for i in best])


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# A rotation by $-m$ positions undoes one by $m$. `rope_tables` takes any positions, negative ones too; look at how
# `turn_further` was written.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="1dc6d8db"
# <details><summary>线索</summary>
#
# 转过 $-m$ 个位置，正好取消转过 $m$ 个位置。`rope_tables` 接受任何位置，包括负的；看看 `turn_further` 是怎么写的。
#
# </details>
# %% id="solution_1" tags=["solution"]
back = rope_tables(-positions[None], config)


def positions_off(name, array):
    return apply_rope(array, *back) if name.endswith(("attn.q", "attn.k")) else array


exercise(1, positions_off, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a function of a query `q` and a key `k`, both of shape $[H]$ and not rotated, and a distance `d` $= m - n$,
# that returns their score (not divided by $\sqrt H$) without rotating either of them.
# %% [markdown] id="exercise_2_text" lang="zh" of="82da53ad"
# **2.** 写一个函数，参数是形状为 $[H]$ 的查询 `q` 和键 `k`（都未旋转）以及距离 `d` $= m - n$，不旋转任何一个，直接给出两者的分数（不
# 除以 $\sqrt H$）。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for m, n in [(0, 0), (9, 4), (4, 9), (31, 0)]:
        np.testing.assert_allclose(answer(query, key, m - n), at_places[m, n], atol=1e-2)


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# The score is a sum of waves over the distance. With complex numbers, `q[:R] + 1j * q[R:]`, it is a single line.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="2e6fb7ca"
# <details><summary>线索</summary>
#
# 分数是一组波之和，自变量是距离。用复数 `q[:R] + 1j * q[R:]` 来写，只要一行。
#
# </details>
# %% id="solution_2" tags=["solution"]


def from_distance(q, k, d):
    z, w = q[:R] + 1j * q[R:], k[:R] + 1j * k[R:]
    return (z * jnp.conj(w) * jnp.exp(1j * d * omega)).real.sum()


exercise(2, from_distance, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Values *can* be rotated if one more step repairs the output. Let `out` $[T\,H]$ be
# `pattern @ rope(v, positions)`. Write a function of `out` and `positions` that makes it depend on distances only.
# %% [markdown] id="exercise_3_text" lang="zh" of="f5f3e375"
# **3.** 值其实也*可以*旋转，只要再加一步把输出修正回来。设 `out` $[T\,H]$ 为 `pattern @ rope(v, positions)`。写一个
# 以 `out` 和 `positions` 为参数的函数，使结果只依赖距离。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    expected = [pattern[m] @ rope(v, positions - m) for m in range(T)]
    np.testing.assert_allclose(answer(rotated_here, positions), jnp.stack(expected), atol=1e-3)
    there = answer(rotated_there, positions + shift)
    np.testing.assert_allclose(there, jnp.stack(expected), atol=2e-3)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Row $m$ of `out` is $\sum_n a_{mn}\mathcal{R}_n v_n$. Which rotation, the same for the whole row, turns $\mathcal{R}_n$
# into a function of $n - m$?
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="d9433901"
# <details><summary>线索</summary>
#
# `out` 的第 $m$ 行是 $\sum_n a_{mn}\mathcal{R}_n v_n$。对整行再做哪一个旋转，能把 $\mathcal{R}_n$ 变成 $n - m$ 的函数？
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, lambda out, positions: rope(out, -positions), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Su, Lu, Pan, Murtadha, Wen and Liu, *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021,
#   [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): sines and cosines,
#   added to the embeddings
# - Grattafiori et al., *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783): the base of
#   500,000 and the training on long texts
# - Meta's code of Llama 3, [github.com/meta-llama/llama3](https://github.com/meta-llama/llama3), `llama/model.py`: complex
#   numbers, and the interleaved order
# - Chen, Wong, Chen and Tian, *Extending Context Window of Large Language Models via Positional Interpolation*, 2023,
#   [arXiv:2306.15595](https://arxiv.org/abs/2306.15595)
# - Peng, Quesnelle, Fan and Shippole, *YaRN: Efficient Context Window Extension of Large Language Models*, 2023,
#   [arXiv:2309.00071](https://arxiv.org/abs/2309.00071): scaling by the number of turns
# - Haviv, Ram, Press, Izsak and Levy, *Transformer Language Models without Positional Encodings Still Learn Positional
#   Information*, 2022, [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)
#
# Next: lesson 06 runs all heads at once, and lets several queries share one key.
# %% [markdown] id="sources" lang="zh" of="c72611a6"
# ## 来源
#
# - Su、Lu、Pan、Murtadha、Wen、Liu，*RoFormer: Enhanced Transformer with Rotary Position Embedding*，2021，[arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)：加到嵌入上的正弦和余弦
# - Grattafiori 等，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)：底数 500,000，以及在长文
# 本上的训练
# - Meta 的 Llama 3 代码，[github.com/meta-llama/llama3](https://github.com/meta-llama/llama3)，`llama/model.py`：复数写法与交错排列
# - Chen、Wong、Chen、Tian，*Extending Context Window of Large Language Models via Positional Interpolation*，2023，[arXiv:2306.15595](https://arxiv.org/abs/2306.15595)
# - Peng、Quesnelle、Fan、Shippole，*YaRN: Efficient Context Window Extension of Large Language Models*，2023，[arXiv:2309.00071](https://arxiv.org/abs/2309.00071)：按圈数缩放
# - Haviv、Ram、Press、Izsak、Levy，*Transformer Language Models without Positional Encodings Still Learn Positional Information*，2022，[arXiv:2203.16634](https://arxiv.org/abs/2203.16634)
#
# 下一课：第 06 课让所有的头一起计算，并让几个查询共用一个键。
