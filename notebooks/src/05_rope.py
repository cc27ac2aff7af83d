# %% [markdown] id="title" lang="en"
# # 05 · RoPE from first principles
#
# *Reading time 25 minutes. Before it: lessons 03 and 04. What it proves: turning pairs of numbers by an angle that grows with
# the position makes every score depend on the distance of two tokens and on nothing else about their places; four ways to
# compute it give the queries and keys of `jax_llama3`.*
#
# The head of lesson 04 left one thing out: the place of a token. **RoPE**, the rotary position embedding, puts it in. It is a
# short computation with a long reason, so this lesson has more mathematics than any other. All of it is school
# trigonometry, and every step is run.
#
# Four letters are kept apart throughout. $m$ is the position of a query and $n$ that of a key. $r$ counts pairs of numbers,
# from $0$ to $R-1$ with $R = H/2$. The upright $\mathrm{i}$ is the imaginary unit, $\mathrm{i}^2 = -1$, and never an index;
# Python spells it `1j`.
# %% [markdown] id="title" lang="zh" of="a02e10e6"
# # 05 · 从原理推导 RoPE
#
# *阅读时间 25 分钟。前置：第 03、04 课。本课证明：把数两两配对，每一对转过一个随位置增长的角度，分数就只取决于两个 token 的距离，
# 与它们各自的位置再无关系；四种算法得到的查询和键都与 `jax_llama3` 一致。*
#
# 第 04 课的注意力头漏掉了一件事：token 所在的位置。**RoPE**（rotary position embedding）把它补上。计算本身很短，道理却要讲一阵子，
# 所以本课的数学比其他各课都多。不过用到的都是中学三角函数，而且每一步都会运行验证。
#
# 全课严格区分四个字母。$m$ 是查询的位置，$n$ 是键的位置。$r$ 是数对的序号，从 $0$ 到 $R-1$，其中 $R = H/2$。正体的
# $\mathrm{i}$ 是虚数单位，$\mathrm{i}^2 = -1$，绝不用作下标；Python 把它写作 `1j`。
# %% id="setup"
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.model import layers as network
from jax_llama3.model.config import RopeScaling
from jax_llama3.model.rope import apply_rope, rope_frequencies, rope_tables
from jax_llama3_course import close, exercise, load_model, show, trace

model = load_model()
config, params = model.config, model.params
is_default = (config.n_layers, config.dim, config.vocab_size) == (30, 576, 49152)
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
R = H // 2
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
q = trace("q", x @ layer.wq[0].T, "T H", T=T, H=H)
k = trace("k", x @ layer.wk[0].T, "T H", T=T, H=H)
v = trace("v", x @ layer.wv[0].T, "T H", T=T, H=H)
# %% [markdown] id="no_order" lang="en"
# ## Attention does not see order
#
# A head compares one query with each key, turns the scores into weights and adds up the values. A sum does not care for the
# order of its terms. Shuffle the earlier tokens, keys and values together, and the last token gets the same result: to this
# head, "The capital of France is" and "France capital of The is" are one bag of words. The causal mask only says which
# tokens are earlier, not how much earlier.
#
# (With many layers, the mask alone does let some order through: a token early in the text has fewer tokens to look at. Models
# can be trained on that hint alone, as the last of the sources shows; Llama is told the positions.)
# %% [markdown] id="no_order" lang="zh" of="89cbb5f1"
# ## 注意力看不见顺序
#
# 一个头把一个查询与每个键比较，把分数变成权重，再把值加权求和。求和不在乎各项的先后。把前面的 token 打乱（键和值一起动），最后一个
# token 得到的结果不变：在这个头看来，“The capital of France is” 与 “France capital of The is” 是同一个词袋。因果掩码只说明哪些
# token 在前面，并不说明在前面多远。
#
# （层数多了以后，单凭掩码也会漏出一点顺序信息：越靠前的 token，能看到的 token 越少。单凭这点线索也能训练出模型（见来源的最后一篇）；Llama
# 则把位置明确地告诉网络。）
# %% id="no_order_code"


def last_token(q, k, v):
    weights = jax.nn.softmax(q[-1] @ k.T / H**0.5)
    return weights @ v


shuffled = jnp.array([T - 2, *range(1, T - 2), 0, T - 1])
print([model.tokenizer.decode([ids[t]]) for t in shuffled])
close(last_token(q, k[shuffled], v[shuffled]), last_token(q, k, v), atol=1e-5)
# %% [markdown] id="wish" lang="en"
# ## What we ask for
#
# The obvious cure is to add a vector $p_m$ to the token at position $m$. Multiply out what that does to a score:
#
# $$(q + p_m)\cdot(k + p_n) = q\cdot k + q\cdot p_n + p_m\cdot k + p_m\cdot p_n .$$
#
# The two terms in the middle depend on one position each. The same two words, three apart, score differently at the start of
# a text and on its tenth page. In language it is mostly the distance that matters.
#
# So we look for a function $f(x, m)$ that puts a position into a query or a key, and we ask for three things.
#
# 1. **Only the distance counts**: $f(q, m)\cdot f(k, n)$ is a function of $q$, $k$ and $m - n$.
# 2. **No position is louder than another**: $f(x, m)$ is as long as $x$.
# 3. **It is simple**: $f(x, m)$ is linear in $x$, that is, $x$ times a matrix which depends on $m$ alone.
#
# Let $M_m$ be the matrix of position $m$, and $M_0 = 1$ (a fixed matrix for all positions would only change $q$ and $k$). Wish 1
# says that $M_m^\top M_n$ depends on $n - m$ alone, so it equals $M_0^\top M_{n-m} = M_{n-m}$. Wish 2 says $M_m^\top M_m = 1$, and
# so $M_n = M_m M_{n-m}$: every step multiplies by the same matrix, $M_n = (M_1)^n$.
#
# Take vectors of two numbers first. The linear maps of the plane that keep all lengths are turns about the origin and
# reflections. Two equal reflections cancel, so if $M_1$ were one we could only tell odd distances from even ones. That leaves
# turns: let $f$ be a **rotation** by an angle $\varphi(m)$, and ask which angles will do.
# %% [markdown] id="wish" lang="zh" of="507def98"
# ## 我们要什么
#
# 最容易想到的办法，是给位置 $m$ 上的 token 加一个向量 $p_m$。把分数展开，看看会怎样：
#
# $$(q + p_m)\cdot(k + p_n) = q\cdot k + q\cdot p_n + p_m\cdot k + p_m\cdot p_n .$$
#
# 中间两项各自只依赖一个位置。同样两个词、同样相隔三个位置，在文章开头和在第十页得到的分数就不同。而在语言里，重要的多半是距离。
#
# 所以我们要找一个函数 $f(x, m)$，把位置放进查询或键里，并提出三个要求。
#
# 1. **只看距离**：$f(q, m)\cdot f(k, n)$ 是 $q$、$k$ 和 $m - n$ 的函数。
# 2. **长度不变**：$f(x, m)$ 与 $x$ 一样长，哪个位置都不比别的更响。
# 3. **简单**：$f(x, m)$ 对 $x$ 是线性的，即 $x$ 乘以一个只由 $m$ 决定的矩阵。
#
# 记位置 $m$ 的矩阵为 $M_m$，并设 $M_0 = 1$（对所有位置都一样的矩阵只会改变 $q$ 和 $k$ 本身）。要求 1 说 $M_m^\top M_n$ 只由 $n - m$
# 决定，所以等于 $M_0^\top M_{n-m} = M_{n-m}$。要求 2 说 $M_m^\top M_m = 1$，于是 $M_n = M_m M_{n-m}$：每前进一步都乘以同一个矩阵，
# $M_n = (M_1)^n$。
#
# 先看只有两个数的向量。平面上保持所有长度不变的线性映射，只有绕原点的转动和反射两类。同一个反射做两次就抵消了，如果 $M_1$ 是反射，
# 就只能分清距离是奇数还是偶数。于是只剩下转动：令 $f$ 为转过角度 $\varphi(m)$ 的**旋转**（rotation），再问什么样的角度符合要求。
# %% [markdown] id="complex" lang="en"
# ## A pair of numbers is one complex number
#
# Write the pair $(a, b)$ as $z = a + b\,\mathrm{i}$. Then two things we need become one multiplication each.
#
# **A turn.** Let $e^{\mathrm{i}\varphi} = \cos\varphi + \mathrm{i}\sin\varphi$, the point at angle $\varphi$ on the circle of
# radius one. Multiply out, with $\mathrm{i}^2 = -1$:
#
# $$z\,e^{\mathrm{i}\varphi} = (a\cos\varphi - b\sin\varphi) + \mathrm{i}\,(a\sin\varphi + b\cos\varphi),
# \qquad\text{that is}\qquad
# \begin{pmatrix}\cos\varphi & -\sin\varphi\\ \sin\varphi & \cos\varphi\end{pmatrix}
# \begin{pmatrix}a\\ b\end{pmatrix}.$$
#
# This is the pair turned by $\varphi$, against the clock. Two turns add up:
# $e^{\mathrm{i}\alpha}e^{\mathrm{i}\beta} = e^{\mathrm{i}(\alpha+\beta)},$ which is the addition theorem of sine and cosine.
#
# **A dot product.** The conjugate $\overline{w}$ of $w = c + d\,\mathrm{i}$ is $c - d\,\mathrm{i}$. Then
#
# $$\mathrm{Re}(z\,\overline{w}) = \mathrm{Re}\big((a + b\,\mathrm{i})(c - d\,\mathrm{i})\big) = ac + bd ,$$
#
# the dot product of the two pairs. Conjugation turns an angle round:
# $\overline{e^{\mathrm{i}\varphi}} = e^{-\mathrm{i}\varphi}$.
# %% [markdown] id="complex" lang="zh" of="f614bd0a"
# ## 一对数就是一个复数
#
# 把数对 $(a, b)$ 写成 $z = a + b\,\mathrm{i}$，我们需要的两种运算就都变成了一次乘法。
#
# **转动。** 令 $e^{\mathrm{i}\varphi} = \cos\varphi + \mathrm{i}\sin\varphi$，即单位圆上角度为 $\varphi$ 的点。利用
# $\mathrm{i}^2 = -1$ 展开：
#
# $$z\,e^{\mathrm{i}\varphi} = (a\cos\varphi - b\sin\varphi) + \mathrm{i}\,(a\sin\varphi + b\cos\varphi),
# \qquad\text{即}\qquad
# \begin{pmatrix}\cos\varphi & -\sin\varphi\\ \sin\varphi & \cos\varphi\end{pmatrix}
# \begin{pmatrix}a\\ b\end{pmatrix}.$$
#
# 这正是把数对逆时针转过 $\varphi$。连续两次转动，角度相加：$e^{\mathrm{i}\alpha}e^{\mathrm{i}\beta} = e^{\mathrm{i}(\alpha+\beta)}$，
# 也就是正弦、余弦的和角公式。
#
# **点积。** $w = c + d\,\mathrm{i}$ 的共轭是 $\overline{w} = c - d\,\mathrm{i}$。于是
#
# $$\mathrm{Re}(z\,\overline{w}) = \mathrm{Re}\big((a + b\,\mathrm{i})(c - d\,\mathrm{i})\big) = ac + bd ,$$
#
# 正是两个数对的点积。取共轭会使角度反号：$\overline{e^{\mathrm{i}\varphi}} = e^{-\mathrm{i}\varphi}$。
# %% id="complex_code"
a, b, c, d = 2.0, 1.0, -0.5, 3.0
z, w = a + b * 1j, c + d * 1j
alpha, beta = 0.7, 1.9


def turn_matrix(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


turned = z * np.exp(1j * alpha)
np.testing.assert_allclose([turned.real, turned.imag], turn_matrix(alpha) @ [a, b])
np.testing.assert_allclose(abs(turned), abs(z))
np.testing.assert_allclose(turn_matrix(alpha) @ turn_matrix(beta), turn_matrix(alpha + beta))
np.testing.assert_allclose((z * np.conj(w)).real, a * c + b * d)
print(f"z = {z}, turned by {alpha} radians: {turned:.3f}; both have length {abs(z):.3f}")
# %% [markdown] id="angle" lang="en"
# ## Which angle? There is only one choice
#
# Let $z$ be a pair of the query and $w$ the pair of the key. Turn both and take the dot product:
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}\varphi(m)}\;\overline{w\,e^{\mathrm{i}\varphi(n)}}\Big)
# = \mathrm{Re}\Big(z\,\overline{w}\;e^{\mathrm{i}(\varphi(m)-\varphi(n))}\Big).$$
#
# The first wish says that this depends on $m-n$ only, whatever $z$ and $w$ are. Then $\varphi(m)-\varphi(n)$ itself, up to
# whole turns, may depend on $m - n$ only. In particular a step of one position always adds the same angle, call it $\omega$:
#
# $$\varphi(m) - \varphi(m-1) = \omega \quad\text{for every } m, \qquad\text{so}\qquad \varphi(m) = \varphi(0) + m\,\omega .$$
#
# $\varphi(0)$ cancels in every difference; we set it to zero. Whole turns change nothing. So **the angle is the position times
# a constant**, $\varphi(m) = m\,\omega$, and for a pair the only freedom left is the number $\omega$, its frequency:
#
# $$\boxed{\;\mathrm{Re}\Big(z\,e^{\mathrm{i}m\omega}\;\overline{w\,e^{\mathrm{i}n\omega}}\Big)
# = \mathrm{Re}\Big(z\,\overline{w}\;e^{\mathrm{i}(m-n)\omega}\Big)\;}$$
#
# The query and the key must use the same $\omega$, or the positions would not cancel.
#
# **Radians.** Angles are in radians, as `cos` and `sin` expect them: a whole turn is $2\pi \approx 6.283$, and one radian is
# $180/\pi \approx 57.3$ degrees. With $\omega = 1$, position 1 is turned by 57.3 degrees and not by one degree.
# %% [markdown] id="angle" lang="zh" of="8258ba17"
# ## 用什么角度？别无选择
#
# 设 $z$ 是查询中的一对数，$w$ 是键中对应的一对。两者都转动，再求点积：
#
# $$\mathrm{Re}\Big(z\,e^{\mathrm{i}\varphi(m)}\;\overline{w\,e^{\mathrm{i}\varphi(n)}}\Big)
# = \mathrm{Re}\Big(z\,\overline{w}\;e^{\mathrm{i}(\varphi(m)-\varphi(n))}\Big).$$
#
# 第一个要求是：不论 $z$、$w$ 取什么值，结果都只依赖 $m-n$。因此 $\varphi(m)-\varphi(n)$ 本身（不计整圈）也只能依赖 $m-n$。
# 特别地，位置每前进一步，增加的角度总是相同，记作 $\omega$：
#
# $$\varphi(m) - \varphi(m-1) = \omega \quad\text{对任意 } m, \qquad\text{故}\qquad \varphi(m) = \varphi(0) + m\,\omega .$$
#
# $\varphi(0)$ 在任何差里都会抵消，不妨取零；整圈则没有任何影响。所以**角度只能是位置乘以一个常数**，即 $\varphi(m) = m\,\omega$。
# 对一对数来说，剩下的自由只有 $\omega$ 这一个数，即它的频率：
#
# $$\boxed{\;\mathrm{Re}\Big(z\,e^{\mathrm{i}m\omega}\;\overline{w\,e^{\mathrm{i}n\omega}}\Big)
# = \mathrm{Re}\Big(z\,\overline{w}\;e^{\mathrm{i}(m-n)\omega}\Big)\;}$$
#
# 查询和键必须用同一个 $\omega$，否则各自的位置就抵消不掉。
#
# **弧度。** 角度一律用弧度，`cos` 和 `sin` 要的就是弧度：一整圈是 $2\pi \approx 6.283$，一弧度是 $180/\pi \approx 57.3$ 度。
# 当 $\omega = 1$ 时，位置 1 转过的是 57.3 度，而不是一度。
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
# ## From one pair to a whole head
#
# A head has $H$ numbers: $R = H/2$ pairs, each with a frequency of its own. Why not one frequency for all? A single pair is
# a clock with one hand, and it repeats. After 710 positions a hand of $\omega = 1$ has made 113 turns, to within a
# ten-thousandth of a radian: distance 710 looks like distance 0. A slow hand does not come round so soon, but it cannot tell
# neighbours apart. So use hands of many speeds, as a clock does with hours, minutes and seconds. RoPE spaces them evenly on
# a logarithmic scale:
#
# $$\omega_r = \Theta^{-2r/H}, \qquad r = 0, 1, \ldots, R-1 ,$$
#
# in radians per position. $\Theta$ is the base, `rope_theta` in the config. The first pair always has $\omega_0 = 1$, each
# following one is slower by the same ratio $\Theta^{2/H}$, and even the last is faster than $1/\Theta$. (Papers
# write $\theta_i$ for the frequencies and $\theta$ for the base. Both that $i$ and the imaginary unit are easily mixed up,
# which is why here the pair's index is $r$.)
# %% [markdown] id="many" lang="zh" of="ed58fbef"
# ## 从一对数到整个头
#
# 一个头有 $H$ 个数，即 $R = H/2$ 对，每一对有自己的频率。为什么不共用一个频率？单独一对数就像只有一根指针的钟，会重复。经过 710 个
# 位置，$\omega = 1$ 的指针几乎正好转了 113 圈，误差不到万分之一弧度：距离 710 看上去就像距离 0。慢的指针不会这么快转回来，却分不清
# 相邻的位置。所以要用快慢不同的许多指针，就像钟表有时针、分针和秒针。RoPE 让它们的频率在对数尺度上均匀分布：
#
# $$\omega_r = \Theta^{-2r/H}, \qquad r = 0, 1, \ldots, R-1 ,$$
#
# 单位是弧度每位置。$\Theta$ 是底数，即配置里的 `rope_theta`。第一对总有 $\omega_0 = 1$，此后每一对的频率都是前一对的
# $\Theta^{-2/H}$ 倍，最后一对也仍然快于 $1/\Theta$。（论文里频率写作 $\theta_i$，底数写作 $\theta$；那个 $i$ 很容易与虚数单位混淆，
# 所以这里数对的序号用 $r$。）
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

# en: One hand repeats; all hands together do not: only at distance 0 do all of them agree.
# zh: 一根指针会重复，全部指针合起来则不会：只有距离为 0 时，它们才全部重合。
assert abs(710 - 113 * 2 * np.pi) < 1e-4
distances = np.arange(1, config.max_seq_len)
agreement = np.cos(distances[:, None] * omega).mean(-1)
print(f"one hand at distance 710: {np.cos(710.0):.4f}, best of all hands: {agreement.max():.4f}")
assert np.cos(710.0) > 0.9999 > agreement.max()
# %% [markdown] id="circle_text" lang="en"
# The picture shows where the number 1 goes at positions 1, 3 and 5, for three of the faster pairs. Pair 0 makes nearly a
# whole turn in six positions, the others lag behind. The last pairs, not shown, barely move in a short text: they measure
# long distances.
# %% [markdown] id="circle_text" lang="zh" of="1f19b559"
# 下图从较快的数对里取三对，画出数 1 在位置 1、3、5 上转到哪里。第 0 对走六个位置就差不多转完一圈，另外两对落在后面。没有画出的最后
# 几对，在短文本里几乎不动：它们量的是长距离。
# %% id="circle"
degrees = {m: np.rad2deg(m * omega[0]) for m in (1, 3, 5)}
print({m: round(float(value), 1) for m, value in degrees.items()})
np.testing.assert_allclose(list(degrees.values()), [57.3, 171.9, 286.5], atol=0.05)

colours = {1: "tab:blue", 3: "tab:orange", 5: "tab:green"}
figure, panels = plt.subplots(1, 3, figsize=(9, 3.5))
for axes, r in zip(panels, (0, R // 16, R // 8), strict=True):
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#bbbbbb"))
    axes.plot([0, 1], [0, 0], color="#888888", linestyle="--", linewidth=1)
    for m, colour in colours.items():
        point = np.exp(1j * m * omega[r])
        axes.annotate(
            "",
            xy=(point.real, point.imag),
            xytext=(0, 0),
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0},
        )
        axes.text(1.22 * point.real, 1.22 * point.imag, m, color=colour, ha="center", va="center")
    axes.set_title(f"pair r = {r}: {omega[r]:.3f} rad per position", fontsize=9)
    axes.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.set_aspect("equal")
    axes.set_xlabel("Re")
    axes.set_ylabel("Im")
show(
    figure,
    en="Three unit circles with arrows for positions 1, 3 and 5: widely spread for the fast pair 0, "
    "closer together for a slower pair, within a quarter circle for the slowest of the three.",
    zh="三个单位圆，各有位置 1、3、5 的三个箭头：快的第 0 对箭头散得很开，较慢的一对靠得较近，三者中最慢的一对都在四分之一圆之内。",
)
# %% [markdown] id="elementwise" lang="en"
# ## One product, element by element
#
# Now to the real query. Which numbers form a pair? Any fixed choice will do, as long as queries and keys make the same one.
# `jax_llama3` pairs the first half of a vector with the second: $(x_r, x_{r+R})$. This order is called **half-split**. So the
# complex form of a query has $R$ numbers, $z_r = x_r + \mathrm{i}\,x_{r+R}$, and for $T$ tokens
#
# $$z \in \mathbb{C}^{T\times R}, \qquad \text{turns}_{m,r} = e^{\mathrm{i}\,m\,\omega_r} \in \mathbb{C}^{T\times R}, \qquad
# \text{rotated} = z \odot \text{turns}.$$
#
# $\odot$ multiplies **element by element**: $[T\,R]$ times $[T\,R]$ gives $[T\,R]$. Nothing is summed; there is no dot product
# here, and no pair ever touches another pair. The dot product comes later, between the rotated query and the rotated key.
#
# The table of turns has no weights in it. RoPE has nothing to learn, and it is the same for all heads and all layers.
# %% [markdown] id="elementwise" lang="zh" of="3be72d3d"
# ## 一次逐元素相乘
#
# 现在来处理真正的查询。哪两个数配成一对？任何固定的配法都行，只要查询和键配得一样。`jax_llama3` 把向量的前一半与后一半配对，即
# $(x_r, x_{r+R})$，这种排列叫**对半**排列（half-split）。于是查询的复数形式有 $R$ 个数，$z_r = x_r + \mathrm{i}\,x_{r+R}$；对 $T$ 个
# token 有
#
# $$z \in \mathbb{C}^{T\times R}, \qquad \text{turns}_{m,r} = e^{\mathrm{i}\,m\,\omega_r} \in \mathbb{C}^{T\times R}, \qquad
# \text{rotated} = z \odot \text{turns}.$$
#
# $\odot$ 是**逐元素**相乘：$[T\,R]$ 乘 $[T\,R]$ 仍得 $[T\,R]$。这里没有求和，不是点积，任何一对数都不会碰到另一对。点积要到后面才
# 出现，是在转过的查询与转过的键之间。
#
# 转动表里没有任何权重：RoPE 没有可学的参数，对所有的头、所有的层都一样。
# %% id="elementwise_code"
# en: From here on the model's own frequencies: a model of Llama 3.1 has scaled ones.
# zh: 从这里起使用模型自己的频率：Llama 3.1 的模型用的是缩放后的频率。
omega = rope_frequencies(config)
positions = jnp.arange(T)
angles = trace("angles", positions[:, None] * omega, "T R", T=T, R=R)
turns = trace("turns", jnp.exp(1j * angles), "T R", T=T, R=R)


def to_complex(x):
    return x[:, :R] + 1j * x[:, R:]


def to_real(z):
    return jnp.concatenate([z.real, z.imag], axis=-1)


z = trace("z", to_complex(q), "T R", T=T, R=R)
q_complex = trace("q rotated", to_real(z * turns), "T H", T=T, H=H)
close(q_complex, seen["layers.0.attn.q"][0, :, 0], atol=1e-4)
close(to_real(to_complex(k) * turns), seen["layers.0.attn.k"][0, :, 0], atol=1e-4)

# en: Position 0 is not turned, no length has changed, and without RoPE these are not the model's queries.
# zh: 位置 0 没有转动，所有长度都没变；而不做 RoPE 就得不到模型的查询。
close(q_complex[0], q[0], atol=1e-6)
close(jnp.linalg.norm(q_complex, axis=-1), jnp.linalg.norm(q, axis=-1), atol=1e-4)
assert jnp.abs(q - seen["layers.0.attn.q"][0, :, 0]).max() > 0.1
# %% [markdown] id="matrices" lang="en"
# ## The same with 2 × 2 matrices
#
# Without complex numbers each pair at each position has its own little matrix. Put side by side, the matrices of one position
# are a block-diagonal matrix $\mathcal{R}_m$ of $H \times H$ numbers, nearly all of them zero:
#
# $$\begin{pmatrix}x'_r\\ x'_{r+R}\end{pmatrix} =
# \begin{pmatrix}\cos m\omega_r & -\sin m\omega_r\\ \sin m\omega_r & \cos m\omega_r\end{pmatrix}
# \begin{pmatrix}x_r\\ x_{r+R}\end{pmatrix}.$$
#
# Nobody builds that matrix to compute with, but proofs are short with it.
# %% [markdown] id="matrices" lang="zh" of="54e56569"
# ## 用 2 × 2 矩阵再算一遍
#
# 不用复数的话，每个位置上的每一对数都有一个自己的小矩阵。把同一位置的小矩阵拼在一起，就是一个 $H \times H$ 的分块对角矩阵
# $\mathcal{R}_m$，其中几乎全是零：
#
# $$\begin{pmatrix}x'_r\\ x'_{r+R}\end{pmatrix} =
# \begin{pmatrix}\cos m\omega_r & -\sin m\omega_r\\ \sin m\omega_r & \cos m\omega_r\end{pmatrix}
# \begin{pmatrix}x_r\\ x_{r+R}\end{pmatrix}.$$
#
# 没有人真的用这个大矩阵做计算，但用它写证明很简短。
# %% id="matrices_code"
cos, sin = jnp.cos(angles), jnp.sin(angles)
matrices = jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
trace("matrices", matrices, "T R 2 2", T=T, R=R)
pairs = trace("pairs", jnp.stack([q[:, :R], q[:, R:]], -1), "T R 2", T=T, R=R)
moved = (matrices @ pairs[..., None])[..., 0]
q_matrices = jnp.concatenate([moved[..., 0], moved[..., 1]], axis=-1)
close(q_matrices, q_complex, atol=1e-5)


def big_matrix(m):
    """R_m, of H by H numbers, in the half-split order."""
    c, s = np.diag(np.cos(m * np.float64(omega))), np.diag(np.sin(m * np.float64(omega)))
    return np.block([[c, -s], [s, c]])


big = trace("R_3", big_matrix(3), "H H", H=H)
print(f"{(big == 0).mean():.1%} of it is zero")
close(big @ np.asarray(q[3]), q_complex[3], atol=1e-4)
# %% [markdown] id="half_split" lang="en"
# ## The same in real numbers, as the library does it
#
# Write the two rows of the little matrix for all pairs at once. What remains is four products and two sums, all element by
# element. `jax_llama3.model.rope` does just this: `rope_tables` makes cosines and sines once per forward pass, and `apply_rope`
# uses them for queries and keys of all heads in all layers.
# %% [markdown] id="half_split" lang="zh" of="968da819"
# ## 用实数写，也就是本库的写法
#
# 把小矩阵的两行对所有数对一次写出，就只剩下四次乘法、一次加法和一次减法，全部逐元素进行。`jax_llama3.model.rope` 正是这样做的：
# `rope_tables` 在每次前向计算时只算一次余弦和正弦，`apply_rope` 把它们用到所有层、所有头的查询和键上。
# %% id="half_split_code"


def rope(x, positions):
    angles = positions[:, None] * omega
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = x[:, :R], x[:, R:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


close(rope(q, positions), q_complex, atol=1e-5)

# en: The library's functions; they take a batch, [B T] positions and [B T heads H] vectors.
# zh: 库函数处理的是一批：位置是 [B T]，向量是 [B T 头 H]。
tables = rope_tables(positions[None], config)
trace("cosines", tables[0], "B T R", B=1, T=T, R=R)
close(apply_rope(q[None, :, None], *tables)[0, :, 0], rope(q, positions), atol=1e-5)

# en: All heads turn by the same angles.
# zh: 所有的头都转过同样的角度。
all_q = jnp.stack([rope(x @ layer.wq[head].T, positions) for head in range(N)], axis=1)
all_k = jnp.stack([rope(x @ layer.wk[head].T, positions) for head in range(K)], axis=1)
close(trace("all q", all_q, "T N H", T=T, N=N, H=H), seen["layers.0.attn.q"][0], atol=1e-4)
close(trace("all k", all_k, "T K H", T=T, K=K, H=H), seen["layers.0.attn.k"][0], atol=1e-4)
# %% [markdown] id="interleaved" lang="en"
# ## The other order: interleaved
#
# Meta's own code pairs neighbours, $(x_{2r}, x_{2r+1})$: the **interleaved** order. Neither is more right. The two differ by a
# fixed reordering of the $H$ numbers, and a dot product does not change when both vectors are reordered alike. So the rows of
# the matrices for queries and keys can be reordered once, when a checkpoint is converted (lesson 02), and the scores stay what
# they were.
#
# What must not happen is to rotate in one order the vectors that were trained for the other. The shapes fit, no error comes,
# and the scores are wrong.
# %% [markdown] id="interleaved" lang="zh" of="fcb40737"
# ## 另一种排列：交错
#
# Meta 自己的代码让相邻的数配对，即 $(x_{2r}, x_{2r+1})$，叫**交错**排列（interleaved）。两种都对，只差一个固定的重排；而两个向量以
# 同样的方式重排，点积不变。因此只要在转换检查点时，把查询和键的矩阵按行重排一次（第 02 课），分数就与原来一样。
#
# 万万不可的是：向量按一种排列训练，却按另一种排列旋转。形状都对得上，不会报错，分数却是错的。
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
# ## The proof for whole vectors
#
# The dot product of two vectors is the sum of the dot products of their pairs. So the boxed equation, summed over pairs, gives
#
# $$f(q, m)\cdot f(k, n) = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,e^{\mathrm{i}m\omega_r}\;\overline{w_r\,e^{\mathrm{i}n\omega_r}}\Big)
# = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,\overline{w_r}\;e^{\mathrm{i}(m-n)\omega_r}\Big) .$$
#
# On the right $m$ and $n$ occur only as $m - n$. That is the whole proof. In matrices it reads as follows. Transposing a turn
# reverses it, $\mathcal{R}_m^{\top} = \mathcal{R}_{-m}$, and turns add, $\mathcal{R}_a\mathcal{R}_b = \mathcal{R}_{a+b}$; so
#
# $$(\mathcal{R}_m q)^{\top}(\mathcal{R}_n k) = q^{\top}\mathcal{R}_m^{\top}\mathcal{R}_n\,k = q^{\top}\mathcal{R}_{n-m}\,k .$$
#
# The position of each token was put in, absolutely, and only the distance comes out. Written with the length and the angle of
# each pair, $z_r = |z_r| e^{\mathrm{i}\alpha_r}$ and $w_r = |w_r| e^{\mathrm{i}\beta_r}$, the score is a sum of waves over the
# distance:
#
# $$\sum_r |z_r||w_r| \cos\big((m-n)\,\omega_r + \alpha_r - \beta_r\big).$$
#
# The content of the two tokens decides how strong each wave is and where it has its peak. So a head can learn to look, say,
# one token back: by phases $\alpha_r - \beta_r = -\omega_r$, with which all waves peak together at distance 1. The cell
# builds such a query by hand.
# %% [markdown] id="proof" lang="zh" of="1d2cc634"
# ## 整个向量的证明
#
# 两个向量的点积，等于各对数的点积之和。把上面方框里的等式对所有数对求和，得到
#
# $$f(q, m)\cdot f(k, n) = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,e^{\mathrm{i}m\omega_r}\;\overline{w_r\,e^{\mathrm{i}n\omega_r}}\Big)
# = \sum_{r=0}^{R-1} \mathrm{Re}\Big(z_r\,\overline{w_r}\;e^{\mathrm{i}(m-n)\omega_r}\Big) .$$
#
# 等号右边的 $m$ 和 $n$ 只以 $m - n$ 的形式出现，证毕。用矩阵来写则是：转动的转置就是反向转动，
# $\mathcal{R}_m^{\top} = \mathcal{R}_{-m}$；连续转动时位置相加，$\mathcal{R}_a\mathcal{R}_b = \mathcal{R}_{a+b}$。所以
#
# $$(\mathcal{R}_m q)^{\top}(\mathcal{R}_n k) = q^{\top}\mathcal{R}_m^{\top}\mathcal{R}_n\,k = q^{\top}\mathcal{R}_{n-m}\,k .$$
#
# 放进去的是每个 token 的绝对位置，出来的却只有距离。再用每对数的长度和角度来写，令 $z_r = |z_r| e^{\mathrm{i}\alpha_r}$、
# $w_r = |w_r| e^{\mathrm{i}\beta_r}$，分数就是一组以距离为自变量的波之和：
#
# $$\sum_r |z_r||w_r| \cos\big((m-n)\,\omega_r + \alpha_r - \beta_r\big).$$
#
# 每个波有多强、峰在哪里，由两个 token 的内容决定。因此一个头可以学会，比如说，总是看前一个 token：只要相位
# $\alpha_r - \beta_r = -\omega_r$，所有的波就在距离 1 处同时达到峰值。下面的单元格亲手造一个这样的查询。
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

# en: The sum of waves gives the same numbers, and for a distance never needs the positions.
# zh: 波的叠加得到同样的数，而且给定距离后完全用不到位置。
z, w = to_complex(query[None])[0], to_complex(key[None])[0]
far = places[:, None] - places[None]
phases = jnp.angle(z) - jnp.angle(w)
waves = (jnp.abs(z) * jnp.abs(w) * jnp.cos(far[..., None] * omega + phases)).sum(-1)
close(waves, at_places, atol=1e-3)

# en: A query made for this key that likes it best one position back.
# zh: 为这个键造一个查询，键在前一个位置时它给的分数最高。
one_back = to_real((w * jnp.exp(-1j * omega))[None])
liking = (rope(one_back, places[-1:]) @ rope(jnp.tile(key, (M, 1)), places).T)[0]
assert liking.argmax() == M - 2
# %% [markdown] id="toeplitz_text" lang="en"
# ## What the proof looks like
#
# A matrix that is constant along each diagonal is called a **Toeplitz** matrix. That is what we have just asserted: each
# diagonal is one distance. On the left below, the scores of one query and one key at all places, rotated: stripes. On the
# right, the same two vectors with position vectors of sines and cosines added, as the first transformers had them: the
# stripes are broken, because the two middle terms of the first formula depend on the place.
# %% [markdown] id="toeplitz_text" lang="zh" of="8d1451c0"
# ## 证明的样子
#
# 每条对角线上的数都相同的矩阵叫 **Toeplitz** 矩阵。刚才断言的正是这一点：每条对角线对应一个距离。下面左图是同一个查询与同一个键放在
# 各处、旋转之后的分数：一道道斜纹。右图用同样两个向量，但像最早的 transformer 那样加上由正弦和余弦组成的位置向量：斜纹被打乱了，
# 因为本课第一个公式的中间两项依赖于位置。
# %% id="toeplitz"
waves_at = np.concatenate([np.cos(places[:, None] * omega), np.sin(places[:, None] * omega)], -1)
size = float(jnp.sqrt(jnp.mean(query**2)))
added = (query + size * waves_at) @ (key + size * waves_at).T
spread = {
    name: max(np.ptp(np.diagonal(matrix, -d)) for d in range(-M + 1, M)) / np.ptp(matrix)
    for name, matrix in {"rotated": at_places, "added": added}.items()
}
print(", ".join(f"{name}: diagonals vary by {value:.2f} of all" for name, value in spread.items()))
assert spread["rotated"] < 1e-3 < 0.1 < spread["added"]

figure, panels = plt.subplots(1, 2, figsize=(9, 3.8))
for axes, matrix, title in zip(
    panels, (at_places, added), ("RoPE: rotated", "position vectors: added"), strict=True
):
    image = axes.imshow(matrix, cmap="viridis")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("position n of the key")
    axes.set_ylabel("position m of the query")
    figure.colorbar(image, ax=axes, shrink=0.8, label="score (unscaled)")
show(
    figure,
    en="Two heat maps of scores over query and key position. Rotated: straight diagonal stripes. "
    "Added position vectors: an irregular pattern that changes along the diagonals.",
    zh="两张分数热图，纵轴是查询位置，横轴是键位置。旋转：笔直的斜条纹。加位置向量：沿对角线也有变化的不规则图案。",
)
# %% [markdown] id="attention" lang="en"
# ## The head of lesson 04, now complete
#
# Scores, mask and softmax are as before; only queries and keys are rotated first. Now the pattern is that of the network, and
# so is the head's output. And the bag of words is gone: in the shuffled prompt, the last token weighs the same words
# differently.
# %% [markdown] id="attention" lang="zh" of="f2f869a5"
# ## 第 04 课的注意力头，现在完整了
#
# 分数、掩码和 softmax 都照旧，只是先把查询和键旋转一下。现在得到的注意力权重与网络中的一致，头的输出也一致。“词袋”也不复存在：
# 打乱提示之后，最后一个 token 给同样几个词的权重就变了。
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

# en: The last token's weights for the same words, as the prompt is and with "The" and " France" exchanged.
# zh: 最后一个 token 给同样几个词的权重：原来的提示，以及 “The” 与 “ France” 对调之后。
of_shuffled, _ = attend(q[shuffled], k[shuffled], v[shuffled], positions)
by_word = of_shuffled[-1][jnp.argsort(shuffled)]
for t in range(T):
    word = model.tokenizer.decode([ids[t]])
    print(f"{word:>10}  weight {pattern[-1, t]:.3f}, shuffled {by_word[t]:.3f}")
assert jnp.abs(by_word - pattern[-1]).max() > (1e-2 if is_default else 1e-3)
# %% [markdown] id="shift" lang="en"
# ## Move everything by 1000 positions
#
# If only distances count, then nothing may change when the same prompt stands at positions 1000, 1001, ... For our head that
# is one line. For the whole network there are two honest ways, neither of which touches the library's code.
#
# **By a tap.** A tap may replace what passes through it. Turns add up,
# $\mathcal{R}_{1000}\mathcal{R}_m = \mathcal{R}_{m+1000}$, so a tap that turns every query and key by a further 1000
# positions, in every layer, moves the whole prompt. If it turns the queries alone, the distances change, and so do the logits.
#
# **By telling the network that 1000 tokens came before.** `forward` can append to a store of keys and values of earlier tokens
# (lesson 10 derives it; here we need one property of it). If the store says that it holds 1000 tokens, the next token is at
# position 1000, and `rope_tables` gets exactly that number. But the store is empty: its 1000 keys and values are zeros that
# stand for no token. A zero key is not invisible; its score is 0, which softmax makes into a positive weight. So
# a tap sets the scores of these places to $-\infty$, as the causal mask does with the future.
# %% [markdown] id="shift" lang="zh" of="12a1aea1"
# ## 全部平移 1000 个位置
#
# 既然只看距离，那么同一个提示放到位置 1000、1001、…… 上，什么都不该变。对我们的头，一行就能验证。对整个网络，有两种正当的办法，
# 都不用改动库的代码。
#
# **用探针。** 探针可以替换经过它的数组。转动可以叠加，$\mathcal{R}_{1000}\mathcal{R}_m = \mathcal{R}_{m+1000}$，所以只要一个探针在
# 每一层都把查询和键再多转 1000 个位置，整个提示就平移了。如果只转查询，距离就变了，logits 也随之改变。
#
# **告诉网络前面已有 1000 个 token。** `forward` 可以接在已存下的键和值之后继续算（第 10 课推导，这里只用它的一个性质）。如果存储
# 声称已有 1000 个 token，下一个 token 的位置就是 1000，`rope_tables` 得到的正是这个数。但这个存储其实是空的：那 1000 个键和值全是零，
# 并不代表任何 token。零键并非不可见：它的分数是 0，经过 softmax 会得到正的权重。所以还要用探针把这些位置的分数设为 $-\infty$，就像
# 因果掩码对待未来那样。
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

# en: The network did see other positions: its keys are those of position 1000 and on.
# zh: 网络看到的位置确实不同：它的键就是位置 1000 及之后的键。
close(moved_seen["layers.0.attn.k"][0, :, 0], rope(k, positions + shift), atol=1e-3)
assert jnp.abs(moved_seen["layers.0.attn.k"] - seen["layers.0.attn.k"]).max() > 0.1

# en: Not hidden, 1000 empty places take part, and the logits are others.
# zh: 不遮住的话，1000 个空位置也会参与，logits 就变了。
not_hidden, _ = jax_llama3.forward(params, tokens, config, store, tap=lambda name, array: array)
assert jnp.abs(not_hidden - logits).max() > 1
# %% [markdown] id="shift_rounding" lang="en"
# "Equal" means here: to within 0.002, of logits as large as 20 and more. In exact arithmetic the difference is zero. In
# float32 the angle of position 1003 is rounded more coarsely than that of position 3, as the section on precision below shows.
#
# Do not read more into this than it says. RoPE as a function knows distances only. A model still finds out where a text
# begins, for the first token is the one that nobody precedes. And that a prompt may stand anywhere does not mean that
# distances longer than those of training work well.
# %% [markdown] id="shift_rounding" lang="zh" of="96dcd88b"
# 这里的“相等”是指相差不超过 0.002，而最大的 logits 在 20 以上。若计算没有舍入，差就是零。在 float32 里，位置 1003 的角度比位置 3 的
# 舍入得更粗，见下文讲精度的一节。
#
# 也不要过度解读。作为函数，RoPE 只知道距离；但模型仍能看出文本从哪里开始，因为第一个 token 前面什么也没有。另外，提示可以放在任何
# 位置，并不等于比训练时更长的距离也能处理得好。
# %% id="shift_size"
print(f"largest logit {float(logits.max()):.0f}")
if is_default:
    assert logits.max() > 20
assert (by_store != logits).any()
spacing = {m: float(np.spacing(np.float32(m))) for m in (3, 1003)}
assert spacing[1003] > 100 * spacing[3]
# %% [markdown] id="values" lang="en"
# ## Why values are not rotated
#
# A query and a key meet in a dot product, and there the absolute positions cancel. Values meet nobody. They are added up,
# and the sum goes on through one matrix into the residual stream. Rotate them, and the result for position $m$ is
#
# $$\sum_n a_{mn}\,\mathcal{R}_n v_n ,$$
#
# where $a_{mn}$ are the weights of the pattern. Nothing cancels $\mathcal{R}_n$: the output turns as the text moves, and the
# same words would mean something else on another page. Left alone, $\sum_n a_{mn} v_n$ contains positions only through
# $a_{mn}$, thus only as distances. Position decides *how much* is taken from each token, not *what* is taken.
# %% [markdown] id="values" lang="zh" of="3613bec3"
# ## 为什么不旋转值
#
# 查询与键在点积里相遇，绝对位置在那里抵消。值却不与任何向量相遇：它们只被加权求和，结果再经过一个矩阵进入残差流。如果把值也旋转，位置 $m$ 的结果是
#
# $$\sum_n a_{mn}\,\mathcal{R}_n v_n ,$$
#
# 其中 $a_{mn}$ 是注意力权重。没有什么能抵消 $\mathcal{R}_n$：文本一平移，输出就跟着转，同样的词换一页意思就变了。不旋转的话，
# $\sum_n a_{mn} v_n$ 只通过 $a_{mn}$ 依赖位置，也就只依赖距离。位置决定从每个 token 取*多少*，而不决定取*什么*。
# %% id="values_code"
rotated_here = pattern @ rope(v, positions)
rotated_there = moved_pattern @ rope(v, positions + shift)
change = float(jnp.abs(rotated_here - rotated_there).max())
print(f"with rotated values, the move changes the output by up to {change:.3f}")
assert change > 1e-2 > 1e-3 > jnp.abs(moved_head - z_head).max()

# en: The network's own values are those that nobody has turned.
# zh: 网络自己的值就是没有转过的值。
close(v, seen["layers.0.attn.v"][0, :, 0], atol=1e-4)
# %% [markdown] id="wavelengths_text" lang="en"
# ## Wavelengths
#
# How far does a pair go before it repeats? Its **wavelength** is the number of positions of one whole turn:
#
# $$\lambda_r = \frac{2\pi}{\omega_r} = 2\pi\,\Theta^{2r/H} .$$
#
# It grows from $2\pi$ positions and stays below $2\pi\Theta$. Compare it with the context, the longest text of training: a pair whose
# wavelength is longer never makes a whole turn there. It gives an unambiguous, coarse measure of distance. In the default model
# that holds for 12 of 32 pairs. A larger base makes all pairs but the first slower, which is why bases have grown
# with the texts that models are meant for: 10,000 in the first paper, 500,000 in Llama 3; here it is 100,000.
# %% [markdown] id="wavelengths_text" lang="zh" of="76a1dd5f"
# ## 波长
#
# 一对数走多远才会重复？转完一整圈所需的位置数，叫它的**波长**（wavelength）：
#
# $$\lambda_r = \frac{2\pi}{\omega_r} = 2\pi\,\Theta^{2r/H} .$$
#
# 它从 $2\pi$ 个位置开始增长，但始终小于 $2\pi\Theta$。再与上下文长度（训练时最长的文本）比较：波长更长的数对，在上下文里转不满一圈，给出的
# 距离虽粗，却没有歧义。默认模型的 32 对里有 12 对如此。底数越大，除第一对外，其余各对就转得越慢，所以模型要读的文本越来越长，底数也就越来越大：最早的论文是
# 10,000，Llama 3 是 500,000；本模型是 100,000。
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
figure, axes = plt.subplots(figsize=(7.5, 3.8))
beyond = {}
for name, row in rows.items():
    wavelengths = 2 * np.pi / rope_frequencies(row)
    np.testing.assert_allclose(wavelengths[0], 2 * np.pi, rtol=1e-6)
    assert wavelengths[-1] < 2 * np.pi * row.rope_theta
    beyond[name] = int((wavelengths > context).sum())
    print(f"{name}: longest {wavelengths[-1]:>10,.0f}, beyond the context {beyond[name]} pairs")
    axes.semilogy(np.arange(len(wavelengths)) / len(wavelengths), wavelengths, ".-", label=name)
assert list(beyond.values())[1] == 12
if is_default:
    assert (config.rope_theta, R, config.max_seq_len) == (100_000, 32, context)
axes.axhline(context, color="#888888", linestyle="--", linewidth=1)
axes.text(0.01, context * 1.2, f"context of {context} positions", fontsize=8)
axes.set_xlabel("pair, r / R")
axes.set_ylabel("wavelength in positions")
axes.legend(fontsize=8, loc="lower right")
show(
    figure,
    en="Wavelengths of the pairs on a logarithmic axis: three straight lines that start together near 6 "
    "and rise more steeply with a larger base, crossing a dashed line at 8192 positions.",
    zh="对数坐标下各数对的波长：三条直线都从 6 附近出发，底数越大上升越陡，并穿过 8192 个位置处的虚线。",
)
# %% [markdown] id="scaling_text" lang="en"
# ## Stretching the context: the scaling of Llama 3.1 and 3.2
#
# Llama 3 was trained on texts of up to 8192 tokens. Llama 3.1 reads 131,072. At these distances slow pairs reach angles that
# they never had in training. The answer is to turn them more slowly. But fast pairs made many turns in the old
# context already, have seen every angle, and tell neighbours apart; they should stay as they are. So the pairs are sorted by
# the number of turns that they make in the original context $C = 8192$, $\;t_r = C/\lambda_r$:
#
# | region | turns in the original context | wavelength | new frequency |
# |---|---|---|---|
# | fast | $t_r > 4$ | below 2048 | $\omega_r$, kept |
# | between | $1 \le t_r \le 4$ | 2048 to 8192 | mixed, see below |
# | slow | $t_r < 1$ | above 8192 | $\omega_r / F$ |
#
# In the middle region it is
#
# $$(1-s)\,\frac{\omega_r}{F} + s\,\omega_r \quad\text{with}\quad s = \frac{t_r - 1}{4 - 1} .$$
#
# The limits 1 and 4 are `low_freq_factor` and `high_freq_factor` in the config; $F$ is here `factor`, not a width: **8** in Llama 3.1 and **32**
# in Llama 3.2. $s$ runs from 0 to 1 across the middle region, so the formula joins both neighbours without a jump. It is the
# frequency that is mixed, not the wavelength. The scaling is always on, for short texts too: it changes the frequencies once
# and for all.
# %% [markdown] id="scaling_text" lang="zh" of="fb88db7e"
# ## 拉长上下文：Llama 3.1 与 3.2 的缩放
#
# Llama 3 训练时的文本最长 8192 个 token，Llama 3.1 则能读 131,072 个。在这么长的距离上，慢的数对会转到训练中从未出现过的角度。办法是让它们
# 转得更慢。而快的数对在原来的上下文里早就转了许多圈，各种角度都见过，又负责分清相邻的位置，应当保持原样。所以按照各对在原上下文
# $C = 8192$ 里转的圈数 $t_r = C/\lambda_r$，把它们分成三个区：
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
# 界限 1 和 4 就是配置里的 `low_freq_factor` 和 `high_freq_factor`；这里的 $F$ 是 `factor`，不是宽度：Llama 3.1 为 **8**，Llama 3.2 为 **32**。$s$ 在中间区
# 从 0 变到 1，所以与两边都衔接得上，没有跳变。注意混合的是频率，不是波长。缩放始终生效，对短文本也一样：它一次性地改掉了频率。
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
# Above, frequencies before and after; below, how many times slower each pair has become. In the new context of 131,072
# positions, the slowest pairs of Llama 3.1 turn as far as they would have in $131072/8 = 16384$ positions before, and those of
# Llama 3.2 as far as in $131072/32 = 4096$. The former is still beyond 8192, so the formula does not do everything; the model
# was also trained further, on long texts.
# %% [markdown] id="scaling_picture_text" lang="zh" of="a0b7fc96"
# 上排是缩放前后的频率，下排是各对变慢的倍数。在 131,072 个位置的新上下文里，Llama 3.1 最慢的数对转过的角度，相当于以前
# $131072/8 = 16384$ 个位置转过的角度；Llama 3.2 则相当于以前的 $131072/32 = 4096$ 个。前者仍然超过 8192，可见只靠公式还不够，模型也在
# 长文本上继续训练过。
# %% id="scaling_picture"
figure, panels = plt.subplots(2, 2, figsize=(9, 5.5), sharex="col")
shades = {"fast": "#d9ead3", "between": "#fce5cd", "slow": "#cfe2f3"}
for (top, bottom), (name, (before, after, regions)) in zip(panels.T, results.items(), strict=True):
    for axes in (top, bottom):
        for region, shade in shades.items():
            inside = np.flatnonzero(regions == region)
            axes.axvspan(inside[0] - 0.5, inside[-1] + 0.5, color=shade, label=region)
        axes.set_xlim(-0.5, len(before) - 0.5)
    top.semilogy(before, "o", color="#888888", markersize=3, label="before")
    top.semilogy(after, ".", color="tab:red", markersize=4, label="after")
    top.set_title(name, fontsize=10)
    top.set_ylabel("radians per position")
    top.legend(fontsize=7, loc="lower left")
    bottom.plot(before / after, ".-", color="tab:red", markersize=4)
    bottom.set_ylabel("times slower")
    bottom.set_xlabel("pair r")
    new_angle, factor = 131072 * after[-1], family[name][1]
    np.testing.assert_allclose(new_angle, 131072 / factor * before[-1])
show(
    figure,
    en="For Llama 3.1 and 3.2: frequencies before and after scaling, equal in the fast region, bending away "
    "in the middle, lower by the factor in the slow region; below, the slowing rises from 1 to 8 and to 32.",
    zh="Llama 3.1 与 3.2 缩放前后的频率：快区相同，中间区逐渐分开，慢区低了一个倍数；下排的变慢倍数分别从 1 升到 8 和 32。",
)
# %% [markdown] id="scaling_silent_text" lang="en"
# A forgotten or wrong scaling is a silent error. To show it, we give this model a scaling that it was not trained with. On five
# tokens, the logits hardly move, and the top token stays: only fast pairs have turned noticeably. That is why such errors are
# looked for at large distances and in all logits, never in one short answer.
# %% [markdown] id="scaling_silent_text" lang="zh" of="bbf6747f"
# 漏掉缩放或用错倍数，都不会报错。为了看清这一点，我们给本模型加上一个它训练时没有用过的缩放。在五个 token 上，logits 几乎不动，最可能的
# token 也没变，因为明显转动的只有快的数对。所以查这类错误要看远距离、看全部 logits，绝不能只看一个简短的回答。
# %% id="scaling_silent"
wrong_config = dataclasses.replace(unscaled, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192))
if config.rope_scaling is None:
    wrong, _ = jax_llama3.forward(params, tokens, wrong_config)
    change = float(jnp.abs(wrong - logits).max())
    print(f"a wrong scaling changes logits by up to {change:.2f}, the top token by nothing")
    assert wrong[0, -1].argmax() == logits[0, -1].argmax()
    assert 2e-3 < change < 0.5

# en: The same two vectors, 5 and 5000 positions apart: only far away does the scaling show.
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
# A bfloat16 number has 8 bits of precision, so it cannot count beyond 256 without gaps: **position 257 becomes 256**. The angle
# of the first pair is then wrong by a whole radian, 57.3 degrees, and token 257 seems to stand on token 256. Among
# positions 0 to 8191, only 897 different ones are left. So positions, angles, cosines and sines are float32 even where all
# weights are bfloat16; `apply_rope` widens the vector, turns it and rounds once, at the end.
#
# float32 is not exact either. It counts without gaps to $2^{24}$, so positions are safe, but the product $m\,\omega_r$ is
# rounded: near 100,000 neighbouring numbers are 0.008 apart. That is why two implementations agree at long distances only if
# they round the frequencies in the same way, and why the move by 1000 was not equal to the last bit.
# %% [markdown] id="precision" lang="zh" of="febce09e"
# ## 角度用 float32
#
# bfloat16 只有 8 位有效二进制位，数到 256 以上就会有空缺：**位置 257 变成 256**。于是第一对的角度错了整整一弧度，即 57.3 度，token 257
# 看上去就与 token 256 站在同一处。位置 0 到 8191，最后只剩 897 个不同的值。因此即使所有权重都是 bfloat16，位置、角度、余弦和正弦也要用
# float32；`apply_rope` 先把向量加宽，转动之后只在最后舍入一次。
#
# float32 也不是精确的。它能不漏地数到 $2^{24}$，所以位置没有问题；但乘积 $m\,\omega_r$ 会舍入：在 100,000 附近，相邻两个数相差 0.008。
# 所以在长距离上，两个实现只有以同样的方式舍入频率，结果才会一致；平移 1000 之后没有逐位相等，原因也在这里。
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
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Write a function of a position `m` and a pair `r` that gives the pair's angle in degrees, from 0 to 360. Use `omega`.
# %% [markdown] id="exercises" lang="zh" of="3e5f4337"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 写一个函数，参数是位置 `m` 和数对序号 `r`，返回该对转到的角度，以度为单位，在 0 到 360 之间。请用 `omega`。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    assert abs(answer(1, 0) - 57.296) < 1e-2
    assert abs(answer(7, 0) - 41.070) < 1e-2
    for m, r in [(0, 3), (100, 1), (1000, R - 1)]:
        turn = np.exp(1j * m * np.float64(omega[r]))
        assert 0 <= answer(m, r) < 360
        np.testing.assert_allclose(np.exp(1j * np.deg2rad(answer(m, r))), turn, atol=1e-3)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda m, r: np.rad2deg(m * np.float64(omega[r])) % 360, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a function of a query `q` and a key `k`, both of shape $[H]$ and not rotated, and a distance `d` $= m - n$, that
# gives their score (not divided by $\sqrt H$) without rotating either.
# %% [markdown] id="exercise_2_text" lang="zh" of="1e600765"
# **2.** 写一个函数，参数是形状为 $[H]$ 的查询 `q` 和键 `k`（都未旋转）以及距离 `d` $= m - n$，不旋转任何一个，直接给出两者的分数（不除以
# $\sqrt H$）。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for m, n in [(0, 0), (9, 4), (4, 9), (31, 0)]:
        np.testing.assert_allclose(answer(query, key, m - n), at_places[m, n], atol=1e-2)


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]


def from_distance(q, k, d):
    z, w = q[:R] + 1j * q[R:], k[:R] + 1j * k[R:]
    return (z * jnp.conj(w) * jnp.exp(1j * d * omega)).real.sum()


exercise(2, from_distance, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Values *can* be rotated, if one more step repairs the output. Let `out` $[T\,H]$ be `pattern @ rope(v, positions)`.
# Write a function of `out` and `positions` that makes it depend on distances only. (Which turn is missing from
# $\sum_n a_{mn}\mathcal{R}_n v_n$ to make each term contain $n - m$?)
# %% [markdown] id="exercise_3_text" lang="zh" of="dbfc1fed"
# **3.** 值其实也*可以*旋转，只要再加一步把输出修正回来。设 `out` $[T\,H]$ 为 `pattern @ rope(v, positions)`。写一个以 `out` 和
# `positions` 为参数的函数，使结果只依赖距离。（要让 $\sum_n a_{mn}\mathcal{R}_n v_n$ 的每一项都变成 $n - m$ 的函数，还差哪个转动？）
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    expected = [pattern[m] @ rope(v, positions - m) for m in range(T)]
    np.testing.assert_allclose(answer(rotated_here, positions), jnp.stack(expected), atol=1e-3)
    there = answer(rotated_there, positions + shift)
    np.testing.assert_allclose(there, jnp.stack(expected), atol=2e-3)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, lambda out, positions: rope(out, -positions), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Su, Lu, Pan, Murtadha, Wen and Liu, *RoFormer: Enhanced Transformer with Rotary Position Embedding*, 2021,
#   [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): the added sines
# - Chen, Wong, Chen and Tian, *Extending Context Window of Large Language Models via Positional Interpolation*, 2023,
#   [arXiv:2306.15595](https://arxiv.org/abs/2306.15595)
# - Peng, Quesnelle, Fan and Shippole, *YaRN: Efficient Context Window Extension of Large Language Models*, 2023,
#   [arXiv:2309.00071](https://arxiv.org/abs/2309.00071): scaling by the number of turns
# - Haviv, Ram, Press, Izsak and Levy, *Transformer Language Models without Positional Encodings Still Learn Positional
#   Information*, 2022, [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)
#
# Next: lesson 06 runs all heads at once, and lets several queries share one key.
# %% [markdown] id="sources" lang="zh" of="c7325f14"
# ## 来源
#
# - Su、Lu、Pan、Murtadha、Wen、Liu，*RoFormer: Enhanced Transformer with Rotary Position Embedding*，2021，
#   [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)：相加的正弦
# - Chen、Wong、Chen、Tian，*Extending Context Window of Large Language Models via Positional Interpolation*，2023，
#   [arXiv:2306.15595](https://arxiv.org/abs/2306.15595)
# - Peng、Quesnelle、Fan、Shippole，*YaRN: Efficient Context Window Extension of Large Language Models*，2023，
#   [arXiv:2309.00071](https://arxiv.org/abs/2309.00071)：按圈数缩放
# - Haviv、Ram、Press、Izsak、Levy，*Transformer Language Models without Positional Encodings Still Learn Positional
#   Information*，2022，[arXiv:2203.16634](https://arxiv.org/abs/2203.16634)
#
# 下一课：第 06 课让所有的头一起计算，并让几个查询共用一个键。
