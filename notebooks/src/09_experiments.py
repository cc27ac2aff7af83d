# %% [markdown] id="title" lang="en"
# # 09 · Experiments: top-k, other positions, no mask, logit lens, sinks
#
# *Reading time 25 minutes. Before it: lessons 03 to 08. What it proves: that one small function, the tap, is enough to read,
# replace and switch off parts of the network, and what some of these parts do.*
#
# The network is complete and right (lessons 07 and 08). Now we ask it questions. Which other words came close? What does it
# say at the other positions? Does it need the mask? When does it know the answer, and which part brings it there? Each
# question is an experiment: run, change one thing, run again, compare.
# %% [markdown] id="title" lang="zh" of="79318fe3"
# # 09 · 实验：top-k、其他位置、去掉掩码、logit 透镜、注意力汇聚
#
# *阅读时间 25 分钟。前置：第 03 至 08 课。本课证明：只靠探针这一个小函数，就能读取、替换、关闭网络的各个部分，并弄清其中一些部分在做什么。*
#
# 网络已经完整而且正确（第 07、08 课）。现在来向它提问：还有哪些词差一点就胜出？它在其他位置说了什么？没有掩码行不行？它什么时候知道
# 答案，又是哪个部分把答案带过去的？每个问题都是一次实验：运行一次，改动一处，再运行一次，然后比较。
# %% id="setup"
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.model.layers import rms_norm
from jax_llama3_course import close, exercise, load_model, show, trace

model = load_model()
config, params = model.config, model.params
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
V, L = config.vocab_size, config.n_layers
is_default = config == preset("smollm2-135m")


def encode(text):
    return model.tokenizer.encode(text, bos=True)


def word(token):
    return model.tokenizer.decode([int(token)])


def keep(name, array):
    # en: The tap that changes nothing.
    # zh: 什么也不改的探针。
    return array


def run(ids, change=keep):
    # en: Logits and named activations of one prompt, with a change made on the way.
    # zh: 一个提示的 logits 和有名字的激活，途中可做一处改动。
    seen = {}

    def tap(name, array):
        seen[name] = change(name, array)
        return seen[name]

    logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=tap)
    return logits[0], {name: array[0] for name, array in seen.items()}


ids = encode("The capital of France is")
T = len(ids)
logits, seen = run(ids)
logits = trace("logits", logits, "T V", T=T, V=V)
# %% [markdown] id="top" lang="en"
# ## The ten best, at every position
#
# The largest logit is only the winner. The **top-k** are the $k$ ids with the largest logits, and with their probabilities
# they say how sure the model is. Two things to get right:
#
# - Probabilities come from the softmax over **all** $V$ logits. A softmax over the ten alone would make them add up to one.
# - To find ten of $V$ numbers nobody has to sort $V$ numbers. A partial selection, `numpy.argpartition`, puts the $k$ largest
#   on one side in one pass, and only these are sorted. `jax.lax.top_k` does both, for every row at once.
# %% [markdown] id="top" lang="zh" of="e2d6a217"
# ## 每个位置上的前十名
#
# 最大的 logit 只是胜者。**top-k** 指 logit 最大的 $k$ 个编号；连同概率一起看，就知道模型有多大把握。有两点要做对：
#
# - 概率来自对**全部** $V$ 个 logits 的 softmax。若只对这十个做 softmax，它们的和就成了 1。
# - 要从 $V$ 个数里找出十个，不必给 $V$ 个数排序。部分选择 `numpy.argpartition` 一遍就把最大的 $k$ 个分到一边，只有这几个需要排序。
#   `jax.lax.top_k` 两步都做，而且一次处理所有行。
# %% id="top_code"
probabilities = jax.nn.softmax(logits, axis=-1)
close(probabilities.sum(-1), jnp.ones(T), atol=1e-4)


def best(row, k):
    # en: One row by hand: select, then sort the selected.
    # zh: 手工处理一行：先选出，再给选出的排序。
    selected = np.argpartition(-row, k)[:k]
    return selected[np.argsort(-row[selected], kind="stable")]


values, top = jax.lax.top_k(probabilities, 10)
trace("top", top, "T k", T=T, k=10)
for position in range(T):
    by_hand = best(np.asarray(probabilities[position]), 10)
    np.testing.assert_array_equal(by_hand, top[position])

assert (values.sum(-1) < 1).all()
# en: The sort of everything, done once, gives the same ten.
# zh: 完整排序只做这一次，得到同样的十个。
np.testing.assert_array_equal(np.argsort(-np.asarray(probabilities[-1]))[:10], top[-1])

for position in range(T):
    print(repr(model.tokenizer.decode(ids[: position + 1])))
    for half in (slice(0, 5), slice(5, 10)):
        pairs = zip(top[position, half], values[position, half], strict=True)
        print("   ", "   ".join(f"{word(i)!r} {p:.3f}" for i, p in pairs))
if is_default:
    assert word(top[-1, 0]) == " Paris"
    assert abs(values[-1, 0] - 0.773) < 1e-3
# %% [markdown] id="positions" lang="en"
# Every position has made a prediction, and most are sensible for the text up to there. All of them come from one pass; at the
# last position alone we learn something that is not yet in the prompt. The model is sure in some places and not at all in
# others: after "The capital of" any country may follow.
#
# ## Ties
#
# An order of ten means something only if the ten numbers differ. In float32 they nearly always do. In bfloat16 (lesson 02)
# neighbouring numbers between 16 and 32 are an eighth apart, and logits are of that size: some of the ten then fall on the
# same number. Which one comes first is a rule of the program, not of the model: `top_k` gives the smaller id first. So when
# two programs are compared in bfloat16, compare their top ten as a **set**, and even that only if the tenth and the eleventh
# differ.
# %% [markdown] id="positions" lang="zh" of="9849cc91"
# 每个位置都做了预测，而且对到那里为止的文本来说大多说得通。它们来自同一次计算；但只有最后一个位置告诉我们提示里还没有的东西。模型在
# 有些地方很有把握，在另一些地方毫无把握：“The capital of” 之后可以是任何一个国家。
#
# ## 并列
#
# 十个数互不相同，名次才有意义。用 float32 几乎总是如此。用 bfloat16（第 02 课）时，16 到 32 之间相邻的数相差八分之一，而 logits 正是
# 这个量级：十个里就会有几个落在同一个数上。谁排在前面是程序的规则，不是模型的意思：`top_k` 把较小的编号放在前面。所以用 bfloat16
# 比较两个程序时，应把前十名当作**集合**来比，而且只有第十名与第十一名不同时才能这样比。
# %% id="ties_code"
assert jnp.bfloat16(16) + jnp.bfloat16(0.125) > jnp.bfloat16(16)
assert jnp.bfloat16(16) + jnp.bfloat16(0.06) == jnp.bfloat16(16)
np.testing.assert_array_equal(jax.lax.top_k(jnp.array([1.0, 3.0, 2.0, 3.0]), 2)[1], [1, 3])

wide, _ = jax.lax.top_k(logits, 11)
narrow, _ = jax.lax.top_k(logits.astype(jnp.bfloat16), 11)
distinct = {"float32": [], "bfloat16": []}
for position in range(T):
    distinct["float32"].append(len(np.unique(wide[position, :10])))
    distinct["bfloat16"].append(len(np.unique(np.asarray(narrow[position, :10], np.float32))))
for name, counts in distinct.items():
    print(f"{name:<9} different numbers among the ten best, by position: {counts}")
if is_default:
    assert min(distinct["float32"]) == 10
    assert min(distinct["bfloat16"]) < 10
# %% [markdown] id="no_mask" lang="en"
# ## Without the mask
#
# What if every position could look at all others, later ones included? One might hope to tap the scores and put the hidden
# ones back. It cannot be done: the scores that a tap sees are masked already, and minus infinity has forgotten what it was.
# But queries, keys and values pass through the tap too, and from these we can compute attention anew, by hand, with any mask
# we like. The tap then hands in our result in place of the library's `z`.
#
# A control comes first: with the causal mask, our attention must give the library's logits at every position. Only then
# does its answer without the mask mean anything.
# %% [markdown] id="no_mask" lang="zh" of="5ecc0e9a"
# ## 去掉掩码
#
# 如果每个位置都能看到所有位置，包括后面的，会怎样？有人会想：在探针里把被遮住的分数放回去。做不到：探针看到的分数已经过掩码，负无穷
# 不再记得原来的值。但查询、键和值也经过探针，由它们可以亲手重算注意力，掩码想用什么就用什么。然后探针交出我们的结果，代替库里的 `z`。
#
# 先做对照实验：用因果掩码时，我们的注意力必须在每个位置得到与库相同的 logits。只有这样，去掉掩码的结果才有意义。
# %% id="no_mask_code"
hidden = np.triu(np.ones((T, T), bool), k=1)
assert jnp.isneginf(seen["layers.0.attn.scores"][:, hidden]).all()
assert (seen["layers.0.attn.pattern"][:, hidden] == 0).all()


def attend(q, k, v, mask):
    k, v = (jnp.repeat(each, N // K, axis=2) for each in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k)
    scores = scores / H**0.5
    scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), v)


def run_with_mask(ids, mask):
    vectors = {}

    def change(name, array):
        short = name.rpartition(".")[2]
        if short in ("q", "k", "v"):
            vectors[short] = array
        if short == "z":
            return attend(vectors["q"], vectors["k"], vectors["v"], mask)
        return array

    return run(ids, change)


causal = jnp.tril(jnp.ones((T, T), bool))
control, _ = run_with_mask(ids, causal)
close(control, logits, atol=1e-3)

unmasked, unmasked_seen = run_with_mask(ids, jnp.ones((T, T), bool))
for position in range(T):
    ours, theirs = int(logits[position].argmax()), int(unmasked[position].argmax())
    print(f"{word(ids[position])!r:<10} with mask {word(ours)!r:<10} without {word(theirs)!r}")
answer = int(logits[-1].argmax())
without = float(jax.nn.softmax(unmasked[-1])[answer])
print(f"probability of {word(answer)!r}: {values[-1, 0]:.3f} with the mask, {without:.6f} without")
if is_default:
    assert int(unmasked[-1].argmax()) != answer
    assert without < 0.01
# %% [markdown] id="no_mask_why" lang="en"
# The last position sees all others with or without the mask, and still its answer changes. In layer 0 its attention is the
# same. But the rows it looks at are not: the earlier positions have looked ahead, their rows have become others, and from
# layer 1 on the last position reads those. On another model or prompt the top token may well survive; a network that
# was trained with the mask is not the same function without it, whatever its favourite word.
# %% [markdown] id="no_mask_why" lang="zh" of="79b372f9"
# 有没有掩码，最后一个位置都能看到所有位置，可它的答案还是变了。在第 0 层，它的注意力没有变。但它所看的行变了：前面的位置往后看过，它们
# 的行成了别的样子，从第 1 层起，最后一个位置读到的就是这些行。换一个模型或提示，最可能的 token 也许不变；但带着掩码训练出来的网络，
# 去掉掩码就不是同一个函数了，不管它最偏爱哪个词。
# %% id="no_mask_why_code"
close(unmasked_seen["layers.0.attn.z"][-1], seen["layers.0.attn.z"][-1], atol=1e-4)
first_row = unmasked_seen["layers.0.attn.z"][0] - seen["layers.0.attn.z"][0]
last_row = unmasked_seen["layers.1.attn.z"][-1] - seen["layers.1.attn.z"][-1]
assert jnp.abs(first_row).max() > 1e-2
assert jnp.abs(last_row).max() > 1e-2
# %% [markdown] id="lens" lang="en"
# ## The logit lens
#
# The final norm and the output matrix turn the last layer's rows into logits. Nothing keeps us from giving them the rows of
# an earlier layer, which live on the same line of additions (lesson 07). What comes out is called a **logit lens**: what the
# network would say if it stopped here. It is a reading, not a fact: the early layers were never trained to be read that way.
# After the last layer it must be the true logits, and that is our check.
# %% [markdown] id="lens" lang="zh" of="2e1b9712"
# ## logit 透镜
#
# 最后的归一化和输出矩阵把最后一层的行变成 logits。没有什么妨碍我们把更早一层的行交给它们，那些行就在同一条做加法的线上（第 07 课）。
# 得到的东西叫做 **logit 透镜**（logit lens）：假如网络在这里停下，它会说什么。这是一种读法，不是事实：训练从未要求前面的层能这样读。
# 而在最后一层之后，它必须等于真正的 logits，这正是我们的检查。
# %% id="lens_code"


def lens(x):
    output = params.embedding if params.output is None else params.output
    return rms_norm(x[None], params.norm, config.norm_eps)[0] @ output.T


lens_logits = jnp.stack([lens(seen[f"layers.{index}.resid_post"]) for index in range(L)])
trace("lens_logits", lens_logits, "L T V", L=L, T=T, V=V)
close(lens_logits[-1], logits, atol=1e-3)

lens_best = np.asarray(lens_logits.argmax(-1))
lens_certain = np.asarray(jax.nn.softmax(lens_logits, axis=-1).max(-1))
# en: How many ids stand before the final answer, layer by layer.
# zh: 逐层统计：排在最终答案前面的编号有多少个。
ranks = np.asarray((lens_logits[:, -1] > lens_logits[:, -1, answer : answer + 1]).sum(-1))
assert ranks[-1] == 0
for index in range(max(0, L - 5), L):
    print(
        f"after layer {index}: {word(lens_best[index, -1])!r:<12} before the answer: {ranks[index]}"
    )
if is_default:
    assert ranks[:20].min() > 1000
    assert ranks[22] > 1000
    assert ranks[23] < 1000
# %% id="lens_picture"


def label(token):
    # en: Spaces and line breaks made visible, and only letters that every font has.
    # zh: 让空格和换行可见，并且只用任何字体都有的字母。
    text = repr(word(token)).encode("ascii", "backslashreplace").decode()
    return text[:14].replace("$", r"\$")


figure, (axes, lines) = plt.subplots(
    1, 2, figsize=(9, 0.24 * L + 1), width_ratios=(5, 2), sharey=True
)
image = axes.imshow(lens_certain, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1)
for index in range(L):
    for position in range(T):
        colour = "white" if lens_certain[index, position] > 0.6 else "black"
        text = label(lens_best[index, position])
        axes.text(position, index, text, ha="center", va="center", fontsize=7, color=colour)
axes.set_xticks(range(T), [word(i).strip() for i in ids])
axes.set_ylabel("after layer")
figure.colorbar(image, ax=axes, label="probability of the best", location="top", shrink=0.6)
lines.plot(ranks + 1, range(L), marker=".")
lines.set_xscale("log")
lines.set_xlabel(f"place of {label(answer)}, last position")
show(
    figure,
    en="Logit lens: the best token after each layer at each position, and on the right the place of the final "
    "answer at the last position, which is far down for two thirds of the layers and then rises to first.",
    zh="logit 透镜：每层之后、每个位置上的最佳 token；右侧是最终答案在最后一个位置的名次，前三分之二的层里都很靠后，之后升到第一。",
)
# %% [markdown] id="sink" lang="en"
# ## Attention sinks
#
# A softmax must give away all of its weight, even when a head finds nothing it wants. Where does the weight go then? We take
# a longer sentence and measure, for each head, how much of it the first position gets, averaged over the later ones. Were
# the weight spread evenly, a query at position $t$ would give it $1/(t+1)$.
# %% [markdown] id="sink" lang="zh" of="733e0b04"
# ## 注意力汇聚
#
# softmax 必须把全部权重分出去，哪怕这个头没找到想要的东西。那么权重去了哪里？我们取一个较长的句子，测量每个头给第一个位置多少权重，
# 对其后的各个位置取平均。如果平均分配，位置 $t$ 上的查询只会给它 $1/(t+1)$。
# %% id="sink_code"
sentence = encode(
    "In the morning the sun rises in the east, and in the evening it sets in the west."
)
S = len(sentence)


def sinks(ids):
    _, seen = run(ids)
    patterns = np.stack([seen[f"layers.{index}.attn.pattern"] for index in range(L)])
    trace("patterns", patterns, "L N T S", L=L, N=N, T=len(ids), S=len(ids))
    return patterns[:, :, 1:, 0].mean(-1), seen


share, sentence_seen = sinks(sentence)
even = np.mean([1 / (t + 1) for t in range(1, S)])
strong = float((share > 0.5).mean())
print(f"the first position gets {share.mean():.2f} of the weight; spread evenly: {even:.2f}")
print(f"{strong:.0%} of all heads give it more than half")
assert share.mean() > 2 * even
# %% [markdown] id="sink_why" lang="en"
# A position that draws weight without a reason in its text is an **attention sink**. Three more measurements show how it
# works. It is the place, not the word: with another word in front, the sink stays. The values there are short vectors, so a
# head that looks at the sink adds little: it is a way of doing nothing. And the huge first row of lesson 07 points, in the
# middle of the network, in one direction whatever the word is. The norm takes away its size and leaves this direction, by
# which any head can find it.
# %% [markdown] id="sink_why" lang="zh" of="39d21812"
# 文本上没有理由、却吸走权重的位置，叫做**注意力汇聚**点（attention sink）。再做三次测量就能看出它怎样起作用。起作用的是位置，不是词：
# 换一个词放在最前面，汇聚点仍在那里。那里的值是很短的向量，所以一个头看着汇聚点，加进来的东西很少：这是“什么都不做”的一种方式。
# 而第 07 课里巨大的第一行，在网络中部总指向同一个方向，不管那是什么词。归一化去掉它的大小，留下这个方向，任何头都能凭它找到汇聚点。
# %% id="sink_why_code"
moved, moved_seen = sinks([encode(" river")[-1], *sentence[1:]])
print(f"with another first word it gets {moved.mean():.2f}")
assert moved.mean() > 2 * even

lengths = np.stack(
    [jnp.linalg.norm(sentence_seen[f"layers.{index}.attn.v"], axis=-1) for index in range(L)]
).mean(-1)
trace("lengths", lengths, "L S", L=L, S=S)
ratio = float(np.median(lengths[:, 0] / lengths[:, 1:].mean(-1)))
print(f"its values are {ratio:.2f} times as long as those of the others (median over layers)")
if is_default:
    assert ratio < 0.5
    assert share.mean() > 0.4


def cosine(a, b):
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


middle = f"layers.{L // 2}.resid_post"
same_place = cosine(sentence_seen[middle][0], moved_seen[middle][0])
same_word = cosine(sentence_seen["embed"][0], moved_seen["embed"][0])
print(f"cosine of the two first rows: {same_word:.2f} at the embedding, {same_place:.2f} halfway")
if is_default:
    assert same_word < 0.5
    assert same_place > 0.99

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2))
image = left.imshow(share, aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=1)
left.set_xlabel("head")
left.set_ylabel("layer")
left.set_title("weight on position 0", fontsize=10)
figure.colorbar(image, ax=left)
example = np.unravel_index(share.argmax(), share.shape)
pattern = sentence_seen[f"layers.{example[0]}.attn.pattern"][example[1]]
image = right.imshow(pattern, cmap="magma", vmin=0, vmax=1)
right.set_xticks(range(S), [word(i).strip() for i in sentence], rotation=90, fontsize=7)
right.set_yticks(range(S), [word(i).strip() for i in sentence], fontsize=7)
right.set_title(f"pattern of layer {example[0]}, head {example[1]}", fontsize=10)
show(
    figure,
    en="Left: for every layer and head, the weight on the first position; many cells are bright. Right: the pattern "
    "of the strongest head, whose first column is bright and the rest dark.",
    zh="左：每层每个头给第一个位置的权重，许多格子很亮。右：最强的那个头的权重图，第一列很亮，其余很暗。",
)
# %% [markdown] id="patching" lang="en"
# ## Patching: where is "France"?
#
# Reading shows what is there, not what is used. For that one must change it. Take two prompts that differ in one word,
# France and Japan, with the answers Paris and Tokyo. Run the second and keep its rows. Then run the first and put, at **one**
# layer and **one** position, the other run's row in place of its own. This is **patching**. If the answer turns to Tokyo, then
# the country was, at that layer, in that row. The measure is the difference of the two answers' logits, scaled so that 0 is
# the France run and 1 the Japan run.
# %% [markdown] id="patching" lang="zh" of="b788be7e"
# ## 打补丁：“France” 在哪里？
#
# 读取只能说明那里有什么，不能说明用到了什么。要知道后者，就得改动它。取两个只差一个词的提示：France 和 Japan，答案分别是 Paris 和
# Tokyo。先运行第二个，留下它的各行；再运行第一个，在**某一层**、**某一个位置**，用另一次运行的行换掉自己的行。这就是**打补丁**（patching）。
# 如果答案变成 Tokyo，说明在那一层，国家的信息就在那一行里。度量是两个答案的 logit 之差，并缩放为：France 的运行为 0，Japan 的运行为 1。
# %% id="patching_code"
donor_ids = encode("The capital of Japan is")
assert len(donor_ids) == T
donor_logits, donor_seen = run(donor_ids)
country = int(np.flatnonzero(np.array(ids) != np.array(donor_ids))[0])
other_answer = int(donor_logits[-1].argmax())
assert other_answer != answer
print(f"position {country} differs; answers {word(answer)!r} and {word(other_answer)!r}")


def streams(seen):
    return jnp.stack([seen[f"layers.{index}.resid_post"] for index in range(L)])


def leaning(logits):
    return logits[..., other_answer] - logits[..., answer]


def patched_once(index, position):
    # en: One patch, not compiled.
    # zh: 打一个补丁，不经编译。
    def change(name, array):
        if name == f"layers.{index}.resid_post":
            return array.at[:, position].set(donor_seen[name][position])
        return array

    return run(ids, change)[0]


def effect(logits):
    return (leaning(logits) - leaning(run_logits)) / (leaning(donor_last) - leaning(run_logits))


run_logits, donor_last = logits[-1], donor_logits[-1]
for position in (country, T - 1):
    print(f"layer 2, position {position}: {abs(effect(patched_once(2, position)[-1])):.2f}")
# %% [markdown] id="compiled" lang="en"
# All layers times all positions are many runs, so we compile. A tap is an ordinary function inside the network, and
# `jax.jit` compiles the network with the tap in it: `jax.jit(f)` runs the Python code of `f` once, records what it does to its
# arguments, and compiles that record; later calls with the same shapes run only the compiled program (lesson 11). So the list
# `traced` grows once per compilation. Three details make that cheap. The layer to be patched is an argument, a
# number that the compiled program receives, so **one** compilation serves all layers. The weights are an argument too: weights
# that a function closes over would be compiled in as constants. And all positions go in as one batch: row $t$ of it gets its
# patch at position $t$.
# %% [markdown] id="compiled" lang="zh" of="30382bb6"
# 所有层乘以所有位置要运行很多次，所以编译。探针是网络内部的普通函数，`jax.jit` 把网络连同探针一起编译：`jax.jit(f)` 把 `f` 的 Python 代码
# 运行一遍，记下它对参数做的事，再把记录编译成程序；之后形状相同的调用只运行编译好的程序（第 11 课）。所以列表 `traced` 每编译一次才增长
# 一项。三个细节让它很便宜：要打补丁
# 的层是一个参数，是编译后的程序收到的一个数，所以**一次**编译就够所有层使用；权重也是参数，若由函数闭包捕获，就会被当作常量编译进去；
# 所有位置组成一批送入，第 $t$ 行在位置 $t$ 打补丁。
# %% id="compiled_code"
traced = []


@jax.jit
def patched(params, donor, index):
    traced.append(index)
    row = jnp.arange(T)

    def tap(name, array):
        if not name.endswith("resid_post"):
            return array
        own = int(name.split(".")[1])
        return jnp.where(own == index, array.at[row, row].set(donor[own]), array)

    batch = jnp.tile(jnp.array([ids]), (T, 1))
    return jax_llama3.forward(params, batch, config, tap=tap)[0][:, -1]


donor = trace("donor", streams(donor_seen), "L T D", L=L, T=T, D=D)
patches = jnp.stack([patched(params, donor, index) for index in range(L)])
trace("patches", patches, "L T V", L=L, T=T, V=V)
effects = np.asarray(effect(patches))
assert len(traced) == 1

# en: Compiled equals not compiled; its own rows change nothing; before the country both runs are equal.
# zh: 编译与不编译结果相同；补上自己的行等于没有改动；国家之前的位置上两次运行本来就相同。
close(patches[2, country], patched_once(2, country)[-1], atol=1e-3)
close(patched(params, streams(seen), 2), jnp.tile(logits[-1], (T, 1)), atol=1e-3)
assert np.abs(effects[:, :country]).max() < 1e-3
# en: After the last layer only the last row is read, and with it comes the whole answer.
# zh: 最后一层之后只读最后一行，整个答案都在其中。
close(patches[-1, -1], donor_logits[-1], atol=1e-3)

handover = int(np.argmax(effects[:, -1] > 0.5))
print(
    f"until layer {handover - 1} the country is in its own row, from layer {handover} in the last"
)
if is_default:
    assert effects[:handover, country].min() > 0.8
    assert effects[handover:, country].max() < 0.1
# %% id="patching_picture"
figure, axes = plt.subplots(figsize=(8.5, 2.9))
image = axes.imshow(effects.T, aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
axes.set_yticks(range(T), [word(i).strip() for i in ids])
axes.set_xlabel("patched after layer")
figure.colorbar(image, ax=axes, label="0: Paris    1: Tokyo" if is_default else "effect")
show(
    figure,
    en="The effect of a patch by layer and position: one at the country's position until a late layer, then at once "
    "one at the last position, and zero everywhere else.",
    zh="各层各位置打补丁的效果：直到靠后的某一层，效果都在国家所在的位置，随后一下子转到最后一个位置，其余各处为零。",
)
# %% [markdown] id="ablation" lang="en"
# ## Switching heads off
#
# The picture has one sharp edge. Within a single layer the country moves from its own row to the last. Only attention moves
# things between rows, so a head of that layer must do it. Which? We switch off one head after the other: its `z` becomes
# zero. To switch a part off and see what is lost is an **ablation**. The tap multiplies `z` by a factor per head, 1 or 0. A
# batch of $N$ rows does one layer: row $n$ loses head $n$.
# %% [markdown] id="ablation" lang="zh" of="5ad09b02"
# ## 关掉注意力头
#
# 图中有一条清晰的分界：国家的信息就在一层之内从自己的行移到了最后一行。只有注意力能在行之间搬运内容，所以一定是该层的某个头所为。
# 是哪一个？我们逐个关掉：把它的 `z` 变成零。关掉一个部分，看失去了什么，这叫**消融**（ablation）。探针给 `z` 乘上每个头
# 各自的系数，1 或 0。一批 $N$ 行正好做完一层：第 $n$ 行失去第 $n$ 个头。
# %% id="ablation_code"


def with_factors(params, factors):
    # en: Log-probability of the answer for each row of factors, [B L N]: one per head, 1 leaves it alone.
    # zh: 对每一行系数 [B L N] 求答案的对数概率：每个头一个系数，1 表示不动它。
    def tap(name, array):
        if not name.endswith("attn.z"):
            return array
        own = int(name.split(".")[1])
        return array * factors[:, own][:, None, :, None]

    batch = jnp.tile(jnp.array([ids]), (len(factors), 1))
    last = jax_llama3.forward(params, batch, config, tap=tap)[0][:, -1]
    return jax.nn.log_softmax(last, axis=-1)[:, answer]


compiled = jax.jit(with_factors)
every = jnp.arange(N)
ones = jnp.ones((N, L, N))
ablated = [compiled(params, ones.at[every, index, every].set(0)) for index in range(L)]
ablated = np.exp(np.stack(ablated))
trace("ablated", ablated, "L N", L=L, N=N)
whole = float(values[-1, 0])
close(np.exp(compiled(params, ones)), np.full(N, whole), atol=1e-4)
layer, head = (int(each) for each in np.unravel_index(ablated.argmin(), ablated.shape))
looks_at = seen[f"layers.{layer}.attn.pattern"][head, -1]
print(f"with all heads {word(answer)!r} has probability {whole:.3f}")
print(f"without head {head} of layer {layer}: {ablated[layer, head]:.3f}")
print("this head looks from the last position at:")
for position in range(T):
    print(f"    {word(ids[position])!r:<10} {looks_at[position]:.2f}")
unchanged = float((np.abs(ablated - whole) < 0.1).mean())
print(f"{unchanged:.0%} of all heads change the probability by less than 0.1")
if is_default:
    assert layer == handover
    assert int(looks_at.argmax()) == country
    assert unchanged > 0.8
    assert ablated[0].min() < 0.3
    assert abs(effects[0, -1]) < 0.1
# %% id="ablation_picture"
figure, axes = plt.subplots(figsize=(8.5, 3))
image = axes.imshow(ablated.T - whole, aspect="auto", cmap="RdBu", vmin=-0.7, vmax=0.7)
axes.set_xlabel("layer")
axes.set_ylabel("head switched off")
figure.colorbar(image, ax=axes, label="change of probability")
show(
    figure,
    en="The change of the answer's probability when a head is switched off, by layer and head: nearly white, with "
    "a dark cell in a late layer and a few in the first.",
    zh="关掉各层各头之后答案概率的变化：几乎全白，靠后的一层有一个深色格，最前面几层也有几个。",
)
# %% [markdown] id="ablation_limits" lang="en"
# Patching and ablation agree, and neither knew of the other; and it is behind this same layer that the answer begins to
# rise in the logit lens. But mind what an ablation says. That the answer needs a head is not that the head holds the
# answer: layer 0 has a head whose loss costs nearly as much, while patching shows that there the last row does not know the country yet.
# And a head whose loss does no harm may have an understudy that does its work. Zero is also an input that the network never
# met.
# %% [markdown] id="ablation_limits" lang="zh" of="5933c21c"
# 打补丁与消融彼此独立，结论一致；而且正是在这一层之后，答案在 logit 透镜里开始上升。但要看清消融说明了什么。答案离不开某个头，
# 不等于答案就在这个头里：第 0 层有一个头，关掉它损失几乎一样大，而打补丁表明，在那一层最后一行还没有读到国家的信息。反过来，关掉
# 某个头没有损失，也可能是有“替补”接手。再者，零也是网络从未见过的输入。
# %% [markdown] id="gradient" lang="en"
# ## A tap under a gradient
#
# Ablating every head costs a run for each. Could a gradient ask all of them at once? The factors $s$ of the ablation are 1
# in the network as it is; we differentiate the log-probability of the answer by all of them. `jax.grad(f)` is a
# function that returns the derivative of f's single result by every number of its first argument: it applies the chain rule to
# the recorded operations. It goes through the tap as through any function. We check one of the numbers with a difference quotient:
#
# $$\frac{\partial f}{\partial s} \approx \frac{f(1 + \delta) - f(1 - \delta)}{2\delta} .$$
# %% [markdown] id="gradient" lang="zh" of="48bced70"
# ## 对探针求梯度
#
# 逐个消融，每个头都要运行一次。能不能用梯度一次问遍所有的头？消融所用的系数 $s$ 在原来的网络里都等于 1；我们把答案的对数概率对
# 所有系数求导。`jax.grad(f)` 是一个函数，返回 f 的（单个）结果对第一个参数里每个数的导数，办法是对记录下来的运算用链式法则。它穿过探针，
# 就像穿过任何函数。我们用差商检查其中一个数：
#
# $$\frac{\partial f}{\partial s} \approx \frac{f(1 + \delta) - f(1 - \delta)}{2\delta} .$$
# %% id="gradient_code"

gradient = jax.grad(lambda factors: with_factors(params, factors[None])[0])(jnp.ones((L, N)))
trace("gradient", gradient, "L N", L=L, N=N)
delta = 0.03
steps = ones.at[0, layer, head].add(delta).at[1, layer, head].add(-delta)
above, below, *_ = compiled(params, steps)
quotient = (above - below) / (2 * delta)
slope = float(gradient[layer, head])
print(f"layer {layer}, head {head}: gradient {slope:.2f}, difference quotient {quotient:.2f}")
assert abs(float(quotient) - slope) < 0.02 + 0.05 * abs(slope)

lost = float(np.log(ablated[layer, head]) - np.log(whole))
print(f"switched off, the log-probability changes by {lost:.2f}; the slope alone says {-slope:.2f}")
assert abs(lost + slope) > 0.05
if is_default:
    assert lost < -1
    assert abs(slope) < 0.2
# %% [markdown] id="gradient_end" lang="en"
# The gradient is right, and yet it says almost nothing about the head that the answer depends on most. It is the slope at
# $s = 1$; an ablation walks all the way to $s = 0$, and the curve between is not straight. Near $s = 1$ a little less of this
# head does no harm. A gradient answers the question "what if slightly less?", an ablation "what if not at all?".
# %% [markdown] id="gradient_end" lang="zh" of="39ba3b1e"
# 梯度没有算错，但对答案最依赖的那个头，它几乎什么也没说。梯度是 $s = 1$ 处的斜率；消融则一路走到 $s = 0$，而中间的曲线并不是直的。
# 在 $s = 1$ 附近，这个头弱一点并无妨害。梯度回答的是“稍微少一点会怎样”，消融回答的是“完全没有会怎样”。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** How many of the most probable ids does it take to reach a probability of 0.9 together? Write a function of one row of
# probabilities that returns this number.
# %% [markdown] id="exercises" lang="zh" of="fa27c57a"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 要让最可能的若干编号的概率之和达到 0.9，至少要几个？写一个函数，接收一行概率，返回这个数。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    for row in np.asarray(probabilities, np.float64):
        count = int(answer(row))
        ordered = np.sort(row)[::-1]
        assert ordered[:count].sum() >= 0.9
        assert ordered[: count - 1].sum() < 0.9
    assert int(answer(np.array([0.05, 0.85, 0.1]))) == 2


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda row: 1 + np.searchsorted(np.cumsum(np.sort(row)[::-1]), 0.9), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a tap `(name, array) -> array` that switches off the whole attention of layer 1, all heads, and leaves the
# rest as it is.
# %% [markdown] id="exercise_2_text" lang="zh" of="b7ed13e4"
# **2.** 写一个探针 `(name, array) -> array`，关掉第 1 层的整个注意力（所有头），其余保持不变。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    result, result_seen = run(ids, answer)
    np.testing.assert_array_equal(
        result_seen["layers.1.resid_mid"], result_seen["layers.1.resid_pre"]
    )
    np.testing.assert_array_equal(result_seen["layers.0.resid_post"], seen["layers.0.resid_post"])
    silenced = params.layers[1]._replace(wo=jnp.zeros_like(params.layers[1].wo))
    layers = (params.layers[0], silenced, *params.layers[2:])
    expected, _ = jax_llama3.forward(params._replace(layers=layers), np.array([ids]), config)
    np.testing.assert_allclose(result, expected[0], atol=1e-3)


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(
    2,
    lambda name, array: jnp.zeros_like(array) if name == "layers.1.attn.out" else array,
    check_2,
)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Write a tap that makes every head of layer 0 look at position 0 and nowhere else.
# %% [markdown] id="exercise_3_text" lang="zh" of="2a239181"
# **3.** 写一个探针，让第 0 层的每个头只看位置 0，别处都不看。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    _, result = run(ids, answer)
    expected = jnp.repeat(result["layers.0.attn.v"][0], N // K, axis=0)
    for position in range(T):
        np.testing.assert_allclose(result["layers.0.attn.z"][position], expected, atol=1e-4)
    np.testing.assert_array_equal(result["layers.0.attn.v"], seen["layers.0.attn.v"])
    assert (result["layers.1.attn.pattern"][:, -1, 1:] > 0).any()


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(
    3,
    lambda name, array: (
        jnp.zeros_like(array).at[..., 0].set(1) if name == "layers.0.attn.pattern" else array
    ),
    check_3,
)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - nostalgebraist, *interpreting GPT: the logit lens*, 2020
# - Xiao and others, *Efficient Streaming Language Models with Attention Sinks*, 2023,
#   [arXiv:2309.17453](https://arxiv.org/abs/2309.17453)
# - Sun and others, *Massive Activations in Large Language Models*, 2024, [arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Meng and others, *Locating and Editing Factual Associations in GPT*, 2022, [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Michel, Levy and Neubig, *Are Sixteen Heads Really Better than One?*, 2019, [arXiv:1905.10650](https://arxiv.org/abs/1905.10650)
#
# Next: lesson 10 lets the model go on writing, and asks which of its work need not be done twice.
# %% [markdown] id="sources" lang="zh" of="c29a8158"
# ## 来源
#
# - nostalgebraist，*interpreting GPT: the logit lens*，2020
# - Xiao 等，*Efficient Streaming Language Models with Attention Sinks*，2023，
#   [arXiv:2309.17453](https://arxiv.org/abs/2309.17453)
# - Sun 等，*Massive Activations in Large Language Models*，2024，[arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Meng 等，*Locating and Editing Factual Associations in GPT*，2022，[arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Michel、Levy、Neubig，*Are Sixteen Heads Really Better than One?*，2019，[arXiv:1905.10650](https://arxiv.org/abs/1905.10650)
#
# 下一课：第 10 课让模型继续写下去，并追问哪些计算不必做第二遍。
