# %% [markdown] id="title" lang="en"
# # 06 · Many heads: loop, einsum, grouped queries
#
# *Reading time 20 minutes. Before it: lessons 04 and 05. What it proves: a loop over hand-made heads, with RoPE, is the
# attention of `jax_llama3` in every layer; so are two ways of writing it without a loop.*
#
# One head gives each position one set of weights. But a token may need several things at once: its subject, the word just
# before it, the start of the text. So a layer has $N$ heads. Each has its own weights and its own pattern, and all
# read the same rows. This lesson runs them side by side, joins what they return, and adds it to the residual stream.
# %% [markdown] id="title" lang="zh" of="c4faba15"
# # 06 · 多头：循环、einsum、GQA
#
# *阅读时间 20 分钟。前置：第 04、05 课。本课证明：把手写的头加上 RoPE 循环一遍，在每一层都与 `jax_llama3` 的注意力相等；另外两种
# 不用循环的写法也是如此。*
#
# 一个头只给每个位置一组权重。可一个 token 可能同时需要好几样东西：它的主语、紧挨着的前一个词、文本的开头。所以一层有 $N$ 个头，各有
# 各的权重和关注方式，读的却是同样的行。本课让它们并排运行，把结果拼在一起，再加到残差流上。
# %% id="setup"
import dataclasses
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.cost import forward_flops
from jax_llama3.bench.presets import preset, preset_names
from jax_llama3.model.attention import attention, causal_mask
from jax_llama3.model.layers import rms_norm
from jax_llama3.model.rope import apply_rope, rope_tables
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
G = N // K

ids = model.tokenizer.encode("The capital of France is", bos=True)
words = [model.tokenizer.decode([i]).strip() for i in ids]
T = len(ids)
layer = params.layers[0]

seen = {}


def tap(name, array):
    seen[name] = array
    return array


logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=tap)
taps = {name.removeprefix("layers.0."): array[0] for name, array in seen.items()}
x = trace("x", params.embedding[jnp.array(ids)], "T D", T=T, D=D)
normed = rms_norm(x[None], layer.attn_norm, config.norm_eps)[0]
# %% [markdown] id="split" lang="en"
# ## One product for all heads, and a reshape that lies
#
# The queries of all heads come from one product with the flat matrix of $N \cdot H$ rows. A row of the result holds head
# after head: $H$ numbers of head 0, then $H$ of head 1. So the reshape to $[T\,N\,H]$ is right, for it cuts each row where
# one head ends and the next begins.
#
# To work head by head one wants $[N\,T\,H]$. It is tempting to ask the reshape for it. The count of numbers is right, so
# nothing complains, but a reshape never moves a number: it would cut the rows of $T$ tokens at other places and mix tokens
# with heads. First reshape to $[T\,N\,H]$, then **transpose** the two axes.
# %% [markdown] id="split" lang="zh" of="f2b8aa15"
# ## 一次乘法得到所有头，以及一次会骗人的变形
#
# 所有头的查询来自同一次乘法，用的是 $N \cdot H$ 行的扁平矩阵。结果的每一行按头依次排列：先是 0 号头的 $H$ 个数，再是 1 号头的 $H$ 个数。
# 所以变形为 $[T\,N\,H]$ 是对的，它正好在两个头的交界处切开每一行。
#
# 要逐头计算，就想要 $[N\,T\,H]$。直接让变形给出这个形状很诱人：数的总数没错，所以不会报错。但变形从不移动任何一个数，它会在别的地方
# 切断这 $T$ 行，把 token 和头搅在一起。应当先变形为 $[T\,N\,H]$，再对前两个轴做**转置**。
# %% id="split_code"
flat_q = trace("flat q", normed @ layer.wq.reshape(N * H, D).T, "T R", T=T, R=N * H)
q = trace("q", flat_q.reshape(T, N, H), "T N H", T=T, N=N, H=H)
k = trace("k", (normed @ layer.wk.reshape(K * H, D).T).reshape(T, K, H), "T K H", T=T, K=K, H=H)
unturned_q, unturned_k = q, k
v = trace("v", (normed @ layer.wv.reshape(K * H, D).T).reshape(T, K, H), "T K H", T=T, K=K, H=H)

by_head = trace("by head", q.transpose(1, 0, 2), "N T H", N=N, T=T, H=H)
mixed = flat_q.reshape(N, T, H)
assert mixed.shape == by_head.shape
assert jnp.abs(mixed - by_head).max() > 1
for n in range(N):
    np.testing.assert_allclose(by_head[n], normed @ layer.wq[n].T, atol=1e-4)
# %% [markdown] id="turn" lang="en"
# Then queries and keys are rotated by position, as lesson 05 derived. The angles are the same for every head; values stay as
# they are. This must give the network's own vectors.
# %% [markdown] id="turn" lang="zh" of="58d646c5"
# 接着按位置旋转查询和键，如第 05 课所推导。所有头的角度都相同，值保持原样。结果应当就是网络自己的向量。
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
# If every query head has keys and values of its own, $K = N$, this is **multi-head attention**. Llama 3 has fewer: with
# **grouped-query attention** (GQA) $G = N / K$ query heads form a group and share one head of keys and values. At the far end
# stands $K = 1$: all queries share one.
#
# Groups are runs of neighbours. Query heads $0 \ldots G-1$ read key/value head 0, the next $G$ read head 1, and in general
#
# $$\text{key/value head of query head } n \;=\; \lfloor n / G \rfloor, \qquad G = N / K .$$
#
# The $G$ has to be computed. Llama 3 8B has 32 heads over 8, so $G = 4$, and code that says `n // 4` works there and
# elsewhere not. Nothing in a checkpoint records the rule: it is how the model was trained.
# %% [markdown] id="groups" lang="zh" of="7641b7b6"
# ## 谁与谁共用
#
# 如果每个查询头都有自己的键和值，即 $K = N$，这叫**多头注意力**（multi-head attention）。Llama 3 用得更少：在**分组查询注意力**
# （grouped-query attention，GQA）里，$G = N / K$ 个查询头组成一组，共用一个键值头。另一个极端是 $K = 1$：所有查询共用一个。
#
# 每组由相邻的头组成。$0 \ldots G-1$ 号查询头读 0 号键值头，接下来 $G$ 个读 1 号，一般地：
#
# $$\text{查询头 } n \text{ 所用的键值头} \;=\; \lfloor n / G \rfloor, \qquad G = N / K .$$
#
# 这里的 $G$ 必须算出来。Llama 3 8B 是 32 个头对 8 个，$G = 4$，写成 `n // 4` 的代码在它身上没问题，换个模型就不对了。检查点里没有任何
# 地方记下这条规则：模型就是这样训练出来的。
# %% id="drawing"
step, colours = 1.35, [BLUE, ORANGE, GREEN, GREY]
figure, axes = canvas(N * step + 2.7, 11.4)
for row, kv_heads in enumerate([N, K, 1]):
    group, base = N // kv_heads, 7.8 - 3.8 * row
    name = "this model\n" if kv_heads == K else ""
    axes.text(
        0, base + 1.5, f"{name}N = {N}\nK = {kv_heads}\nG = {group}", va="center", fontsize=10
    )
    for j in range(kv_heads):
        middle = 3 + step * (j * group + (group - 1) / 2)
        box(axes, middle - 0.5, base, 1, 0.8, f"kv{j}", colours[j % 4])
        for n in range(j * group, (j + 1) * group):
            left = 3 + step * n
            box(axes, left - 0.5, base + 2.2, 1, 0.8, f"q{n}", colours[j % 4])
            arrow(axes, (left, base + 2.2), (middle, base + 0.8))
show(
    figure,
    en="Three rows of query heads above key/value heads: each with its own; groups of neighbours sharing one; all sharing one.",
    zh="三行查询头，下面是键值头：每个头各有一个；相邻的头成组共用一个；所有头共用一个。",
)
# %% [markdown] id="loop" lang="en"
# ## The loop
#
# The head of lesson 04, once for each $n$, with the keys and values of its group. The outputs stand side by side.
# %% [markdown] id="loop" lang="zh" of="e7d2d375"
# ## 循环
#
# 对每个 $n$ 用一次第 04 课的头，键和值取自它所在的组。输出并排放在一起。
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
# Now the wrong rules. None of them raises an error. `n // 4` forms groups of four whatever the model says; `n % K` deals the
# heads out like cards. Both give vectors of the right shape and of a likely size. Only the comparison tells.
#
# With Llama 3 70B `n // 4` even reaches beyond the last key/value head: 64 heads over 8 would ask for head 15. JAX does not
# refuse a computed index that is too large; it takes the last entry.
# %% [markdown] id="mapping" lang="zh" of="be6dcd73"
# 再看错误的规则，它们都不会报错。`n // 4` 不管模型怎样都四个一组；`n % K` 像发牌一样轮流分配。两者给出的向量形状正确，大小也像那么
# 回事，只有比较才能看出来。
#
# 在 Llama 3 70B 上，`n // 4` 甚至会越过最后一个键值头：64 个头对 8 个，会去取 15 号头。JAX 遇到算出来的下标过大并不拒绝，而是取最后
# 一项。
# %% id="mapping_code"
right = [n // G for n in range(N)]
assert right == [int(j) for j in jnp.repeat(jnp.arange(K), G)]

for name, rule in {
    "n // G": lambda n: n // G,
    "n // 4": lambda n: n // 4,
    "n % K": lambda n: n % K,
}.items():
    chosen = [min(rule(n), K - 1) for n in range(N)]
    error = jnp.abs(by_loop(q, k, v, lambda n, c=chosen: c[n]) - taps["attn.z"]).max()
    print(f"{name}  {chosen}  largest error {error:.2f}")
    assert (error < 1e-4) == (chosen == right)

print()
for name in preset_names():
    other = preset(name)
    size = other.n_heads // other.n_kv_heads
    fits = [n // size for n in range(other.n_heads)] == [n // 4 for n in range(other.n_heads)]
    assert fits == (size == 4)
    print(
        f"{name:<14} N = {other.n_heads:>3}  K = {other.n_kv_heads}  G = {size:>2}  n // 4 right: {fits}"
    )

large = preset("llama3-70b")
assert max(n // 4 for n in range(large.n_heads)) == 15 > large.n_kv_heads - 1
assert jnp.arange(large.n_kv_heads)[jnp.array(15)] == large.n_kv_heads - 1
# %% [markdown] id="join" lang="en"
# ## Joining the heads
#
# Each position now has $N$ vectors of $H$ numbers. They are concatenated to one row of $N \cdot H$, and the last
# matrix of attention, $W_o$, takes it back to $D$ numbers:
#
# $$\mathrm{out}_t = W_o\,[\,z_{t,0};\; z_{t,1};\; \ldots;\; z_{t,N-1}\,] .$$
#
# The trap of the reshape waits here too. From $[T\,N\,H]$ the reshape to $[T,\,N H]$ concatenates heads. From $[N\,T\,H]$ it
# needs the transpose first.
#
# A product with a concatenated row is a sum of products with its pieces. If $W_o$ is cut into $N$ blocks of $H$ columns,
#
# $$\mathrm{out}_t = \sum_n W_o^{(n)} z_{t,n} .$$
#
# So every head adds its own vector of $D$ numbers, and no head needs to know of the others. To switch a head off is to
# leave its term out. We check that inside the network: a tap sets one head's output to zero.
# %% [markdown] id="join" lang="zh" of="43204d2d"
# ## 把头拼起来
#
# 每个位置现在有 $N$ 个向量，各有 $H$ 个数。把它们拼接成一行 $N \cdot H$ 个数，注意力的最后一个矩阵 $W_o$ 再把它变回 $D$ 个数：
#
# $$\mathrm{out}_t = W_o\,[\,z_{t,0};\; z_{t,1};\; \ldots;\; z_{t,N-1}\,] .$$
#
# 变形的陷阱在这里又出现了。从 $[T\,N\,H]$ 变形为 $[T,\,N H]$ 正是拼接各头；从 $[N\,T\,H]$ 出发则要先转置。
#
# 与拼接而成的行相乘，等于与各段分别相乘再求和。把 $W_o$ 按列切成 $N$ 块，每块 $H$ 列：
#
# $$\mathrm{out}_t = \sum_n W_o^{(n)} z_{t,n} .$$
#
# 所以每个头各自加上一个 $D$ 维向量，谁也不必知道别的头。关掉一个头，就是去掉它那一项。我们在网络内部验证：用探针把一个头的输出置零。
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
print("length of what each head adds at the last position:")
print(" ".join(f"{jnp.linalg.norm(part[-1]):.2f}" for part in parts))
# %% [markdown] id="residual" lang="en"
# ## The residual, and every layer
#
# The result is added to what came in, before the norm: `x + out`, not `normed + out`. That is the whole attention half of a
# block. We put the steps into one function and run it on every layer, each from its own input in the network.
# %% [markdown] id="residual" lang="zh" of="ce39f2d7"
# ## 残差，以及每一层
#
# 结果加到归一化之前的输入上：是 `x + out`，不是 `normed + out`。一个块的注意力这一半到此完整。我们把各步合成一个函数，在每一层上运行，
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
print(f"the attention half agrees in {config.n_layers} layers")
# %% [markdown] id="saves" lang="en"
# ## What sharing saves
#
# It is often said that grouped queries make attention cheaper to compute. Look at the scores: every query head still meets
# every key, $N \cdot T \cdot T$ dot products of length $H$, whatever $K$ is. The compiler's own count of multiplications
# and additions says the same. (The cell asks for it without computing anything: a `ShapeDtypeStruct` is an array's shape and
# dtype without numbers, `jax.jit(f).lower(...)` prepares `f` for the compiler, and `jax.eval_shape` says which shapes a function
# would return. Lessons 11 and 14 explain them.) The two matrices for keys and values become smaller, which helps a little.
#
# What is saved is **memory for the cache**. A model that continues a text keeps the keys and values of all tokens so far
# (lesson 10 shows why it may), in every layer. For each token this takes
#
# $$2 \cdot L \cdot K \cdot H \ \text{numbers,}$$
#
# where $L$ counts the layers. For Llama 3 8B in two bytes that is $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ bytes a
# token, and 1 GiB for 8,192 tokens. With keys and values for each of the 32 heads it would be 4 GiB, for one text; sixteen
# texts would take 64 GiB beside 16 GB of weights. And all of a text's cache is read again for every new token.
# %% [markdown] id="saves" lang="zh" of="58cc479c"
# ## 共用省下了什么
#
# 常有人说分组查询让注意力算得更省。看看分数就知道：每个查询头仍然要遇到每一个键，不管 $K$ 是多少，都是 $N \cdot T \cdot T$ 个长度为 $H$
# 的点积。编译器自己统计的乘加次数也是这样。（下面的单元格不做任何计算就能问到：`ShapeDtypeStruct` 是数组的形状和数据类型，没有数值；
# `jax.jit(f).lower(...)` 把 `f` 准备好交给编译器；`jax.eval_shape` 说出一个函数会返回什么形状。第 11、14 课会解释。）产生键和值的两个矩阵确实变小了，略有帮助。
#
# 真正省下的是**缓存占用的内存**。模型续写文本时，会在每一层保留到目前为止所有 token 的键和值（第 10 课说明为什么可以这样做）。每个
# token 需要存
#
# $$2 \cdot L \cdot K \cdot H \ \text{个数，}$$
#
# 其中 $L$ 是层数。Llama 3 8B 每个数占两字节，即每个 token $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ 字节，8,192 个 token 就是
# 1 GiB。如果 32 个头各有自己的键和值，一段文本就要 4 GiB；十六段文本是 64 GiB，而权重不过 16 GB。况且每生成一个新 token，都要把这段
# 文本的缓存全部再读一遍。
# %% id="saves_code"


def operations(kv_heads):
    shapes = [(1, T, N, H), (1, T, kv_heads, H), (1, T, kv_heads, H)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(lambda q, k, v: attention(q, k, v, causal_mask(positions, T)))
    return int(program.lower(*arrays).cost_analysis()["flops"])


two_products = 2 * (2 * N * T * T * H)
print(f"scores and weighted sums of one layer: {two_products:,} operations, whatever K is")
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
# The loop asks for $N$ small jobs one after the other. **vmap** turns a function of one thing into a function of a stack of
# them: `jax.vmap(f)(a)` has the result of stacking `f(a[0])`, `f(a[1])`, and so on, but runs as one operation on the
# whole. `in_axes` says which axis of each argument is the stack; `None` says that an argument is the same for all.
#
# That fits a group: $G$ queries, and keys and values that are the same for all of them. An outer vmap over the $K$ groups
# gives each its own. No key and no value is repeated.
# %% [markdown] id="vmap" lang="zh" of="0b5ee444"
# ## 不用循环的写法之一：vmap
#
# 循环要一个接一个地做 $N$ 件小事。**vmap** 把处理一个对象的函数变成处理一叠对象的函数：`jax.vmap(f)(a)` 的结果等于把 `f(a[0])`、
# `f(a[1])` 等依次叠起来，但作为一个整体运算执行。`in_axes` 指明每个参数的哪个轴是那一叠；`None` 表示这个参数大家共用。
#
# 这正好对应一个组：$G$ 个查询，以及它们共用的键和值。外面再套一层对 $K$ 个组的 vmap，让每组用各自的键值。键和值都没有重复存放。
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
# **einsum** writes a product by naming axes. In `"tkgh,skh->kgts"` every letter is an axis. The part before the arrow names
# the axes of both inputs, the part behind it those of the result. There are two rules. A letter that is missing from the
# result is summed over: here `h`. A letter that stands in both inputs and in the result runs in step: here `k`, so that queries meet
# only the keys of their own group. The axis `g` belongs to the queries alone: all $G$ of a group meet the same keys.
#
# The letters replace the transposes as well: any order of axes may be asked for. This is the form that `jax_llama3` uses.
# %% [markdown] id="einsum" lang="zh" of="ca45d4a7"
# ## 不用循环的写法之二：einsum
#
# **einsum** 用给轴起名字的方式写乘法。在 `"tkgh,skh->kgts"` 里，每个字母是一个轴：箭头之前是两个输入的轴，之后是结果的轴。规则有两条。
# 结果里没有的字母要求和，这里是 `h`。两个输入和结果里都有的字母同步变化，这里是 `k`，所以查询只遇到本组的键。`g` 轴只有查询才有：同组的 $G$ 个
# 查询遇到的是同样的键。
#
# 这些字母也代替了转置，想要什么轴序都行。`jax_llama3` 用的就是这种形式。
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

mask = causal_mask(positions, T)
close(by_einsum(q, k, v), z, atol=1e-5)
close(by_vmap(q, k, v), by_einsum(q, k, v), atol=1e-6)
close(by_einsum(q, k, v), attention(q[None], k[None], v[None], mask)[0], atol=1e-5)
# %% [markdown] id="programs" lang="en"
# The three functions agree, but they are not the same program. `jax.make_jaxpr` shows what JAX records when it runs a
# function once with placeholders: the list of operations that a compiler gets to see. We count the matrix products in it.
# The loop has two for each head; the other two have two in all, each large. This is what one wants on a wide machine.
# %% [markdown] id="programs" lang="zh" of="b2db5a79"
# 三个函数的结果相同，却不是同一个程序。`jax.make_jaxpr` 展示 JAX 用占位符运行一遍函数时记录下来的内容，也就是编译器看到的运算清单。
# 数一数其中的矩阵乘法：循环版每个头有两次，另外两种总共只有两次，每次都很大。在并行度高的机器上，这正是我们想要的。
# %% id="programs_code"
products = {}
for function in (by_loop, by_vmap, by_einsum):
    products[function] = str(jax.make_jaxpr(function)(q, k, v)).count("dot_general")
    print(f"{function.__name__:<10} {products[function]:>3} matrix products")
assert products[by_loop] == 2 * N
assert products[by_vmap] == products[by_einsum] == 2
# %% [markdown] id="maps" lang="en"
# ## All heads of a layer
#
# The patterns of all heads in the first layer: one row of pictures for each group. Pictures in one row share keys and
# values and differ by their queries alone. That is enough for them to look at different things.
# %% [markdown] id="maps" lang="zh" of="ba64614b"
# ## 一层里的所有头
#
# 第一层所有头的权重图，每一行图是一个组。同一行的图共用键和值，差别只在查询，而这已足以让它们看向不同的地方。
# %% id="heat_maps"
patterns = trace("pattern", taps["attn.pattern"], "N T S", N=N, T=T, S=T)
figure, panels = plt.subplots(K, G, figsize=(2.7 * G + 0.8, 2.4 * K + 0.5), squeeze=False)
for n in range(N):
    panel = panels[n // G, n % G]
    hidden = np.ma.masked_where(~np.asarray(visible), np.asarray(patterns[n]))
    colours = plt.get_cmap("Blues").copy()
    colours.set_bad("#dddddd")
    image = panel.imshow(hidden, cmap=colours, vmin=0, vmax=1)
    panel.set_title(f"q{n}, kv{n // G}", fontsize=10)
    panel.set_xticks(range(T), words if n // G == K - 1 else [""] * T, rotation=40)
    panel.set_yticks(range(T), words if n % G == 0 else [""] * T)
figure.colorbar(image, ax=panels, label="weight", shrink=0.6)
show(
    figure,
    en="A grid of small heat maps, one for each head, a row for each group: every head spreads its weights in its own way.",
    zh="由小热图组成的网格，每个头一幅，每组一行：每个头的权重分布各不相同。",
)

for group in patterns.reshape(K, G, T, T):
    for one in range(G):
        for two in range(one):
            assert jnp.abs(group[one] - group[two]).max() > 0.05
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Any model with shared keys and values can be rewritten as one without sharing. Write a function that takes `wk` or
# `wv`, $[K\,H\,D]$, to $[N\,H\,D]$ such that the whole network, with $K = N$ in its config, gives the same logits.
# %% [markdown] id="exercises" lang="zh" of="c421bb96"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 任何共用键值的模型都可以改写成不共用的。写一个函数，把 $[K\,H\,D]$ 的 `wk` 或 `wv` 变成 $[N\,H\,D]$，使整个网络在配置改为
# $K = N$ 之后给出同样的 logits。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    layers = [each._replace(wk=answer(each.wk), wv=answer(each.wv)) for each in params.layers]
    wide = dataclasses.replace(config, n_kv_heads=N)
    theirs, _ = jax_llama3.forward(params._replace(layers=tuple(layers)), np.array([ids]), wide)
    np.testing.assert_allclose(theirs, logits, atol=1e-3)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda weights: jnp.repeat(weights, G, axis=0), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** 16 GiB are free for the cache of Llama 3 70B (80 layers, 64 heads over 8, $H = 128$), two bytes a number. How many
# whole tokens fit? And how many if $K$ were 64? Answer with a pair.
# %% [markdown] id="exercise_2_text" lang="zh" of="7afa1562"
# **2.** 有 16 GiB 可用于 Llama 3 70B 的缓存（80 层，64 个头对 8 个，$H = 128$），每个数两字节。最多放得下多少个完整的 token？如果 $K$ 是
# 64 呢？用一个二元组回答。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for kv_heads, tokens in zip((8, 64), answer, strict=True):
        shape = dataclasses.replace(preset("llama3-70b"), n_kv_heads=kv_heads)
        assert cache_bytes(shape, tokens) <= 2**34 < cache_bytes(shape, tokens + 1)


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, (2**34 // (2 * 80 * 8 * 128 * 2), 2**34 // (2 * 80 * 64 * 128 * 2)), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Give the einsum string that takes `z`, $[T\,N\,H]$, and `layer.wo`, $[D\,N\,H]$, to what each head adds at each
# position, $[T\,N\,D]$.
# %% [markdown] id="exercise_3_text" lang="zh" of="b7ca1708"
# **3.** 给出一个 einsum 字符串，由 $[T\,N\,H]$ 的 `z` 和 $[D\,N\,H]$ 的 `layer.wo` 得到每个头在每个位置上加的内容，形状为 $[T\,N\,D]$。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    added = jnp.einsum(answer, z, layer.wo)
    np.testing.assert_allclose(added, jnp.stack(parts, axis=1), atol=1e-4)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, "tnh,dnh->tnd", check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762): many heads
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150): one shared head of keys and values
# - Ainslie et al., *GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*, 2023,
#   [arXiv:2305.13245](https://arxiv.org/abs/2305.13245): groups
#
# Next: lesson 07 adds the other half of a block and runs the whole network.
# %% [markdown] id="sources" lang="zh" of="9c34d690"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)：多个头
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019，
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)：共用一个键值头
# - Ainslie 等，*GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints*，2023，
#   [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)：分组
#
# 下一课：第 07 课补上块的另一半，跑通整个网络。
