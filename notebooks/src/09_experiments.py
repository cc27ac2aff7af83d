# %% [markdown] id="title" lang="en"
# # 09 · Experiments: top-k, other positions, no mask, logit lens, sinks
#
# *Reading time 25 minutes. Before it: lessons 03 to 07 (for the two sections of the one-hour route, 07 is enough). What
# it proves: one small function, the tap, is enough to read, replace and switch off parts of the network, and to see what
# some of these parts do.*
#
# The network is complete (lesson 07) and right (lesson 08). Now we can ask it questions. Which other words came close?
# What does it say at the other positions? Does it need the mask? When does it know the answer, and which part does that
# depend on? Each question is an experiment: run, change one thing, run again, compare.
# %% [markdown] id="title" lang="zh" of="7eaa62f4"
# # 09 · 实验：top-k、其他位置、去掉掩码、logit 透镜、注意力汇聚
#
# *阅读时间 25 分钟。前置：第 03 至 07 课（只读一小时路线中的两节，有第 07 课就够）。本课证明：只靠探针这一个小函数，就能读取、替换、关闭网络的各个
# 部分，并看出其中一些部分在做什么。*
#
# 网络已经完整（第 07 课），而且正确（第 08 课）。现在可以向它提问了：还有哪些词差一点就胜出？它在其他位置说了什么？没有掩码行不行？它什么时候知道答案，这又取决于哪个部分？每个问题都是一次实验：运行一次，改动一处，再运行一次，然后比较。
# %% [markdown] id="tool" lang="en"
# Our tool is the tap (lesson 03). The network calls this function with every intermediate result and its name, such as
# `layers.3.resid_post`, and continues with whatever it returns. Return the array as it is, and you have only read it.
# Return another one, and you have changed the network. `run` gives the logits of a prompt and all its intermediate
# results by name. If we pass it a change, it applies that on the way.
# %% [markdown] id="tool" lang="zh" of="11258189"
# 我们的工具是探针（第 03 课）。网络每算出一个中间结果，就用它和它的名字（例如 `layers.3.resid_post`）调用这个函数，然后用返回值继续算下去。
# 原样返回数组，就是读取；返回另一个数组，就改动了网络。`run` 返回一个提示的 logits，以及按名字存放的所有中间结果；如果传入一个改动，它就在途中照做。
# %% id="setup"
import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.model.layers import rms_norm
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import experiments as figures

model = load_model()
config, params = model.config, model.params
D, N, K, H = config.dim, config.n_heads, config.n_kv_heads, config.head_dim
V, L = config.vocab_size, config.n_layers


def encode(text):
    return model.tokenizer.encode(text, bos=True)


def word(token):
    return model.tokenizer.decode([int(token)])


def keep(name, array):
    # en: The change that changes nothing.
    # zh: 什么也不改的改动。
    return array


def run(ids, change=keep):
    seen = {}

    def tap(name, array):
        seen[name] = change(name, array)
        return seen[name]

    logits, _ = jax_llama3.forward(params, np.array([ids]), config, tap=tap)
    return logits[0], {name: array[0] for name, array in seen.items()}


ids = encode("The capital of France is")
T = len(ids)
logits, seen = run(ids)
trace("logits", logits, "T V", T=T, V=V)
answer = int(logits[-1].argmax())
print(f"{len(seen)} intermediate results; the answer is {word(answer)!r}")
# en: `expect` asserts what is known about the course's own model; another model may differ.
# zh: `expect` 断言的是课程所用模型的已知结果；换一个模型，结果可以不同。
expect(word(answer), " Paris")
# %% [markdown] id="top" lang="en"
# ## The ten best tokens at every position
#
# Which other words came close? The **top-k** are the $k$ ids with the largest logits. Their probabilities say how sure
# the model is. Two things are easy to get wrong:
#
# - Probabilities come from the softmax over **all** $V$ logits. A softmax over the ten alone would make them add up to one.
# - To find the ten largest of $V$ numbers, you need not sort all $V$. A partial selection, `numpy.argpartition`, moves
#   the $k$ largest to one side in no particular order; then only these are sorted. `jax.lax.top_k` does both steps, for
#   every row at once.
# %% [markdown] id="top" lang="zh" of="f9fa16d6"
# ## 每个位置上的前十名
#
# 还有哪些词差一点就胜出？**top-k** 指 logit 最大的 $k$ 个编号，它们的概率说明模型有多大把握。有两点容易做错：
#
# - 概率来自对**全部** $V$ 个 logits 的 softmax。若只对这十个做 softmax，它们的和就成了 1。
# - 要从 $V$ 个数里找出十个，不必给 $V$ 个数排序。部分选择 `numpy.argpartition` 只把最大的 $k$ 个分到一边，不管它们的次序，然后只给这几个排序。`jax.lax.top_k`
#   两步都做，而且一次处理所有行。
# %% id="top_code"
probabilities = jax.nn.softmax(logits, axis=-1)
close(probabilities.sum(-1), jnp.ones(T), atol=1e-4)


def best(row, k):
    # en: One row by hand: select, then sort what was selected.
    # zh: 手工处理一行：先选出，再给选出的排序。
    selected = np.argpartition(-row, k)[:k]
    return selected[np.argsort(-row[selected], kind="stable")]


values, top = jax.lax.top_k(probabilities, 10)
trace("top", top, "T k", T=T, k=10)
for position in range(T):
    by_hand = best(np.asarray(probabilities[position]), 10)
    np.testing.assert_array_equal(by_hand, top[position])

assert (values.sum(-1) < 1).all()
# en: A full sort, done only here, gives the same ten.
# zh: 完整排序只做这一次，得到同样的十个。
np.testing.assert_array_equal(np.argsort(-np.asarray(probabilities[-1]))[:10], top[-1])

for position in range(T):
    print(repr(model.tokenizer.decode(ids[: position + 1])))
    for half in (slice(0, 5), slice(5, 10)):
        pairs = zip(top[position, half], values[position, half], strict=True)
        print("   ", "   ".join(f"{word(i)!r} {p:.3f}" for i, p in pairs))
if on_default_model():
    assert abs(values[-1, 0] - 0.773) < 1e-3
    assert values[2, 0] < 0.2
# %% [markdown] id="positions" lang="en"
# Every position makes a prediction, and most predictions make sense for the text up to that point. All of them come from
# one pass; only the last one tells us something that is not in the prompt yet. The model is sure in some places and not
# at all in others: after "The capital of" any country may follow.
#
# ## Ties
#
# A ranking of ten means something only if the ten numbers differ. In float32 they nearly always do. In bfloat16 (lesson
# 02), neighbouring numbers are a sixteenth apart between 8 and 16, and an eighth between 16 and 32. Our ten best logits are
# of that size, so some of them fall on the same number. Which of those comes first is decided by a rule of the program,
# not by the model: `top_k` puts the smaller id first. So when you compare two programs in bfloat16, compare their ten
# best as a **set**, and do even that only if the tenth and the eleventh differ.
# %% [markdown] id="positions" lang="zh" of="53eb66ff"
# 每个位置都做了一次预测；就到该处为止的文本而言，这些预测大多说得通。它们来自同一次计算，但只有最后一个告诉我们提示里还没有的东西。模型在有些地方很有把握，
# 在另一些地方毫无把握：“The capital of”之后可以是任何一个国家。
#
# ## 并列
#
# 十个数互不相同，名次才有意义。用 float32 几乎总是如此。用 bfloat16（第 02 课）时，8 到 16 之间相邻的数相差十六分之一，16 到 32 之间相差八分之一，而最好的十个 logits 正是这个量级，所以其中会有几个落在同一个数上。其中谁排在前面由程序的规则决定，不是模型的意见：`top_k` 把较小的编号放在前面。所以用 bfloat16 比较两个程序时，应把前十名
# 当作**集合**来比，而且只有第十名与第十一名不同时才能这样比。
# %% id="ties_code"
assert jnp.finfo(jnp.bfloat16).eps * 8 == 1 / 16
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
if on_default_model():
    assert min(distinct["float32"]) == 10
    assert min(distinct["bfloat16"]) < 10
    assert 8 < wide[:, 9].min() < wide[:, 0].max() < 32
# %% [markdown] id="no_mask" lang="en"
# ## Without the mask
#
# What if every position could look at all the others, later ones included? You might hope to restore the masked scores in
# the tap. That cannot work: the scores that a tap sees are already masked, and minus infinity does not tell what it
# replaced. But the queries, keys and values pass through the tap too. From them we can recompute attention by hand, with
# any mask we like, and return our result in place of the library's `z`.
#
# First a control. With the causal mask our attention must give the library's logits at every position. Only then does its
# answer without the mask mean anything.
# %% [markdown] id="no_mask" lang="zh" of="f44892d3"
# ## 去掉掩码
#
# 如果每个位置都能看到所有位置，包括后面的，会怎样？也许你想在探针里把被遮住的分数放回去。这行不通：探针看到的分数已经遮过，从负无穷看不出原来的值。但查询、键和值也经过探针。有了它们，就可以亲手重算注意力，掩码任选，再用我们的结果代替本库的 `z`。
#
# 先做一次对照。用因果掩码时，我们的注意力必须在每个位置得到与本库相同的 logits。只有这样，去掉掩码的结果才有意义。
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
without = float(jax.nn.softmax(unmasked[-1])[answer])
print(f"probability of {word(answer)!r}: {values[-1, 0]:.3f} with the mask, {without:.6f} without")
if on_default_model():
    assert int(unmasked[-1].argmax()) != answer
    assert without < 0.01
# %% [markdown] id="no_mask_why" lang="en"
# Why does the answer change? The last position sees all the others with or without the mask, so in layer 0 its attention
# is the same. But the earlier positions have now looked ahead. Their rows leave layer 0 changed, and from layer 1 on the
# last position reads those. On other prompts the likeliest token may well survive (lesson 08 shows two). Still, a network
# that was trained with the mask is a different function without it, whichever token comes first.
# %% [markdown] id="no_mask_why" lang="zh" of="fb8e85af"
# 答案为什么变了？有没有掩码，最后一个位置都能看到所有位置，所以在第 0 层它的注意力没有变。但前面的位置往后看过，它们的行离开第 0 层时已经变了；从第 1 层起，最后一个位置读到的就是这些行。换一个提示，最可能的 token 也许不变（第 08 课有两个例子）。但带着掩码训练出来的网络，去掉掩码就是另一个函数了，不管排在第一的是哪个 token。
# %% id="no_mask_why_code"
close(unmasked_seen["layers.0.attn.z"][-1], seen["layers.0.attn.z"][-1], atol=1e-4)
first_row = unmasked_seen["layers.0.attn.z"][0] - seen["layers.0.attn.z"][0]
last_row = unmasked_seen["layers.1.attn.z"][-1] - seen["layers.1.attn.z"][-1]
assert jnp.abs(first_row).max() > 1e-2
assert jnp.abs(last_row).max() > 1e-2


# %% [markdown] id="lens" lang="en"
# ## The logit lens
#
# *This section needs only the set-up cell.*
#
# When does the network know its answer? Each token's row passes through the layers along the residual stream (lesson 07):
# a layer reads the row and adds something to it. After the last layer, the final norm and the output matrix turn the row
# into logits.
#
# Nothing stops us from giving these two an *earlier* row, for example the one after layer 3. This is called the
# **logit lens**: it shows what the network would say if it stopped there. Take it as a way of reading rather than a fact:
# the early layers were never trained to be read like this. After the last layer it must give the true logits, and that is
# our check.
# %% [markdown] id="lens" lang="zh" of="ba6b58f0"
# ## logit 透镜
#
# *这一节只需要最前面的准备单元格。*
#
# 网络什么时候知道答案？每个 token 的行沿残差流穿过各层（第 07 课）：每一层读这一行，再往上面加些东西。
# 最后一层之后，最后的归一化和输出矩阵把这一行变成 logits。
#
# 我们同样可以把*更早*的行交给这两步，比如第 3 层之后的行。这叫做 **logit 透镜**（logit lens）：它显示假如网络在那里停下，会说什么。
# 它只是一种读法，不是事实：训练从未要求前面的层能这样读。但在最后一层之后，它必须给出真正的 logits，这正是我们的检查。
# %% id="lens_code"
def lens(row):
    output = params.embedding if params.output is None else params.output
    return rms_norm(row[None], params.norm, config.norm_eps)[0] @ output.T


lens_logits = jnp.stack([lens(seen[f"layers.{index}.resid_post"]) for index in range(L)])
trace("lens_logits", lens_logits, "L T V", L=L, T=T, V=V)
close(lens_logits[-1], logits, atol=1e-3)

lens_words = [[word(token) for token in row] for row in lens_logits.argmax(-1)]
lens_certain = jax.nn.softmax(lens_logits, axis=-1).max(-1)
# en: The answer's place at the last position, layer by layer: 1 is the likeliest.
# zh: 逐层看最后一个位置上答案的名次：1 是最可能的。
in_last = lens_logits[:, -1]
places = np.asarray(1 + (in_last > in_last[:, answer][:, None]).sum(-1))
assert places[-1] == 1
for index in range(L - 5, L):
    print(
        f"after layer {index}: {lens_words[index][-1]!r:<12} {word(answer)!r} in place {places[index]}"
    )
if on_default_model():
    assert places[:23].min() > 1000
    assert places[23] < 1000
    assert [row[1] for row in lens_words[18:]] == [" of"] * (L - 18)
# %% id="lens_picture"
show(
    figures.lens(lens_words, lens_certain, places, [word(token) for token in ids], word(answer)),
    en="Logit lens: the likeliest token after each layer at each position, with its probability. On the right, the place of the final "
    "answer at the last position, which is far down for three quarters of the layers and then rises to first.",
    zh="logit 透镜：每层之后、每个位置上最可能的 token 及其概率；右侧是最终答案在最后一个位置的名次，前四分之三的层里都很靠后，之后升到第一。",
)
# %% [markdown] id="lens_read" lang="en"
# Read a column from bottom to top (␣ is a space). After " capital" the network has settled on " of" by layer 18 and stays
# with it: that is ordinary grammar. After " is" the story is different. " Paris" stands somewhere beyond place 1,000 up
# to layer 22, enters the first thousand at layer 23, and wins only after the very last layer. Something happens in layer
# 23. An experiment further down shows what it is, and the one after it which head does it.
# %% [markdown] id="lens_read" lang="zh" of="dd9e03a2"
# 每一列从下往上读（␣ 表示空格）。在“ capital”之后，网络至迟从第 18 层起认定“ of”，不再改变：这只是普通的语法。在“ is”之后就不同了。直到第 22 层，“ Paris”都排在 1000 名以外，第 23 层进入前一千名，到最后一层之后才胜出。第 23 层里发生了什么？下文的一个实验会查明，再下一个实验会找出是哪个头做的。
# %% [markdown] id="sink" lang="en"
# ## Attention sinks
#
# A softmax has to give away all of its weight, even when a head finds nothing it is looking for. Where does the weight go
# then? We take a longer sentence and measure, for each head, how much of the weight goes to the first token, averaged
# over the later positions. If the weight were spread evenly, a query at position $t$ would give the first token
# $1/(t+1)$.
# %% [markdown] id="sink" lang="zh" of="df1420a4"
# ## 注意力汇聚
#
# softmax 必须把全部权重分出去，哪怕这个头没找到想要的东西。那么权重去了哪里？我们取一个较长的句子，测量每个头把多少权重给了第一个 token，并对其后各个位置取平均。如果平均分配，位置 $t$ 上的查询只会给第一个 token $1/(t+1)$。
# %% id="sink_code"
sentence = encode(
    "In the morning the sun rises in the east, and in the evening it sets in the west."
)
S = len(sentence)


# en: The same as `run`, compiled once for all texts of this length (lesson 11).
# zh: 与 `run` 相同，但为这一长度的所有文本只编译一次（第 11 课）。
@jax.jit
def observed(params, ids):
    seen = {}

    def tap(name, array):
        seen[name] = array[0]
        return array

    jax_llama3.forward(params, ids[None], config, tap=tap)
    return seen


def patterns_of(ids):
    assert len(ids) == S
    seen = observed(params, np.array(ids))
    return np.stack([seen[f"layers.{index}.attn.pattern"] for index in range(L)]), seen


patterns, sentence_seen = patterns_of(sentence)
trace("patterns", patterns, "L N T S", L=L, N=N, T=S, S=S)
share = patterns[:, :, 1:, 0].mean(-1)
even = np.mean([1 / (t + 1) for t in range(1, S)])
strong = float((share > 0.5).mean())
print(f"the first token gets {share.mean():.2f} of the weight; spread evenly: {even:.2f}")
print(f"{strong:.0%} of all heads give it more than half")
assert share.mean() > 2 * even
if on_default_model():
    assert share.mean() > 0.4
# %% id="sink_picture"
layer, head = (int(each) for each in np.unravel_index(share.argmax(), share.shape))
show(
    figures.sink(share, patterns[layer, head], layer, head, [word(token) for token in sentence]),
    en="Left: for every layer and head, the weight on the first token; many cells are dark. Right: the pattern "
    "of the strongest head, whose first column is dark and all the rest nearly white.",
    zh="左：每层每个头给第一个 token 的权重，许多格子颜色很深。右：最强的那个头的模式，第一列很深，其余几乎全白。",
)
# %% [markdown] id="sink_why" lang="en"
# A position that draws weight without a reason in its text is an **attention sink**. Is it the word "In" that draws the
# weight, or its place? We replace it by ten other tokens in turn, such as " river", a question mark and a line break: the
# weight on the first token hardly changes. And when " river" stands *before* "In", then "In" loses the first place, and
# its weight with it.
#
# Two more measurements show how a sink works. The values at the first token are short vectors, so a head that looks there
# adds little: looking there is a way of doing nothing. And how do the heads find the sink? Remember the huge first row of
# lesson 07. In the middle of the network it points in the same direction, whatever the word is. The norm takes away its
# size and leaves this direction, by which every head can recognise it.
# %% [markdown] id="sink_why" lang="zh" of="cf6b0aa1"
# 文本上没有理由、却吸走权重的位置，叫做**注意力汇聚**点（attention sink）。吸走权重的是“In”这个词，还是它所在的位置？我们把它依次换成另外十个 token，例如“ river”、问号和换行符：第一个 token 得到的权重几乎不变。而让“ river”排在“In”*之前*，“In”就失去了首位，也失去了权重。
#
# 再做两次测量，就能看出汇聚点怎样起作用。第一个 token 的值是很短的向量，所以看向那里的头几乎不加进什么东西：看向那里，就是“什么都不做”的一种方式。那么各个头怎样找到汇聚点？还记得第 07 课里巨大的第一行吧。在网络中部，不管那是什么词，它总指向同一个方向。归一化去掉它的大小，留下这个方向，每个头都能凭它认出这一行。
# %% id="sink_why_code"
WORDS = (" river", " seven", " purple", " because", " Tokyo", " def", "?", "\n", " quickly", " not")


def cosine(a, b):
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


middle = f"layers.{L // 2}.resid_post"
weights, at_embedding, halfway = [], [], []
for first in WORDS:
    moved, moved_seen = patterns_of([encode(first)[-1], *sentence[1:]])
    weights.append(float(moved[:, :, 1:, 0].mean()))
    at_embedding.append(cosine(sentence_seen["embed"][0], moved_seen["embed"][0]))
    halfway.append(cosine(sentence_seen[middle][0], moved_seen[middle][0]))
print(f"ten other first words: the weight is between {min(weights):.2f} and {max(weights):.2f}")
print(f"cosine with the row of 'In': at the embedding at most {max(at_embedding):.2f}, ", end="")
print(f"halfway at least {min(halfway):.2f}")
assert min(weights) > 2 * even

pushed, _ = patterns_of([encode(WORDS[0])[-1], *sentence[:-1]])
on_river, on_in = (float(pushed[:, :, 2:, place].mean()) for place in (0, 1))
print(f"{WORDS[0]!r} before 'In': {WORDS[0]!r} gets {on_river:.2f}, 'In' {on_in:.2f}")
assert on_in < even < on_river

lengths = np.stack(
    [jnp.linalg.norm(sentence_seen[f"layers.{index}.attn.v"], axis=-1) for index in range(L)]
).mean(-1)
trace("lengths", lengths, "L S", L=L, S=S)
ratio = float(np.median(lengths[:, 0] / lengths[:, 1:].mean(-1)))
print(f"its values are {ratio:.2f} times as long as those of the others (median over layers)")
if on_default_model():
    assert ratio < 0.5
    assert max(at_embedding) < 0.5
    assert np.abs(weights - share.mean()).max() < 0.05
    assert min(halfway) > 0.99
# %% id="sink_why_picture"
names = [word(sentence[0]), *WORDS]
show(
    figures.first_words([share.mean(), *weights], names, even),
    en="Horizontal bars, one for each word that stands first: all eleven are about equally long, far beyond the dashed line of an even spread.",
    zh="横向条形图，放在最前面的每个词一条：十一条几乎一样长，都远远超过表示平均分配的虚线。",
)
# %% [markdown] id="patching" lang="en"
# ## Patching: where is "France"?
#
# *This section needs only the set-up cell.*
#
# Reading shows what is there, but not what is used. To learn that, we must change something. Take two prompts that differ
# in one word, France and Japan; their answers are Paris and Tokyo. Run the Japan prompt and keep all its rows. Then run
# the France prompt and, after **one** layer and at **one** position, put the Japan run's row in place of its own. This is
# **patching**.
#
# If the answer turns to Tokyo, then at that layer the country was in that row. We measure Tokyo's *lead*: its logit minus
# the logit of Paris. Below zero the answer leans towards Paris, above zero towards Tokyo, and zero is a tie.
# %% [markdown] id="patching" lang="zh" of="50dfe39f"
# ## 打补丁：“France”在哪里？
#
# *这一节只需要最前面的准备单元格。*
#
# 读取只能说明那里有什么，不能说明用到了什么。要知道后者，就得动手改。取两个只差一个词的提示：France 和 Japan，答案
# 分别是 Paris 和 Tokyo。先运行 Japan 的提示，留下它的所有行。再运行 France 的提示，在**某一层**之后、**某一个位置**，用 Japan 的那一行换掉
# 自己的行。这就是**打补丁**（patching）。
#
# 如果答案变成 Tokyo，说明在那一层，国家的信息就在那一行里。我们测量 Tokyo 的*领先量*：它的 logit 减去 Paris 的 logit。小于零，答案偏向 Paris；
# 大于零，偏向 Tokyo；等于零就是平局。
# %% id="patching_code"
donor_ids = encode("The capital of Japan is")
assert len(donor_ids) == T
donor_logits, donor_seen = run(donor_ids)
country = int(np.flatnonzero(np.array(ids) != np.array(donor_ids))[0])
other_answer = int(donor_logits[-1].argmax())
assert other_answer != answer


def lead(logits):
    return logits[..., other_answer] - logits[..., answer]


def patched_once(layer, position):
    def change(name, array):
        if name == f"layers.{layer}.resid_post":
            return array.at[:, position].set(donor_seen[name][position])
        return array

    return run(ids, change)[0]


unpatched = float(lead(logits[-1])), float(lead(donor_logits[-1]))
assert unpatched[0] < 0 < unpatched[1]
print(f"lead of {word(other_answer)!r} over {word(answer)!r}")
print(
    f"  {word(ids[country])!r} run {unpatched[0]:.1f}, {word(donor_ids[country])!r} run {unpatched[1]:.1f}"
)
for position in (country, T - 1):
    once = float(lead(patched_once(2, position)[-1]))
    print(f"  row of {word(ids[position])!r} replaced after layer 2: {once:.1f}")
# %% [markdown] id="compiled" lang="en"
# *These two paragraphs only say how it is made fast, and may be skipped.*
#
# A run for every layer and every position: these are many runs, so we compile. At its first call, `jax.jit(f)` runs the
# Python code of `f` once, records what it does to its arguments, and compiles that record. Later calls with the same
# shapes run only the compiled program (lesson 11). A tap is an ordinary function inside the network, so it is compiled
# along with it. The list `traced` grows whenever the Python code runs, that is, once per compilation.
#
# Three details make this cheap. The layer to patch is an argument, a number that the compiled program receives, so
# **one** compilation serves all layers. The weights are an argument too: if the function took them from outside, they
# would be compiled in as constants. And all positions go in as one batch, in which row $t$ gets its patch at position
# $t$.
# %% [markdown] id="compiled" lang="zh" of="60565a85"
# *这两段只讲怎样让它快，可以跳过。*
#
# 每一层、每个位置都要运行一次，次数很多，所以先编译。第一次调用时，`jax.jit(f)` 把 `f` 的 Python 代码运行一遍，记下它对参数做的事，再把记录编译成程序；之后形状相同的调用只运行编译好的程序（第 11 课）。探针是网络内部的普通函数，所以也一起编译。Python 代码每运行一遍，列表 `traced` 就多一项，也就是每编译一次多一项。
#
# 三个细节让它开销很小。要打补丁的层是一个参数，即编译后的程序收到的一个数，所以只需编译**一次**，所有层都能用。权重也作为参数传入：若函数直接取用外面的权重，它们就会作为常量编译进程序。所有位置组成一批送入，其中第 $t$ 行在位置 $t$ 打补丁。
# %% id="compiled_code"
traced = []


@jax.jit
def patched(params, donor, layer):
    traced.append(layer)
    row = jnp.arange(T)

    def tap(name, array):
        if not name.endswith("resid_post"):
            return array
        own = int(name.split(".")[1])
        return jnp.where(own == layer, array.at[row, row].set(donor[own]), array)

    batch = jnp.tile(jnp.array([ids]), (T, 1))
    return jax_llama3.forward(params, batch, config, tap=tap)[0][:, -1]


def streams(seen):
    return jnp.stack([seen[f"layers.{index}.resid_post"] for index in range(L)])


donor = trace("donor", streams(donor_seen), "L T D", L=L, T=T, D=D)
patches = jnp.stack([patched(params, donor, index) for index in range(L)])
trace("patches", patches, "L T V", L=L, T=T, V=V)
leads = np.asarray(lead(patches))
assert len(traced) == 1

# en: Compiled and uncompiled agree; a run's own rows change nothing; before the country both runs are equal.
# zh: 编译与不编译结果相同；补上自己的行等于没有改动；国家之前的位置上两次运行本来就相同。
close(patches[2, country], patched_once(2, country)[-1], atol=1e-3)
close(patched(params, streams(seen), 2), jnp.tile(logits[-1], (T, 1)), atol=1e-3)
close(leads[:, :country], np.full((L, country), unpatched[0]), atol=1e-2)
# en: After the last layer only the last row is read, and with it comes the whole answer.
# zh: 最后一层之后只读最后一行，整个答案都在其中。
close(patches[-1, -1], donor_logits[-1], atol=1e-3)

handover = int(np.argmax(leads[:, -1] > 0))
print(
    f"up to layer {handover - 1} the country is in its own row, from layer {handover} in the last"
)
if on_default_model():
    # en: 0 is the France run, 1 the Japan run.
    # zh: 0 是 France 的运行，1 是 Japan 的运行。
    way = (leads - unpatched[0]) / (unpatched[1] - unpatched[0])
    assert way[:handover, country].min() > 0.8
    assert way[handover:, country].max() < 0.1
    assert way[:handover, -1].max() < 0.1
    assert way[handover:, -1].min() > 0.8
    assert handover == 23
# %% id="patching_picture"
names = [word(token) for token in ids]
show(
    figures.patching(leads, names, (word(answer), word(other_answer)), unpatched),
    en="Tokyo's lead after a patch, by layer and position, red above zero and blue below: red in the country's row up to layer 22, "
    "then at once red in the last row, and blue everywhere else.",
    zh="各层各位置打补丁之后 Tokyo 的领先量，大于零为红色，小于零为蓝色：直到第 22 层，红色在国家所在的那一行，随后一下子转到最后一行，其余各处都是蓝色。",
)


# %% [markdown] id="patching_read" lang="en"
# Up to layer 22, only a patch in the country's row turns the answer to Tokyo; from layer 23 on, only a patch in the last row
# does. So the country stays in its own row for most of the way, and is then in the row that gives the answer. (On the
# colour scale, "first run" marks the France run and "second run" the Japan run, both without a patch. Why the country's row
# counts less from the middle layers on, this experiment does not tell.)
# %% [markdown] id="patching_read" lang="zh" of="be754232"
# 直到第 22 层，只有在国家那一行打补丁，答案才会变成 Tokyo；从第 23 层起，只有在最后一行打补丁才会。可见国家的信息在大部分路程上都留在自己那一行，然后就到了给出答案的那一行。（色标上的“first run”是 France 的运行，“second run”是 Japan 的运行，都没有打补丁。为什么从中间的层起国家那一行的分量变小，这个实验回答不了。）
# %% [markdown] id="ablation" lang="en"
# ## Switching heads off
#
# The picture has one sharp edge. Within the single layer 23, the country moves from its own row to the last one. Only
# attention moves anything between rows, so some head of that layer must do it. Which one? We switch off one head after
# another by setting its `z` to zero. Switching a part off to see what is lost is called an **ablation**. The tap
# multiplies `z` by a factor for each head, 1 or 0. A batch of $N$ rows covers one layer: row $n$ loses head $n$.
# %% [markdown] id="ablation" lang="zh" of="5cbb2dba"
# ## 关掉注意力头
#
# 图中有一条清晰的分界：就在第 23 层这一层之内，国家的信息从自己的行移到了最后一行。只有注意力能在行之间搬运内容，所以一定是该层的某个头所为。是哪一个？
# 我们逐个关掉，办法是把它的 `z` 设为零。关掉一个部分，看失去了什么，这叫**消融**（ablation）。探针给 `z` 乘上每个头各自的系数，1 或 0。一批 $N$ 行正好
# 做完一层：第 $n$ 行失去第 $n$ 个头。
# %% id="ablation_code"
def with_factors(params, factors):
    # en: The answer's log-probability for each row of factors, [B L N]: one for each head, where 1 changes nothing.
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
whole = float(jax.nn.softmax(logits[-1])[answer])
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
if on_default_model():
    assert layer == handover
    assert int(looks_at.argmax()) == country
    assert unchanged > 0.8
# %% id="ablation_picture"
show(
    figures.ablation(ablated - whole, layer, head),
    en="The change of the answer's probability when a head is switched off, by layer and head: nearly white, with "
    "one dark, ringed cell in a late layer and a few dark ones in the first.",
    zh="关掉各层各头之后答案概率的变化：几乎全白，靠后的一层有一个加框的深色格，最前面几层也有几个深色格。",
)
# %% [markdown] id="ablation_limits" lang="en"
# Patching and ablation are independent, and they agree: it is layer 23, and one head in it, which looks from the last
# token at " France". It is also the layer at which the answer began to rise in the logit lens.
#
# But be careful what you conclude from an ablation. That the answer *needs* a head does not mean that the head *holds*
# the answer. Layer 0 has a head whose loss costs nearly as much, and patching shows that in that layer the last row does
# not know the country yet. Nor is a head useless because its loss does no harm: another head may stand in for it. And
# zero is an input that the later layers never met in training.
# %% [markdown] id="ablation_limits" lang="zh" of="920cad5f"
# 打补丁与消融彼此独立，结论却一致：是第 23 层，是其中的一个头，它从最后一个 token 看向“ France”。在 logit 透镜里，答案也正是从这一层开始上升的。
#
# 但从消融下结论要小心。答案*离不开*某个头，不等于答案*就在*这个头里。第 0 层有一个头，关掉它损失几乎一样大，而打补丁表明，在那一层最后一行还没有
# 读到国家的信息。反过来，关掉某个头没有损失，也不等于它没用：也许有别的头接手。再者，零是后面的层在训练中从未见过的输入。
# %% id="ablation_limits_code"
if on_default_model():
    assert ablated[0].min() < 0.3
    assert abs(way[0, -1]) < 0.1
    assert looks_at[country] > 0.8


# %% [markdown] id="gradient" lang="en"
# ## A gradient through the tap
#
# Ablating every head costs one run per head. Could a gradient ask all of them at once? In the network as it is, all the
# factors $s$ of the ablation are 1. We differentiate the log-probability of the answer with respect to each of them.
# `jax.grad(f)` is a function that returns the derivative of the result of `f`, a single number, with respect to every
# number in its first argument. It applies the chain rule to the recorded operations, and it goes through the tap as
# through any function. We check one of the derivatives with a difference quotient:
#
# $$\frac{\partial f}{\partial s} \approx \frac{f(1 + \delta) - f(1 - \delta)}{2\delta} .$$
# %% [markdown] id="gradient" lang="zh" of="f7af94ab"
# ## 穿过探针求梯度
#
# 逐个消融，每个头都要运行一次。能不能用梯度一次问遍所有的头？在原来的网络里，消融所用的系数 $s$ 都等于 1；我们把答案的对数概率对每个系数求导。
# `jax.grad(f)` 是一个函数，返回 `f` 的结果（一个数）对第一个参数里每个数的导数。它对记录下来的运算使用链式法则；探针与其他函数一样，也在其中。我们用差商检查其中一个导数：
#
# $$\frac{\partial f}{\partial s} \approx \frac{f(1 + \delta) - f(1 - \delta)}{2\delta} .$$
# %% id="gradient_code"
def score(factors, params):
    return with_factors(params, factors[None])[0]


gradient = jax.jit(jax.grad(score))(jnp.ones((L, N)), params)
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
if on_default_model():
    assert lost < -1
    assert abs(slope) < 0.2
# %% [markdown] id="gradient_end" lang="en"
# The gradient is right, and yet it says almost nothing about the head that the answer depends on most. It is the slope at
# $s = 1$. An ablation goes all the way to $s = 0$, and the curve in between is not straight. Near $s = 1$, a little less
# of this head does no harm. A gradient answers the question "what if slightly less?", an ablation "what if not at all?".
# %% [markdown] id="gradient_end" lang="zh" of="258d4f0a"
# 梯度没有算错，但对答案最依赖的那个头，它几乎什么也没说。梯度是 $s = 1$ 处的斜率；消融则一路走到 $s = 0$，而中间的曲线并不是直的。在 $s = 1$
# 附近，这个头弱一点并无大碍。梯度回答的是“稍微少一点会怎样”，消融回答的是“完全没有会怎样”。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Where is the model really sure? Find a text of at most eight tokens after which one token has a probability above
# 0.95. Predict first what will do it: a fact, a fixed phrase, or a pattern.
# %% [markdown] id="exercises" lang="zh" of="73ec5897"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 模型在哪里真正有把握？找一段不超过八个 token 的文本，使得其后某个 token 的概率大于 0.95。先预测一下什么管用：一个事实、一个固定说法，还是
# 一种规律？
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    assert len(encode(answer)) <= 8
    after = jax.nn.softmax(run(encode(answer))[0][-1])
    print(f"{word(after.argmax())!r} {after.max():.3f}")
    assert after.max() > 0.95


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Lists that everybody knows by heart and that have been written down thousands of times.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="8a9b53ff"
# <details><summary>线索</summary>
#
# 人人都能背、被写过成千上万遍的那种列举。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, "a b c d e f g", check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a change `(name, array) -> array` that switches off the whole attention of layer 1, all heads, and leaves
# the rest as it is. Is the answer still " Paris"?
# %% [markdown] id="exercise_2_text" lang="zh" of="e2ecc4b1"
# **2.** 写一个改动 `(name, array) -> array`，关掉第 1 层的整个注意力（所有头），其余保持不变。答案还是“ Paris”吗？
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
    print("the answer is now", repr(word(result[-1].argmax())))


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# What attention adds to the rows is called `layers.1.attn.out`.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="82b74c03"
# <details><summary>线索</summary>
#
# 注意力加到各行上的东西叫 `layers.1.attn.out`。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(
    2,
    lambda name, array: jnp.zeros_like(array) if name == "layers.1.attn.out" else array,
    check_2,
)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Write a change that makes every head of layer 0 look at position 0 and nowhere else.
# %% [markdown] id="exercise_3_text" lang="zh" of="7634a122"
# **3.** 写一个改动，让第 0 层的每个头只看位置 0，别处都不看。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    result_logits, result = run(ids, answer)
    expected = jnp.repeat(result["layers.0.attn.v"][0], N // K, axis=0)
    for position in range(T):
        np.testing.assert_allclose(result["layers.0.attn.z"][position], expected, atol=1e-4)
    np.testing.assert_array_equal(result["layers.0.attn.v"], seen["layers.0.attn.v"])
    assert (result["layers.1.attn.pattern"][:, -1, 1:] > 0).any()
    print("the answer is now", repr(word(result_logits[-1].argmax())))


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# The weights are in `layers.0.attn.pattern`, of shape [B N T T]; the last axis says where a head looks.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="e0bc845e"
# <details><summary>线索</summary>
#
# 权重在 `layers.0.attn.pattern` 里，形状是 [B N T T]；最后一个轴表示这个头看向哪里。
#
# </details>
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
# - Sun and others, *Massive Activations in Large Language Models*, 2024,
#   [arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Meng and others, *Locating and Editing Factual Associations in GPT*, 2022,
#   [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Michel, Levy and Neubig, *Are Sixteen Heads Really Better than One?*, 2019,
#   [arXiv:1905.10650](https://arxiv.org/abs/1905.10650)
#
# Next: lesson 10 lets the model go on writing and asks which part of its work need not be done twice.
# %% [markdown] id="sources" lang="zh" of="4bbd8f9d"
# ## 来源
#
# - nostalgebraist，*interpreting GPT: the logit lens*，2020
# - Xiao 等，*Efficient Streaming Language Models with Attention Sinks*，2023，[arXiv:2309.17453](https://arxiv.org/abs/2309.17453)
# - Sun 等，*Massive Activations in Large Language Models*，2024，[arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Meng 等，*Locating and Editing Factual Associations in GPT*，2022，[arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Michel、Levy、Neubig，*Are Sixteen Heads Really Better than One?*，2019，[arXiv:1905.10650](https://arxiv.org/abs/1905.10650)
#
# 下一课：第 10 课让模型继续写下去，并追问哪些计算不必做第二遍。
