# %% [markdown] id="title" lang="en"
# # 03 · Embedding and RMSNorm
#
# *Reading time 15 minutes. Before it: lesson 00 and the first part of lesson 02. What it proves: the first two steps of
# the network, done by hand, agree with `jax_llama3`, and no number in them is left unexplained.*
#
# How does a network get from the number 7042 to the meaning of " Paris"? An id is only a name; nothing about it says
# what it means. The **embedding** gives each id a vector of $D$ numbers, and from here on the network works with
# vectors alone. The first thing every layer then does is normalise them. This lesson does both by hand and asks why.
# %% [markdown] id="title" lang="zh" of="836e25a2"
# # 03 · 嵌入与 RMSNorm
#
# *阅读时间 15 分钟。前置：第 00 课与第 02 课的第一部分。本课证明：亲手完成的网络前两步与 `jax_llama3` 的结果一致，并且其中没有一个
# 数来历不明。*
#
# 网络怎样从 7042 这个数得到“ Paris”的含义？编号只是名字，这个数本身不带任何含义。**嵌入**（embedding）给每个编号一个 $D$ 维向量，
# 从这里开始，网络只与向量打交道。接着，每一层做的第一件事就是把它们归一化。这一课亲手做这两步，并且问一问为什么。
# %% id="setup"
import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.model import layers as network
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import embedding as figures

model = load_model()
config, params = model.config, model.params
D, V, L = config.dim, config.vocab_size, config.n_layers
ids = model.tokenizer.encode("The capital of France is", bos=True)
tokens = [model.tokenizer.decode([i]) for i in ids]
T = len(ids)
print(tokens, ids)
# %% [markdown] id="lookup" lang="en"
# ## Looking up rows
#
# The embedding is a matrix with one row for each id, $V$ rows of $D$ numbers. To embed a prompt of $T$ ids is to pick
# $T$ rows:
#
# $$x_t = E_{\,\mathrm{id}_t}, \qquad E \in \mathbb{R}^{V \times D},\quad x \in \mathbb{R}^{T \times D}.$$
#
# Textbooks write this as a product of a one-hot row with $E$. The product is right but wasteful: it reads all of $E$ to
# keep $T$ rows of it. We check once that both agree, and then index.
# %% [markdown] id="lookup" lang="zh" of="bdfd6381"
# ## 查表
#
# 嵌入是一个矩阵，每个编号占一行，共 $V$ 行、每行 $D$ 个数。嵌入一个长度为 $T$ 的提示，就是取出其中 $T$ 行：
#
# $$x_t = E_{\,\mathrm{id}_t}, \qquad E \in \mathbb{R}^{V \times D},\quad x \in \mathbb{R}^{T \times D}.$$
#
# 教科书常把它写成独热（one-hot）行向量与 $E$ 的乘积。结果没错，却很浪费：为了 $T$ 行，要把整个 $E$ 读一遍。我们只验证一次两者相等，
# 之后直接用下标。
# %% id="lookup_code"
E = trace("E", params.embedding, "V D", V=V, D=D)
x = trace("x", E[jnp.array(ids)], "T D", T=T, D=D)

one_hot = jax.nn.one_hot(jnp.array(ids), V)
assert one_hot.shape == (T, V)
close(one_hot @ E, x, atol=0)
# %% id="rows_picture"
show(
    figures.ids_to_rows(tokens, ids, E),
    en="For each token of the prompt an arrow to its id, and from there to the row of the embedding with that id, drawn as a strip of red and blue cells; every strip is different.",
    zh="提示的每个 token 有一个箭头指向它的编号，再指向嵌入中该编号的那一行，画成一条红蓝相间的色带；每条都不同。",
)
# %% [markdown] id="same_rows" lang="en"
# Two things follow at once. The same token always gets the same vector, wherever it stands: at this point the network
# knows nothing about order (lesson 05 brings it in). And an id outside the table has no row, but JAX does not complain:
# if an index that is only known at run time is too large, it silently takes the last row. That is why `jax_llama3`
# checks ids first.
# %% [markdown] id="same_rows" lang="zh" of="f02c8c0e"
# 由此立即得到两点。其一，同一个 token 不论出现在哪里，得到的向量都一样：此时网络对顺序一无所知（第 05 课才引入）。其二，表外的
# 编号没有对应的行，而 JAX 不会报错：运行时才知道的下标若是太大，它会悄悄取最后一行。所以 `jax_llama3` 先检查编号。
# %% id="same_rows_code"
twice = E[jnp.array([ids[0], ids[1], ids[0]])]
assert (twice[0] == twice[2]).all()

# en: A wrong id silently becomes the last row.
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
# %% [markdown] id="neighbours" lang="en"
# ## What the rows know
#
# Nobody wrote these vectors; training found them. Is there meaning in them? Ask which rows are most alike. We compare
# two vectors by the **cosine** of the angle between them, $\cos(a, b) = a \cdot b \,/\, (|a|\,|b|)$: 1 if they point
# the same way, 0 if they are at right angles.
#
# Take the row of " Paris" and look for its nearest neighbours among all $V$ rows. The nearest of all is "Paris" without
# a space: nothing told the network that the two are one word. Then come London, Berlin and other cities, and France.
# For comparison, look at the rows right above and below it in the table: they are no nearer than a typical row. (A
# typical row has a cosine of about a third, not zero: all rows of this table lean a little in one direction.)
# %% [markdown] id="neighbours" lang="zh" of="fdbef60c"
# ## 这些行知道什么
#
# 这些向量不是谁写的，而是训练找到的。其中有含义吗？看看哪些行最相像。比较两个向量，用它们夹角的**余弦**（cosine）：$\cos(a, b) = a \cdot b \,/\, (|a|\,|b|)$。方向相同时为 1，互相垂直时为 0。
#
# 取“ Paris”那一行，在全部 $V$ 行中找它最近的邻居。最近的是不带空格的“Paris”：没有人告诉过网络这两个是同一个词。随后是
# London、Berlin 等城市，还有 France。作为比较，再看表中紧挨着它的上下几行：它们并不比普通的行更近。（普通一行的余弦是三分之一左右，
# 而不是零：这张表的所有行都稍稍偏向同一个方向。）
# %% id="neighbours_code"


def cosine(a, b):
    return (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


paris = model.tokenizer.encode(" Paris")[-1]
cosines = np.asarray(cosine(E, E[paris]))
nearest = np.argsort(-cosines)[1:9]
beside = [i for i in range(paris - 4, paris + 5) if i != paris]
nearest_tokens, beside_tokens = (
    [model.tokenizer.decode([int(i)]) for i in each] for each in (nearest, beside)
)
print("nearest:", nearest_tokens)
typical = float(np.median(cosines))
print(f"a typical row: {typical:.2f}")
expect(paris, 7042)
if on_default_model():
    assert cosines[beside].max() < cosines[nearest].min()
    assert nearest_tokens[0] == "Paris"
    assert {" London", " France", " Berlin"} <= set(nearest_tokens)
    assert np.abs(cosines[beside] - typical).mean() < 0.1 < cosines[nearest].min() - typical
show(
    figures.neighbours(nearest_tokens, cosines[nearest], beside_tokens, cosines[beside], typical),
    en="Two sets of bars. Left, the eight nearest rows: Paris without a space at 0.81, then London, France, Berlin and other cities near 0.6. Right, the rows with neighbouring ids: all near the dashed line of a typical row, a third.",
    zh="两组条形。左边是最近的八行：不带空格的 Paris 为 0.81，随后是 London、France、Berlin 和其他城市，约 0.6。右边是编号相邻的行：都在虚线附近，即普通一行的三分之一左右。",
)
# %% [markdown] id="why_norm" lang="en"
# ## Why a norm
#
# Now the vectors go into the first layer, and the first thing it does is normalise them. Why? There are three reasons,
# and we can measure the first two.
#
# 1. **The lengths differ.** They differ from token to token, and they grow as every layer adds its result: the picture
#    below shows how much.
# 2. **A matrix passes the length on.** If a vector is three times as long, $W x$ is three times as large. Attention
#    multiplies two such results, which makes nine times. Without a norm some tokens would be many times louder than
#    others, and every layer would have to cope with inputs of a different size.
# 3. **Training needs steady sizes.** The gradients depend on the sizes of the vectors as well. Networks as deep as this
#    one are very hard to train without norms; with a norm before each part, as here, they train steadily (Xiong et al.
#    in the sources).
#
# A norm brings all vectors to one length before a layer reads them. The residual stream itself is not normalised: it
# keeps its lengths, and each part of a layer reads a normalised copy of it.
# %% [markdown] id="why_norm" lang="zh" of="7e26dab4"
# ## 为什么需要归一化
#
# 现在向量进入第一层，而这一层做的第一件事就是把它们归一化。为什么？有三个理由，前两个我们可以量出来。
#
# 1. **长度不同**。不同 token 的长度不一样，而且每一层都把自己的结果加上去，长度还会增长：下图画出增长了多少。
# 2. **矩阵会把长度传下去**。向量长三倍，$W x$ 也大三倍。注意力把两个这样的结果相乘，就成了九倍。没有归一化，某些 token 会比别的“响”
#    很多倍，每一层都得应付大小不同的输入。
# 3. **训练需要稳定的大小**。梯度同样取决于向量的大小。这么深的网络没有归一化就很难训练；像这里一样在每个部件之前归一化，训练就稳定（见来源中 Xiong 等人的论文）。
#
# 归一化在一层读取之前，把所有向量变成同样的长度。残差流本身并不归一化：它保留自己的长度，层的每个部件读的是它的一份归一化副本。
# %% [markdown] id="growth" lang="en"
# How do we see the lengths inside the network? With a **tap**: a function of ours that every named array inside the
# network passes through. Ours keeps what it sees. `embed` is the residual stream before the first layer, and
# `layers.0.resid_post` is the stream after it.
#
# The picture shows each token's **root mean square**: the length of its vector, divided by $\sqrt D$. In our model
# every vector becomes more than a hundred times as long as it was, and halfway up the first token's is more than a
# hundred times as long as any other. (Why the first one? Lesson 09 comes back to that.)
# %% [markdown] id="growth" lang="zh" of="28e4a70f"
# 怎样看到网络内部的长度？用**探针**（tap）：我们自己的一个函数，网络内部每个有名字的数组都从中经过。我们的探针把看到的都留下来。`embed`
# 是第一层之前的残差流，`layers.0.resid_post` 是第一层之后的残差流。
#
# 图中画的是每个 token 的**均方根**（root mean square）：向量的长度除以 $\sqrt D$。在我们的模型里，每个向量最后都比开始时长一百倍以
# 上；而走到一半时，第一个 token 的向量比其他任何一个都长一百倍以上。（为什么是第一个？第 09 课会回到这个问题。）
# %% id="growth_code"
seen = {}


def tap(name, array):
    seen[name] = array
    return array


logits = jax_llama3.forward(params, np.array([ids]), config, tap=tap)[0][0]
close(seen["embed"][0], x, atol=0)


def root_mean_square(x):
    return jnp.sqrt(jnp.mean(x**2, axis=-1))


stream = [seen["embed"], *(seen[f"layers.{i}.resid_post"] for i in range(L))]
lengths = np.stack([root_mean_square(each[0]) for each in stream])
print("before layer 0:", lengths[0].round(3))
print("after the last:", lengths[-1].round(3))
if on_default_model():
    assert (lengths[-1] > 100 * lengths[0]).all()
    assert lengths[L // 2, 0] > 100 * lengths[L // 2, 1:].max()
# en: Three times the vector, three times the product; nine times if two are multiplied.
# zh: 向量长三倍，乘积大三倍；两个结果相乘就是九倍。
wq = params.layers[0].wq[0]
close(3 * x @ wq.T, 3 * (x @ wq.T), atol=1e-4)
q = x @ wq.T
close((3 * q) @ (3 * q).T, 9 * (q @ q.T), atol=1e-2)
show(
    figures.growth(tokens, lengths),
    en="Lines on a logarithmic scale, one for each token, over the layers: they rise from about 0.1 to about 25. Only the first token's line jumps to nearly 1000 in the middle layers and ends at 200.",
    zh="对数刻度上的五条线，每个 token 一条，横轴是层数：从 0.1 左右升到 25 左右；只有第一个 token 的线在中间各层跳到将近 1000，最后是 200。",
)
# %% [markdown] id="rms_norm" lang="en"
# ## RMSNorm
#
# **RMSNorm** divides each vector by its root mean square, and then multiplies each of the $D$ entries by a learned
# weight $w_d$:
#
# $$\mathrm{RMSNorm}(x)_d = \frac{x_d}{\sqrt{\frac1D \sum_{j} x_j^2 + \varepsilon}}\; w_d .$$
#
# Two details are often stated wrongly. $\varepsilon$ stands **under the root**, added to the mean of squares; it is
# added neither to $x$ nor to the result. And its value is a property of the checkpoint: Llama 3 and this model use
# $10^{-5}$, others $10^{-6}$.
# %% [markdown] id="rms_norm" lang="zh" of="c38d71c2"
# ## RMSNorm
#
# **RMSNorm** 把每个向量除以它自己的均方根，再给 $D$ 维各乘一个学到的权重 $w_d$：
#
# $$\mathrm{RMSNorm}(x)_d = \frac{x_d}{\sqrt{\frac1D \sum_{j} x_j^2 + \varepsilon}}\; w_d .$$
#
# 有两处常被讲错。$\varepsilon$ 在**根号里面**，加在平方的平均值上；它不加在 $x$ 上，也不加在结果上。另外，它的值是检查点自带的属
# 性：Llama 3 和本模型用 $10^{-5}$，也有模型用 $10^{-6}$。
# %% id="by_hand"
eps = config.norm_eps
expect(eps, 1e-5)
w = trace("w", params.layers[0].attn_norm, "D", D=D)

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
# The library's own function is `jax_llama3.model.layers.rms_norm`. The network first uses it on what the attention of
# layer 0 reads. The norm's result has no name, so no tap sees it. We therefore compare with the function itself, and
# then with the network: the values v of the first layer are a matrix times our normalised rows.
# %% [markdown] id="library" lang="zh" of="f40a6026"
# 本库对应的函数是 `jax_llama3.model.layers.rms_norm`，它在网络中第一次用到，是给第 0 层的注意力准备输入。归一化的结果没有名字，探针
# 看不到，所以我们先与函数本身比较，再与网络比较：第一层的 v 就是一个矩阵乘以我们归一化后的各行。
# %% id="library_code"


def rms_norm(x, weight, eps):
    # en: The library's function takes a batch, [B T D]; ours is a batch of one.
    # zh: 库函数处理的是一批，[B T D]；我们只有一个提示，即 B = 1。
    return network.rms_norm(x[None], weight, eps)[0]


close(rms_norm(x, w, eps), normed, atol=1e-5)
wv = params.layers[0].wv
values = (normed @ wv.reshape(-1, D).T).reshape(T, *wv.shape[:2])
close(values, seen["layers.0.attn.v"][0], atol=1e-4)
# %% [markdown] id="properties" lang="en"
# ## What the norm keeps and what it removes
#
# Without its weights the norm gives every vector a root mean square of one. Scaling the input changes nothing, as long
# as $\varepsilon$ is small compared with the mean of squares. For tiny vectors $\varepsilon$ takes over: it keeps a row
# of zeros from becoming 0/0.
#
# And the direction? Dividing by one number keeps it exactly: the cosine between before and after is 1. But then comes
# $w$, which stretches every axis by its own factor, and that turns the vector. So a norm removes the length, and it
# keeps the direction only until the weight is applied.
#
# By how much does $w$ turn it? In our model, from layer 2 on, not by much: the cosine stays above 0.7. In layer 0 it is
# near 0: about half of the weights there are negative, and attention reads a vector nearly at right angles to the
# embedding.
# %% [markdown] id="properties" lang="zh" of="46855642"
# ## 归一化保留什么，去掉什么
#
# 去掉权重后，归一化让每个向量的均方根等于 1。只要 $\varepsilon$ 与平方的平均值相比足够小，缩放输入不会改变结果。向量非常小时，起作
# 用的就是 $\varepsilon$：它防止全零的行变成 0/0。
#
# 方向呢？除以同一个数，方向分毫不变：前后的余弦是 1。但接着要乘 $w$，每一维按各自的倍数伸缩，向量就转了方向。所以归一化去掉长度，而方向只保持到乘权重之前。
#
# $w$ 让方向转了多少？在我们的模型里，从第 2 层起转得不多：余弦都在 0.7 以上。第 0 层却接近 0：那里约有一半的权重是负的，注意力读到
# 的向量与嵌入几乎垂直。
# %% id="properties_code"
ones = jnp.ones(D)
unit = rms_norm(x, ones, eps)
close(root_mean_square(unit), jnp.ones(T), atol=1e-2)
close(rms_norm(1000 * x, ones, 0.0), rms_norm(x, ones, 0.0), atol=1e-4)
assert (rms_norm(jnp.zeros((1, D)), ones, eps) == 0).all()
assert jnp.isnan(rms_norm(jnp.zeros((1, D)), ones, 0.0)).all()

# en: The direction: kept before the weight, turned by it.
# zh: 方向：乘权重之前不变，乘了就转。
close(cosine(unit, x), jnp.ones(T), atol=1e-5)
pairs = zip(stream, params.layers, strict=False)
turned = np.stack([cosine(rms_norm(x[0], each.attn_norm, eps), x[0]) for x, each in pairs])
print("cosine of x and RMSNorm(x), layer 0: ", turned[0].round(2))
print("the smallest of layers 2 and up:     ", turned[2:].min().round(2))
if on_default_model():
    assert np.abs(turned[0]).max() < 0.15
    assert turned.max() < 0.999
    assert turned[2:].min() > 0.7
    assert 0.4 < (w < 0).mean() < 0.6

# en: eps outside the root is another function, and on the small vectors of an embedding it shows.
# zh: 把 eps 放到根号外就成了另一个函数；嵌入的向量很小，差别看得出来。
outside = x / (root_mean_square(x)[:, None] + eps) * w
assert jnp.abs(outside - normed).max() > 1e-4
# %% [markdown] id="picture_text" lang="en"
# The picture shows what the norm did to our prompt: the root mean square of each token's vector before and after
# (without the weight).
# %% [markdown] id="picture_text" lang="zh" of="fe1ac3a6"
# 下图展示归一化对这个提示做了什么：每个 token 的向量在归一化前后的均方根（不含权重）。
# %% id="picture"
show(
    figures.before_and_after(tokens, root_mean_square(x), root_mean_square(unit)),
    en="Bars for five tokens: before the norm their root mean squares are small and unequal, after it all are one.",
    zh="五个 token 的柱状图：归一化之前均方根小且各不相同，之后全都等于 1。",
)
# %% [markdown] id="layernorm" lang="en"
# ## Why not LayerNorm?
#
# The older **LayerNorm** first subtracts the mean of the $D$ entries, and has a second learned vector, a bias. RMSNorm
# drops both. If the mean is zero already, the two are equal apart from the bias; so centring by hand turns one into the
# other.
#
# RMSNorm won because it does less work and the models came out just as good: Zhang and Sennrich, who proposed it,
# report similar quality in less time. As we saw, a norm is there to control the length, and the mean plays no part in
# that.
# %% [markdown] id="layernorm" lang="zh" of="27b1414e"
# ## 为什么不用 LayerNorm？
#
# 更早的 **LayerNorm** 先减去 $D$ 维的平均值，还多一个学到的偏置向量。RMSNorm 两者都省了。若平均值本来就是零，除偏置外两者相等；所以先亲手
# 中心化，一个就变成了另一个。
#
# RMSNorm 胜出，是因为它计算更少，而模型一样好：提出它的 Zhang 和 Sennrich 报告说，质量相近，时间更短。前面看到，归一化要管的是长
# 度，平均值与此无关。
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
# ## Always in float32
#
# Weights and activations are often bfloat16: 8 bits of precision, about 2.4 digits. The sum of $D$ squares must not be
# computed in bfloat16. When the sum has reached 256, adding 1 gives 256 again, because neighbouring numbers there are 2
# apart. So all programs widen to float32 inside the norm.
#
# Where to round back is another question, and there programs differ. `jax_llama3` multiplies by the weight in float32
# and rounds once, at the end. Hugging Face's and Meta's own code round to bfloat16 *before* the weight, multiply in
# bfloat16, and so round twice. Neither is wrong. But the results are not equal, and two programs that are to be
# compared bit for bit must agree on this.
#
# Below, three ways are compared with float64 on the same bfloat16 input: a sum in bfloat16, two roundings, one
# rounding.
# %% [markdown] id="precision" lang="zh" of="a2df9fc0"
# ## 一律用 float32
#
# 权重和激活常用 bfloat16：8 比特精度，约合 2.4 位十进制数字。$D$ 个平方之和绝不能用 bfloat16 来累加。和达到 256 之后，再加 1 还是
# 256，因为那里相邻两个数相差 2。所以大家都在归一化内部加宽到 float32。
#
# 在哪里舍入回去则是另一个问题，各家程序并不一样。`jax_llama3` 用 float32 乘以权重，最后只舍入一次。Hugging Face 和 Meta 自己的代码
# 在乘权重**之前**就舍入成 bfloat16，再用 bfloat16 相乘，于是舍入两次。两种都不算错，但结果不相等；两个程序若要逐比特比较，必须在这
# 一点上一致。
#
# 下面在同样的 bfloat16 输入上，把三种做法都与 float64 比较：用 bfloat16 求和、舍入两次、舍入一次。
# %% id="precision_code"
assert jnp.bfloat16(256) + jnp.bfloat16(1) == jnp.bfloat16(256)

narrow, narrow_w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
exact = np.asarray(narrow, np.float64)
exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + eps)
exact = exact * np.asarray(narrow_w, np.float64)

# en: One number after the other, the running sum kept in bfloat16.
# zh: 一个接一个地累加，中间的和保存为 bfloat16。
total = jnp.zeros(T, jnp.bfloat16)
for d in range(D):
    total = total + narrow[:, d] ** 2
all_in_bfloat16 = narrow / jnp.sqrt(total / D + eps)[:, None] * narrow_w
rounded_twice = rms_norm(narrow, jnp.ones(D, jnp.bfloat16), eps) * narrow_w
rounded_once = rms_norm(narrow, narrow_w, eps)

errors = {}
for name, result in {
    "sum in bfloat16": all_in_bfloat16,
    "sum in float32, rounded twice": rounded_twice,
    "sum in float32, rounded once": rounded_once,
}.items():
    assert result.dtype == jnp.bfloat16
    error = np.abs(np.asarray(result, np.float64) - exact)
    errors[name] = error.mean() / np.abs(exact).mean()
    print(f"{name:<30} mean error {errors[name]:.2%} of the mean size")

in_bfloat16, twice, once = errors.values()
assert in_bfloat16 > 10 * once
assert once < twice < 2 * once

# en: A rounding moves a number by 2 ** -8 of its size at most, so the two differ by three such steps at most.
# zh: 一次舍入最多使数变动其大小的 2 ** -8，所以两者最多相差三个这样的步长。
once, twice = (np.asarray(each, np.float64) for each in (rounded_once, rounded_twice))
print(f"rounded once or twice: {(once != twice).mean():.0%} of the numbers differ")
assert 0.05 < (once != twice).mean() < 0.8
assert (np.abs(once - twice) <= 3.1 * 2**-8 * np.abs(exact)).all()

# en: In float32, which this course uses, the two are the same to the last digits.
# zh: 在本课程使用的 float32 下，两者直到末尾几位都相同。
close(unit * w, normed, atol=1e-5)
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Write the norm with a single call of `jnp.linalg.norm`: a function of `x`, `w` and `eps`, where eps is zero.
# %% [markdown] id="exercises" lang="zh" of="cdfcac5f"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 只调用一次 `jnp.linalg.norm` 写出归一化：以 `x`、`w`、`eps` 为参数的函数，这里 eps 为零。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    np.testing.assert_allclose(answer(x, w, 0.0), rms_norm(x, w, 0.0), atol=1e-4)


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# The length is the root of a sum, the root mean square is the root of a mean. They differ by a factor that depends on
# $D$ alone.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="99905b2c"
# <details><summary>线索</summary>
#
# 长度是和的平方根，均方根是平均值的平方根。两者相差一个只取决于 $D$ 的倍数。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, lambda x, w, eps: x / jnp.linalg.norm(x, axis=-1, keepdims=True) * D**0.5 * w, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Exchange two meanings. Give a copy of `params` in which the rows of " France" and " Germany" have swapped
# places in the embedding, and nothing else is different. Before you run it: what will the model now say after "The
# capital of France is"?
# %% [markdown] id="exercise_2_text" lang="zh" of="fc0264e9"
# **2.** 交换两个含义。给出 `params` 的一个副本，其中嵌入里“ France”和“ Germany”的两行互换，其余不变。运行之前先猜：现在模型在
# “The capital of France is”之后会说什么？
# %% id="exercise_2"
france, germany = (model.tokenizer.encode(name)[-1] for name in (" France", " Germany"))
answer_2 = None


def check_2(answer):
    assert (answer.embedding[france] == E[germany]).all()
    assert (answer.embedding[germany] == E[france]).all()
    assert (answer.embedding != E).any(-1).sum() == 2
    assert answer.layers is params.layers
    ours = jax_llama3.forward(answer, np.array([ids]), config)[0][0, -1]
    asked = [germany if i == france else i for i in ids]
    theirs = jax_llama3.forward(params, np.array([asked]), config)[0][0, -1]
    best = int(ours.argmax())
    assert best == int(theirs.argmax()) != int(logits[-1].argmax())
    print(repr(model.tokenizer.decode([best])))
    expect(model.tokenizer.decode([best]), " Berlin")


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Arrays never change, but `E.at[rows].set(values)` makes a new one, and `params._replace(embedding=...)` a new tree.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="cd641381"
# <details><summary>线索</summary>
#
# 数组永不改变，但 `E.at[rows].set(values)` 会造出新数组，`params._replace(embedding=...)` 会造出新的树。
#
# </details>
# %% id="solution_2" tags=["solution"]
pair, swapped = jnp.array([france, germany]), jnp.array([germany, france])
exercise(2, params._replace(embedding=E.at[pair].set(E[swapped])), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** The norm's weight can be folded into the matrix that follows: for `q = norm(x) @ W.T`, give a matrix `W2` such
# that the norm with all its weights set to 1, followed by `W2`, gives the same `q`. (So the weight turns the vector,
# but never does anything that the next matrix could not do.)
# %% [markdown] id="exercise_3_text" lang="zh" of="612e4688"
# **3.** 归一化的权重可以并入紧随其后的矩阵：对于 `q = norm(x) @ W.T`，给出一个矩阵 `W2`，使归一化的权重全为 1、再乘 `W2` 时，得到同
# 样的 `q`。（可见权重虽然转动向量，但它做的事，下一个矩阵都能做到。）
# %% id="exercise_3"
W = params.layers[0].wq.reshape(-1, D)
answer_3 = None


def check_3(answer):
    expected = rms_norm(x, w, eps) @ W.T
    np.testing.assert_allclose(rms_norm(x, ones, eps) @ answer.T, expected, atol=1e-3)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Each entry $d$ of the vector meets only column $d$ of $W$.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="44ae0e5b"
# <details><summary>线索</summary>
#
# 向量的第 $d$ 维只与 $W$ 的第 $d$ 列相乘。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, W * w, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Zhang and Sennrich, *Root Mean Square Layer Normalization*, 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467)
# - Ba, Kiros and Hinton, *Layer Normalization*, 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - Xiong et al., *On Layer Normalization in the Transformer Architecture*, 2020, [arXiv:2002.04745](https://arxiv.org/abs/2002.04745)
# - Where others round: class `LlamaRMSNorm` in Hugging Face's
#   [modeling_llama.py](https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py), class `RMSNorm` in Meta's [model.py](https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py)
#
# Next: in lesson 04 the tokens look at each other for the first time.
# %% [markdown] id="sources" lang="zh" of="a31da8d6"
# ## 来源
#
# - Zhang、Sennrich，*Root Mean Square Layer Normalization*，2019，[arXiv:1910.07467](https://arxiv.org/abs/1910.07467)
# - Ba、Kiros、Hinton，*Layer Normalization*，2016，[arXiv:1607.06450](https://arxiv.org/abs/1607.06450)
# - Xiong 等，*On Layer Normalization in the Transformer Architecture*，2020，[arXiv:2002.04745](https://arxiv.org/abs/2002.04745)
# - 别的程序在哪里舍入：Hugging Face 的
#   `LlamaRMSNorm`，[modeling_llama.py](https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama/modeling_llama.py)；Meta 的 `RMSNorm`，[model.py](https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py)
#
# 下一课：第 04 课里，token 之间第一次互相看见。
