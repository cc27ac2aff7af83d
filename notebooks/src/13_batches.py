# %% [markdown] id="title" lang="en"
# # 13 · Batches and padding
#
# *Reading time 22 minutes. Before it: lessons 07, 11 and 12. What it proves: in a batch of unequal prompts, each row
# computes and draws exactly what it would alone, whatever fills the empty places and however the rows are divided among
# devices.*
#
# Four people ask at the same moment. Must the fourth wait until the other three have their answers? No. One decode step
# reads every weight of the network to make one token, and it spends most of its time on that reading. The next prompt
# needs the same weights. So put the prompts together, one per row of an array, and read the weights once for all of them.
#
# There is a catch. Prompts have different lengths, and an array is a rectangle. This lesson fills up the rectangle and
# shows that the filling never changes the result.
# %% [markdown] id="title" lang="zh" of="0291c08d"
# # 13 · 批处理与填充
#
# *阅读时间 22 分钟。前置：第 07、11、12 课。本课证明：长短不一的一批提示中，每一行的计算和抽取都与它单独运行时相同，无论空位里放了什么，也无论各行怎样分给几个设备。*
#
# 四个人同时提问，第四个人必须等前三个人得到回答吗？不必。解码一步要读完网络的全部权重，却只得到一个 token，时间主要花在读权重上，而下一个提示用的是同样的权重。
# 所以把几个提示放在一起，每个占数组的一行，权重只为大家读一遍。
#
# 但有一个麻烦：提示有长有短，数组却是矩形。本课把矩形填满，并证明填的内容从不影响结果。
# %% id="setup"
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3 as jl
from jax_llama3.kernels import ops_for
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.attention import attention
from jax_llama3.model.layers import rms_norm
from jax_llama3.model.linear import linear
from jax_llama3.model.rope import apply_rope, rope_tables
from jax_llama3.text.tokenizer import tokenizer_from_files
from jax_llama3_course import close, exercise, expect, load_model, show, trace
from jax_llama3_course.figures import batches as figures

model = load_model()
config, params, tokenizer = model.config, model.params, model.tokenizer
V = config.vocab_size
# %% [markdown] id="first" lang="en"
# First, see it work: four prompts of 1 to 11 tokens, one call. Each continues sensibly. That proves nothing yet, because
# a slightly disturbed text would look sensible, too.
# %% [markdown] id="first" lang="zh" of="b4ec5849"
# 先看效果：四个提示，长度从 1 到 11 个 token，一次调用。每个都接得通顺。但这还证明不了什么，因为受到轻微干扰的文本看上去也会很通顺。
# %% id="first_code"
prompts = ["The capital of France is", "Water", "1, 2, 3, 4,", "She opened the door and"]
rows = [tokenizer.encode(prompt, bos=True) for prompt in prompts]
lengths = np.array([len(row) for row in rows])
B, T = len(rows), int(lengths.max())
expect((lengths.min(), lengths.max()), (1, 11))

completions = jl.generate(model, prompts, max_new_tokens=8, ignore_eos=True)
assert len(completions) == B
for prompt, length, completion in zip(prompts, lengths, completions, strict=True):
    print(f"{length:>2} tokens: {prompt!r:>26} -> {completion.text!r}")


# %% [markdown] id="ragged" lang="en"
# ## A rectangle and a list of lengths
#
# A **ragged batch** is a batch whose rows have different lengths. To make it a rectangle [B T], we fill up the short rows
# with some id. This is **padding**. It can stand after the text (on the right) or before it (on the left). In the
# drawing, blue cells are text and grey ones are padding.
# %% [markdown] id="ragged" lang="zh" of="76225b92"
# ## 一个矩形，外加各行的长度
#
# 各行长度不同的批次叫**不齐批次**（ragged batch）。要让它成为 [B T] 的矩形，短的行用某个编号补齐，这就是**填充**（padding）。填充可以放在文本之后（右侧），也可以放在文本之前（左侧）。图中蓝色格是文本，灰色格是填充。
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
show(
    figures.two_sides(lengths, T),
    en="Two grids of four rows: on the left the text begins in column 0 and padding follows it; on the right the padding "
    "comes first and all texts end in the last column.",
    zh="两个四行的网格：左图文本从第 0 列开始，填充在后面；右图填充在前，所有文本都结束于最后一列。",
)


# %% [markdown] id="right_text" lang="en"
# ## Right padding
#
# With padding on the right, everything falls into place. Token $t$ of a row stands in column $t$, so its position is the
# column, and its cache slot is the column. The padding comes *after* the text, and the causal mask lets no token look at
# what comes later. No new mask is needed.
#
# One thing needs care: the logits after the prompt stand in column $\mathrm{length}_b - 1$ of row $b$, not in the last
# column. In a short row, the last column predicts what follows the padding.
#
# We write the network once more (lessons 03 to 07), with positions and mask as arguments, and compare it with
# `jax_llama3.prefill`, which takes the lengths.
# %% [markdown] id="right_text" lang="zh" of="3be638e6"
# ## 右填充
#
# 填充放在右边，一切都各就各位。一行的第 $t$ 个 token 就在第 $t$ 列，它的位置等于列号，缓存的槽位也等于列号。填充在文本*之后*，而因果掩码不让任何 token 看后面的内容，所以不需要新的掩码。
#
# 只有一点要小心：第 $b$ 行提示之后的 logits 在第 $\mathrm{length}_b - 1$ 列，而不在最后一列。短行的最后一列预测的是填充后面的内容。
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

# en: In every row but the longest, the last column holds something else.
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
# ## Which id fills the empty places?
#
# Any id will do. The test below tries five different ids, the model's own end mark among them, and the logits stay the
# same, bit for bit. A hidden key gets a weight of exactly zero, and zero times a finite number is zero.
#
# In practice, a different habit causes trouble: *recognising* padding by its id. Somebody chooses, for example, id 0 and
# treats everything else as "real" text. That needs an id that no text contains, and there is none to spare. In Llama 3's
# vocabulary, id 0 is "!", so every exclamation mark would vanish from the prompt. In the default model, id 0 is the
# special token `<|endoftext|>`, which separates documents and may well occur in a prompt given as ids. The mark at the
# end of a turn is a bad choice for the same reason: it is part of every conversation.
#
# So `jax_llama3` never looks at the id. The lengths say what is text.
# %% [markdown] id="any_id" lang="zh" of="fbe5e720"
# ## 空位里放哪个编号？
#
# 哪个都行。下面用五个不同的编号来填，其中包括模型自己的结束标记，logits 逐比特相同。被遮住的键，权重恰好是零，而零乘任何有限的数都是零。
#
# 实践中出错的是另一种习惯：靠编号来*识别*填充。比如规定用编号 0，凡不是 0 的就算“真正的”文本。这要求有一个任何文本都用不到的编号，可是没有哪个编号空着。在 Llama 3 的词表里，编号 0 是“!”，这样一来提示中的每个感叹号都会消失。
# 在默认模型里，编号 0 是特殊 token `<|endoftext|>`，它出现在文档之间，也完全可能出现在以编号给出的提示里。一轮结束的标记同样不合适：每段对话里都有它。
#
# 所以 `jax_llama3` 从不看编号：哪些是文本，由长度来说明。
# %% id="any_id_code"
stop = tokenizer.stop_ids[-1]
for pad in (1, stop, 777, tokenizer.encode("!")[0], V - 1):
    assert (read(rows, pad=pad)[0] == batch_logits).all()

# en: What holds for the course's own model alone is checked with `expect`.
# zh: 只对本课程自己的模型成立的结果，用 `expect` 检查。
expect(tokenizer.decode([0]), "<|endoftext|>")
expect(0 in tokenizer.special_names, True)
if find_spec("llama_models") is not None:
    folder = Path(find_spec("llama_models").origin).parent / "llama3"
    llama3 = tokenizer_from_files({"tokenizer.model": (folder / "tokenizer.model").read_bytes()})
    assert llama3.decode([0]) == "!"

# en: Lengths guessed from an id: with "!" as the padding, a text that contains one is counted wrong.
# zh: 靠编号猜长度：以“!”为填充，文本里一出现它，长度就数错。
exclaimed = tokenizer.encode("Stop! Go! Now!", bos=True)
bang = tokenizer.encode("!")[0]
guessed = int((padded([exclaimed], 16, pad=bang) != bang).sum())
print(f"{len(exclaimed)} tokens, counted by their ids: {guessed}")
assert guessed == len(exclaimed) - 3

# en: What such a mask hides does change the result: it is as if the network had not read the "!".
# zh: 这种掩码遮掉的内容会改变结果：相当于网络没有读到“!”。
kept = [token for token in exclaimed if token != bang]
both, _ = read([exclaimed, kept, exclaimed, kept])
assert np.abs(both[0] - both[1]).max() > 1
# %% [markdown] id="left_text" lang="en"
# ## Left padding, and its trouble
#
# With padding on the left, all prompts end in the last column. You read that one column, and you append at one place for all
# rows. Many programs do that. What does it cost?
#
# 1. The padding stands *before* the text, where the causal mask lets every token look. Without one more mask per row, the
#    text attends to the padding, and the logits are wrong.
# 2. The column is no longer the position: the first token of a row should get position 0. With RoPE, a shift of *all*
#    positions of a row changes nothing (lesson 05), so here you would not notice a mistake. But the shift uses up
#    positions that the network was trained for, and a network with learned positions would give wrong results.
# 3. Since column and position differ, a mask made of positions is no longer a mask of columns. If you mix them up,
#    nothing crashes.
# 4. A padding token that sees neither the others nor itself has only $-\infty$ in its softmax, which gives NaN. In the
#    next layer its value is NaN, and zero times NaN is NaN, so it spoils the real tokens of its row, too. Each padding
#    token must see something, if only itself.
# %% [markdown] id="left_text" lang="zh" of="3ac20389"
# ## 左填充及其麻烦
#
# 填充放在左边，所有提示都在最后一列结束：只需读这一列，各行也在同一处追加。许多程序这样做。代价是什么？
#
# 1. 填充在文本*之前*，因果掩码允许每个 token 看到它。若不为每行再加一个掩码，文本就会关注填充，logits 就错了。
# 2. 列号不再是位置：每行第一个 token 的位置应当是 0。对 RoPE 来说，一行的*所有*位置一起平移不改变结果（第 05 课），所以在这里，忘了这一点也看不出来。但平移会占用训练时用到的位置范围；若网络的位置嵌入是学出来的，结果就错了。
# 3. 列号与位置不同，用位置做出的掩码就不再是按列的掩码。把两者弄混，程序并不会崩溃。
# 4. 如果一个填充 token 既看不到别的、也看不到自己，它的 softmax 里就只有 $-\infty$，得到 NaN。到下一层，它的值是 NaN，而零乘 NaN 还是 NaN，于是同一行真正的 token 也被污染。所以每个填充 token 至少要能看到它自己。
# %% id="left_code"
holes = T - lengths
is_text = column[None] >= holes[:, None]
own_positions = np.maximum(column[None] - holes[:, None], 0)
short = lengths < T


def last_column(positions, mask):
    return np.asarray(network(params, left, positions, mask)[:, -1])


def error(logits):
    return np.abs(logits - np.asarray(batch_logits)).max(-1)


# en: 1. The causal mask alone: every short row is wrong, with either choice of positions.
# zh: 1. 只用因果掩码：无论用哪种位置，短的行都错。
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
# After prefill, the cache holds padding in the slots after a short row's text. Is that a problem? No, because those slots
# are never seen. The next token of row $b$ goes into slot $\mathrm{length}_b$, over the padding, and the mask shows the
# slots up to the token's own position and none after it. So each row has a length of its own, and a single step appends
# to each row at a different place.
#
# Rows also *end* at different times. The loop goes on until all have ended, and a row that has ended must not grow: its
# length stays fixed, what it computes is thrown away, and its cache can never overflow. Here is that loop by hand,
# greedy, with "." as one more stop id, so that some rows stop early.
# %% [markdown] id="decode_text" lang="zh" of="8affaae9"
# ## 解码：每一行各在自己的位置
#
# 预填充之后，缓存中短行文本之后的槽位里是填充。这要紧吗？不要紧，因为这些槽位永远不会被看到。第 $b$ 行的下一个 token 写入槽位 $\mathrm{length}_b$，覆盖填充；掩码只放行到该 token 自己的位置为止，之后的槽位一概遮住。
# 所以每行各有一个长度，同一步在各行的不同位置追加。
#
# 各行*结束*的时间也不同。循环要一直进行到所有行都结束，而已经结束的行不能再增长：长度不再变，算出的东西丢掉，缓存也就不会溢出。下面亲手写这个循环，用贪心，并把“.”也当作停止编号，让一些行提前停下。
# %% id="decode_code"
dot = tokenizer.encode(".")
stops = [*tokenizer.stop_ids, *dot]
STEPS = 12


def continued(rows):
    logits, cache = read(rows, pad=777)
    active = np.ones(len(rows), bool)
    chosen = [[] for _ in rows]
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
    return chosen, cache


chosen, cache = continued(rows)
batch = jl.generate(model, prompts, max_new_tokens=STEPS, stop=stops, ignore_eos=True)
for b in range(B):
    assert batch[b].tokens == chosen[b]
    assert cache.lengths[b] <= lengths[b] + len(chosen[b])
    print(f"{batch[b].finish_reason:>6} after {len(chosen[b]):>2}: {batch[b].text!r}")
expect(batch[0].text, " Paris")
expect(len({len(tokens) for tokens in chosen}) > 1, True)
print(f"{max(map(len, chosen))} choices for the longest row, {sum(map(len, chosen))} in all")

# en: Each prompt alone gives the same ids.
# zh: 每个提示单独生成，得到同样的编号。
for row, tokens in zip(rows, chosen, strict=True):
    (alone,), _ = continued([row])
    assert alone == tokens
# %% [markdown] id="keys" lang="en"
# ## Random draws in a batch
#
# The logits of a row do not depend on its neighbours. Its draws must not, either. If one key drew the noise for all rows
# as one [B V] array, a batch of another size would get different noise. So row $r$ has the key `fold_in(key(seed), r)`
# (lesson 12). Two things follow. A row keeps its draws when its neighbours change. And the *same* prompt in several rows
# gives several samples, because the rows have different keys.
#
# Row 0 equals its prompt alone. The prompt of row 3, run alone, would become row 0, so to get its draws we build its key
# by hand.
# %% [markdown] id="keys" lang="zh" of="913ef312"
# ## 批次中的随机抽取
#
# 一行的 logits 与邻居无关，它的抽取也不应该与邻居有关。假如用一个密钥为所有行一次抽出 [B V] 的噪声，批次的大小一变，噪声就变了。所以第 $r$ 行的密钥是 `fold_in(key(seed), r)`（第 12 课）。由此有两个结果：邻居换了，一行的抽取不变；*同一个*提示放在几行里，会得到几个不同的样本，因为各行的密钥不同。
#
# 第 0 行与它的提示单独生成的结果相同。第 3 行的提示若单独生成，就成了第 0 行；要得到它的抽取，就得亲手算出它的密钥。
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
# How much does a batch gain? Count the bytes of one decode step. The weights are read **once**, for all rows: each number
# that arrives from memory is used $B$ times instead of once. Only the cache is read per row, since every row has its own
# keys and values. So as long as the weights outweigh the caches, the bytes of a step hardly grow with $B$, while its
# tokens do.
# %% [markdown] id="throughput" lang="zh" of="8681af5e"
# ## 批处理有什么用
#
# 成批处理的收益有多大？数一数解码一步要读多少字节。权重对所有行只读**一次**：从内存读来的每个数用 $B$ 次，而不是一次。只有缓存要逐行读取，因为每行有自己的键和值。所以只要权重远大于缓存，一步的字节数几乎不随 $B$ 增长，产出的 token 却成倍增加。
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
expect(slots * per_slot < weights / 100, True)
expect(bytes_per_token(1) / bytes_per_token(16) > 14, True)


# %% [markdown] id="products" lang="en"
# Does the clock agree? Not quite, for two reasons.
#
# First, the multiplications grow with $B$. Once they take longer than the reading, more rows bring less. Lesson 14 says
# where that point is.
#
# Second, it matters who multiplies. On a CPU, the library has two fast programs of its own, called kernels: one for up to
# three rows, which reads the weights about as fast as memory delivers them, and one for twelve rows and more. In between,
# for **four to eleven rows**, XLA computes the product, and it reads the weights more slowly. (These numbers hold for
# float32 on an x86 processor with numba installed. Without that, XLA multiplies more of them, or all.)
#
# We can see who multiplies without a clock. XLA can report how many operations it finds in a program. To XLA, a kernel is
# a call to outside code, in which it finds none.
# %% [markdown] id="products" lang="zh" of="30ef5342"
# 实测也是这样吗？不完全是，原因有两个。
#
# 第一，乘法次数随 $B$ 增长。一旦计算的时间超过读取的时间，再加行，好处就变少了。这个转折点在哪里，第 14 课会讲。
#
# 第二，要看由谁来乘。在 CPU 上，本库有两个自己的快速程序，叫做内核：一个用于不超过三行的情形，读权重的速度接近内存所能提供的极限；另一个用于十二行及以上。介于其间，即**四到十一行**，乘积由 XLA 计算，它读权重要慢一些。（这些数字适用于装有 numba 的 x86 处理器上的 float32。条件不满足时，由 XLA 计算的情形更多，甚至全部由它计算。）
#
# 不用时钟也能看出是谁在乘。XLA 可以报告它在一个程序里发现了多少次运算；内核对它来说是一次对外调用，里面一次运算也看不到。
# %% id="products_code"
def operations_seen(count):
    x = jax.ShapeDtypeStruct((count, 1, config.dim), jnp.float32)
    weight = jax.ShapeDtypeStruct((config.ffn_dim, config.dim), jnp.float32)
    products = ops_for("cpu", count, 1).products
    with jax.default_device(jax.devices("cpu")[0]):
        program = jax.jit(lambda x, w: linear("BTD,FD->BTF", x, w, products=products))
        found = program.lower(x, weight).compile().cost_analysis()["flops"]
    return found / (2 * count * config.dim * config.ffn_dim)


by_xla = [count for count in range(1, 17) if operations_seen(count) > 0.5]
print("numbers of rows that XLA multiplies, of 1 to 16:", by_xla)
if has_kernels() and platform.machine() in ("x86_64", "AMD64"):
    assert by_xla == list(range(4, 12))
# %% [markdown] id="measured" lang="en"
# Now the clock. We time single steps for batches of several sizes, each a few times, and take the fastest time for each
# size, so that other work on the machine disturbs the result as little as possible.
# %% [markdown] id="measured" lang="zh" of="cf7a6d5a"
# 现在看实测。对几种大小的批次，各测几遍单步的用时，取最快的一次，尽量减少机器上其他工作的干扰。
# %% id="measured_code" tags=["measured"]
ready = {}
for count in (1, 3, 4, 11, 16):
    fresh = jl.init_cache(config, count, CAPACITY, jnp.float32)
    tokens = np.full(count, rows[0][0])
    ready[count] = tokens, jl.decode(params, tokens, fresh, config)[1]

seconds = dict.fromkeys(ready, np.inf)
for _, count in itertools.product(range(4), ready):
    tokens, cache = ready[count]
    begin = time.perf_counter()
    for _ in range(3):
        logits, cache = jl.decode(params, tokens, cache, config)
    jax.block_until_ready(logits)
    seconds[count] = min(seconds[count], (time.perf_counter() - begin) / 3)
    ready[count] = tokens, cache

speeds = {count: count / seconds[count] for count in ready}
for count, speed in speeds.items():
    print(f"{count:>2} rows: {1000 * seconds[count]:4.0f} ms a step, {speed:4.0f} tokens a second")
assert speeds[11] > speeds[1]
assert speeds[16] > 1.5 * speeds[1]
show(
    figures.speeds(speeds, by_xla),
    en="Tokens a second against the number of rows in a batch. Up to three rows the points lie near the dotted line of equal steps; in the shaded range from 4 to 11 rows they lie far below it; from 12 rows on they come nearer to it again.",
    zh="每秒 token 数随批次行数的变化。三行以内，各点靠近“每步用时不变”的点线；在 4 到 11 行的阴影范围内，远低于点线；从 12 行起又向点线靠近。",
)
# %% [markdown] id="gain" lang="en"
# The times on this page come from a small machine with two cores and other work to do; yours will differ. What do they
# show? Up to three rows, a step takes at most half as long again as with one row, so three rows give two to three times
# the tokens. With four rows XLA takes over, a step takes about three times as long, and four rows give *fewer* tokens a
# second than three. From there to eleven rows a step hardly grows, so the tokens catch up slowly. From twelve rows on,
# the second kernel takes over and the steps are short again. So batching pays, but the size of the batch matters, and the
# gain in speed stays below the gain in bytes. The asserts demand only what any machine should give: eleven rows beat one
# row, and sixteen rows give more than one and a half times its tokens.
# %% [markdown] id="gain" lang="zh" of="a6da1039"
# 本页的时间来自一台双核的小机器，它还有别的工作要做；你的结果会不一样。这些时间说明了什么？三行以内，一步的用时最多比一行时多一半，所以三行的产出是两到三倍。到了四行，改由 XLA 计算，一步的用时变成大约三倍，四行每秒产出的 token 反而比三行*少*。
# 从四行到十一行，一步的用时几乎不再增加，产出于是慢慢追上来。从十二行起，改用第二个内核，一步又变短了。所以批处理是划算的，但批次的大小有讲究，速度上的收益也小于字节数上的收益。断言只要求任何机器都应做到的：十一行胜过一行，十六行的产出超过一行的一倍半。
# %% [markdown] id="mesh" lang="en"
# ## Rows on several devices
#
# One device reaches its limit sooner or later. Then add more devices and give each some of the rows. Do they have to talk to
# each other? No row looks at another row, so they do not. Each device needs a copy of the weights and its own rows, and that
# is all.
#
# In JAX you say so with a **mesh**: an array of devices whose axes have names. Ours is a line of four devices, and its
# axis is called `"data"`. For each array you then say over which axis of the mesh it is split. `P("data")` splits an
# array's first axis, here the rows, and `P()` splits nothing, so every device gets a copy. `jax.shard_map` runs a
# function on every device with that device's part of the arguments.
# %% [markdown] id="mesh" lang="zh" of="ea6f825e"
# ## 把各行分给几个设备
#
# 一个设备迟早会到极限。那就增加设备，每个设备分几行。设备之间需要通信吗？任何一行都不看别的行，所以不需要。每个设备只要有一份权重和自己的那几行就够了。
#
# 在 JAX 里，这用**设备网格**（mesh）来表达：一个由设备组成的数组，各个轴都有名字。我们的网格是一排四个设备，轴名为 `"data"`。然后对每个数组说明它沿网格的哪个轴切分：`P("data")` 切分数组的第一个轴，这里就是行；`P()` 不切分，每个设备各得一份副本。函数
# `jax.shard_map` 让每个设备运行同一段程序，参数是该设备分到的部分。
# %% id="mesh_picture"
show(
    figures.mesh([f"row {b}, length {length}" for b, length in enumerate(lengths)]),
    en="Four devices side by side along the mesh's axis data. Each holds a copy of all weights and one row of the batch.",
    zh="四个设备沿网格的 data 轴并排，每个都有一份全部权重的副本和批次中的一行。",
)
# %% [markdown] id="mesh_how" lang="en"
# You do not need four devices to try this. XLA can present one CPU as four, if it is told to before JAX starts. In this
# notebook JAX started long ago, so the program below runs in a process of its own. Nothing becomes faster, because the
# virtual devices share the same cores. But it is the program that would run on four real ones.
#
# It prints what each device holds and then searches the compiled program for operations that exchange numbers between
# devices. Last come the new ids, which must be those of the batch on one device.
# %% [markdown] id="mesh_how" lang="zh" of="c472124a"
# 不需要真有四个设备就能试。XLA 可以把一个 CPU 当作四个，只要在 JAX 启动之前告诉它。本笔记本里 JAX 早已启动，所以下面的程序在另一个进程里运行。速度不会变快，因为这些虚拟设备共用同样的核心。但在四个真正的设备上运行的，就是这个程序。
#
# 它先打印每个设备分到什么，再到编译好的程序里寻找设备之间交换数据的运算。最后是新的编号，必须与同一批次在一个设备上得到的编号相同。
# %% id="mesh_code"
program = """
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_llama3 as jl
from jax_llama3_course import load_model

tokens, lengths, steps = map(np.array, json.loads(sys.argv[1]))
model = load_model()
mesh = Mesh(jax.devices(), ("data",))


def continued(params, tokens, lengths):
    cache = jl.init_cache(model.config, len(tokens), 128, jnp.float32)
    state = jl.prefill(params, tokens, lengths, cache, model.config)

    def step(state, _):
        logits, cache = state
        chosen = jnp.argmax(logits, -1)
        return jl.decode(params, chosen, cache, model.config), chosen

    return jax.lax.scan(step, state, length=int(steps))[1].T


split = jax.shard_map(
    continued, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P("data")
)
params = jax.device_put(model.params, NamedSharding(mesh, P()))
tokens = jax.device_put(tokens, NamedSharding(mesh, P("data")))
for piece in tokens.addressable_shards:
    rows = list(range(len(tokens)))[piece.index[0]]
    print(f"device {piece.device.id} holds rows {rows}, an array of {piece.data.shape}")

compiled = jax.jit(split).lower(params, tokens, lengths).compile()
exchanges = "all-reduce", "all-gather", "all-to-all", "collective-permute"
counts = [compiled.as_text().count(name) for name in exchanges]
print("operations that exchange numbers between devices:", sum(counts))
assert not any(counts)
print(json.dumps(compiled(params, tokens, lengths).tolist()))
"""

arguments = json.dumps([right.tolist(), lengths.tolist(), STEPS])
virtual = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
done = subprocess.run(
    [sys.executable, "-c", program, arguments],
    env={**os.environ, **virtual},
    capture_output=True,
    text=True,
)
assert done.returncode == 0, done.stderr
*lines, last = done.stdout.splitlines()
print(*lines, sep="\n")
assert len([line for line in lines if line.startswith("device")]) == 4
on_devices = json.loads(last)

# en: Rows that stopped early go on here, so we compare up to where they stopped.
# zh: 提前停下的行在这里会继续，所以只比较到它们停下的地方。
for b in range(B):
    assert on_devices[b][: len(chosen[b])] == chosen[b]
print("✓ the same ids as on one device")
# %% [markdown] id="mesh_more" lang="en"
# What if the weights do not fit on one device? Then the weights themselves are split over another axis of the mesh. A sum
# over a split axis then has parts on several devices, so those devices must exchange numbers in every layer. That is a
# subject of its own; the sources say where to read on.
# %% [markdown] id="mesh_more" lang="zh" of="61c83604"
# 如果一个设备装不下全部权重呢？那就把权重本身沿网格的另一个轴切分。这时沿切分轴求的和分散在几个设备上，每一层里设备之间都要交换数据。那是另一门学问，可以从文末列出的文献读起。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Given the logits at all columns, [B T V], and the lengths, pick those after each prompt, [B V], without a loop.
# Write a function of both arguments that compiles under `jit`.
# %% [markdown] id="exercises" lang="zh" of="1311a743"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 已知所有列的 logits [B T V] 和各行长度，不用循环取出每个提示之后的 logits [B V]。写一个以两者为参数、能在 `jit` 下编译的函数。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    np.testing.assert_allclose(jax.jit(answer)(by_hand, lengths), batch_logits, atol=1e-3)


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Look up `jnp.take_along_axis`. Its indices need as many axes as the array: [B 1 1].
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="e5b5119f"
# <details><summary>线索</summary>
#
# 查一查 `jnp.take_along_axis`。它的下标要与数组有同样多的轴：[B 1 1]。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, lambda x, n: jnp.take_along_axis(x, (n - 1)[:, None, None], axis=1)[:, 0], check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** The causal mask made right padding harmless. What if the network had none? Predict first, then check with
# `network`, the right-padded rows `right` and another mask [B T T]. In which rows do the logits after the prompt change
# by more than 0.1
#
# - if every token sees all columns, and
# - if every token sees all of its row's text, but no padding?
#
# Answer with a pair of lists of row numbers.
# %% [markdown] id="exercise_2_text" lang="zh" of="004db40f"
# **2.** 有了因果掩码，右填充才无害。如果网络没有因果掩码呢？先预测，再用 `network`、右填充的 `right` 和另一个掩码 [B T T] 来验证。在下面两种情形下，提示之后的 logits 改变超过 0.1 的各是哪些行？
#
# - 每个 token 都看到所有的列；
# - 每个 token 都看到本行的全部文本，但看不到填充。
#
# 用两个行号列表组成的二元组回答。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    text = np.broadcast_to(column < lengths[:, None, None], (B, T, T))
    for mask, rows_changed in zip((np.ones_like(text), text), answer, strict=True):
        found = network(params, right, positions, mask)[np.arange(B), lengths - 1]
        assert np.flatnonzero(error(found) > 0.1).tolist() == list(rows_changed)


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# The last token of a prompt sees the whole text with or without the causal mask. But what about the tokens before it, whose
# keys and values it reads in the next layer? And which row has no tokens before the last?
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="7270d0d5"
# <details><summary>线索</summary>
#
# 无论有没有因果掩码，提示的最后一个 token 都看得到全部文本。但它前面的 token 呢？到了下一层，它要读它们的键和值。又有哪一行，最后一个 token 前面没有别的 token？
#
# </details>
# %% id="solution_2" tags=["solution"]
every_row = list(range(B))
exercise(2, (every_row, [b for b in every_row if lengths[b] > 1]), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Eight prompts are waiting, and there is room for four at a time. A batch is as wide as its longest row. Write a
# function that takes the eight lengths and returns two lists of four row numbers, so that the two batches hold as little
# padding as possible. The check tries all 70 ways to choose the first batch.
# %% [markdown] id="exercise_3_text" lang="zh" of="445cd957"
# **3.** 八个提示在等待，一次只能处理四个。一批的宽度等于其中最长的一行。写一个函数，接收八个长度，返回两个列表，各含四个行号，使两批里的填充尽可能少。检查时会试遍第一批的全部 70 种选法。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    def cells(sizes, first):
        groups = [sizes[list(first)], np.delete(sizes, list(first))]
        return int(sum(4 * group.max() - group.sum() for group in groups))

    for sizes in ([3, 60, 5, 62, 4, 61, 6, 64], [9, 9, 1, 2, 7, 7, 30, 3]):
        sizes = np.array(sizes)
        first, second = answer(sizes)
        assert sorted([*first, *second]) == list(range(8))
        assert len(first) == 4
        least = min(cells(sizes, four) for four in itertools.combinations(range(8), 4))
        print(f"padding: {cells(sizes, first)} cells; as they came: {cells(sizes, range(4))}")
        assert cells(sizes, first) == least


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# One batch holds the longest row of all, whatever you do. What should the other batch look like?
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="66fdffba"
# <details><summary>线索</summary>
#
# 无论怎么分，总有一批含有最长的那一行。另一批应当是什么样子？
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, lambda sizes: np.split(np.argsort(sizes), 2), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Shazeer, *Fast Transformer Decoding: One Write-Head is All You Need*, 2019 (what a decode step reads, and how a batch
#   shares it), [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022 (how weights and rows are split over devices),
#   [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - JAX, [Manual parallelism with shard_map](https://docs.jax.dev/en/latest/notebooks/shard_map.html)
#
# Next: lesson 14 counts what all this costs and compares the count with the clock.
# %% [markdown] id="sources" lang="zh" of="65ae09bc"
# ## 来源
#
# - Shazeer，*Fast Transformer Decoding: One Write-Head is All You Need*，2019（解码一步读什么，一个批次怎样分摊），[arXiv:1911.02150](https://arxiv.org/abs/1911.02150)
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022（权重和行怎样切分到各个设备），[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - JAX，[Manual parallelism with shard_map](https://docs.jax.dev/en/latest/notebooks/shard_map.html)
#
# 下一课：第 14 课计算这一切的代价，并与实测对照。
