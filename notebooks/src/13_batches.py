# %% [markdown] id="title" lang="en"
# # 13 · Batches and padding
#
# *Reading time 18 minutes. Before it: lesson 12. What it proves: a row in a batch of unequal prompts computes and draws
# what it does alone, whatever stands in the empty places.*
#
# One decode step reads every weight of the network to make one token. Reading them is what takes the time, and the next
# prompt needs the same weights. So it pays to continue several prompts together, one per row of an array. But prompts have
# different lengths and an array has none: it is a rectangle. This lesson fills the rectangle and shows that the filling
# never matters.
# %% [markdown] id="title" lang="zh" of="8a8cd0dd"
# # 13 · 批处理与填充
#
# *阅读时间 18 分钟。前置：第 12 课。本课证明：长短不一的一批提示中，每一行的计算和抽取都与它单独时相同，无论空位里放了什么。*
#
# 一步解码要读完网络的全部权重，才得到一个 token。时间主要花在读权重上，而下一个提示用的是同样的权重。所以把几个提示放在一起续写是划算
# 的，每个提示占数组的一行。但提示有长有短，数组却是矩形。本课把矩形填满，并证明填的内容从不影响结果。
# %% id="setup"
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3 as jl
from jax_llama3.bench.presets import preset
from jax_llama3.model.attention import attention
from jax_llama3.model.layers import rms_norm
from jax_llama3.model.rope import apply_rope, rope_tables
from jax_llama3.text.tokenizer import tokenizer_from_files
from jax_llama3_course import BLUE, GREY, box, canvas, close, exercise, load_model, show, trace

model = load_model()
config, params, tokenizer = model.config, model.params, model.tokenizer
V = config.vocab_size
is_default = config == preset("smollm2-135m")

prompts = ["The capital of France is", "Water", "1, 2, 3, 4,", "She opened the door and"]
rows = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
lengths = np.array([len(row) for row in rows])
B, T = len(rows), int(lengths.max())
print("lengths:", lengths.tolist())
# %% [markdown] id="ragged" lang="en"
# ## A rectangle and a list of lengths
#
# A **ragged batch** is a batch whose rows have different lengths. To make it a rectangle [B T], short rows are filled up
# with some id. This is **padding**. It can stand behind the text (right) or in front of it (left). In the drawing blue
# cells are text and grey ones are padding.
# %% [markdown] id="ragged" lang="zh" of="35fefe31"
# ## 一个矩形加一列长度
#
# 各行长度不同的一批叫**不齐批次**（ragged batch）。要让它成为 [B T] 的矩形，短的行用某个编号补齐，这就是**填充**（padding）。填充可以放在
# 文本后面（右侧），也可以放在前面（左侧）。图中蓝色格是文本，灰色格是填充。
# %% id="ragged_code"


def padded(rows, width, pad=0, left=False):
    tokens = np.full((len(rows), width), pad)
    for b, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[b, place] = row
    return tokens


right = trace("right", padded(rows, T), "B T", B=B, T=T)
left = trace("left", padded(rows, T, left=True), "B T", B=B, T=T)
empty = B * T - lengths.sum()
print(f"{empty} of {B * T} cells are padding")

figure, axes = canvas(2 * T + 3, B + 1.4, inches=0.36)
for shift, title, is_left in ((0, "right padding", False), (T + 2, "left padding", True)):
    axes.text(shift + T / 2 + 0.5, B + 0.8, title, ha="center", fontsize=10)
    for b in range(B):
        for t in range(T):
            text = t >= T - lengths[b] if is_left else t < lengths[b]
            box(axes, shift + t + 0.5, B - b - 0.6, 0.9, 0.9, "", BLUE if text else GREY)
show(
    figure,
    en="Two grids of four rows: on the left the text begins in column 0 and padding follows it; on the right the padding "
    "comes first and all texts end in the last column.",
    zh="两个四行的网格：左图文本从第 0 列开始，填充在后面；右图填充在前，所有文本都结束于最后一列。",
)
# %% [markdown] id="right_text" lang="en"
# ## Right padding
#
# With padding on the right everything falls into place. Token $t$ of a row stands in column $t$, so its position is the
# column and its cache slot is the column. The padding comes *after* the text, and the causal mask lets no token look at
# what comes later. No new mask is needed.
#
# One thing must be right: the logits after the prompt stand in column $\mathrm{length}_b - 1$ of row $b$, not in the last
# column. The last column of a short row tells what follows the padding.
#
# We write the network once more (lessons 03 to 07), with positions and mask as arguments, and then compare with
# `jax_llama3.prefill`, which takes the lengths.
# %% [markdown] id="right_text" lang="zh" of="67c6a43d"
# ## 右填充
#
# 填充放在右边，一切都各就各位。一行的第 $t$ 个 token 就在第 $t$ 列，它的位置等于列号，缓存的槽位也等于列号。填充在文本 *之后*，而因果
# 掩码不让任何 token 看后面的内容，所以不需要新的掩码。
#
# 只有一点必须做对：第 $b$ 行提示之后的 logits 在第 $\mathrm{length}_b - 1$ 列，而不在最后一列。短行的最后一列预测的是填充后面的内容。
#
# 我们把网络（第 03 至 07 课）再写一遍，以位置和掩码为参数，然后与接收各行长度的 `jax_llama3.prefill` 比较。
# %% id="right_code"


@jax.jit
def network(params, tokens, positions, mask):
    x = params.embedding[tokens]
    tables = rope_tables(positions, config)
    for layer in params.layers:
        h = rms_norm(x, layer.attn_norm, config.norm_eps)
        q = apply_rope(jnp.einsum("BTD,NHD->BTNH", h, layer.wq), *tables)
        k = apply_rope(jnp.einsum("BTD,KHD->BTKH", h, layer.wk), *tables)
        v = jnp.einsum("BTD,KHD->BTKH", h, layer.wv)
        x = x + jnp.einsum("BTNH,DNH->BTD", attention(q, k, v, mask), layer.wo)
        h = rms_norm(x, layer.ffn_norm, config.norm_eps)
        x = x + (jax.nn.silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T
    output = params.embedding if params.output is None else params.output
    return rms_norm(x, params.norm, config.norm_eps) @ output.T


CAPACITY = 128


def read(rows, pad=0, width=16):
    # en: The library's prefill of right-padded rows.
    # zh: 用本库的 prefill 读入右填充的各行。
    cache = jl.init_cache(config, len(rows), CAPACITY, jnp.float32)
    counts = np.array([len(row) for row in rows])
    return jl.prefill(params, padded(rows, width, pad), counts, cache, config)


column = np.arange(T)
positions = np.broadcast_to(column, (B, T))
causal = np.broadcast_to(column[:, None] >= column[None], (B, T, T))
by_hand = trace("by_hand", network(params, right, positions, causal), "B T V", B=B, T=T, V=V)
after = by_hand[np.arange(B), lengths - 1]
batch_logits, cache = read(rows)
trace("batch_logits", batch_logits, "B V", B=B, V=V)
close(after, batch_logits, atol=1e-3)
assert cache.lengths.tolist() == lengths.tolist()

# en: The last column is something else in every row that is not the longest.
# zh: 除了最长的那一行，最后一列都是别的东西。
wrong = np.abs(by_hand[:, -1] - batch_logits).max(-1)
assert (wrong[lengths < T] > 1).all()
assert (wrong[lengths == T] < 1e-3).all()
# %% [markdown] id="alone" lang="en"
# Now the claim of this lesson, for the logits: each row of the batch gives what its prompt gives alone.
# %% [markdown] id="alone" lang="zh" of="c4285a34"
# 现在验证本课关于 logits 的论断：这一批中的每一行，都与它的提示单独计算的结果相同。
# %% id="alone_code"
for b, row in enumerate(rows):
    single, _ = read([row])
    close(batch_logits[b], single[0], atol=1e-3)
    assert single[0].argmax() == batch_logits[b].argmax()
    print(f"{prompts[b]!r:>27} -> {tokenizer.decode([int(single[0].argmax())])!r}")
# %% [markdown] id="any_id" lang="en"
# ## Which id fills the holes?
#
# Any. The tests below fill them with five different ids, the end mark of the model among them, and the logits do not change
# by a single bit. Hidden keys get a weight of exactly zero, and zero times a finite number is zero.
#
# What goes wrong in practice is another habit: to *recognise* padding by its id. One takes id 0, say, and calls "real"
# whatever is not 0. That needs an id which no text contains, and no id is free. In Llama 3's vocabulary id 0 is "!", so
# every exclamation mark would vanish from the prompt. In the default model id 0 is the special token `<|endoftext|>`, which
# stands between documents and may well stand in a prompt given as ids. The mark at the end of a turn is a bad choice for the
# same reason: it is part of every conversation.
#
# So `jax_llama3` never looks at the id. The lengths say what is text.
# %% [markdown] id="any_id" lang="zh" of="1ea69e4b"
# ## 空位里放哪个编号？
#
# 哪个都行。下面用五个不同的编号来填，其中包括模型的结束标记，logits 连一个比特都不变。被遮住的键得到的权重恰好是零，零乘任何有限的数
# 都是零。
#
# 实践中出错的是另一种习惯：靠编号来 *识别* 填充。比如规定用编号 0，凡不是 0 的就算“真正的”文本。这要求有一个任何文本都用不到的编号，
# 但没有哪个编号是空闲的。在 Llama 3 的词表里，编号 0 是 “!”，这样一来提示中的每个感叹号都会消失。在默认模型里，编号 0 是特殊 token
# `<|endoftext|>`，它出现在文档之间，也完全可能出现在以编号给出的提示里。一轮发言的结束标记同样不合适：每段对话里都有它。
#
# 所以 `jax_llama3` 从不看编号：哪些是文本，由长度来说明。
# %% id="any_id_code"
stop = tokenizer.stop_ids[-1]
for pad in (1, stop, 777, tokenizer.encode("!")[0], V - 1):
    assert (read(rows, pad=pad)[0] == batch_logits).all()

if is_default:
    assert tokenizer.decode([0]) == "<|endoftext|>"
    assert 0 in tokenizer.special_names
if find_spec("llama_models") is not None:
    folder = Path(find_spec("llama_models").origin).parent / "llama3"
    llama3 = tokenizer_from_files({"tokenizer.model": (folder / "tokenizer.model").read_bytes()})
    assert llama3.decode([0]) == "!"

# en: Lengths guessed from an id: with "!" as the padding, a text that has one is counted wrong.
# zh: 靠编号猜长度：以 “!” 为填充，文本里一出现它，长度就数错。
exclaimed = tokenizer.encode("Stop! Go! Now!", bos=True)
bang = tokenizer.encode("!")[0]
guessed = int((padded([exclaimed], 16, pad=bang) != bang).sum())
print(f"{len(exclaimed)} tokens, counted by their ids: {guessed}")
assert guessed == len(exclaimed) - 3

# en: And what such a mask hides does change the result: the network without the "!".
# zh: 这种掩码遮掉的内容会改变结果：相当于网络没有读到 “!”。
kept = [token for token in exclaimed if token != bang]
both, _ = read([exclaimed, kept, exclaimed, kept])
assert np.abs(both[0] - both[1]).max() > 1
# %% [markdown] id="left_text" lang="en"
# ## Left padding, and its trouble
#
# With padding on the left all prompts end in the last column, so one reads the last column and appends at one place for all
# rows. Many programs do that. The price:
#
# 1. The padding stands *before* the text, where the causal mask lets everybody look. Without one more mask per row, the
#    text attends to the padding, and the logits are wrong.
# 2. The column is no longer the position. The first token of a row must get position 0. With RoPE a shift of *all*
#    positions of a row changes nothing (lesson 05), so forgetting this goes unnoticed here; it still uses up the trained
#    length, and a network with learned positions would be wrong.
# 3. As column and position differ, a mask made of positions is not one of columns any more. Mixing them up is a bug that
#    crashes nowhere.
# 4. A padding token that sees neither the others nor itself has only $-\infty$ in its softmax: NaN. In the next layer its
#    value is NaN, and zero times NaN is NaN, so it spoils the rows' real tokens too. Each padding token must be left to
#    see something, say itself.
# %% [markdown] id="left_text" lang="zh" of="89210099"
# ## 左填充及其麻烦
#
# 填充放在左边，所有提示都在最后一列结束，于是只需读最后一列，各行也在同一处追加。许多程序这样做。代价是：
#
# 1. 填充在文本 *之前*，因果掩码允许大家看到它。若不为每行再加一个掩码，文本就会关注填充，logits 就错了。
# 2. 列号不再是位置。每行第一个 token 的位置必须是 0。对 RoPE 来说，一行的 *所有* 位置一起平移不改变结果（第 05 课），所以忘了这一点
#    在这里看不出来；但它仍会占用训练过的长度，而换成可学习位置的网络就错了。
# 3. 列号与位置不同，用位置做出的掩码就不再是按列的掩码。把两者弄混，程序哪里都不会崩溃。
# 4. 如果一个填充 token 既看不到别的、也看不到自己，它的 softmax 里就只有 $-\infty$，得到 NaN。到下一层，它的值是 NaN，而零乘
#    NaN 还是 NaN，于是同一行真正的 token 也被污染。必须让每个填充 token 至少看到点什么，比如它自己。
# %% id="left_code"
holes = T - lengths
is_text = column[None] >= holes[:, None]
own_positions = np.maximum(column[None] - holes[:, None], 0)
short = lengths < T


def last_column(positions, mask):
    return np.asarray(network(params, left, positions, mask)[:, -1])


def error(logits):
    return np.abs(logits - np.asarray(batch_logits)).max(-1)


# en: 1. The causal mask alone: every short row is wrong, with either positions.
# zh: 1. 只用因果掩码：无论哪种位置，短的行都错。
assert (error(last_column(positions, causal))[short] > 1).all()
assert (error(last_column(own_positions, causal))[short] > 1).all()

# en: Padding hidden from the text, and every token seeing itself: right.
# zh: 对文本遮住填充，并让每个 token 看到自己：正确。
hidden = (causal & is_text[:, None]) | np.eye(T, dtype=bool)
close(last_column(own_positions, hidden), batch_logits, atol=1e-3)

# en: 2. Shifted positions give the same logits, thanks to RoPE.
# zh: 2. 位置平移后 logits 不变，这要归功于 RoPE。
close(last_column(positions, hidden), batch_logits, atol=1e-3)

# en: 3. A mask that compares columns with positions.
# zh: 3. 拿列号与位置作比较的掩码。
mixed = column[None, None] <= own_positions[:, :, None]
assert (error(last_column(own_positions, mixed))[short] > 1).all()

# en: 4. Padding that sees nothing.
# zh: 4. 什么都看不到的填充。
blind = last_column(own_positions, causal & is_text[:, None])
assert np.isnan(blind[short]).all()
assert not np.isnan(blind[~short]).any()
# %% [markdown] id="decode_text" lang="en"
# ## Decoding: every row at its own place
#
# After prefill the cache holds padding in the slots behind a short row's text. They are never seen. The next token of row
# $b$ goes into slot $\mathrm{length}_b$, over the padding, and the mask shows slots up to the token's own position and none
# behind. So the rows have a length each, and one step appends to each at another place.
#
# Rows also *end* at different times. The loop goes on until all have ended, and a row that has ended must not grow: its
# length stands still, what it computes is thrown away, and its cache can never overflow. Here is that loop by hand, greedy,
# with "." as one more stop id, so that rows stop early.
# %% [markdown] id="decode_text" lang="zh" of="24bf4c4c"
# ## 解码：每一行各在自己的位置
#
# 预填充之后，缓存中短行文本后面的槽位里是填充，它们永远不会被看到。第 $b$ 行的下一个 token 写入槽位 $\mathrm{length}_b$，覆盖填充；
# 掩码只显示到该 token 自己位置为止的槽位，后面的一概不显示。所以每行各有一个长度，同一步在不同的位置追加。
#
# 各行 *结束* 的时间也不同。循环要一直进行到所有行都结束，而已经结束的行不能再增长：它的长度停住，它算出的东西被丢弃，它的缓存也就不会
# 溢出。下面亲手写这个循环，用贪心，并把 “.” 也当作停止编号，让一些行提前停下。
# %% id="decode_code"
dot = tokenizer.encode(".")
stops = [*tokenizer.stop_ids, *dot]
STEPS = 12
logits, cache = read(rows, pad=777)
active = np.ones(B, bool)
chosen = [[] for _ in rows]
steps = 0
for _ in range(STEPS):
    tokens = np.asarray(jnp.argmax(logits, -1))
    for b in np.flatnonzero(active):
        chosen[b].append(int(tokens[b]))
    active = active & ~np.isin(tokens, stops)
    if not active.any():
        break
    before = np.array(cache.lengths)
    logits, cache = jl.decode(params, tokens, cache, config)
    cache = cache._replace(lengths=jnp.where(active, before + 1, before))
    steps += 1

batch = jl.generate(model, prompts, max_new_tokens=STEPS, stop=stops, ignore_eos=True)
for b in range(B):
    assert batch[b].tokens == chosen[b]
    assert cache.lengths[b] <= lengths[b] + len(chosen[b])
    print(f"{batch[b].finish_reason:>6} after {len(chosen[b]):>2}: {batch[b].text!r}")
if is_default:
    assert batch[0].text == " Paris"
    assert len({len(tokens) for tokens in chosen}) > 1
print(f"{steps} steps for {sum(map(len, chosen))} tokens")

# en: Each prompt alone gives the same ids.
# zh: 每个提示单独生成，得到同样的编号。
for b in range(B):
    alone = jl.generate(model, prompts[b], max_new_tokens=STEPS, stop=stops, ignore_eos=True)
    assert alone.tokens == batch[b].tokens
    assert alone.finish_reason == batch[b].finish_reason
# %% [markdown] id="keys" lang="en"
# ## Drawing in a batch
#
# The logits of a row do not depend on its neighbours; its draws must not either. If one key drew the noise for all rows as
# one [B V] array, another batch size would give other noise. So row $r$ has the key `fold_in(key(seed), r)` (lesson 12), and
# two things follow. A row keeps its draws when its neighbours change. And the *same* prompt in several rows gives several
# samples, for the rows have different keys. Row 0 equals its prompt alone; row 3 alone would be row 0, so to get its draws
# we take its key by hand.
# %% [markdown] id="keys" lang="zh" of="6f6bdddd"
# ## 一批之中的抽取
#
# 一行的 logits 与邻居无关，它的抽取也不应该与邻居有关。假如用一个密钥为所有行一次抽出 [B V] 的噪声，换一个批大小，噪声就变了。所以第
# $r$ 行的密钥是 `fold_in(key(seed), r)`（第 12 课），由此有两个结果。邻居换了，一行的抽取不变；*同一个* 提示放在几行里，会得到几个不同
# 的样本，因为各行的密钥不同。第 0 行等于它的提示单独生成；第 3 行若单独生成就成了第 0 行，要得到它的抽取，就得亲手取它的密钥。
# %% id="keys_code"
sampler = jl.Sampler(temperature=1.0)


def drawn(row, r, seed, steps):
    row_key = jax.random.fold_in(jax.random.key(seed), r)
    logits, cache = read([row])
    ids = []
    for step in range(steps):
        key = jax.random.fold_in(row_key, step)
        ids.append(int(jl.sample(key[None], logits, sampler)[0]))
        logits, cache = jl.decode(params, np.array(ids[-1:]), cache, config)
    return ids


def sampled(prompts, seed):
    made = jl.generate(
        model, prompts, max_new_tokens=6, sampler=sampler, seed=seed, ignore_eos=True
    )
    return [completion.tokens for completion in made]


together = sampled(prompts, seed=5)
for r in (0, 3):
    assert drawn(rows[r], r, seed=5, steps=6) == together[r]
assert drawn(rows[3], 0, seed=5, steps=6) != together[3]

# en: Other neighbours, same draws.
# zh: 邻居换了，抽取不变。
neighbours = sampled([prompts[0], "Why?", prompts[2], "Once upon a time"], seed=5)
assert neighbours[0] == together[0]
assert neighbours[2] == together[2]

# en: One prompt in four rows.
# zh: 一个提示放在四行里。
copies = sampled([prompts[3]] * B, seed=5)
assert len(set(map(tuple, copies))) == B
for ids in copies:
    print(repr(tokenizer.decode(ids)))
# %% [markdown] id="throughput" lang="en"
# ## What a batch is for
#
# Count the bytes of one decode step. The weights are read **once**, for all rows: each number that arrives from memory is
# used $B$ times instead of once. Only the cache is read per row, since every row has its own keys and values. So as long
# as the weights outweigh the caches, the bytes of a step hardly grow with $B$, while its tokens do.
#
# The next cell computes the bytes per token, the one after measures the steps. The measured gain is smaller than the
# gain in bytes. On a CPU the library has code of its own for up to three rows; from four on XLA's product takes over, which
# reads the weights more slowly. And the multiplications grow with $B$: once they take longer than the reading, more rows bring
# less. Lesson 14 says where that point is.
# %% [markdown] id="throughput" lang="zh" of="ad864b1f"
# ## 批处理有什么用
#
# 数一数一步解码要读多少字节。权重对所有行只读**一次**：从内存读来的每个数用 $B$ 次，而不是一次。只有缓存要逐行读取，因为每行有自己的键
# 和值。所以只要权重远大于缓存，一步的字节数几乎不随 $B$ 增长，产出的 token 却成倍增加。
#
# 下一个单元格计算每个 token 的字节数，再下一个测量每步的时间。测得的收益比字节数的收益小。在 CPU 上，不超过三行时本库用自己的
# 代码；从四行起改用 XLA 的乘积，它读权重要慢一些。而且乘法次数随 $B$ 增长：一旦算的时间超过读的时间，再加行，好处就变少了。这个转折点
# 在哪里，第 14 课会讲。
# %% id="bytes_code"
weights = sum(array.nbytes for array in jax.tree.leaves(params))
slots = 64
per_slot = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 4
made = jl.init_cache(config, 3, slots, jnp.float32)
assert sum(array.nbytes for array in (*made.k, *made.v)) == 3 * slots * per_slot
assert weights == 4 * jl.count_params(config)


def bytes_per_token(rows):
    return (weights + rows * slots * per_slot) / rows


for count in (1, 4, 16):
    print(f"{count:>2} rows: {bytes_per_token(count) / 1e6:7.1f} MB per token")
if is_default:
    assert slots * per_slot < weights / 100
    assert bytes_per_token(1) / bytes_per_token(16) > 14
# %% id="measured_code" tags=["measured"]
steps = 8
for count in (1, 4, 16):
    cache = jl.init_cache(config, count, CAPACITY, jnp.float32)
    tokens = np.full(count, rows[0][0])
    for _ in range(2):
        logits, cache = jl.decode(params, tokens, cache, config)
    jax.block_until_ready(logits)
    begin = time.perf_counter()
    for _ in range(steps):
        logits, cache = jl.decode(params, tokens, cache, config)
    jax.block_until_ready(logits)
    seconds = (time.perf_counter() - begin) / steps
    print(
        f"{count:>2} rows: {1000 * seconds:5.0f} ms a step, {count / seconds:5.0f} tokens a second"
    )
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** From logits at all columns, [B T V], and the lengths, take those after each prompt, [B V], without a loop. Write a
# function of both.
# %% [markdown] id="exercises" lang="zh" of="780f46e2"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 已知所有列的 logits [B T V] 和各行长度，不用循环取出每个提示之后的 logits [B V]。写一个以两者为参数的函数。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    np.testing.assert_allclose(answer(by_hand, lengths), batch_logits, atol=1e-3)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(
    1, lambda x, n: jnp.take_along_axis(x, jnp.array(n - 1)[:, None, None], axis=1)[:, 0], check_1
)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Eight prompts have 3, 60, 5, 62, 4, 61, 6 and 64 tokens. In two batches of four, each as wide as its longest row,
# how many cells of padding are there at the least? And how many if the batches are the first four and the last four?
# Answer with a pair.
# %% [markdown] id="exercise_2_text" lang="zh" of="b1cf6eb0"
# **2.** 八个提示分别有 3、60、5、62、4、61、6、64 个 token。分成两批，每批四个，宽度等于批中最长的一行，填充格最少有多少？若前四个一批、
# 后四个一批，又有多少？用一个二元组回答。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    sizes = np.array([3, 60, 5, 62, 4, 61, 6, 64])

    def cells(sizes):
        return int(sum(4 * four.max() - four.sum() for four in np.split(sizes, 2)))

    assert tuple(answer) == (cells(np.sort(sizes)), cells(sizes))


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, (4 * 6 - 18 + 4 * 64 - 247, 4 * 62 - 130 + 4 * 64 - 135), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Write a function of `lengths` and `T` that gives the positions of left-padded rows, [B T]: 0, 1, 2, ... on the
# text, 0 on the padding. Use a boolean array of what is text, and its running sum.
# %% [markdown] id="exercise_3_text" lang="zh" of="7d798e06"
# **3.** 写一个以 `lengths` 和 `T` 为参数的函数，给出左填充各行的位置 [B T]：文本上是 0、1、2……，填充上是 0。用一个表示“是否文本”的
# 布尔数组和它的累加和。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    np.testing.assert_array_equal(answer(lengths, T), own_positions)
    np.testing.assert_array_equal(answer(np.array([2, 3]), 3), [[0, 0, 1], [0, 1, 2]])


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]


def left_positions(lengths, width):
    text = np.arange(width)[None] >= width - lengths[:, None]
    return np.maximum(np.cumsum(text, axis=1) - 1, 0)


exercise(3, left_positions, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019 (what a decode step reads, and how a batch
#   shares it), [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# Next: lesson 14 counts what all this costs, and compares with the clock.
# %% [markdown] id="sources" lang="zh" of="043592d7"
# ## 来源
#
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019（一步解码读什么，一批怎样分摊），
#   [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
#
# 下一课：第 14 课计算这一切的代价，并与时钟对照。
