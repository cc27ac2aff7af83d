# %% [markdown] id="title" lang="en"
# # 10 · Generating, and why a KV cache is exact
#
# *Reading time 20 minutes. Before it: lessons 04 to 07. What it proves: keeping the keys and values of old tokens changes no
# result, at any step, and what the saved work costs in memory.*
#
# One pass of the network gives one next token. To write a sentence we put that token behind the prompt and ask again. A model
# used in this way is called **autoregressive**: its own output becomes its next input. In this lesson we first do it the
# plain way, see how much of the work is done again and again, and then keep what does not change.
# %% [markdown] id="title" lang="zh" of="cdfa3b84"
# # 10 · 连续生成，KV 缓存为何精确
#
# *阅读时间 20 分钟。前置：第 04 至 07 课。本课证明：保留旧 token 的键和值，在任何一步都不改变结果；以及省下的计算要用多少内存来换。*
#
# 网络走一遍，只给出一个 token。要写出一句话，就把这个 token 接到提示后面，再问一次。这种用法叫**自回归**（autoregressive）：
# 模型的输出成为它的下一次输入。本课先用最朴素的办法生成，看看有多少计算在反复进行，然后把不会变的部分保留下来。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.model.rope import rope_frequencies
from jax_llama3_course import (
    BLUE,
    GREY,
    ORANGE,
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
is_default = jax_llama3.count_params(config) == 134_515_008
D, V, L = config.dim, config.vocab_size, config.n_layers
N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
G = N // K
prompt = model.tokenizer.encode("The capital of France is", bos=True)
print(len(prompt), "ids:", prompt)
# %% [markdown] id="again" lang="en"
# ## The plain way: run everything again
#
# Here is the network of lessons 03 to 07 in one piece. `run` takes all ids and gives the logits at every position. It also
# gives back the keys and values of every layer, which we need in a moment; the keys are already rotated.
# %% [markdown] id="again" lang="zh" of="d66b4f5b"
# ## 朴素的办法：全部重算
#
# 下面把第 03 至 07 课的网络写在一起。`run` 接受所有编号，给出每个位置的 logits；它还返回每一层的键和值，马上就会用到。其中的键已经
# 旋转过。
# %% id="again_code"
frequencies = rope_frequencies(config)


def norm(x, weight):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight


def rotate(x, positions):
    angles = positions[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def feed_forward(layer, x):
    h = norm(x, layer.ffn_norm)
    return (jax.nn.silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T


def project(layer, x, positions):
    h = norm(x, layer.attn_norm)
    q = jnp.einsum("TD,NHD->TNH", h, layer.wq)
    k = jnp.einsum("TD,KHD->TKH", h, layer.wk)
    v = jnp.einsum("TD,KHD->TKH", h, layer.wv)
    return rotate(q, positions), rotate(k, positions), v


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
# Now the loop. We choose greedily and take five tokens. Each round sends the whole sequence through all layers, though we
# read one row of its logits only.
# %% [markdown] id="loop" lang="zh" of="a35f6fc1"
# 然后是循环。我们用贪心选择，取五个 token。每一轮都让整个序列走过所有的层，却只读 logits 的一行。
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
if is_default:
    assert ids[len(prompt)] == 7042

# en: The library's forward pass, once over everything but the last token, has our logits at every step.
# zh: 本库的前向计算只走一遍（不含最后一个 token），就与我们每一步的 logits 都一致。
seen = {}


def tap(name, array):
    if name.endswith(("attn.k", "attn.v", "attn.scores")):
        seen[name] = array[0]
    return array


whole, _ = jax_llama3.forward(params, np.array([ids[:-1]]), config, tap=tap)
P0 = len(prompt)
close(jnp.stack(plain), whole[0, P0 - 1 :], atol=1e-3)
assert jnp.argmax(whole[0, P0 - 1 :], axis=-1).tolist() == ids[P0:]
# %% [markdown] id="unchanged" lang="en"
# ## Why old keys and values never change
#
# Put one more token behind the sequence. Which of the old rows change? None. The argument is short and goes from layer to
# layer:
#
# 1. The embedding of position $t$ depends on the id at $t$ alone.
# 2. Suppose row $t$ of a layer's input depends only on the ids $0 \dots t$. The norm, the projections and the rotation take
#    that row alone (the rotation also its position $t$, which is counted from the front and does not move). So $q_t$, $k_t$
#    and $v_t$ depend only on the ids $0 \dots t$.
# 3. The causal mask lets row $t$ of attention read only $k_0 \dots k_t$ and $v_0 \dots v_t$, and these depend on the ids
#    $0 \dots t$. The feed-forward network takes the row alone. So row $t$ of the layer's output depends on the ids
#    $0 \dots t$, and the argument starts again in the next layer.
#
# The mask is what carries it. Without a mask row 0 would read the newest token, and from layer 1 on every key would change
# with every token: nothing could be kept.
#
# First we change the last token and leave the length: all old keys and values must be the same *bit for bit*. Then we make
# the sequence longer: the numbers are the same up to rounding, because a product of another shape may add its terms in
# another order.
# %% [markdown] id="unchanged" lang="zh" of="f492c130"
# ## 旧的键和值为什么不变
#
# 在序列后面再接一个 token，旧的行里有哪些会变？一行也不变。论证很短，逐层进行：
#
# 1. 位置 $t$ 的嵌入只取决于 $t$ 处的编号。
# 2. 假设某层输入的第 $t$ 行只取决于编号 $0 \dots t$。归一化、投影和旋转只用到这一行（旋转还用到它的位置 $t$；位置从头数起，不会
#    移动）。所以 $q_t$、$k_t$、$v_t$ 只取决于编号 $0 \dots t$。
# 3. 因果掩码只许注意力的第 $t$ 行读取 $k_0 \dots k_t$ 和 $v_0 \dots v_t$，它们都只取决于编号 $0 \dots t$。前馈网络也只用到
#    这一行。所以该层输出的第 $t$ 行只取决于编号 $0 \dots t$，下一层又可以从头论证。
#
# 关键在掩码。没有它，第 0 行就会读到最新的 token，从第 1 层起，每个键都会随着每个新 token 改变：什么也留不住。
#
# 先只改最后一个 token，长度不变：所有旧的键和值必须*逐位*相同。再把序列加长：数值在舍入误差内相同，因为形状不同的矩阵乘积，各项相加的
# 次序可能不同。
# %% id="unchanged_code"
_, one_end = run([*ids[:P0], ids[0]])
_, other_end = run([*ids[:P0], ids[1]])
for (k_one, v_one), (k_other, v_other) in zip(one_end, other_end, strict=True):
    assert (k_one[:P0] == k_other[:P0]).all()
    assert (v_one[:P0] == v_other[:P0]).all()
assert (one_end[0][0][P0] != other_end[0][0][P0]).any()
print(f"{L} layers: the keys and values of {P0} old positions are bit-equal")

# en: A longer sequence: the library's keys and values against those of the prompt alone.
# zh: 更长的序列：本库的键和值，与只有提示时的键和值比较。
_, of_prompt = run(prompt)
close(
    jnp.stack([seen[f"layers.{i}.attn.k"][:P0] for i in range(L)]), [k for k, _ in of_prompt], 1e-3
)
close(
    jnp.stack([seen[f"layers.{i}.attn.v"][:P0] for i in range(L)]), [v for _, v in of_prompt], 1e-3
)
# %% [markdown] id="no_mask" lang="en"
# And without the mask? We run two layers of the network with every position allowed to see every other, and change the last
# token again. Layer 0's keys still stay, for they come from the embedding alone. Layer 1's do not.
# %% [markdown] id="no_mask" lang="zh" of="0a9556e6"
# 没有掩码又会怎样？让每个位置都能看到所有位置，运行网络的前两层，再改最后一个 token。第 0 层的键仍然不变，因为它们只来自嵌入；第 1 层
# 的键就变了。
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
# ## What a new row needs
#
# So the old rows need not be computed again. But does the new row need anything of them? Only attention mixes rows. In the
# attention of the new row stand its own query, and the keys and values of all positions:
#
# $$z_t = \sum_{s \le t} \mathrm{softmax}_s\!\left(\frac{q_t \cdot k_s}{\sqrt H}\right) v_s .$$
#
# No old query occurs in it. $q_s$ of an old position served to compute the old row's output, and that row is finished. So per
# layer we keep the keys and the values and nothing else. This store is the **KV cache**.
#
# ### The derivation, step by step
#
# Let $P$ tokens be in the cache, at positions $0 \dots P-1$, and let $T$ tokens be new. Every layer does this:
#
# 1. **Embed** the $T$ new ids only: $x$ is $[T, D]$, not $[P+T, D]$.
# 2. **Project** the normed new rows: $q$ is $[T, N, H]$; $k$ and $v$ are $[T, K, H]$.
# 3. **Rotate** $q$ and $k$ at the positions $P, P+1, \dots, P+T-1$. The first new position is $P$, not $P + 1$: counting
#    began at 0, so $P$ tokens occupy $0 \dots P-1$ and $P$ is the next that is free.
# 4. **Append** along the axis of positions: all keys are now $[P+T, K, H]$, and so are the values. Old ones are not touched.
# 5. **Score** the *new queries* against *all keys*: $[N, T, P+T]$. Not new keys against all keys, not all queries against
#    new keys: a query asks, and only the new rows still have something to ask.
# 6. **Mask**: new row $i$ stands at position $P+i$ and may see the keys $0 \dots P+i$. The mask is $[T, P+T]$.
# 7. **Softmax** over the $P+T$ keys, weigh all values: $z$ is $[T, N, H]$. All that follows works row by row, on $T$ rows.
#
# At first the cache is empty, $P = 0$ and $T$ is the length of the prompt: this pass is called **prefill**. The later passes
# mostly have $T = 1$. Both are the same seven steps.
#
# Many texts write $N$ for the old tokens and $M$ for the new ones, and call the mask $(M, N+M)$. Here $N$ is the number of
# query heads already, so our letters are $P$ and $T$: the same mask is $(T, P+T)$.
# %% [markdown] id="needed" lang="zh" of="4e536a77"
# ## 新的一行需要什么
#
# 所以旧的行不必再算。但新的一行需要它们的什么呢？只有注意力会混合不同的行。新的一行在注意力里用到它自己的查询，以及所有位置的键和值：
#
# $$z_t = \sum_{s \le t} \mathrm{softmax}_s\!\left(\frac{q_t \cdot k_s}{\sqrt H}\right) v_s .$$
#
# 式中没有旧的查询。旧位置的 $q_s$ 当时用来计算旧的那一行的输出，而那一行已经算完。所以每一层只需保留键和值，别的都不用。这份存储就是
# **KV 缓存**（KV cache）。
#
# ### 逐步推导
#
# 设缓存里已有 $P$ 个 token，位置为 $0 \dots P-1$；新来 $T$ 个 token。每一层这样做：
#
# 1. **嵌入**：只嵌入 $T$ 个新编号，$x$ 是 $[T, D]$，而不是 $[P+T, D]$。
# 2. **投影**：只投影归一化后的新行，$q$ 是 $[T, N, H]$，$k$ 和 $v$ 是 $[T, K, H]$。
# 3. **旋转**：$q$ 和 $k$ 的位置是 $P, P+1, \dots, P+T-1$。第一个新位置是 $P$，不是 $P + 1$：位置从 0 数起，$P$ 个 token 占了
#    $0 \dots P-1$，下一个空位就是 $P$。
# 4. **追加**：沿位置轴拼接，所有的键现在是 $[P+T, K, H]$，值也一样。旧的不动。
# 5. **打分**：用*新的查询*乘以*所有的键*，得到 $[N, T, P+T]$。不是新键乘所有键，也不是所有查询乘新键：提问的是查询，而只有新的行
#    还有问题要问。
# 6. **掩码**：第 $i$ 个新行位于 $P+i$，可以看到键 $0 \dots P+i$。掩码是 $[T, P+T]$。
# 7. **softmax**：在 $P+T$ 个键上归一，对所有的值加权求和，$z$ 是 $[T, N, H]$。之后的一切都逐行进行，只有 $T$ 行。
#
# 一开始缓存是空的，$P = 0$，$T$ 是提示的长度：这一遍叫**预填充**（prefill）。之后各遍通常 $T = 1$。两者都是同样的七步。
#
# 许多资料用 $N$ 表示旧 token 数、$M$ 表示新 token 数，把掩码写成 $(M, N+M)$。这里 $N$ 已经是查询头数，所以我们用 $P$ 和 $T$：同一个
# 掩码写作 $(T, P+T)$。
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
# %% [markdown] id="mask_text" lang="en"
# Here it is for $P = 4$ and $T = 3$. The left part, $(T, P)$, is all allowed: every old key lies before every new query. The
# right part, $(T, T)$, is the triangle of lesson 04. For a single new token the mask is one row of nothing but "allowed", and
# could be left out. For a text of several tokens it could not.
# %% [markdown] id="mask_text" lang="zh" of="0a3e9a40"
# 下图是 $P = 4$、$T = 3$ 的情形。左边的 $(T, P)$ 全部允许：每个旧键都在每个新查询之前。右边的 $(T, T)$ 就是第 04 课的三角形。只有
# 一个新 token 时，掩码只有一行，全部允许，可以省去；一次送入多个 token 时就不能省。
# %% id="mask_picture"
figure, axes = canvas(14, 6.2)
for i in range(3):
    axes.text(2.6, 3.55 - i, f"q{4 + i}", ha="right", va="center", fontsize=10)
    for j in range(7):
        allowed = example[i, j]
        colour = (BLUE if j < 4 else ORANGE) if allowed else GREY
        box(axes, 3 + 1.3 * j, 3.1 - i, 1.2, 0.9, "0" if allowed else "$-\\infty$", colour)
for j in range(7):
    axes.text(3.6 + 1.3 * j, 4.3, f"k{j}", ha="center", fontsize=10)
axes.text(5.6, 5.2, "P = 4 old keys", ha="center", fontsize=10)
axes.text(10.1, 5.2, "T = 3 new keys", ha="center", fontsize=10)
axes.text(0.2, 2.55, "T = 3\nnew\nqueries", va="center", fontsize=10)
axes.text(7.5, 0.35, "mask added to the scores: (T, P + T) = (3, 7)", ha="center", fontsize=10)
axes.plot([8.15, 8.15], [0.95, 5.6], color="#333333", linewidth=1.5, linestyle="--")
show(
    figure,
    en="A mask of three rows and seven columns. The four columns of old keys are zero everywhere; the three columns of new "
    "keys are zero on and below the diagonal and minus infinity above it.",
    zh="三行七列的掩码：旧键的四列全为零；新键的三列在对角线及其下方为零，上方为负无穷。",
)
# %% [markdown] id="by_hand" lang="en"
# ## By hand, with concatenation
#
# `step` is `run` with the seven steps. Look at what has changed: where the positions begin, one concatenation each for keys
# and values, and the mask. `positions` and `mask` may be given from outside, so that we can try wrong ones later.
# %% [markdown] id="by_hand" lang="zh" of="8991d455"
# ## 亲手实现：用拼接
#
# `step` 就是按七步改写的 `run`。请看改了什么：位置的起点，键和值各一次拼接，还有掩码。`positions` 和 `mask` 可以从外面给出，便于稍后
# 试试错误的写法。
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


# en: Prefill: an empty cache, all of the prompt.
# zh: 预填充：空缓存，整个提示。
logits, cache = step(prompt, empty)
trace("logits", logits, "T V", T=P0, V=V)
trace("k, layer 0", cache[0][0], "S K H", S=P0, K=K, H=H)
trace("v, layer 0", cache[0][1], "S K H", S=P0, K=K, H=H)
close(logits, whole[0, :P0], atol=1e-3)
prefilled = cache
# %% [markdown] id="every_step" lang="en"
# Now one token at a time. At every step the logits must be those of the plain loop, in all $V$ numbers, not only in the
# largest. And what was in the cache must still be there, bit for bit: it is moved into a longer array, never computed anew.
# %% [markdown] id="every_step" lang="zh" of="b71828cc"
# 然后一次一个 token。每一步的 logits 都必须与朴素循环的一致，不只是最大的那个，而是全部 $V$ 个数。缓存里原有的内容必须逐位不变：它们
# 只是被搬进更长的数组，从不被改写。
# %% id="every_step_code"
logits, cache = step(prompt, empty)
cached_ids, rows_cached = list(prompt), len(prompt)
close(logits[-1], plain[0], atol=1e-3)
cached_ids.append(int(jnp.argmax(logits[-1])))
for round_number in range(1, STEPS):
    before = cache
    logits, cache = step(cached_ids[-1:], before)
    rows_cached += 1
    close(logits[-1], plain[round_number], atol=1e-3)
    for (old_k, old_v), (k, v) in zip(before, cache, strict=True):
        assert (k[: len(old_k)] == old_k).all()
        assert (v[: len(old_v)] == old_v).all()
        assert len(k) == len(old_k) + 1
    cached_ids.append(int(jnp.argmax(logits[-1])))

assert cached_ids == ids
trace("k, layer 0", cache[0][0], "S K H", S=P0 + STEPS - 1, K=K, H=H)
print(f"{rows_cached} rows went through the network with the cache, {rows_plain} without")
# %% [markdown] id="scores" lang="en"
# Step 5 once more, with numbers. The library's scores of the whole sequence are a square, $[N, S, S]$. The scores of the last
# cached step are one row per head: the new query times all keys. They must be the last row of that square.
# %% [markdown] id="scores" lang="zh" of="ea92d273"
# 再用数字看一遍第 5 步。本库对整个序列算出的分数是方阵 $[N, S, S]$。带缓存的最后一步，每个头只有一行分数：新的查询乘以所有的键。它必须
# 正是那个方阵的最后一行。
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
# The picture shows which rows are computed in each round: without the cache the whole text so far, with it the
# prompt once and then one row each.
# %% [markdown] id="rows_text" lang="zh" of="4bc99bee"
# 下图展示每一轮计算哪些行：没有缓存时，每轮都是到此为止的整段文本；有缓存时，提示只算一次，之后每轮一行。
# %% id="rows_picture"
figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
titles = [f"without: {rows_plain} rows", f"with a KV cache: {rows_cached} rows"]
for panel, title, is_cached in zip(panels, titles, (False, True), strict=True):
    for r in range(STEPS):
        for t in range(P0 + r):
            is_kept = is_cached and r > 0 and t < P0 + r - 1
            colour = BLUE if is_kept else ORANGE
            panel.add_patch(plt.Rectangle((t, r), 1, 1, facecolor=colour, edgecolor="white"))
    panel.set_xlim(0, S + 1)
    panel.set_ylim(STEPS, 0)
    panel.set_xticks(np.arange(0, S, 2) + 0.5, np.arange(0, S, 2))
    panel.set_yticks(np.arange(STEPS) + 0.5, np.arange(STEPS))
    panel.set_xlabel("position")
    panel.set_ylabel("round")
    panel.set_title(title)
handles = [plt.Rectangle((0, 0), 1, 1, facecolor=c) for c in (ORANGE, BLUE)]
figure.legend(handles, ["computed", "read from the cache"], loc="outside lower center", ncols=2)
show(
    figure,
    en="Two grids of rounds and positions. Without a cache every position is computed in every round; with one, the prompt "
    "is computed in the first round and one position in each later round.",
    zh="两个网格，纵轴为轮次，横轴为位置。没有缓存时每轮都要计算所有位置；有缓存时，第一轮计算提示，之后每轮只计算一个位置。",
)
# %% [markdown] id="several" lang="en"
# ## Continuing with a text of several tokens
#
# Nothing in the seven steps says $T = 1$. A user who adds a sentence adds many tokens at once, after $P$ old ones. Here the
# mask is needed: the new tokens must not see one another's future. We continue from the cache of the prompt and compare every
# new position with a run over the whole text.
# %% [markdown] id="several" lang="zh" of="0a5af8fb"
# ## 接上一段多 token 的文本
#
# 七步里没有一处要求 $T = 1$。用户补上一句话，就是在 $P$ 个旧 token 之后一次加入许多 token。这时就需要掩码：新 token 之间不能偷看后面
# 的内容。我们从提示的缓存继续，把每个新位置与对整段文本重算的结果比较。
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

answer = model.tokenizer.decode([int(jnp.argmax(logits[-1]))])
print("next:", repr(answer))
if is_default:
    assert answer == " Rome"
# %% [markdown] id="wrong" lang="en"
# ## What goes wrong when a step is wrong
#
# Three mistakes run without any error message. We measure each by the largest difference in the logits, on the same new
# tokens. The next word shows nothing: on the default model all three still say Rome.
#
# - positions that start at $P + 1$: the new tokens stand one place too far from the old ones, and one place stays empty;
# - no mask among the new tokens: all but the last may look ahead;
# - new queries times *new* keys only: the old text is forgotten.
# %% [markdown] id="wrong" lang="zh" of="6c733002"
# ## 某一步出错会怎样
#
# 有三种错误不会引发任何报错。我们用同样的新 token，以 logits 的最大差来衡量。只看下一个词什么也发现不了：在默认模型上，三种写法给出的
# 仍然都是 Rome。
#
# - 位置从 $P + 1$ 开始：新 token 与旧 token 之间远了一格，空出一个位置；
# - 新 token 之间没有掩码：除最后一个外，都能看到后面；
# - 新查询只乘*新*键：旧的文本全被忘掉。
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
    word = model.tokenizer.decode([int(jnp.argmax(bad[-1]))])
    print(f"{name:<22} logits off by {difference:.1f}, next: {word!r}")
    assert difference > 0.1
    if is_default:
        assert word == " Rome"
# %% [markdown] id="library" lang="en"
# ## The library
#
# `jax_llama3.forward` does the same when it is given a cache. `init_cache` makes one with a fixed number of slots, here 32
# for a single text; `lengths` says how many of them are filled. Why it has empty slots at all, instead of growing, is the
# subject of lesson 11.
#
# We put *our* keys and values of the prompt into *their* slots, and let `forward` append the new tokens at `lengths`. Its
# logits must be ours, and so must everything in its slots afterwards.
# %% [markdown] id="library" lang="zh" of="62d852e6"
# ## 本库的实现
#
# 给 `jax_llama3.forward` 一个缓存，它做的是同样的事。`init_cache` 建立一个槽数固定的缓存，这里只有一段文本，32 个槽；`lengths` 说明
# 其中已填了多少。它为什么留有空槽，而不是逐步变长，是第 11 课的内容。
#
# 我们把*自己*算出的提示的键和值放进*它*的槽里，再让 `forward` 从 `lengths` 处追加新 token。它的 logits 必须与我们的一致，之后槽里的
# 全部内容也必须一致。
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
close(jnp.stack(theirs.k)[:, 0, : P0 + T], [k for k, _ in longer], atol=1e-3)
close(jnp.stack(theirs.v)[:, 0, : P0 + T], [v for _, v in longer], atol=1e-3)
# %% [markdown] id="trade" lang="en"
# ## The trade: memory for work
#
# Generating $n$ tokens from a prompt of $T$ sends through the network, without a cache and with one,
#
# $$\sum_{i=0}^{n-1}(T+i) = nT + \frac{n(n-1)}2 \quad\text{and}\quad T + n - 1 \ \text{rows.}$$
#
# The price is memory. Per token, each layer keeps $K$ keys and $K$ values of $H$ numbers:
#
# $$\text{bytes per token} = 2 \cdot L \cdot K \cdot H \cdot \text{bytes per number}.$$
#
# It is $K$ and not $N$: this is where grouped-query attention (lesson 06) pays, by a factor of $N/K$. And the memory grows
# with the text, for as long as it lasts, and once for every text that is being continued.
#
# What the cache does not save: each new query still meets *all* keys. Attention's work for one token grows with the text;
# only the work of everything else stays the same.
# %% [markdown] id="trade" lang="zh" of="4b151712"
# ## 交换：用内存换计算
#
# 从长度为 $T$ 的提示生成 $n$ 个 token，网络要计算的行数在无缓存和有缓存时分别是
#
# $$\sum_{i=0}^{n-1}(T+i) = nT + \frac{n(n-1)}2 \quad\text{和}\quad T + n - 1.$$
#
# 代价是内存。每个 token 在每一层要保留 $K$ 个键和 $K$ 个值，各有 $H$ 个数：
#
# $$\text{每个 token 的字节数} = 2 \cdot L \cdot K \cdot H \cdot \text{每个数的字节数}.$$
#
# 公式里是 $K$ 而不是 $N$：分组查询注意力（第 06 课）的好处就在这里，缓存只有原来的 $K/N$。这份内存随文本变长而增加，文本存在多久就占用多久，
# 而且每段正在续写的文本都要一份。
#
# 缓存省不掉的是：每个新查询仍要与*所有*的键相乘。一个 token 的注意力计算量随文本变长而增加，不变的只是其余部分。
# %% id="trade_code"
assert rows_plain == STEPS * P0 + STEPS * (STEPS - 1) // 2
assert rows_cached == P0 + STEPS - 1


def bytes_per_token(n_layers, n_kv_heads, head_dim, bytes_per_number):
    return 2 * n_layers * n_kv_heads * head_dim * bytes_per_number


per_token = bytes_per_token(L, K, H, 4)
assert sum(k.nbytes + v.nbytes for k, v in cache) == S * per_token
assert sum(each.nbytes for each in [*theirs.k, *theirs.v]) == 32 * per_token
print(f"this model, float32: {per_token:,} bytes per token, {N // K} times less than with K = N")
print(f"at {config.max_seq_len} tokens: {config.max_seq_len * per_token / 2**20:.0f} MiB")
weights = sum(each.nbytes for each in jax.tree.leaves(params))
print(f"the weights, to compare: {weights / 2**20:.0f} MiB")
if is_default:
    assert (per_token, bytes_per_token(L, K, H, 2)) == (46_080, 23_040)

# en: Llama-3-8B: 32 layers, 8 key/value heads of 128, two bytes a number, 8192 tokens.
# zh: Llama-3-8B：32 层，8 个键值头、每头 128 维，每个数两字节，8192 个 token。
large = bytes_per_token(32, 8, 128, 2)
assert large == 131_072
assert large * 8192 == 2**30
print(f"Llama-3-8B, bfloat16: {large:,} bytes per token, {large * 8192 / 2**30:.0f} GiB at 8192")
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** How many rows go through the network for $n$ new tokens after a prompt of $T$? Write a function of `(T, n)` that
# returns a pair: without a cache, with a cache. Use no loop.
# %% [markdown] id="exercises" lang="zh" of="0b6d92f7"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 提示长度为 $T$，生成 $n$ 个新 token，网络要计算多少行？写一个以 `(T, n)` 为参数的函数，返回一个二元组：无缓存、有缓存。不要用
# 循环。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    assert answer(P0, STEPS) == (rows_plain, rows_cached)
    assert answer(100, 1) == (100, 100)
    assert answer(1000, 200) == (sum(1000 + i for i in range(200)), 1199)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda t, n: (n * t + n * (n - 1) // 2, t + n - 1), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** The last tokens of a text shall be taken back. Write `cut(cache, length)` for our list of pairs: the cache as it was
# when it held `length` tokens. (Why is this allowed? Because of the section on old keys and values.)
# %% [markdown] id="exercise_2_text" lang="zh" of="d35dfa21"
# **2.** 要撤回文本末尾的若干 token。为我们这个由二元组组成的列表写出 `cut(cache, length)`：返回缓存在只有 `length` 个 token 时的样子。
# （为什么可以这样做？见关于旧的键和值的那一节。）
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    short = answer(longer, P0)
    for (k, v), (expected_k, expected_v) in zip(short, prefilled, strict=True):
        assert k.shape == v.shape == (P0, K, H)
        assert (k == expected_k).all()
        assert (v == expected_v).all()


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, lambda cache, length: [(k[:length], v[:length]) for k, v in cache], check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** A card has `memory` bytes left beside the weights. How many texts of `length` tokens can be continued at once on a
# model with `config`, with a cache in bfloat16? Write a function of `(config, memory, length)` that returns a whole number.
# %% [markdown] id="exercise_3_text" lang="zh" of="a32a5393"
# **3.** 一块显卡除权重外还剩 `memory` 字节。用 bfloat16 的缓存，在 `config` 所描述的模型上最多能同时续写多少段长为 `length` 的文本？
# 写一个以 `(config, memory, length)` 为参数、返回整数的函数。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    one = sum(
        a.nbytes for a in jax.tree.leaves(jax_llama3.init_cache(config, 1, 64, "bfloat16")[:2])
    )
    assert answer(config, 10 * one, 64) == 10
    assert answer(config, 10 * one - 1, 64) == 9
    assert answer(config, 10 * one, 32) == 20


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]


def texts(config, memory, length):
    return memory // (
        length * bytes_per_token(config.n_layers, config.n_kv_heads, config.head_dim, 2)
    )


exercise(3, texts, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Vaswani et al., *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019,
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# Next: lesson 11 gives the cache a fixed size, so that it can be compiled once and used for every token.
# %% [markdown] id="sources" lang="zh" of="0e7a2b96"
# ## 来源
#
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019，
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# 下一课：第 11 课给缓存固定的大小，只编译一次，就能用于每一个 token。
