# %% [markdown] id="title" lang="en"
# # 06 · Many heads: loop, einsum, grouped queries
#
# *Reading time 20 minutes. Before it: lessons 04 and 05. What it proves: a loop over hand-made heads, with RoPE, is the
# attention of `jax_llama3` in every layer; so are two ways of writing it without a loop.*
#
# Why does every layer have several attention heads? One head already lets each token read all earlier ones. This lesson
# starts with what one head cannot do. Then it builds the real thing: $N$ heads side by side, some of them sharing keys
# and values. One matrix joins their results, which are added to the residual stream.
# %% [markdown] id="title" lang="zh" of="7ef67e21"
# # 06 · 多头：循环、einsum、GQA
#
# *阅读时间 20 分钟。前置：第 04、05 课。本课证明：手写的头带上 RoPE 逐个循环计算，在每一层都与 `jax_llama3` 的注意力一致；另外两种
# 不用循环的写法也是如此。*
#
# 每一层为什么要有好几个注意力头？一个头已经能让每个 token 读到前面所有的 token。本课先看一个头做不到什么，再动手搭出真正的注意
# 力：$N$ 个头并排工作，其中一些共用键和值；各头的结果由一个矩阵合到一起，再加到残差流上。
# %% id="setup"
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.bench.cost import forward_flops
from jax_llama3.bench.presets import preset, preset_names
from jax_llama3.model.attention import attention, causal_mask
from jax_llama3.model.layers import rms_norm
from jax_llama3.model.rope import apply_rope, rope_tables
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import many_heads as figures

config, params, tokenizer = load_model()
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
L, G = config.n_layers, N // K

ids = tokenizer.encode("The capital of France is", bos=True)
words = [tokenizer.decode([i]).strip() for i in ids]
T = len(ids)
# %% [markdown] id="why" lang="en"
# ## What one head cannot do
#
# Put yourself in the place of the last token, "is". To say what follows, you need at least two things from the words before
# you: that a *capital* is asked for, and that the country is *France*. Can one head fetch both?
#
# A head has one row of weights for each position. The weights add up to 1, and the result is one average of the values.
# So a head that looks at two tokens can take half of each, mixed into one vector. What it gives to one, it takes from the
# other. And an average never leaves the range of what is averaged.
#
# Several heads do not have to compromise. Each has a weight of 1 to spend, on the tokens of its choice. Does a trained model
# use that freedom? We run the network once with a tap that keeps every activation (lesson 03), and look at a layer in the
# middle: what does each of its heads read from the position of "is"? (Layers count from 0. On the course's own model the
# answer is known, and `expect` checks it there; with another model it checks nothing.)
# %% [markdown] id="why" lang="zh" of="d9815b06"
# ## 一个头做不到什么
#
# 设想你就是最后一个 token “is”。要说出接下来是什么，你至少要从前面的词里知道两件事：问的是*首都*（capital），国家是
# *法国*（France）。一个头能同时取来两样吗？
#
# 一个头在每个位置只有一行权重，权重之和为 1，结果是各个值的一个平均。所以，同时看两个 token 的头只能各取一半，搅成一个向量；给了
# 这个就得从那个身上扣。而且平均值永远超不出被平均的数的范围。
#
# 几个头就不必折中：每个头都有完整的 1 可以分配，想看哪个 token 就看哪个。训练好的模型用上了这份自由吗？我们用一个保存所有激活的探针
# （第 03 课）把网络运行一遍，看看中间的某一层：它的每个头在“is”这个位置读了什么？（层从 0 开始数。在课程自己的模型上，答案是已知
# 的，`expect` 会检查它；换成别的模型则不检查。）
# %% id="why_code"
seen = {}


def keep(name, array):
    seen[name] = array
    return array


logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=keep)

chosen = 11 if on_default_model() else L // 2
read_by_is = trace("read by is", seen[f"layers.{chosen}.attn.pattern"][0, :, -1], "N T", N=N, T=T)
close(read_by_is.sum(axis=-1), np.ones(N), atol=1e-5)
show(
    figures.one_row(read_by_is, words, f"layer {chosen}: what the last token reads"),
    en="Nine rows, one for each head: the weights of the five tokens as the last token reads them. Different heads prefer 'France', the first token, 'is' and 'of'.",
    zh="九行，每个头一行：最后一个 token 读取五个 token 的权重。不同的头分别偏爱“France”、第一个 token、“is”和“of”。",
)

# en: Each head's favourite token.
# zh: 每个头最看重的 token。
favourites = [words[int(j)] for j in read_by_is.argmax(axis=-1)]
print(favourites)
expect([favourites[n] for n in (1, 2, 4, 6, 7)], ["France", "The", "is", "is", "of"])
if on_default_model():
    assert read_by_is[4].max() > 0.9
    assert {words[int(j)] for j in jnp.argsort(-read_by_is[8])[:2]} == {"capital", "France"}
    assert read_by_is[8].max() < 0.5

# en: An average of values stays between the smallest and the largest of them, in every dimension.
# zh: 值的平均在每一维上都介于最小值与最大值之间。
values = jnp.repeat(seen[f"layers.{chosen}.attn.v"][0], G, axis=1)
average = seen[f"layers.{chosen}.attn.z"][0, -1]
assert (values.min(axis=0) - 1e-4 <= average).all()
assert (average <= values.max(axis=0) + 1e-4).all()
# %% [markdown] id="shared" lang="en"
# Head 1 prefers "France", head 2 the first token, heads 4 and 6 spend nearly all on "is" itself, head 7 prefers "of".
# They fetch different things in the same layer, at the same time. And head 8 shows the compromise: it looks at both
# "capital" and "France", and gives less than half of its weight to either.
#
# ## What if they all had to look the same way?
#
# We can force them. A tap replaces the patterns of a layer by their mean over the heads. Now all heads read the same mixture
# of tokens, each still through its own values. What happens to " Paris"?
#
# With one pattern in every layer, nothing is left of the answer, and layer 0 alone is enough to lose it. The different
# views are no luxury. (Not every layer needs them so badly: in more than half of the layers, nearly all heads look more
# at the first token than at any other; lesson 09 asks why. And the network was not trained for this, so the experiment
# shows that it *uses* different patterns, not that every network would need them.)
# %% [markdown] id="shared" lang="zh" of="d2659ec6"
# 1 号头偏爱“France”，2 号头偏爱第一个 token，4 号和 6 号头几乎把权重全花在“is”自己身上，7 号头偏爱“of”。在同一层里，它们同时
# 取来不同的东西。8 号头则演示了什么叫折中：它既看“capital”又看“France”，哪一个都分不到一半的权重。
#
# ## 如果所有头都必须看同样的地方呢？
#
# 我们可以强迫它们：用探针把一层里各个头的模式都换成各头的平均。这样，所有头都按同样的比例混合各个 token，只是仍用各自的值。“ Paris”
# 会怎样？
#
# 如果每一层都只有一种模式，答案就荡然无存；单单第 0 层就足以让它消失。可见不同的视角并非可有可无。（并非每一层都这么需要它们：在一
# 半以上的层里，几乎所有的头本来就最看重第一个 token，原因见第 09 课。而且网络不是为此训练的，所以这个实验说明它*用到*了不同的模式，
# 并不说明别的网络只用一种模式就一定不行。）
# %% id="shared_code"


def one_pattern_in(layers):
    names = {f"layers.{index}.attn.pattern" for index in layers}

    def tap(name, array):
        # en: Each head gets the mean over the heads; the values stay as they are.
        # zh: 每个头都换成各头的平均模式；值不变。
        mean = array.mean(axis=1, keepdims=True)
        return jnp.broadcast_to(mean, array.shape) if name in names else array

    return tap


answer = int(logits[0, -1].argmax())
probabilities = {}
for name, layers in {
    "none": [],
    f"layer {chosen}": [chosen],
    "layer 0": [0],
    "all layers": range(L),
}.items():
    tapped, _ = jax_llama3.forward(params, np.array([ids]), config, tap=one_pattern_in(layers))
    probabilities[name] = float(jax.nn.softmax(tapped[0, -1])[answer])
    print(
        f"one pattern in {name:<10} P({tokenizer.decode([answer])!r}) = {probabilities[name]:.3f}"
    )
at_first = [
    int((seen[f"layers.{index}.attn.pattern"][0, :, -1].argmax(axis=-1) == 0).sum())
    for index in range(L)
]
print("heads that look at the first token most, by layer:", *at_first)
if on_default_model():
    assert sum(count >= N - 1 for count in at_first) > L / 2
    assert probabilities["none"] > 0.7
    assert max(probabilities["layer 0"], probabilities["all layers"]) < 0.05
# %% [markdown] id="split" lang="en"
# ## One product for all heads, and a reshape that lies
#
# Now let us build it, in the first layer. The queries of all heads come from one product with a flat matrix of
# $N \cdot H$ rows (lesson 04). Each row of the result holds one head after the other: $H$ numbers of head 0, then $H$ of
# head 1, and so on. So the reshape to $[T\,N\,H]$ is right: it cuts each row where one head ends and the next begins.
#
# To work head by head we would like $[N\,T\,H]$. Can we ask the reshape for that directly? The number of entries fits, so
# no error is raised. But a reshape never moves a number. It would cut the same long line of numbers in other places, and
# mix tokens with heads. The right way is the reshape to $[T\,N\,H]$ and then a **transpose** of the first two axes. The
# picture shows two tokens and three heads (the colours) of two numbers each.
# %% [markdown] id="split" lang="zh" of="17151c2d"
# ## 一次乘法得到所有头，以及一次会骗人的变形
#
# 现在动手，从第一层开始。所有头的查询来自同一次乘法，用的是一个 $N \cdot H$ 行的扁平矩阵（第 04 课）。结果的每一行按头依次排列：
# 先是 0 号头的 $H$ 个数，再是 1 号头的 $H$ 个数，依此类推。所以变形为 $[T\,N\,H]$ 是对的：它正好在两个头的交界处切开每一行。
#
# 要逐头计算，我们想要的是 $[N\,T\,H]$。能直接让变形给出这个形状吗？数的总数没错，所以不会报错。但变形从不移动任何一个数，它只会在别
# 的地方切断同一长串数，把 token 和头搅在一起。正确的做法是先变形为 $[T\,N\,H]$，再对前两个轴做**转置**。图中有两个 token、三个头
# （用颜色区分），每个头两个数。
# %% id="split_picture"
show(
    figures.reshapes(),
    en="Three coloured pairs of numbers for each of two tokens. Reshaped and transposed, each head's block has one colour and "
    "both tokens. Reshaped directly, the blocks mix colours and tokens.",
    zh="两个 token 各有三对带颜色的数。先变形再转置，每个头的一块只有一种颜色，两个 token 都在；直接变形，则颜色与 token 混在一起。",
)
# %% id="split_code"
layer = params.layers[0]
taps = {name.removeprefix("layers.0."): array[0] for name, array in seen.items()}
x = trace("x", params.embedding[jnp.array(ids)], "T D", T=T, D=D)
normed = rms_norm(x[None], layer.attn_norm, config.norm_eps)[0]

flat_q = trace("flat q", normed @ layer.wq.reshape(N * H, D).T, "T R", T=T, R=N * H)
q = trace("q", flat_q.reshape(T, N, H), "T N H", T=T, N=N, H=H)
k = trace("k", (normed @ layer.wk.reshape(K * H, D).T).reshape(T, K, H), "T K H", T=T, K=K, H=H)
unturned_q, unturned_k = q, k
v = trace("v", (normed @ layer.wv.reshape(K * H, D).T).reshape(T, K, H), "T K H", T=T, K=K, H=H)

by_head = trace("by head", q.transpose(1, 0, 2), "N T H", N=N, T=T, H=H)
for n in range(N):
    np.testing.assert_allclose(by_head[n], normed @ layer.wq[n].T, atol=1e-4)

mixed = flat_q.reshape(N, T, H)
assert mixed.shape == by_head.shape
assert jnp.abs(mixed - by_head).max() > 1
# %% [markdown] id="turn" lang="en"
# Next, we rotate queries and keys by position, as derived in lesson 05. The angles are the same for every head, and
# values stay as they are. The result must be the network's own vectors.
# %% [markdown] id="turn" lang="zh" of="7156dc0b"
# 接着按第 05 课的推导，依位置旋转查询和键。所有头的角度都相同，值保持原样。结果应当就是网络自己的向量。
# %% id="turn_code"
positions = jnp.arange(T)[None]


def rotated(heads):
    return apply_rope(heads[None], *rope_tables(positions, config))[0]


# en: From the unturned ones, so that running this cell twice does not turn them twice.
# zh: 从未旋转的开始，这样把本单元格运行两次也不会旋转两次。
q = rotated(unturned_q)
k = rotated(unturned_k)
close(q, taps["attn.q"])
close(k, taps["attn.k"])
close(v, taps["attn.v"])
# %% [markdown] id="groups" lang="en"
# ## Who shares with whom
#
# If every query head has keys and values of its own, $K = N$, this is **multi-head attention**. Llama 3 has fewer heads of
# keys and values. In **grouped-query attention** (GQA), $G = N / K$ query heads form a group and share one key/value head.
# The extreme case is $K = 1$: all query heads share one.
#
# A group consists of neighbouring heads. Query heads $0 \ldots G-1$ read key/value head 0, the next $G$ read head 1, and
# in general
#
# $$\text{key/value head of query head } n \;=\; \lfloor n / G \rfloor, \qquad G = N / K .$$
#
# Compute $G$; never hard-code it. Llama 3 8B has 32 query heads and 8 key/value heads, so $G = 4$, and code that says
# `n // 4` works there and fails elsewhere. Nothing in a checkpoint records the rule. It is simply how the model was
# trained.
# %% [markdown] id="groups" lang="zh" of="b414d685"
# ## 谁与谁共用
#
# 如果每个查询头都有自己的键和值，即 $K = N$，这叫**多头注意力**（multi-head attention）。Llama 3 的键值头要少一些：在
# **分组查询注意力**（grouped-query attention，GQA）里，$G = N / K$ 个查询头组成一组，共用一个键值头。极端情形是 $K = 1$：所有
# 查询头共用一个。
#
# 每组由相邻的头组成。$0 \ldots G-1$ 号查询头读 0 号键值头，接下来 $G$ 个读 1 号，一般地：
#
# $$\text{查询头 } n \text{ 所用的键值头} \;=\; \lfloor n / G \rfloor, \qquad G = N / K .$$
#
# $G$ 要算出来，不要写死。Llama 3 8B 有 32 个查询头、8 个键值头，$G = 4$，写成 `n // 4` 的代码在它身上没问题，换个模型就错了。检查点
# 里没有任何地方记下这条规则：模型就是这样训练出来的。
# %% id="drawing"
show(
    figures.groups(N, K),
    en="Three rows of query heads above key/value heads: each with its own; groups of neighbours sharing one; all sharing one.",
    zh="三行查询头，下面是键值头：每个头各有一个；相邻的头成组共用一个；所有头共用一个。",
)
# %% [markdown] id="maps" lang="en"
# Do heads that share keys and values still see different things? Here are the patterns of all heads in the first layer,
# one row of pictures for each group. Within a row, only the queries differ, and that is enough.
# %% [markdown] id="maps" lang="zh" of="cdb1c814"
# 共用键和值的头，看到的还会不同吗？下面是第一层所有头的注意力模式，每一行图是一个组。同一行的图只有查询不同，而这已经足够。
# %% id="heat_maps"
patterns = trace("pattern", taps["attn.pattern"], "N T S", N=N, T=T, S=T)
show(
    figures.patterns(patterns, words, K),
    en="A grid of small heat maps, one for each head, a row for each group: every head spreads its weights in its own way.",
    zh="由小热图组成的网格，每个头一幅，每组一行：每个头的权重分布各不相同。",
)

for group in patterns.reshape(K, G, T, T):
    for one in range(G):
        for two in range(one):
            assert jnp.abs(group[one] - group[two]).max() > 0.05
# %% [markdown] id="loop" lang="en"
# ## The loop
#
# Take the head of lesson 04, run it once for each $n$ with the keys and values of its group, and put the outputs side by
# side. Is that the network's attention?
# %% [markdown] id="loop" lang="zh" of="f0359115"
# ## 循环
#
# 取第 04 课的头，对每个 $n$ 运行一次，键和值取自它所在的组，再把输出并排放好。这就是网络的注意力吗？
# %% id="loop_code"
visible = causal_mask(positions, T)[0]


def one_head(q, k, v):
    scores = q @ k.T / H**0.5
    scores = jnp.where(visible, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


def by_loop(q, k, v, kv_head=lambda n: n // G):
    heads = [one_head(q[:, n], k[:, kv_head(n)], v[:, kv_head(n)]) for n in range(N)]
    return jnp.stack(heads, axis=1)


z = trace("z", by_loop(q, k, v), "T N H", T=T, N=N, H=H)
close(z, taps["attn.z"], atol=1e-5)
# %% [markdown] id="mapping" lang="en"
# It is. Now two wrong rules, neither of which raises an error. `n // 4` forms groups of four, whatever the model says.
# `n % K` deals the heads out like cards. Both give vectors of the right shape and a plausible size. Only the comparison
# reveals the mistake. The second table shows which models of the family would have hidden the first mistake.
#
# With Llama 3 70B, `n // 4` even runs past the last key/value head: with 64 query heads and 8 key/value heads, it asks
# for head 15. JAX does not reject a computed index that is too large; it takes the last entry.
# %% [markdown] id="mapping" lang="zh" of="6f40f185"
# 是的。再看两条错误的规则，它们都不会报错。`n // 4` 不管模型怎样都四个一组；`n % K` 像发牌一样轮流分配。两者给出的向量形状正确，大
# 小也合理，只有比较才能看出错误。第二张表说明这一系列里哪些模型会掩盖第一种错误。
#
# 在 Llama 3 70B 上，`n // 4` 甚至会越过最后一个键值头：64 个查询头、8 个键值头，它会去取 15 号键值头。算出来的下标过大时，JAX 并不
# 报错，而是取最后一项。
# %% id="mapping_code"
right = [n // G for n in range(N)]
assert right == [int(j) for j in jnp.repeat(jnp.arange(K), G)]

rules = {"n // G": lambda n: n // G, "n // 4": lambda n: n // 4, "n % K": lambda n: n % K}
for name, rule in rules.items():
    used = [min(rule(n), K - 1) for n in range(N)]
    error = jnp.abs(by_loop(q, k, v, lambda n, used=used: used[n]) - taps["attn.z"]).max()
    print(f"{name:<6}  {used}  largest error {error:.2f}")
    assert (error < 1e-4) == (used == right)

print()
for name in preset_names():
    heads, kv_heads = preset(name).n_heads, preset(name).n_kv_heads
    size = heads // kv_heads
    fits = [n // size for n in range(heads)] == [n // 4 for n in range(heads)]
    assert fits == (size == 4)
    print(f"{name:<14} N = {heads:>3}  K = {kv_heads}  G = {size:>2}  n // 4 right: {fits}")

large = preset("llama3-70b")
assert max(n // 4 for n in range(large.n_heads)) == 15 > large.n_kv_heads - 1
assert jnp.arange(large.n_kv_heads)[jnp.array(15)] == large.n_kv_heads - 1
# %% [markdown] id="join" lang="en"
# ## Joining the heads
#
# Each position now has $N$ vectors of $H$ numbers. How do they become one row of $D$ numbers? They are concatenated into
# a row of $N \cdot H$, and the last matrix of attention, $W_o$, does the rest:
#
# $$\mathrm{out}_t = W_o\,[\,z_{t,0};\; z_{t,1};\; \ldots;\; z_{t,N-1}\,] .$$
#
# The reshape can lie here too. From $[T\,N\,H]$ the reshape to $[T,\,N H]$ concatenates heads. From $[N\,T\,H]$ one has
# to transpose first.
#
# A product with a concatenated row is a sum of products with its pieces. Cut $W_o$ into $N$ blocks of $H$ columns, and
#
# $$\mathrm{out}_t = \sum_n W_o^{(n)} z_{t,n} .$$
#
# So every head adds a vector of its own, through a block of its own, and no head needs to know about the others. That is
# why heads need not mix what they find: each block can write to a different direction of the row. To switch a head off,
# leave its term out. We check that inside the network, with a tap that sets one head's output to zero.
# %% [markdown] id="join" lang="zh" of="4024d97e"
# ## 把头拼起来
#
# 每个位置现在有 $N$ 个向量，各有 $H$ 个数。它们怎样变成一行 $D$ 个数？先拼接成一行 $N \cdot H$ 个数，再由注意力的最后一个矩阵
# $W_o$ 完成其余的工作：
#
# $$\mathrm{out}_t = W_o\,[\,z_{t,0};\; z_{t,1};\; \ldots;\; z_{t,N-1}\,] .$$
#
# 变形在这里也会骗人。从 $[T\,N\,H]$ 变形为 $[T,\,N H]$ 正是拼接各头；从 $[N\,T\,H]$ 出发则要先转置。
#
# 与拼接而成的行相乘，等于与各段分别相乘再求和。把 $W_o$ 按列切成 $N$ 块，每块 $H$ 列：
#
# $$\mathrm{out}_t = \sum_n W_o^{(n)} z_{t,n} .$$
#
# 所以每个头都通过自己的一块，加上一个自己的向量，谁也不必知道别的头。正因如此，各头取来的内容不必搅在一起：每一块都可以写到这一行的
# 不同方向上。要关掉一个头，去掉它那一项即可。我们在网络内部验证：用探针把一个头的输出置零。
# %% id="join_code"
wo = trace("flat wo", layer.wo.reshape(D, N * H), "D R", D=D, R=N * H)
joined = trace("joined", jnp.concatenate([z[:, n] for n in range(N)], axis=-1), "T R", T=T, R=N * H)
out = trace("out", joined @ wo.T, "T D", T=T, D=D)
close(joined, z.reshape(T, N * H), atol=0)
close(out, taps["attn.out"])

z_by_head = z.transpose(1, 0, 2)
close(z_by_head.transpose(1, 0, 2).reshape(T, N * H), joined, atol=0)
assert jnp.abs(z_by_head.reshape(T, N * H) - joined).max() > 0.1

parts = [z[:, n] @ layer.wo[:, n].T for n in range(N)]
close(sum(parts), out)

silent, inside = N - 1, {}


def without_one(name, array):
    inside[name] = array
    return array.at[:, :, silent].set(0) if name == "layers.0.attn.z" else array


jax_llama3.forward(params, np.array([ids]), config, tap=without_one)
close(inside["layers.0.attn.out"][0], out - parts[silent])
lengths = [float(jnp.linalg.norm(part[-1])) for part in parts]
print("length of what each head adds to the last row:", *(f"{length:.2f}" for length in lengths))
# %% [markdown] id="residual" lang="en"
# ## The residual, and every layer
#
# The result is added to what came in *before* the norm: `x + out`, not `normed + out`. That completes the attention half of a
# layer. We put the steps into one function and run it for every layer, each on that layer's own input in the network.
# %% [markdown] id="residual" lang="zh" of="6ca630bf"
# ## 残差，以及每一层
#
# 结果加到归一化*之前*的输入上：是 `x + out`，不是 `normed + out`。一层中注意力这一半到此完整。我们把各步合成一个函数，在每一层上运行，
# 输入取网络中该层自己的输入。
# %% id="residual_code"
close(x + out, taps["resid_mid"])
assert jnp.abs(normed + out - taps["resid_mid"]).max() > 0.01


def attention_half(layer, x):
    normed = rms_norm(x[None], layer.attn_norm, config.norm_eps)[0]
    q = (normed @ layer.wq.reshape(N * H, D).T).reshape(T, N, H)
    k = (normed @ layer.wk.reshape(K * H, D).T).reshape(T, K, H)
    v = (normed @ layer.wv.reshape(K * H, D).T).reshape(T, K, H)
    z = by_loop(rotated(q), rotated(k), v)
    return x + z.reshape(T, N * H) @ layer.wo.reshape(D, N * H).T


for index, each in enumerate(params.layers):
    ours = attention_half(each, seen[f"layers.{index}.resid_pre"][0])
    theirs = seen[f"layers.{index}.resid_mid"][0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
print(f"✓ the attention half agrees in {L} of {L} layers")
# %% [markdown] id="saves" lang="en"
# ## What sharing saves
#
# Why share at all? It is often said that grouped queries make attention cheaper to compute. Look at the scores: every
# query head still meets every key, $N \cdot T \cdot T$ dot products of length $H$, whatever $K$ is. The compiler's own
# count of multiplications and additions agrees. (The next cell asks for it without computing anything: a
# `ShapeDtypeStruct` is an array's shape and dtype without its numbers, `jax.jit(f).lower(...)` prepares `f` for the
# compiler, and `jax.eval_shape` says which shapes a function would return. Lessons 11 and 14 explain them.) The two
# matrices for keys and values become smaller, which helps a little.
#
# What sharing saves is **memory for the cache**. A model that writes a text keeps the keys and values of all tokens so
# far (lesson 10 shows why that is allowed), in each of its $L$ layers. For each token that takes
#
# $$2 \cdot L \cdot K \cdot H \ \text{numbers.}$$
#
# For Llama 3 8B, at two bytes a number, that is $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ bytes a token, and 1
# GiB for 8,192 tokens. If each of the 32 heads had keys and values of its own, it would be 4 GiB for one text. Sixteen
# texts would take 64 GiB, next to 16 GB of weights. And all of a text's cache is read again for every new token.
# %% [markdown] id="saves" lang="zh" of="75f81bab"
# ## 共用省下了什么
#
# 为什么要共用？常有人说分组查询让注意力算得更省。看看分数就知道：每个查询头仍然要遇到每一个键，不管 $K$ 是多少，都是
# $N \cdot T \cdot T$ 个长度为 $H$ 的点积。编译器自己统计的乘加次数也是这样。（下面的单元格不做任何计算就能问出这个
# 数：`ShapeDtypeStruct` 是数组的形状和数据类型，没有数值；`jax.jit(f).lower(...)` 把 `f` 准备好交给编译器；`jax.eval_shape` 告诉我
# 们一个函数会返回什么形状。第 11、14 课会解释。）产生键和值的两个矩阵确实变小了，略有帮助。
#
# 真正省下的是**缓存占用的内存**。模型写一段文本时，会在 $L$ 层的每一层保留到目前为止所有 token 的键和值（第 10 课说明为什么可以这样
# 做）。每个 token 需要存
#
# $$2 \cdot L \cdot K \cdot H \ \text{个数。}$$
#
# 对 Llama 3 8B，每个数占两个字节，即每个 token $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ 字节，8,192 个 token 就是 1 GiB。
# 如果 32 个头各有自己的键和值，一段文本就要 4 GiB；十六段文本是 64 GiB，而权重不过 16 GB。况且每生成一个新 token，都要把这段文本的
# 缓存全部再读一遍。
# %% id="saves_code"


def operations(kv_heads):
    shapes = [(1, T, N, H), (1, T, kv_heads, H), (1, T, kv_heads, H)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(lambda q, k, v: attention(q, k, v, causal_mask(positions, T)))
    return int(program.lower(*arrays).cost_analysis()["flops"])


two_products = 2 * (2 * N * T * T * H)
print(f"scores and weighted sums of one layer: {two_products:,} operations, K = {K} or K = {N}")
assert operations(K) == operations(N)
assert two_products <= operations(K) < 1.1 * two_products


def cache_bytes(config, tokens):
    cache = jax.eval_shape(lambda: jax_llama3.init_cache(config, 1, tokens, jnp.bfloat16))
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves((cache.k, cache.v)))


shared = preset("llama3-8b")
unshared = dataclasses.replace(shared, n_kv_heads=shared.n_heads)
for name, each in {"K = 8": shared, "K = N = 32": unshared}.items():
    print(
        f"Llama 3 8B with {name:<10}: {cache_bytes(each, 1):>7,} bytes a token, "
        f"{cache_bytes(each, 8192) / 2**30:.0f} GiB for 8,192; "
        f"{jax_llama3.count_params(each) / 1e9:.2f} billion parameters"
    )
assert cache_bytes(shared, 1) == 2 * 32 * 8 * 128 * 2 == 131_072
assert cache_bytes(shared, 8192) == 2**30
assert cache_bytes(unshared, 8192) == 2**32
assert 16 * cache_bytes(unshared, 8192) == 64 * 2**30
assert round(2 * jax_llama3.count_params(shared) / 1e9) == 16

# en: All the work for one token, with an empty cache, grows by about a tenth only.
# zh: 在缓存为空时处理一个 token 的总运算量只增加约一成。
ratio = forward_flops(unshared, 1, 0, 1) / forward_flops(shared, 1, 0, 1)
print(f"operations for one token, K = N against K = 8: {ratio:.2f}")
assert 1.05 < ratio < 1.15
print(f"this model: {cache_bytes(config, 1):,} bytes a token")
# %% [markdown] id="vmap" lang="en"
# ## The same without a loop: vmap
#
# The loop does $N$ small jobs, one after the other. Can one operation do them all? **vmap** turns a function of one thing
# into a function of a stack of such things: `jax.vmap(f)(a)` gives what you get by stacking `f(a[0])`, `f(a[1])` and so
# on, but runs as one operation on the whole. `in_axes` says which axis of each argument is the stack; `None` says that an
# argument is the same for all.
#
# That fits a group: $G$ queries, and keys and values that are the same for all of them. An outer vmap over the $K$ groups
# gives each group its own. No key or value is copied.
# %% [markdown] id="vmap" lang="zh" of="872d757e"
# ## 不用循环的写法之一：vmap
#
# 循环要一个接一个地做 $N$ 件小事。能用一个运算全部做完吗？**vmap** 把处理一个对象的函数变成处理一叠对象的函数：`jax.vmap(f)(a)` 的
# 结果等于把 `f(a[0])`、`f(a[1])` 等依次叠起来，但作为一个整体运算执行。`in_axes` 指明每个参数的哪个轴是那一叠；`None` 表示这个参数
# 由大家共用。
#
# 这正好对应一个组：$G$ 个查询，以及它们共用的键和值。外面再套一层对 $K$ 个组的 vmap，让每组用各自的键值。键和值都不必复制。
# %% id="vmap_code"
stacked = jax.vmap(jnp.dot, in_axes=(0, None))(q[:, 0], q[0, 0])
close(stacked, jnp.stack([jnp.dot(row, q[0, 0]) for row in q[:, 0]]))


def by_vmap(q, k, v):
    grouped = q.reshape(T, K, G, H)
    one_group = jax.vmap(one_head, in_axes=(1, None, None), out_axes=1)
    all_groups = jax.vmap(one_group, in_axes=(1, 1, 1), out_axes=1)
    return all_groups(grouped, k, v).reshape(T, N, H)


close(by_vmap(q, k, v), z, atol=1e-5)
# %% [markdown] id="einsum" lang="en"
# ## The same without a loop: einsum
#
# **einsum** writes a product by naming axes. In `"tkgh,skh->kgts"` every letter is an axis. The axes of the two inputs
# come before the arrow, those of the result after it. There are two rules.
#
# - A letter that is missing from the result is summed over: here `h`.
# - A letter in both inputs and in the result runs in step: here `k`, so queries meet only the keys of their own group.
#
# The axis `g` belongs to the queries alone: all $G$ queries of a group meet the same keys. The letters replace the
# transposes as well, since you may ask for any order of axes. As a bonus, one more string gives what each head adds to
# the stream.
# %% [markdown] id="einsum" lang="zh" of="9d13b39a"
# ## 不用循环的写法之二：einsum
#
# **einsum** 用给轴起名字的方式写乘法。在 `"tkgh,skh->kgts"` 里，每个字母是一个轴：箭头之前是两个输入的轴，之后是结果的轴。规则有两条：
#
# - 结果里没有的字母要求和，这里是 `h`。
# - 两个输入和结果里都有的字母同步变化，这里是 `k`，所以查询只遇到本组的键。
#
# `g` 轴只有查询才有：同组的 $G$ 个查询遇到的是同样的键。这些字母也代替了转置，想要什么轴序都行。再多写一个字符串，就得到每个头往残差流
# 里加的内容。
# %% id="einsum_code"


def by_einsum(q, k, v):
    grouped = q.reshape(T, K, G, H)
    dots = jnp.einsum("tkgh,skh->kgts", grouped, k) / H**0.5
    dots = jnp.where(visible, dots, -jnp.inf)
    pattern = jax.nn.softmax(dots, axis=-1)
    return jnp.einsum("kgts,skh->tkgh", pattern, v).reshape(T, N, H)


# en: The first of the two products, spelled out in loops.
# zh: 把两次乘法中的第一次用循环写出来。
spelled = np.zeros((K, G, T, T))
left, right_side = np.asarray(q.reshape(T, K, G, H)), np.asarray(k)
for a, b, t, s in np.ndindex(K, G, T, T):
    spelled[a, b, t, s] = (left[t, a, b] * right_side[s, a]).sum()
close(jnp.einsum("tkgh,skh->kgts", q.reshape(T, K, G, H), k), spelled)


def of_the_library(q, k, v):
    return attention(q[None], k[None], v[None], causal_mask(positions, T))[0]


close(by_einsum(q, k, v), z, atol=1e-5)
close(by_vmap(q, k, v), by_einsum(q, k, v), atol=1e-6)
close(by_einsum(q, k, v), of_the_library(q, k, v), atol=1e-5)
close(jnp.einsum("tnh,dnh->tnd", z, layer.wo), jnp.stack(parts, axis=1))
# %% [markdown] id="programs" lang="en"
# All of them agree, but they are not the same program. `jax.make_jaxpr` runs a function once with placeholders and shows
# the list of operations that JAX records: what a compiler gets to see. The list is called a **jaxpr**. Count the matrix
# products in it (JAX calls such a product `dot_general`): the loop has two for each head, the others have two in all,
# each of them large. Highly parallel hardware likes that. `jax_llama3` writes its two as `dot_general` itself, with the
# same groups.
# %% [markdown] id="programs" lang="zh" of="43027146"
# 它们的结果都相同，却不是同一个程序。`jax.make_jaxpr` 用占位符把函数运行一遍，展示 JAX 记录下来的运算清单，也就是编译器看到的内容。
# 这份清单叫 **jaxpr**。数一数其中的矩阵乘法（JAX 里叫 `dot_general`）：循环版每个头有两次，其他写法总共只有两次，每次都很大，正适合
# 并行度高的硬件。`jax_llama3` 直接用 `dot_general` 写这两次乘法，分组方式相同。
# %% id="programs_code"
products = {}
for function in (by_loop, by_vmap, by_einsum, of_the_library):
    products[function] = str(jax.make_jaxpr(function)(q, k, v)).count("dot_general")
    print(f"{function.__name__:<14} {products[function]:>3} matrix products")
assert products[by_loop] == 2 * N
assert products[by_vmap] == products[by_einsum] == products[of_the_library] == 2
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. If you are stuck, open the hint; the solution is folded below it.
#
# **1. Undo the sharing.** Any model that shares keys and values can be rewritten as one that does not. Write a function
# that takes `wk` or `wv`, $[K\,H\,D]$, to $[N\,H\,D]$ such that the whole network, with $K = N$ in its config, gives the
# same logits.
# %% [markdown] id="exercises" lang="zh" of="784186f3"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。卡住了可以打开线索；解答折叠在线索下面。
#
# **1. 取消共用。** 任何共用键值的模型都可以改写成不共用的。写一个函数，把 $[K\,H\,D]$ 的 `wk` 或 `wv` 变成 $[N\,H\,D]$，使整个网络在
# 配置改为 $K = N$ 之后给出同样的 logits。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    layers = [each._replace(wk=answer(each.wk), wv=answer(each.wv)) for each in params.layers]
    wide = dataclasses.replace(config, n_kv_heads=N)
    theirs, _ = jax_llama3.forward(params._replace(layers=tuple(layers)), np.array([ids]), wide)
    np.testing.assert_allclose(theirs, logits, atol=1e-3)


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Query head $n$ reads key/value head $\lfloor n / G \rfloor$. So each head of `wk` is needed $G$ times in a row, and
# `jnp.repeat` does just that along an axis of your choice.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="3402c4f8"
# <details><summary>线索</summary>
#
# $n$ 号查询头读的是 $\lfloor n / G \rfloor$ 号键值头。所以 `wk` 的每个头要连续出现 $G$ 次，`jnp.repeat` 正好能沿指定的轴做到。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, lambda weights: jnp.repeat(weights, G, axis=0), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2. The order of the heads means nothing.** Write a function that takes a `Layer` and returns one whose query heads are
# in reverse order, `wq[::-1]`, and which still computes the same. Predict first: which of the other matrices have to be
# reversed, and along which axis? (`layer._replace(wq=...)` gives a changed copy.)
# %% [markdown] id="exercise_2_text" lang="zh" of="0204cff7"
# **2. 头的次序没有含义。** 写一个函数，接收一个 `Layer`，返回另一个 `Layer`：它的查询头次序颠倒，即 `wq[::-1]`，计算结果却不变。先预测：
# 还有哪些矩阵必须跟着颠倒，沿哪个轴？（`layer._replace(wq=...)` 返回修改后的副本。）
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    changed = answer(layer)
    np.testing.assert_array_equal(changed.wq, layer.wq[::-1])
    np.testing.assert_allclose(attention_half(changed, x), attention_half(layer, x), atol=1e-4)


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Reversed, the last group comes first. Its keys and values must then come first too, and so must its block of $W_o$. The
# heads are the first axis of `wk` and `wv`, and the middle axis of `wo`.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="e149381f"
# <details><summary>线索</summary>
#
# 颠倒之后，最后一组排到了最前面。它的键和值也得排在最前面，$W_o$ 中属于它的块也一样。头是 `wk` 和 `wv` 的第一个轴，是 `wo` 的
# 中间那个轴。
#
# </details>
# %% id="solution_2" tags=["solution"]


def reverse_heads(layer):
    turned = layer._replace(wq=layer.wq[::-1], wo=layer.wo[:, ::-1])
    return turned._replace(wk=layer.wk[::-1], wv=layer.wv[::-1])


exercise(2, reverse_heads, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3. Share more.** A model with $K$ key/value heads can be turned into one with a single key/value head by taking the
# mean of their matrices. Write a function that takes `wk` or `wv`, $[K\,H\,D]$, to their mean over the heads,
# $[1\,H\,D]$. And predict: with all layers changed in this way, and no further training, does the network still give the
# same next token? Answer with a pair: the function, and `True` or `False`.
# %% [markdown] id="exercise_3_text" lang="zh" of="a28190a9"
# **3. 共用得更多。** 有 $K$ 个键值头的模型可以变成只有一个键值头的：取它们矩阵的平均。写一个函数，把 $[K\,H\,D]$ 的 `wk` 或 `wv` 变成
# 各头的平均，形状为 $[1\,H\,D]$。并预测：所有层都这样改过，之后不再训练，网络给出的下一个 token 还一样吗？用一个二元组回答：函数，以及
# `True` 或 `False`。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    pooled, stays = answer
    np.testing.assert_allclose(pooled(layer.wk), layer.wk.mean(axis=0, keepdims=True), atol=1e-6)
    layers = [each._replace(wk=pooled(each.wk), wv=pooled(each.wv)) for each in params.layers]
    narrow = dataclasses.replace(config, n_kv_heads=1)
    theirs, _ = jax_llama3.forward(params._replace(layers=tuple(layers)), np.array([ids]), narrow)
    token = int(theirs[0, -1].argmax())
    print(f"with one key/value head: {tokenizer.decode([token])!r}")
    assert stays == (token == int(logits[0, -1].argmax()))


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# `mean` has `keepdims=True`. As for the prediction: the queries were trained to meet the keys of their own group.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="771bfedb"
# <details><summary>线索</summary>
#
# `mean` 有参数 `keepdims=True`。至于预测：这些查询在训练中只遇到过本组的键。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, (lambda weights: weights.mean(axis=0, keepdims=True), False), check_3)
# %% [markdown] id="after" lang="en"
# Taking the mean is how the authors of grouped-query attention convert existing checkpoints. They then train a little
# more, a small share of the original training (see the sources). Without that, as you have seen, the network no longer
# gives the same answer.
# %% [markdown] id="after" lang="zh" of="8596d016"
# 分组查询注意力的作者正是用取平均的办法转换已有的检查点，然后再训练一小段，只占原来训练量的一小部分（见来源）。没有这一步，正如你所
# 见，网络就给不出原来的答案了。
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani and others, *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): many heads,
#   and why (section 3.2.2)
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150): one shared head of keys and values
# - Ainslie and others, *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*, 2023,
#   [arXiv:2305.13245](https://arxiv.org/abs/2305.13245): groups, and the mean of exercise 3
#
# Next: lesson 07 adds the other half of a layer and runs the whole network.
# %% [markdown] id="sources" lang="zh" of="8cbf0ba0"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)：多个头，以及原因（3.2.2 节）
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019，[arXiv:1911.02150](https://arxiv.org/abs/1911.02150)：共用一个键值头
# - Ainslie 等，*GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*，2023，[arXiv:2305.13245](https://arxiv.org/abs/2305.13245)：分组，以及练习 3 的取平均
#
# 下一课：第 07 课补上一层的另一半，跑通整个网络。
