# %% [markdown] id="title" lang="en"
# # 10 · Generating, and why a KV cache is exact
#
# *Reading time 25 minutes. Before it: lessons 04 to 07. What it proves: keeping the keys and values of old tokens changes no
# result at any step, and the work it saves is paid for with a known amount of memory.*
#
# One pass through the network gives one next token. How does a sentence come out of that? We append the token to the prompt
# and ask again, and again. A model used in this way is called **autoregressive**: its own output becomes part of its next
# input.
#
# That looks wasteful, because every pass goes over the whole text once more. How much of this work is really new? We first
# generate the plain way and count. Then we find out what cannot have changed since the last pass, and keep it. You have seen
# the effect in every chat: a short wait before the first word, then a steady stream. By the end of this lesson you know why.
# %% [markdown] id="title" lang="zh" of="dbeab73b"
# # 10 · 连续生成，KV 缓存为何精确
#
# *阅读时间 25 分钟。前置：第 04 至 07 课。本课证明：保留旧 token 的键和值，在任何一步都不改变结果；省下的计算要用多少内存来换，也可以准确算出。*
#
# 网络走一遍，只给出下一个 token。一句话又是怎么写出来的？把这个 token 接到提示后面，再问一次，如此反复。这种用法叫**自回归**（autoregressive）：模型的输出成为它下一次输入的一部分。
#
# 这看起来很浪费，因为每一遍都要把整段文本重新算过。其中有多少计算真正是新的？我们先用朴素的办法生成，数一数计算量；再弄清自上一遍以来哪些东西不可能变，把它们留下来。它的效果你在每次聊天时都见过：第一个词要等一会儿，后面的词便源源不断。读完本课，你就知道为什么。
# %% id="setup"
import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.model.rope import rope_frequencies
from jax_llama3_course import (
    close,
    exercise,
    expect,
    load_model,
    on_default_model,
    show,
    trace,
)
from jax_llama3_course.figures import generating as figures

model = load_model()
config, params = model.config, model.params
D, V, L = config.dim, config.vocab_size, config.n_layers
N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
G = N // K
prompt = model.tokenizer.encode("The capital of France is", bos=True)
P0 = len(prompt)


def word(token):
    return model.tokenizer.decode([int(token)])


print(P0, "ids:", prompt)
# %% [markdown] id="again" lang="en"
# ## The plain way: run everything again
#
# Here is the network of lessons 03 to 07 in one piece. `run` takes all ids and returns the logits at every position. It also
# returns the keys and values of every layer, which we shall need in a moment. (These keys are already rotated.)
# %% [markdown] id="again" lang="zh" of="1ba9ccc1"
# ## 朴素的办法：全部重算
#
# 下面把第 03 至 07 课的网络写在一起。`run` 接受所有编号，返回每个位置的 logits；它还返回每一层的键和值，马上就会用到。（其中的键已经旋转过。）
# %% id="again_code"
frequencies = rope_frequencies(config)


def norm(x, weight):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight


def rotate(x, positions):
    angles = positions[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# en: `jax.jit` (lesson 11) makes one program of a function's steps. The numbers stay; the lesson takes less time.
# zh: `jax.jit`（第 11 课）把函数的各步编译成一个程序。数值照旧，只是这一课跑得快些。
@jax.jit
def feed_forward(layer, x):
    h = norm(x, layer.ffn_norm)
    return (jax.nn.silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T


@jax.jit
def project(layer, x, positions):
    h = norm(x, layer.attn_norm)
    q = jnp.einsum("TD,NHD->TNH", h, layer.wq)
    k = jnp.einsum("TD,KHD->TKH", h, layer.wk)
    v = jnp.einsum("TD,KHD->TKH", h, layer.wv)
    return rotate(q, positions), rotate(k, positions), v


@jax.jit
def mix(layer, q, k, v, mask):
    grouped = q.reshape(len(q), K, G, H)
    scores = jnp.einsum("TKGH,SKH->KGTS", grouped, k) / H**0.5
    scores = jnp.where(mask, scores, -jnp.inf)
    pattern = jax.nn.softmax(scores, axis=-1)
    z = jnp.einsum("KGTS,SKH->TKGH", pattern, v).reshape(len(q), N, H)
    return jnp.einsum("TNH,DNH->TD", z, layer.wo)


def logits_of(x):
    output = params.embedding if params.output is None else params.output
    return norm(x, params.norm) @ output.T


def run(ids):
    positions = jnp.arange(len(ids))
    mask = positions[None, :] <= positions[:, None]
    x = params.embedding[jnp.array(ids)]
    kept = []
    for layer in params.layers:
        q, k, v = project(layer, x, positions)
        kept.append((k, v))
        x = x + mix(layer, q, k, v, mask)
        x = x + feed_forward(layer, x)
    return logits_of(x), kept


# %% [markdown] id="loop" lang="en"
# Now the loop. We take the likeliest token (greedy, lesson 00), five times. Each round sends one row per token of the text
# through all layers, and then we look at a single row of logits, the last.
#
# `jax_llama3` checks us: one pass of its `forward` over the whole text must give our logits at every step. `expect` checks a
# value that is known for the course's own model; if you run the lesson on another model, it checks nothing.
# %% [markdown] id="loop" lang="zh" of="758c956d"
# 然后是循环。每次取概率最大的 token（贪心，第 00 课），共五次。每一轮里，文本有多少个 token，就有多少行走过所有的层，而我们只看 logits 的最后一行。
#
# 我们用 `jax_llama3` 来核对：它的 `forward` 对整段文本只走一遍，得到的 logits 必须与我们每一步的都一致。`expect` 检查的是本课程所用模型的已知结果；换了别的模型，它就什么也不查。
# %% id="loop_code"
STEPS = 5
ids, plain, rows_plain = list(prompt), [], 0
for _ in range(STEPS):
    logits, kept = run(ids)
    rows_plain += len(ids)
    plain.append(logits[-1])
    ids.append(int(jnp.argmax(logits[-1])))

print(repr(model.tokenizer.decode(ids)))
print(f"{rows_plain} rows went through the network for {STEPS} new tokens")
expect(word(ids[P0]), " Paris")

seen = {}


def tap(name, array):
    if name.endswith(("attn.k", "attn.v", "attn.scores")):
        seen[name] = array[0]
    return array


whole, _ = jax_llama3.forward(params, np.array([ids[:-1]]), config, tap=tap)
close(jnp.stack(plain), whole[0, P0 - 1 :], atol=1e-3)
assert jnp.argmax(whole[0, P0 - 1 :], axis=-1).tolist() == ids[P0:]
# %% [markdown] id="unchanged" lang="en"
# ## Why old keys and values never change
#
# Append one more token to the text. Which of the old rows change? None. The argument is short and climbs from layer to
# layer:
#
# 1. The embedding at position $t$ depends only on the id at $t$.
# 2. Suppose that row $t$ of a layer's input depends only on the ids $0 \dots t$. The norm, the projections and the rotation
#    use that row alone. (The rotation also uses its position $t$, which is counted from the front and does not move.) So
#    $q_t$, $k_t$ and $v_t$ depend only on the ids $0 \dots t$.
# 3. The causal mask lets row $t$ read only $k_0 \dots k_t$ and $v_0 \dots v_t$, which depend only on the ids $0 \dots t$.
#    The feed-forward network uses the row alone. So row $t$ of the layer's output depends only on the ids $0 \dots t$,
#    and the argument starts again in the next layer.
#
# Everything depends on the mask. Without it, row 0 would read the newest token, and from layer 1 on every key would
# change with every token. Nothing could be kept.
#
# We test it twice. First we change the last token and leave the length alone: all old keys and values must be the same
# *bit for bit*. Then we make the text longer: now the numbers agree up to rounding, because a product of another shape
# may add its terms in another order.
# %% [markdown] id="unchanged" lang="zh" of="2fc943b7"
# ## 旧的键和值为什么不变
#
# 在文本后面再接一个 token，旧的行里有哪些会变？一行也不变。论证很短，逐层往上走：
#
# 1. 位置 $t$ 的嵌入只取决于 $t$ 处的编号。
# 2. 假设某层输入的第 $t$ 行只取决于编号 $0 \dots t$。归一化、投影和旋转只用到这一行。（旋转还用到它的位置 $t$；位置从头数起，不会移动。）所以 $q_t$、$k_t$、$v_t$ 只取决于编号 $0 \dots t$。
# 3. 因果掩码只许第 $t$ 行读取 $k_0 \dots k_t$ 和 $v_0 \dots v_t$，它们都只取决于编号 $0 \dots t$。前馈网络也只用到这一行。所以该层输出的第 $t$ 行只取决于编号 $0 \dots t$，到下一层又可以从头论证。
#
# 一切都取决于掩码。没有它，第 0 行就会读到最新的 token；从第 1 层起，每来一个 token，所有的键都会改变，什么也留不住。
#
# 我们检验两次。先只改最后一个 token，长度不变：所有旧的键和值必须*逐比特*相同。再把文本加长：这时数值只在舍入误差内相同，因为形状不同的矩阵乘积，各项相加的次序可能不同。
# %% id="unchanged_code"
_, one_end = run([*ids[:P0], ids[0]])
_, other_end = run([*ids[:P0], ids[1]])
for (k_one, v_one), (k_other, v_other) in zip(one_end, other_end, strict=True):
    assert (k_one[:P0] == k_other[:P0]).all()
    assert (v_one[:P0] == v_other[:P0]).all()
assert (one_end[0][0][P0] != other_end[0][0][P0]).any()
print(f"{L} layers: the keys and values of {P0} old positions are equal bit for bit")

# en: A longer text: the library's keys and values against those of the prompt alone.
# zh: 更长的文本：本库的键和值，与只有提示时的键和值比较。
_, of_prompt = run(prompt)
for place, name in enumerate(("k", "v")):
    longer = jnp.stack([seen[f"layers.{i}.attn.{name}"][:P0] for i in range(L)])
    close(longer, jnp.stack([each[place] for each in of_prompt]), atol=1e-3)
# %% [markdown] id="no_mask" lang="en"
# And without the mask? We run the first two layers with every position allowed to see every other, and change the last token
# again. The keys of layer 0 still stay the same, because they come straight from the embedding. The keys of layer 1 do not.
# %% [markdown] id="no_mask" lang="zh" of="de3908ad"
# 没有掩码又会怎样？让每个位置都能看到所有位置，运行网络的前两层，再改最后一个 token。第 0 层的键仍然不变，因为它们直接来自嵌入；第 1 层的键就变了。
# %% id="no_mask_code"


def keys_without_mask(ids):
    positions = jnp.arange(len(ids))
    first, second = params.layers[:2]
    x = params.embedding[jnp.array(ids)]
    q, k, v = project(first, x, positions)
    x = x + mix(first, q, k, v, jnp.ones((len(ids), len(ids)), bool))
    x = x + feed_forward(first, x)
    return k, project(second, x, positions)[1]


one_end = keys_without_mask([*ids[:P0], ids[0]])
other_end = keys_without_mask([*ids[:P0], ids[1]])
assert (one_end[0][:P0] == other_end[0][:P0]).all()
moved = float(jnp.abs(one_end[1][:P0] - other_end[1][:P0]).max())
assert moved > 1e-3
print(f"without a mask, old keys of layer 1 move by up to {moved:.3f}")
# %% [markdown] id="needed" lang="en"
# ## What a new token needs
#
# *(This section can be read on its own. Of the code you need to know: `project` makes queries, keys and values, `mix` is
# attention with all heads, and `P0` is the number of tokens of the prompt.)*
#
# A language model writes one token at a time. It reads the text so far and proposes the next token; we append that token to
# the text and start over. Does the model have to read everything again?
#
# Inside the network each token has its row of numbers, and each layer turns every row into a new one. Nearly all of this
# work treats each row by itself. There is one exception, attention, where a row looks at other rows (the maps of lesson
# 04). It compares its *query* with the *key* of every token up to and including its own. This gives weights, with which
# it takes the weighted sum of their *values*. For the new token, at position $t$, one head computes
# (the softmax runs over all $s$ up to $t$)
#
# $$z_t = \sum_{s \le t} \mathrm{softmax}_s\!\left(\frac{q_t \cdot k_s}{\sqrt H}\right) v_s .$$
#
# Look at what the formula contains, and at what it does not:
#
# - the query $q_t$ of the new token, but **no old query**: each of those served its own row, and that row is finished;
# - the keys $k_s$ and the values $v_s$ of all tokens. The old ones are the same as last time: no token sees a later one, so
#   nothing that comes later can change an old token's rows.
#
# So in each layer we keep the key and the value of every token, and nothing else. This store is the **KV cache**. With
# it, a new token sends *one* row through the network instead of a row for every token of the text. That row computes its
# own query, key and value, adds the key and the value to the store, and reads all others from it. This is not an
# approximation: the result is the same.
#
# The cell below checks both halves of the claim on real queries, keys and values. Ruin all old queries, and the new row
# stays the same bit for bit. Ruin one old key or one old value, and it changes.
# %% [markdown] id="needed" lang="zh" of="6949607c"
# ## 新 token 需要什么
#
# *（这一节可以单独阅读。代码里只需知道：`project` 算出查询、键和值，`mix` 是全部头的注意力，`P0` 是提示的 token 数。）*
#
# 语言模型一次写一个 token。它读完到此为止的文本，提出下一个 token；我们把这个 token 接到文本后面，再从头来过。模型一定要把全部文本重读一遍吗？
#
# 在网络内部，每个 token 都有自己的一行数，每一层都把各行变成新的一行。几乎所有计算都逐行进行，各行互不相干。只有一个例外：注意力。在那里，一行会去看别的行（第 04 课的那些图）：它用自己的*查询*与到自己为止每个 token 的*键*相比，得到权重，再对它们的*值*加权求和。对位置 $t$ 上的新 token，一个头计算的是（softmax 遍及不大于 $t$ 的所有 $s$）
#
# $$z_t = \sum_{s \le t} \mathrm{softmax}_s\!\left(\frac{q_t \cdot k_s}{\sqrt H}\right) v_s .$$
#
# 看看式中有什么，又没有什么：
#
# - 有新 token 的查询 $q_t$，但**没有旧的查询**：旧的查询只为各自的那一行服务，而那一行已经算完；
# - 有所有 token 的键 $k_s$ 和值 $v_s$。旧的那些与上次相同：任何 token 都看不到后面的 token，所以后来的内容改变不了旧 token 的任何一行。
#
# 所以每一层只需保留每个 token 的键和值，别的都不必留。这份存储就是 **KV 缓存**（KV cache）。有了它，一个新 token 只需让*一行*走过网络，而不是文本里有多少 token 就走多少行。这一行算出自己的查询、键和值，把键和值存进去，其余的都从存储里读。这不是近似：结果完全一样。
#
# 下面的单元格用真实的查询、键和值检验这两点：毁掉所有旧的查询，新的一行逐比特不变；毁掉一个旧的键或值，它就变了。
# %% id="needed_code"
positions = jnp.arange(P0 + 1)
layer = params.layers[0]
q, k, v = project(layer, params.embedding[jnp.array(ids[: P0 + 1])], positions)
visible = positions[None, :] <= positions[:, None]


def newest(q, k, v):
    return mix(layer, q, k, v, visible)[-1]


assert (newest(q.at[:-1].set(100.0), k, v) == newest(q, k, v)).all()
assert (newest(q, k.at[0].set(100.0), v) != newest(q, k, v)).any()
assert (newest(q, k, v.at[0].set(100.0)) != newest(q, k, v)).any()
print("old queries: not needed; old keys and values: needed")

show(
    figures.new_token([word(token) for token in prompt], word(ids[P0])),
    en="One layer's keys and values for six tokens in two rows of boxes. Those of the five old tokens are blue, read from the "
    "cache; those of the new token are orange. The new token's query is the only query, with arrows to all six keys.",
    zh="某一层里六个 token 的键和值，排成两行方框。五个旧 token 的是蓝色，从缓存读取；新 token 的是橙色。查询只有新 token 的一个，有箭头指向全部六个键。",
)
# %% [markdown] id="steps" lang="en"
# ## The same in seven steps, with shapes
#
# Let $P$ tokens be in the cache, at positions $0 \dots P-1$, and let $T$ tokens be new. We embed the new ids, and then every
# layer does this:
#
# 1. **Take the new rows only**: $x$ is $[T, D]$, not $[P+T, D]$.
# 2. **Project** them after the norm: $q$ is $[T, N, H]$; $k$ and $v$ are $[T, K, H]$.
# 3. **Rotate** $q$ and $k$ at the positions $P, P+1, \dots, P+T-1$. The first new position is $P$, not $P + 1$: we count
#    from 0, so $P$ tokens occupy $0 \dots P-1$, and $P$ is the next free place.
# 4. **Append** along the axis of positions: all keys together are now $[P+T, K, H]$, and so are the values. The old ones are
#    not touched.
# 5. **Score** the *new queries* against *all keys*: $[N, T, P+T]$. (Not the new keys against all keys, and not all queries
#    against the new keys. A query asks, and only the new rows still have something to ask.)
# 6. **Mask**: new row $i$ stands at position $P+i$ and may see the keys $0 \dots P+i$. The mask is $[T, P+T]$.
# 7. **Softmax** over the $P+T$ keys, then the weighted sum of the values: $z$ is $[T, N, H]$. All that follows works row by
#    row, on $T$ rows.
#
# At first the cache is empty: $P = 0$, and $T$ is the length of the prompt. This pass is called **prefill**. In the passes
# after it, $T$ is usually 1. They all take the same seven steps.
#
# Many texts write $N$ for the number of old tokens and $M$ for the new ones, and give the mask the shape $(M, N+M)$. Here
# $N$ is already the number of query heads, so our letters are $P$ and $T$, and the same mask is $(T, P+T)$.
# %% [markdown] id="steps" lang="zh" of="70292256"
# ## 同样的计算，分成七步，写出形状
#
# 设缓存里已有 $P$ 个 token，位置为 $0 \dots P-1$；新来 $T$ 个 token。先嵌入新的编号，然后每一层这样做：
#
# 1. **只取新的行**：$x$ 是 $[T, D]$，而不是 $[P+T, D]$。
# 2. 归一化之后**投影**：$q$ 是 $[T, N, H]$，$k$ 和 $v$ 是 $[T, K, H]$。
# 3. **旋转** $q$ 和 $k$，位置是 $P, P+1, \dots, P+T-1$。第一个新位置是 $P$，不是 $P + 1$：位置从 0 数起，$P$ 个 token 占了 $0 \dots P-1$，下一个空位就是 $P$。
# 4. 沿位置轴**追加**：全部的键现在是 $[P+T, K, H]$，值也一样。旧的不动。
# 5. **打分**：用*新的查询*乘以*所有的键*，得到 $[N, T, P+T]$。（不是新键乘所有键，也不是所有查询乘新键。提问的是查询，而只有新的行还有问题要问。）
# 6. **掩码**：第 $i$ 个新行位于 $P+i$，可以看到键 $0 \dots P+i$。掩码是 $[T, P+T]$。
# 7. 在 $P+T$ 个键上做 **softmax**，再对值加权求和：$z$ 是 $[T, N, H]$。之后的一切都逐行进行，只有 $T$ 行。
#
# 一开始缓存是空的：$P = 0$，$T$ 是提示的长度。这一遍叫**预填充**（prefill）。之后各遍通常 $T = 1$。每一遍都是同样的七步。
#
# 许多资料用 $N$ 表示旧 token 数、$M$ 表示新 token 数，把掩码的形状写成 $(M, N+M)$。这里 $N$ 已经是查询头数，所以我们用 $P$ 和 $T$；同一个掩码写作 $(T, P+T)$。
# %% id="mask_code"


def cache_mask(new, old):
    query_positions = old + jnp.arange(new)
    key_positions = jnp.arange(old + new)
    return key_positions[None, :] <= query_positions[:, None]


example = np.asarray(cache_mask(3, 4))
assert example.shape == (3, 4 + 3)
assert example[:, :4].all()
assert (example[:, 4:] == np.tril(np.ones((3, 3), bool))).all()
assert np.asarray(cache_mask(1, 4)).all()

# en: It is the lower part of the square mask: the rows of the new queries.
# zh: 它就是方形掩码的下面几行，即新查询的那些行。
assert (example == np.tril(np.ones((7, 7), bool))[4:]).all()

# en: `where` selects: a score passes through untouched, or minus infinity takes its place.
# zh: `where` 做的是选择：分数要么原样通过，要么被换成负无穷。
some_scores = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
selected = np.asarray(jnp.where(example, some_scores, -jnp.inf))
assert (selected[example] == some_scores[example]).all()
assert np.isneginf(selected[~example]).all()

# en: Programs that add a mask of 0 and minus infinity get the same numbers.
# zh: 有的程序加上一个由 0 和负无穷组成的掩码，得到的数相同。
assert (some_scores + np.where(example, 0, -np.inf) == selected).all()
print(example.astype(int))
# %% [markdown] id="mask_text" lang="en"
# The mask consists of booleans. They *select*, and nothing is added to the scores: where the mask is `True`, the score
# passes through; where it is `False`, minus infinity takes its place. (Some programs add a mask of 0 and $-\infty$
# instead. The result is the same, as the cell above checks.)
#
# The picture shows the case $P = 4$, $T = 3$, with $s_{ij}$ for the score of query $i$ and key $j$. The left part,
# $(T, P)$, is all allowed: every old key comes before every new query. The right part, $(T, T)$, is the triangle of
# lesson 04. For a single new token the mask is one row of `True` and could be left out. For several new tokens it cannot.
# %% [markdown] id="mask_text" lang="zh" of="05fb0e53"
# 掩码由布尔值组成。它们做的是*选择*，并没有给分数加上什么：掩码为 `True` 处分数原样通过，为 `False` 处换成负无穷。（有的程序改为加上一个由 0 和 $-\infty$ 组成的掩码，结果相同，上面的单元格已经检验过。）
#
# 下图是 $P = 4$、$T = 3$ 的情形，$s_{ij}$ 表示查询 $i$ 与键 $j$ 的分数。左边的 $(T, P)$ 这一块全部放行：每个旧键都在每个新查询之前。右边的 $(T, T)$ 就是第 04 课的三角形。只有一个新 token 时，掩码只有一行，全是 `True`，可以省去；有几个新 token 时就不能省。
# %% id="mask_picture"
show(
    figures.mask(example, old=4),
    en="Three rows of scores, one for each new query, and seven columns, one for each key. In the four columns of old keys every "
    "score is kept. In the three columns of new keys the scores on and below the diagonal are kept, and minus infinity "
    "stands above it.",
    zh="三行七列的分数，每个新查询一行，每个键一列。旧键的四列里，分数全部保留；新键的三列里，对角线及其下方的分数保留，上方换成负无穷。",
)
# %% [markdown] id="by_hand" lang="en"
# ## By hand, with concatenation
#
# `step` is `run` rewritten in the seven steps. Only three things have changed: where the positions begin, one concatenation
# each for keys and values, and the mask. `positions` and `mask` can also be passed in, so that we can try wrong ones later.
# %% [markdown] id="by_hand" lang="zh" of="075b2102"
# ## 亲手实现：用拼接
#
# `step` 就是按七步改写的 `run`。改动只有三处：位置的起点，键和值各一次拼接，还有掩码。`positions` 和 `mask` 也可以从外面传入，便于稍后试试错误的写法。
# %% id="by_hand_code"
empty = [(jnp.zeros((0, K, H)), jnp.zeros((0, K, H)))] * L


def step(new, cache, positions=None, mask=None):
    held = len(cache[0][0])
    if positions is None:
        positions = held + jnp.arange(len(new))
    if mask is None:
        mask = cache_mask(len(new), held)
    x = params.embedding[jnp.array(new)]
    appended = []
    for layer, (old_k, old_v) in zip(params.layers, cache, strict=True):
        q, k, v = project(layer, x, positions)
        k = jnp.concatenate([old_k, k])
        v = jnp.concatenate([old_v, v])
        appended.append((k, v))
        x = x + mix(layer, q, k, v, mask)
        x = x + feed_forward(layer, x)
    return logits_of(x), appended


# en: Prefill: an empty cache, and the whole prompt.
# zh: 预填充：空缓存，整个提示。
logits, cache = step(prompt, empty)
trace("logits", logits, "T V", T=P0, V=V)
trace("k, layer 0", cache[0][0], "S K H", S=P0, K=K, H=H)
trace("v, layer 0", cache[0][1], "S K H", S=P0, K=K, H=H)
close(logits, whole[0, :P0], atol=1e-3)
prefilled = cache
# %% [markdown] id="every_step" lang="en"
# Now one token at a time. At every step the logits must be those of the plain loop: all $V$ numbers, not only the largest.
# And what was in the cache must still be there, bit for bit. It is copied into a longer array and never computed again.
# %% [markdown] id="every_step" lang="zh" of="ab954832"
# 然后一次一个 token。每一步的 logits 都必须与朴素循环的一致：不只是最大的那个，而是全部 $V$ 个数。缓存里原有的内容必须逐比特不变：它们只是复制到更长的数组里，从不重算。
# %% id="every_step_code"
logits, cache = step(prompt, empty)
cached_ids, rows_cached = list(prompt), [len(prompt)]
close(logits[-1], plain[0], atol=1e-3)
cached_ids.append(int(jnp.argmax(logits[-1])))
for round_number in range(1, STEPS):
    before = cache
    new = cached_ids[-1:]
    logits, cache = step(new, before)
    rows_cached.append(len(new))
    close(logits[-1], plain[round_number], atol=1e-3)
    for (old_k, old_v), (k, v) in zip(before, cache, strict=True):
        assert (k[: len(old_k)] == old_k).all()
        assert (v[: len(old_v)] == old_v).all()
        assert len(k) == len(old_k) + 1
    cached_ids.append(int(jnp.argmax(logits[-1])))

assert cached_ids == ids
trace("k, layer 0", cache[0][0], "S K H", S=P0 + STEPS - 1, K=K, H=H)
print(f"rows through the network: {sum(rows_cached)} with the cache, {rows_plain} without")
# %% [markdown] id="scores" lang="en"
# Step 5 once more, in numbers. For the whole text, the library's scores are a square, $[N, S, S]$. In the last step with
# the cache, each head has one row of scores: the new query times all keys. It must be the last row of that square.
# %% [markdown] id="scores" lang="zh" of="a50ff86e"
# 再用数字看一遍第 5 步。本库对整段文本算出的分数是方阵 $[N, S, S]$。带缓存的最后一步，每个头只有一行分数：新的查询乘以所有的键。它必须正是那个方阵的最后一行。
# %% id="scores_code"
S = P0 + STEPS - 1
layer = params.layers[0]
x_new = params.embedding[jnp.array(ids[S - 1 : S])]
q_new, k_new, v_new = project(layer, x_new, jnp.array([S - 1]))
trace("q, new", q_new, "T N H", T=1, N=N, H=H)
all_keys = trace("k, all", cache[0][0], "S K H", S=S, K=K, H=H)
scores = jnp.einsum("TKGH,SKH->KGTS", q_new.reshape(1, K, G, H), all_keys) / H**0.5
scores = trace("scores", scores.reshape(N, 1, S), "N T S", N=N, T=1, S=S)
square = trace("library's", seen["layers.0.attn.scores"], "N S S", N=N, S=S)
close(scores, square[:, -1:], atol=1e-3)
# %% [markdown] id="rows_text" lang="en"
# The picture shows which rows are computed in each round. Without the cache it is the whole text so far; with it, the prompt
# once and then one row per round.
# %% [markdown] id="rows_text" lang="zh" of="e928df82"
# 下图展示每一轮计算哪些行。没有缓存时，每轮都是到此为止的整段文本；有缓存时，提示只算一次，之后每轮一行。
# %% id="rows_picture"
show(
    figures.rows(P0, STEPS),
    en="Two grids of rounds and positions. Without a cache every position is computed in every round; with one, the prompt "
    "is computed in the first round and one position in each later round.",
    zh="两个网格，纵轴为轮次，横轴为位置。没有缓存时每轮都要计算所有位置；有缓存时，第一轮计算提示，之后每轮只计算一个位置。",
)
# %% [markdown] id="several" lang="en"
# ## Appending several tokens at once
#
# Nothing in the seven steps says $T = 1$. A user who types another sentence adds many tokens at once, after $P$ old ones.
# Now the mask is needed, because no new token may see those that come after it. We continue from the cache of the prompt
# and compare every new position with a run over the whole text.
# %% [markdown] id="several" lang="zh" of="39273c12"
# ## 一次接上好几个 token
#
# 七步里没有一处要求 $T = 1$。用户再输入一句话，就是在 $P$ 个旧 token 之后一次加入许多 token。这时就需要掩码：每个新 token 都不能看到它后面的新 token。我们从提示的缓存继续，把每个新位置的结果与整段文本重算的结果比较。
# %% id="several_code"
# en: `start=False`: this text continues another.
# zh: `start=False`：这段文本接在另一段之后。
more = model.tokenizer.encode(" Paris. The capital of Italy is", start=False)
T = len(more)
assert T > 1
expected, _ = run(prompt + more)
logits, longer = step(more, prefilled)
trace("mask", cache_mask(T, P0), "T S", T=T, S=P0 + T)
trace("logits", logits, "T V", T=T, V=V)
close(logits, expected[P0:], atol=1e-3)
for (old_k, old_v), (k, v) in zip(prefilled, longer, strict=True):
    assert (k[:P0] == old_k).all()
    assert (v[:P0] == old_v).all()

print("next:", repr(word(jnp.argmax(logits[-1]))))
expect(word(jnp.argmax(logits[-1])), " Rome")
# %% [markdown] id="wrong" lang="en"
# ## Three mistakes that raise no error
#
# What happens when a step is wrong? These three mistakes run without any error message:
#
# - positions that start at $P + 1$: the new tokens stand one place too far from the old ones;
# - no mask among the new tokens: all but the last may look ahead;
# - new queries against the *new* keys only: the old text is forgotten.
#
# Would you notice from the answer? On the course's model, all three still say Rome. So we measure each mistake by the
# largest difference in the logits of the new tokens.
# %% [markdown] id="wrong" lang="zh" of="a30a78f5"
# ## 三种不报错的错误
#
# 某一步做错了会怎样？下面三种错误不会引发任何报错：
#
# - 位置从 $P + 1$ 开始：新 token 与旧 token 的距离多了一格；
# - 新 token 之间没有掩码：除最后一个外，都能看到后面；
# - 新查询只与*新*键相乘：旧的文本全被忘掉。
#
# 从回答里看得出来吗？在本课程的模型上，三种写法给出的仍然都是 Rome。所以我们用新 token 的 logits 的最大差来衡量。
# %% id="wrong_code"
everything = jnp.ones((T, P0 + T), bool)
wrong = {
    "positions from P + 1": {"positions": P0 + 1 + jnp.arange(T)},
    "no mask": {"mask": everything},
    "new keys only": {"mask": cache_mask(T, P0).at[:, :P0].set(False)},
}
for name, options in wrong.items():
    bad, _ = step(more, prefilled, **options)
    difference = float(jnp.abs(bad - expected[P0:]).max())
    said = word(jnp.argmax(bad[-1]))
    print(f"{name:<22} logits off by {difference:.1f}, next: {said!r}")
    assert difference > 0.1
    expect(said, " Rome")
# %% [markdown] id="library" lang="en"
# ## The library
#
# `jax_llama3.forward` does the same when it is given a cache. `init_cache` makes one with a fixed number of slots, here
# 32 for one text, and `lengths` says how many of them are filled. Why does it have empty slots at all, instead of
# growing? That is the subject of lesson 11.
#
# We put *our* keys and values of the prompt into *its* slots and let `forward` append the new tokens. Its logits must
# equal ours, and so must everything in its slots afterwards.
# %% [markdown] id="library" lang="zh" of="d5932bbc"
# ## 本库的实现
#
# 给 `jax_llama3.forward` 一个缓存，它做的是同样的事。`init_cache` 建立一个槽数固定的缓存，这里只有一段文本，32 个槽；`lengths` 说明其中已填了多少。它为什么要留空槽，而不是逐步变长？这是第 11 课的内容。
#
# 我们把*自己*算出的提示的键和值放进*它*的槽里，再让 `forward` 追加新 token。它的 logits 必须与我们的一致，之后槽里的全部内容也必须一致。
# %% id="library_code"
theirs = jax_llama3.init_cache(config, 1, 32, "float32")
trace("their k", theirs.k[0], "B S K H", B=1, S=32, K=K, H=H)
assert len(theirs.k) == len(theirs.v) == L
theirs = theirs._replace(
    k=tuple(slots.at[0, :P0].set(k) for slots, (k, _) in zip(theirs.k, prefilled, strict=True)),
    v=tuple(slots.at[0, :P0].set(v) for slots, (_, v) in zip(theirs.v, prefilled, strict=True)),
    lengths=jnp.array([P0]),
)
their_logits, theirs = jax_llama3.forward(params, np.array([more]), config, theirs)
assert int(theirs.lengths[0]) == P0 + T
close(their_logits[0], logits, atol=1e-3)
close(jnp.stack(theirs.k)[:, 0, : P0 + T], jnp.stack([k for k, _ in longer]), atol=1e-3)
close(jnp.stack(theirs.v)[:, 0, : P0 + T], jnp.stack([v for _, v in longer]), atol=1e-3)
# %% [markdown] id="first_token" lang="en"
# ## Why the first token takes longer
#
# Back to the chat: a wait, then a stream. The wait has a name, **time to first token**, and now we can say what happens
# in it. Count the rows of each round:
#
# - The first token needs the prefill: all $T$ rows of the prompt go through all layers. A longer prompt means a longer wait.
# - Every token after it needs a single row.
#
# So the first token takes longer, but not $T$ times as long. To compute a row, every weight of the network has to be
# fetched from memory. Prefill fetches each weight once and uses it for all $T$ rows. A round with one row fetches just as
# many weights and uses each of them once, so most of its time goes into fetching them. Reading a prompt is therefore
# cheap per token, and writing is expensive. Lesson 11 measures both, and lesson 14 works out how fast each can be.
# %% [markdown] id="first_token" lang="zh" of="c0df971a"
# ## 为什么第一个 token 要等得更久
#
# 回到聊天：先等一会儿，然后源源不断。这段等待有个名字，叫**首 token 延迟**（time to first token），现在可以说清这段时间里发生了什么。数一数每一轮的行数：
#
# - 第一个 token 需要预填充：提示的全部 $T$ 行都要走过所有的层。提示越长，等得越久。
# - 之后的每个 token 只需一行。
#
# 所以第一个 token 更费时间，但不是 $T$ 倍。要计算一行，就得把网络的每个权重都从内存里取来。预填充把每个权重取来一次，供全部 $T$ 行使用。后面每轮只有一行，要取的权重同样多，每个却只用一次，所以时间大多花在搬运上。因此平均到每个 token，读提示很便宜，写回答很贵。第 11 课实测这两种速度，第 14 课再算出它们各自最快能有多快。
# %% id="first_token_code"
assert rows_cached == [P0] + [1] * (STEPS - 1)
print("rows for each new token:", rows_cached)
# %% [markdown] id="trade" lang="en"
# ## The trade: memory for work
#
# What does the cache save, and what does it cost? To generate $n$ tokens from a prompt of $T$, the number of rows that go
# through the network is, without a cache and with one,
#
# $$\sum_{i=0}^{n-1}(T+i) = nT + \frac{n(n-1)}2 \quad\text{and}\quad T + n - 1 .$$
#
# The price is memory. For each token, each layer keeps $K$ keys and $K$ values of $H$ numbers:
#
# $$\text{bytes per token} = 2 \cdot L \cdot K \cdot H \cdot \text{bytes per number}.$$
#
# It is $K$ and not $N$: this is where grouped-query attention (lesson 06) pays off, by a factor of $N/K$. The memory grows
# with the text, and every text that is being continued needs its own.
#
# There is one thing that the cache does not save: each new query still meets *all* keys. The work of attention for one
# token grows with the text, while all other work for that token stays the same.
# %% [markdown] id="trade" lang="zh" of="c6c9a8d5"
# ## 交换：用内存换计算
#
# 缓存省下什么，又要付出什么？从长度为 $T$ 的提示生成 $n$ 个 token，要走过网络的行数在无缓存和有缓存时分别是
#
# $$\sum_{i=0}^{n-1}(T+i) = nT + \frac{n(n-1)}2 \quad\text{和}\quad T + n - 1 .$$
#
# 代价是内存。每个 token 在每一层要保留 $K$ 个键和 $K$ 个值，各有 $H$ 个数：
#
# $$\text{每个 token 的字节数} = 2 \cdot L \cdot K \cdot H \cdot \text{每个数的字节数}.$$
#
# 公式里是 $K$ 而不是 $N$：分组查询注意力（第 06 课）的好处就在这里，缓存只有原来的 $K/N$。这份内存随文本变长而增加，而且每段正在续写的文本都需要自己的一份。
#
# 有一样计算缓存省不掉：每个新查询仍要与*所有*的键相乘。一个 token 的注意力计算量随文本变长而增加，其余的计算量则不变。
# %% id="trade_code"
assert rows_plain == STEPS * P0 + STEPS * (STEPS - 1) // 2
assert sum(rows_cached) == P0 + STEPS - 1


def bytes_per_token(n_layers, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_layers * n_kv_heads * head_dim * bytes_per_number


per_token = bytes_per_token(L, K, H, 4)
assert sum(k.nbytes + v.nbytes for k, v in cache) == S * per_token
assert sum(each.nbytes for each in [*theirs.k, *theirs.v]) == 32 * per_token
print(f"this model, float32: {per_token:,} bytes per token, {N // K} times less than with K = N")
print(f"at {config.max_seq_len} tokens: {config.max_seq_len * per_token / 2**20:.0f} MiB")
weights = sum(each.nbytes for each in jax.tree.leaves(params))
print(f"the weights, for comparison: {weights / 2**20:.0f} MiB")
expect((per_token, bytes_per_token(L, K, H, 2)), (46_080, 23_040))

# en: Llama-3-8B: 32 layers, 8 key/value heads of 128, two bytes per number, 8192 tokens.
# zh: Llama-3-8B：32 层，8 个键值头、每头 128 维，每个数两字节，8192 个 token。
large = bytes_per_token(32, 8, 128, 2)
assert large == 131_072
assert large * 8192 == 2**30
print(f"Llama-3-8B, bfloat16: {large:,} bytes per token, {large * 8192 / 2**30:.0f} GiB at 8192")
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. Each exercise is followed by a hint and a solution, both folded.
#
# **1. Forget one token.** The cache holds the 16 tokens of "Once upon a time there was a little girl who lived in a small
# village near". Now the network reads " the", but in every layer the mask hides one of the 16, which has the same effect
# as deleting it from the cache. With nothing hidden, the network goes on with " sea". Which token does it miss most?
# Guess its place, from 0 to 15, before you measure. The check tries all of them and prints the next token and the largest
# change of any logit.
# %% [markdown] id="exercises" lang="zh" of="2c400b18"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面有一条线索和一个解答，都是折叠的。
#
# **1. 忘掉一个 token。** 缓存里有“Once upon a time there was a little girl who lived in a small village near”的 16 个 token。现在网络读入“ the”，但掩码在所有层里都把这 16 个中的一个遮住，这就等于把它从缓存里删去。什么都不遮时，网络接着说“ sea”。少了哪个 token，影响最大？先猜出它的位置（0 至 15），再测。检查会把每个都试一遍，并打印下一个 token 和 logits 的最大变化。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    story = "Once upon a time there was a little girl who lived in a small village near the"
    text = model.tokenizer.encode(story, bos=True)
    last = len(text) - 1
    _, cache = step(text[:last], empty)
    usual, _ = step(text[last:], cache)
    expect((len(text), word(jnp.argmax(usual[0]))), (17, " sea"))
    changes = []
    for hidden in range(last):
        found, _ = step(text[last:], cache, mask=cache_mask(1, last).at[0, hidden].set(False))
        changes.append(float(jnp.abs(found - usual).max()))
        said = word(jnp.argmax(found[0]))
        print(f"{hidden:>2} {word(text[hidden])!r:<10} {said!r:<10} {changes[-1]:5.1f}")
    assert answer == np.argmax(changes), "another token is missed more"


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# What a token means is one thing; how much attention it gets is another. Where do heads look when they have nothing to look
# for? (Lesson 09 has a section on it.)
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="be1e4e2f"
# <details><summary>线索</summary>
#
# 一个 token 的含义是一回事，它得到多少注意力是另一回事。注意力头找不到想看的东西时，会看哪里？（第 09 课有一节讲这个。）
#
# </details>
# %% id="solution_1" tags=["solution", "measured"]
# en: "Once", though it has nothing to do with the sea: many heads rest on the first token (lesson 09).
# zh: 是“Once”，尽管它与海毫无关系：许多头的注意力都停在第一个 token 上（第 09 课）。
if on_default_model():
    exercise(1, 0, check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2. Take back.** Suppose we want to take back the last tokens of a text. Write `cut(cache, length)` for our list of
# pairs: it returns the cache as it was when it held `length` tokens. Which section of this lesson says that this is
# allowed?
# %% [markdown] id="exercise_2_text" lang="zh" of="019b51a9"
# **2. 撤回。** 要撤回文本末尾的若干 token。我们的缓存是由二元组组成的列表，为它写出 `cut(cache, length)`：返回缓存在只有 `length` 个 token 时的样子。本课的哪一节说明可以这样做？
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    short = answer(longer, P0)
    for (k, v), (expected_k, expected_v) in zip(short, prefilled, strict=True):
        assert k.shape == v.shape == (P0, K, H)
        assert (k == expected_k).all()
        assert (v == expected_v).all()


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Old keys and values do not change when tokens are appended. So what must be done to them when tokens are taken away?
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="bb12f87b"
# <details><summary>线索</summary>
#
# 追加 token 时，旧的键和值不变。那么去掉 token 时，需要对它们做什么？
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, lambda cache, length: [(k[:length], v[:length]) for k, v in cache], check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3. Change its mind.** The cache is all that the network knows of the text before the new token. So let us forge it.
# Take the cache of "The capital of France", and in the place of " France" put what the cache of "The capital of Italy"
# has there: (a) keys and values, (b) the keys alone, (c) the values alone. Which of the three turn the answer after " is"
# from Paris to Rome? Predict, then give the set of their letters, such as `{"a", "b"}`.
# %% [markdown] id="exercise_3_text" lang="zh" of="f030bb0a"
# **3. 让它改口。** 网络对新 token 之前的文本所知道的一切，都在缓存里。那就来伪造它：取“The capital of France”的缓存，把“ France”那一格换成“The capital of Italy”的缓存里同一格的内容：(a) 键和值，(b) 只有键，(c) 只有值。哪几种会让“ is”之后的回答从 Paris 变成 Rome？先预测，再给出字母的集合，例如 `{"a", "b"}`。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    place = P0 - 2
    other = model.tokenizer.encode("The capital of Italy is", bos=True)
    assert len(other) == P0
    their_logits, theirs = step(other, empty)
    flipped = set()
    for letter, keys, values in (("a", True, True), ("b", True, False), ("c", False, True)):
        forged = []
        for (k, v), (their_k, their_v) in zip(prefilled, theirs, strict=True):
            k = k.at[place].set(their_k[place]) if keys else k
            v = v.at[place].set(their_v[place]) if values else v
            forged.append((k[: P0 - 1], v[: P0 - 1]))
        logits, _ = step(prompt[-1:], forged)
        said = word(jnp.argmax(logits[0]))
        print(f"({letter}) {said!r}")
        if said == word(jnp.argmax(their_logits[-1])):
            flipped.add(letter)
    assert answer == flipped


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Keys decide *where* attention looks; values decide *what* it brings back from there. Should the network look at a
# different place because the country is a different one?
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="eec441a9"
# <details><summary>线索</summary>
#
# 键决定注意力*往哪里*看，值决定它从那里带回*什么*。换了一个国家，网络该去看的位置会跟着变吗？
#
# </details>
# %% id="solution_3" tags=["solution"]
if on_default_model():
    exercise(3, {"a", "c"}, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150): why one row at a time is slow
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# Next: lesson 11 gives the cache a fixed size. Then two compiled programs serve the whole text: one for the prompt, and
# one for every token after it.
# %% [markdown] id="sources" lang="zh" of="9837d482"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019，[arXiv:1911.02150](https://arxiv.org/abs/1911.02150)：为什么一次一行会很慢
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# 下一课：第 11 课给缓存固定的大小。这样，整段文本只需两个编译好的程序：一个用于提示，一个用于之后的每个 token。
