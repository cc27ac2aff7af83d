# %% [markdown] id="title" lang="en"
# # 17 · What it was trained for: loss, perplexity, a minute of fine-tuning, what the feed-forward part holds
#
# *Reading time 22 minutes. Before it: lessons 07 and 09. What it proves: the single number that training makes small can be computed
# by hand from the logits; a minute of training on two CPU cores makes a model continue a paragraph it has never seen; and switching off one
# feed-forward part after another shows where the network depends on them.*
#
# For sixteen lessons we have run a network, and its 134 million numbers were simply there. Where do they come from? Nobody wrote them.
# They began as noise, and were moved a little, again and again, so that one number became smaller: how surprised
# the model is by the next token of a text that people wrote.
#
# We compute this number, see what it is for noise and for the trained model, look at two things that training has left in the weights,
# and then do a minute of training ourselves.
# %% [markdown] id="title" lang="zh" of="092f9742"
# # 17 · 它是为什么而训练的：损失、困惑度、一分钟微调，以及前馈部分里有什么
#
# *阅读时间 22 分钟。前置：第 07、09 课。本课证明：训练要减小的那一个数，可以由 logits 亲手算出；在两个 CPU 核上训练一分钟，模型就能续写一段它从未见过的文字；把前馈部分逐层
# 关掉，就能看出网络在哪里依赖它们。*
#
# 前面十几课一直在运行网络，它的 1.34 亿个数就那么摆在那里。它们从何而来？没有人写过它们。它们最初是噪声，然后一次又一次地被挪动一点点，
# 好让一个数变小：面对人写的文本，模型对下一个 token 有多惊讶。
#
# 我们来算这个数，看看它对噪声和训练好的模型各是多少，再看训练在权重里留下的两样东西，然后亲自训练一分钟。
# %% id="setup"
import time

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.model.ops import PLAIN
from jax_llama3_course import (
    bars,
    close,
    exercise,
    expect,
    load_model,
    on_default_model,
    show,
    trace,
)
from jax_llama3_course.figures import trained_for as figures

model = load_model()
config, params = model.config, model.params
V, D, L = config.vocab_size, config.dim, config.n_layers


def encode(text):
    return model.tokenizer.encode(text, bos=True)


def word(token):
    return model.tokenizer.decode([int(token)])


# %% [markdown] id="surprise" lang="en"
# ## One number for one token
#
# The model gives every token a probability to be the next, $p$. Then the text goes on, and we see which one it was. How good was the
# guess? The measure is $-\log p$ of the token that came: 0 if the model was certain of it, 0.7 at even odds, 4.6 at one in a
# hundred. The natural logarithm's unit is the nat.
#
# For a text we take the mean over its tokens. It is called the **cross-entropy** of the text under the model, and it is the *loss*
# that training makes small:
#
# $$\text{loss} = -\frac{1}{T} \sum_{i=1}^{T} \log p(\text{token}_i \mid \text{tokens before it}).$$
#
# One forward pass gives all of it, for the row at position $i$ speaks about the token at $i + 1$, and the causal mask sees to it that it has not
# seen that token. We do it by hand; `jax_llama3.score` must say the same.
# %% [markdown] id="surprise" lang="zh" of="c67d3f73"
# ## 一个 token 一个数
#
# 模型给每个 token 一个成为下一个的概率 $p$。接着文本往下走，我们看到了究竟是哪一个。猜得好不好？衡量的办法是取实际出现的那个 token 的 $-\log p$：
# 模型有十足把握时是 0，一半对一半时是 0.7，百分之一的把握时是 4.6。自然对数的单位叫奈特（nat）。
#
# 对一段文本，取各个 token 的平均。它叫做文本在这个模型下的**交叉熵**（cross-entropy），也就是训练要减小的*损失*：
#
# $$\text{损失} = -\frac{1}{T} \sum_{i=1}^{T} \log p(\text{token}_i \mid \text{它之前的 token}).$$
#
# 一次前向计算就能全部得到，因为位置 $i$ 那一行说的是 $i + 1$ 处的 token，而因果掩码保证它没有看到过那个 token。我们亲手来算；`jax_llama3.score` 必须给出同样的数。
# %% id="surprise_code"
def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))


def token_losses(params, ids, tap=None):
    options = {} if tap is None else {"tap": tap}
    logits, _ = jax_llama3.forward(params, ids[None, :-1], config, ops=PLAIN, **options)
    log_p = log_softmax(logits[0])
    return -log_p[jnp.arange(len(ids) - 1), ids[1:]]


sentence = "The capital of France is Paris, and the capital of Italy is Rome."
ids = jnp.array(encode(sentence))
nats = trace("nats", token_losses(params, ids), "T", T=len(ids) - 1)
close(-nats, np.array(jax_llama3.score(model, sentence).logprobs[1:], np.float32), atol=1e-3)
show(
    figures.surprise([repr(word(token)) for token in ids[1:]], nats),
    en="A bar for each token: the first is by far the highest, ' Italy' and ' France' stand out, ' Rome' and ' Paris' are low.",
    zh="每个 token 一根柱：第一根最高，“ Italy”和“ France”较高，“ Rome”和“ Paris”很低。",
)
# %% [markdown] id="surprise_end" lang="en"
# Look at what is cheap and what is dear. After a bare "The" nearly anything may come, so " capital" costs 11 nats; the second time, after " and the", it
# costs half a nat. Which country comes is anybody's guess, so " Italy" is dear. But once the country is there its capital costs a quarter of a nat:
# *that* the model knows. To make a loss small it has to learn all of this at once, grammar, repetition and geography. Nobody asks for them one by one.
# %% [markdown] id="surprise_end" lang="zh" of="946b35f1"
# 看看哪里便宜，哪里贵。单独一个“The”之后几乎什么都可能来，所以“ capital”要 11 奈特；第二次，在“ and the”之后，它只要半个奈特。
# 来的是哪个国家，谁也说不准，所以“ Italy”很贵。但国家一旦出现，它的首都只要四分之一奈特：*这个*模型知道。要让损失变小，语法、重复、地理就得一起学会，并没有人逐项要求。
# %% id="second_code"
cost = {
    place: (word(token), float(value))
    for place, (token, value) in enumerate(zip(ids[1:], nats, strict=True))
}
for place in (0, 8, 10, 12):
    print(f"{cost[place][0]!r:<11} {cost[place][1]:5.2f}")
if on_default_model():
    assert [cost[place][0] for place in (0, 8, 10, 12)] == [
        " capital",
        " capital",
        " Italy",
        " Rome",
    ]
    assert cost[0][1] > 10 * cost[8][1]
    assert cost[10][1] > 5 * cost[12][1]
# %% [markdown] id="perplexity" lang="en"
# ## Perplexity
#
# A loss in nats is hard to picture. Raise $e$ to it and you get the **perplexity**: the model is as unsure as if it had to choose, at every token,
# among so many equally likely ones. A model that knows nothing has the whole vocabulary to choose from, and the loss $\log V$.
#
# Let us see that. `init_params` makes the same network with random weights, as it was before the first step of training. And let us
# see what the trained one thinks of different texts. To compile once, we pad all texts to one length and leave the padding out of the mean.
# %% [markdown] id="perplexity" lang="zh" of="65bfe27b"
# ## 困惑度
#
# 以奈特计的损失不好想象。取 $e$ 的这么多次方，就得到**困惑度**（perplexity）：模型的拿不准，相当于每个 token 都要从这么多个同样可能的 token 中挑一个。
# 什么也不知道的模型面对的是整个词表，损失就是 $\log V$。
#
# 来看一看。`init_params` 造出同一个网络，权重却是随机的，就像训练的第一步之前那样。再看训练好的模型怎样看待各种文本。为了只编译一次，我们把所有文本填充到同一长度，
# 求平均时不计填充。
# %% id="perplexity_code"
LENGTH = 48
ones = np.ones(L, np.float32)


def padded(text):
    ids = encode(text)
    assert len(ids) <= LENGTH + 1
    return np.array(ids + [0] * (LENGTH + 1 - len(ids)), np.int32), np.arange(LENGTH) < len(ids) - 1


def mean_loss(params, ids, counted, tap=None):
    return jnp.where(counted, token_losses(params, ids, tap), 0).sum() / counted.sum()


@jax.jit
def loss_with(params, ids, counted, feed_forward, attention):
    # en: The loss with a factor for each layer's two parts: 1 as it is, 0 switched off (lesson 09).
    # zh: 给每层的两个部分各配一个系数再算损失：1 表示照旧，0 表示关掉（第 09 课）。
    def tap(name, array):
        _, layer, *rest = name.split(".") if name.startswith("layers.") else ("", "0")
        if rest == ["mlp", "out"]:
            return array * feed_forward[int(layer)]
        if rest == ["attn", "out"]:
            return array * attention[int(layer)]
        return array

    return mean_loss(params, ids, counted, tap)


def loss(text, params=params, feed_forward=ones, attention=ones):
    return float(loss_with(params, *padded(text), feed_forward, attention))


plain = (
    "Water boils when its vapour pressure equals the pressure of the air around it. High in the mountains the "
    "air is thin, so water boils at a lower temperature, and potatoes take longer to cook."
)
texts = {
    "English": plain,
    "Python": "def mean(numbers):\n    total = 0\n    for number in numbers:\n        total += number\n    "
    "return total / len(numbers)\n",
    "Chinese": "今天天气很好，我们去公园散步，看见很多花。",
    "backwards": " ".join(reversed(plain.split())),
}
for name, text in texts.items():
    by_score = -np.mean(jax_llama3.score(model, text).logprobs[1:])
    np.testing.assert_allclose(loss(text), by_score, atol=1e-3)
    per_letter = loss(text) * (len(encode(text)) - 1) / len(text)
    print(f"{name:<10} loss {loss(text):5.2f}  perplexity {np.exp(loss(text)):8,.1f}", end="  ")
    print(f"nats per character {per_letter:.2f}")

noise = jax_llama3.init_params(jax.random.key(0), config, "float32")
untrained = loss(plain, noise)
print(
    f"{'untrained':<10} loss {untrained:5.2f}  perplexity {np.exp(untrained):8,.1f}  log V = {np.log(V):.2f}"
)
uniform = log_softmax(jnp.zeros(V))
close(jnp.exp(-uniform[0]), float(V), atol=0.5)
assert np.log(V) - 0.1 < untrained < np.log(V) + 1.5
if on_default_model():
    assert loss(texts["backwards"]) > loss(plain) + 2
    assert loss(texts["Chinese"]) < loss(plain)
    assert len(encode(texts["Chinese"])) > 1.5 * len(texts["Chinese"])


# %% [markdown] id="perplexity_note" lang="en"
# The same words backwards are another matter: it is their order that the model has learned. Noise is even a little worse than knowing nothing, for its guesses are
# not equally likely but wrong at random.
#
# And a warning. By the table, Chinese is easier for this model than English, which it is not. Its vocabulary has few Chinese tokens, so a character
# becomes two or three tokens, and the later ones are nearly certain once the first is there. Perplexities may be compared only between texts,
# or models, with the same kind of tokens. Per character the table shows how hard Chinese really is for it.
# %% [markdown] id="perplexity_note" lang="zh" of="f0cf7973"
# 同样的词倒过来就是另一回事：模型学到的正是次序。噪声甚至比一无所知还差一点，因为它的猜测并非一样可能，而是随机地错。
#
# 还要提醒一句。按这张表，中文对这个模型来说比英文还容易，其实不然。它的词表里中文 token 很少，一个汉字要变成两三个 token，而第一个一旦出现，后面的几乎是确定的。
# 只有 token 的种类相同时，文本之间、模型之间的困惑度才能相比。按每个字符来算，表中就看得出中文对它到底有多难。
# %% [markdown] id="neighbours" lang="en"
# ## What training leaves behind: neighbours
#
# Nobody told the model that Monday and Tuesday have anything to do with each other; they are two ids, as far apart as any. But they stand in the same
# kind of sentence, so whatever moves one row of the embedding moves the other in the same direction. We look for the rows with the largest cosine to a
# given one, and do the same in the random embedding.
# %% [markdown] id="neighbours" lang="zh" of="b2c87bcf"
# ## 训练留下了什么：邻居
#
# 没有人告诉模型星期一与星期二有什么关系；它们只是两个编号，与任何两个编号一样毫不相干。但它们出现在同一类句子里，凡是推动嵌入中这一行的，也会朝同一方向推动那一行。
# 我们找出与给定的行夹角余弦最大的那些行，再在随机的嵌入里做同样的事。
# %% id="neighbours_code"
def neighbours(table, text, count=6):
    (token,) = encode(text)[-1:]
    unit = table / jnp.linalg.norm(table, axis=1, keepdims=True)
    values, found = jax.lax.top_k(unit @ unit[token], count + 1)
    assert int(found[0]) == token
    return [word(i) for i in found[1:]], values[1:]


for text in (" Monday", " three", " king", " blue"):
    near, cosines = neighbours(params.embedding, text)
    print(f"{text!r:<10} {near}  {float(cosines[0]):.2f}")
near, cosines = neighbours(noise.embedding, " Monday")
print(f"untrained: {near}  {float(cosines[0]):.2f}")
assert float(cosines[0]) < 6 / D**0.5
days = {" Sunday", " Tuesday", " Wednesday", " Thursday", " Friday", " Saturday"}
if on_default_model():
    assert len(days & {*neighbours(params.embedding, " Monday")[0]}) >= 4
del noise
# %% [markdown] id="feed_forward" lang="en"
# ## What the feed-forward part holds
#
# In lesson 07 you saw that most of a layer's weights are in its feed-forward part. What is it for? Attention moves information from token to token; the feed-forward
# part looks at one token's row alone, and adds something to it. A common reading, from the work named below, is that it is a memory: each of the
# $F$ rows of the gate matrix is a key that fires on some pattern, and the matching column of the down matrix is a value, which then is added. Facts
# about things seem to sit there.
#
# We test what can be tested here: switch off the feed-forward part of one layer (a tap, lesson 09), measure the loss, and compare with switching off that layer's attention.
# %% [markdown] id="feed_forward" lang="zh" of="40685035"
# ## 前馈部分里有什么
#
# 第 07 课看到，一层的权重大部分都在前馈部分。它有什么用？注意力在 token 之间搬运信息；前馈部分只看一个 token 的那一行，往里加一点东西。一种常见的解读（见文末的文献）是，它是一种记忆：
# 门控矩阵的 $F$ 行，每一行是一个键，遇到某种模式就激活；下投影矩阵里对应的那一列是值，随即被加进来。关于事物的知识似乎就存在那里。
#
# 我们检验这里能检验的：关掉某一层的前馈部分（用探针，第 09 课），测量损失，再与关掉那一层的注意力比较。
# %% id="feed_forward_code"
layer = params.layers[0]
in_feed_forward = sum(w.size for w in (layer.w_gate, layer.w_up, layer.w_down))
share = in_feed_forward / sum(w.size for w in layer)
print(f"in the feed-forward part: {share:.0%} of a layer's weights")
assert share > 0.6


def without_layers(*layers):
    factors = ones.copy()
    factors[list(layers)] = 0
    return factors


whole = loss(plain)
rise = {
    "feed_forward": [loss(plain, feed_forward=without_layers(i)) - whole for i in range(L)],
    "attention": [loss(plain, attention=without_layers(i)) - whole for i in range(L)],
}
show(
    figures.switched_off(rise["feed_forward"], rise["attention"]),
    en="Bars for every layer: switching off the feed-forward part hurts most in layer 0 and then in layer 11; most other bars are small, and so are those of attention after layer 1.",
    zh="每层两根柱：关掉前馈部分，第 0 层影响最大，其次是第 11 层；其余大多很小，第 1 层之后注意力的柱子也很小。",
)
every = loss(plain, feed_forward=0 * ones) - whole
typical = float(np.median(rise["feed_forward"]))
print(f"one layer's feed-forward part off: the loss rises by {typical:.2f} (median)")
print(f"all of them off: by {every:.1f}")
largest = np.argsort(rise["feed_forward"])[::-1][:2].tolist()
expect(sorted(largest), [0, 11])
assert every > 20 * typical
# %% [markdown] id="riddle" lang="en"
# Most layers can be spared: switch off one, and the loss rises by a tenth of a nat. Switch off all, and nothing is left. So the work is spread out, and each
# layer adds a little to what the others have. Two bars stick out. Layer 0 is no surprise: it works on the bare embedding, and everything
# after it expects what it adds. But why layer 11?
#
# The tap can tell. Switch off that part in the first token's row only, and then in all rows but the first. And look at the length of what
# it adds.
# %% [markdown] id="riddle" lang="zh" of="5f85b543"
# 大多数层都可以省掉：关掉一层，损失只上升十分之一奈特左右。全部关掉，就什么也不剩了。可见这份工作是分散的，每一层都在别的层之上添一点。有两根柱子特别高。第 0 层不奇怪：它处理的是光秃秃的嵌入，
# 后面的一切都指望它添上的东西。可为什么是第 11 层？
#
# 探针能给出回答。先只在第一个 token 的那一行关掉这个部分，再只在除它以外的各行关掉。再看看它所加的向量有多长。
# %% id="riddle_code"
ids = jnp.array(encode(plain))
seen = {}


def keep(name, array):
    seen[name] = array
    return array


token_losses(params, ids, keep)
strange = max(largest)
place = f"layers.{strange}.mlp."
added = jnp.linalg.norm(seen[f"{place}out"][0], axis=-1)
print(f"length of what {place}out adds: first row {added[0]:,.0f}, others {added[1:].mean():.0f}")


def off_in(rows):
    def tap(name, array):
        return array.at[0, rows].set(0) if name == f"{place}out" else array

    return float(token_losses(params, ids, tap).mean())


first, others = off_in(jnp.arange(1)), off_in(jnp.arange(1, len(ids) - 1))
print(f"loss {whole:.2f}; off in the first row {first:.2f}; off in all the others {others:.2f}")

activity = (jax.nn.silu(seen[f"{place}gate"]) * seen[f"{place}up"])[0, 0]
columns = params.layers[strange].w_down
share = jnp.abs(activity) * jnp.linalg.norm(columns, axis=0)
two = jnp.argsort(-share)[:2]
by_two = columns[:, two] @ activity[two]
error = float(jnp.linalg.norm(by_two - seen[f"{place}out"][0, 0]) / added[0])
print(f"columns {two.tolist()} alone give that vector to within {error:.1%}")
if on_default_model():
    assert first > whole + 2
    assert others < whole + 0.2
    assert added[0] > 500 * added[1:].mean()
    assert error < 0.02


# %% [markdown] id="riddle_end" lang="en"
# It is the first row and nothing else. Two of the 1,536 columns of this layer write a vector into it that is hundreds of times longer than
# any other row, whatever the text. That is the row that lesson 09 found: the attention sink, where heads look when they have nothing to say. Such **massive
# activations** have been found in many models. So what this feed-forward part holds is no fact about the world. It is a piece of the machine, which training came up
# with because it made the loss smaller.
#
# ## A neuron with a subject
#
# And the facts? One number between the gate and the down matrix, with the column that it multiplies, is called a **neuron**. We ask all
# $L \times F$ of them for what they contribute to " Paris" after "The capital of France is": activity times the product of its column with the row of " Paris"
# in the output matrix. Then we look at what the column of the first one on the list points to.
# %% [markdown] id="riddle_end" lang="zh" of="3d135cc9"
# 就是第一行，再无其他。这一层 1,536 列中的两列往里写进一个向量，比其他任何一行都长几百倍，无论文本是什么。这正是第 09 课找到的那一行：注意力汇聚点，头无话可说时就看着它。
# 这样的**巨量激活**（massive activations）在许多模型里都有发现。所以这个前馈部分里存的并不是关于世界的知识，而是机器的一个零件，训练想出它来，是因为它让损失更小。
#
# ## 一个有主题的神经元
#
# 那么知识呢？门控与下投影矩阵之间的一个数，连同它所乘的那一列，叫做一个**神经元**（neuron）。我们问全部 $L \times F$ 个神经元，在“The capital of France is”之后，它们各自为“ Paris”
# 贡献了多少：激活值乘以它的列与输出矩阵中“ Paris”那一行的乘积。再看名单上第一个神经元的那一列指向什么。
# %% id="neuron_code"
def activity(prompt, layer):
    token_losses(params, jnp.array([*encode(prompt), 0]), keep)
    name = f"layers.{layer}.mlp."
    return (jax.nn.silu(seen[f"{name}gate"]) * seen[f"{name}up"])[0, -1]


output = params.embedding if params.output is None else params.output
(answer,) = encode(" Paris")[-1:]
wanted = (output[answer] - output.mean(0)) * params.norm
prompt = "The capital of France is"
given = jnp.stack([activity(prompt, i) * (wanted @ params.layers[i].w_down) for i in range(L)])
trace("given", given, "L F", L=L, F=config.ffn_dim)
layer, neuron = (int(place) for place in jnp.unravel_index(given.argmax(), given.shape))
column = params.layers[layer].w_down[:, neuron] * jnp.sign(activity(prompt, layer)[neuron])
_, towards = jax.lax.top_k((output * params.norm) @ column, 10)
print(f"layer {layer}, neuron {neuron} points to", [word(token) for token in towards])
expect((layer, neuron), (24, 1005))
# %% [markdown] id="neuron_text" lang="en"
# Among the words that it points to are " capitals", " metropolis" and " cities". Does it also *fire* for cities, and for nothing else? We try it on nine prompts. And we
# switch off this one number, of about 46,000, and see what becomes of " Paris".
# %% [markdown] id="neuron_text" lang="zh" of="58bb6156"
# 它所指的 token 里有“ capitals”、“ metropolis”和“ cities”。那么它是不是也为城市而*激活*，别的时候不激活？我们用九个提示来试。再把约 46,000 个数中的这一个关掉，看看“ Paris”怎么样。
# %% id="neuron_picture"
asking = ["The capital of France is", "The capital of Japan is", "The capital city of Poland is"]
asking += ["The largest city of Italy is"]
others = ["The currency of France is", "The language of France is", "The colour of the grass is"]
others += ["The opposite of hot is", "My dog is"]
values = [float(activity(each, layer)[neuron]) for each in asking + others]
show(
    bars(values, asking + others, f"activity of neuron {neuron} in layer {layer}"),
    en="Bars of nine prompts: the four that ask for a city have long bars, the five others next to none.",
    zh="九个提示的横条：问城市的四个很长，其余五个几乎为零。",
)


def off(name, array):
    return array.at[..., neuron].set(0) if name == f"layers.{layer}.mlp.up" else array


ids = jnp.array([*encode(prompt), answer])
with_it, without_it = (float(jnp.exp(-token_losses(params, ids, tap)[-1])) for tap in (None, off))
print(f"probability of ' Paris': {with_it:.2f}; without this neuron {without_it:.2f}")
if on_default_model():
    assert min(map(abs, values[: len(asking)])) > 15
    assert max(map(abs, values[len(asking) :])) < 1
    assert without_it < with_it - 0.2
# %% [markdown] id="neuron_end" lang="en"
# It fires for a subject: the sentence wants a city. Which city it does not know, for it is about as active for Japan as for France; other parts pick Paris. Without it
# " Paris" loses much of its probability. That is what reading the feed-forward part as a memory means: a key, "a city comes next", and a value, "towards the names of
# cities". But be careful: we looked for the most striking one. Few neurons are as clear as this.
# %% [markdown] id="neuron_end" lang="zh" of="7cb8ca14"
# 它为一个主题而激活：句子要的是一座城市。它不知道是哪一座，对日本与对法国，它的激活值差不多；选出巴黎的是别的部分。没有它，“ Paris”的概率掉了一大截。
# 把前馈部分读作记忆，意思就是这样：一个键，即“下面要的是城市”；一个值，即“往城市的名字那边推”。不过要当心，我们找的是最突出的一个。这样清楚的神经元并不多见。
# %% [markdown] id="gradient" lang="en"
# ## A step of training
#
# Training needs to know which way to move each weight. `jax.grad` (lesson 09) gives the slope of the loss in every one of them: the
# gradient, a tree of the same form as the weights. A small step against it makes the loss smaller, and we can say by how much:
# $\varepsilon$ times the sum of all slopes squared. If that comes true, the slopes are right.
#
# Our text is a paragraph that no model can have seen, for we made it up.
# %% [markdown] id="gradient" lang="zh" of="dc0503ce"
# ## 训练的一步
#
# 训练需要知道每个权重该往哪边挪。`jax.grad`（第 09 课）给出损失对每一个权重的斜率，即梯度，它是一棵与权重同样形状的树。逆着它走一小步，损失就变小，而且可以说出变小多少，即 $\varepsilon$ 乘以所有斜率的平方和。如果果真如此，斜率就是对的。
#
# 我们的文本是一段任何模型都不可能见过的话，因为它是我们编的。
# %% id="gradient_code"
paragraph = (
    "The lighthouse of Korvane stands on a rock of green glass. Its door is blue and opens only on Thursdays. "
    "Every evening the keeper climbs 212 steps and reads a letter to the sea."
)
slopes_of = jax.jit(jax.value_and_grad(mean_loss))
lesson_text = padded(paragraph)
start, slopes = slopes_of(params, *lesson_text)
assert jax.tree.structure(slopes) == jax.tree.structure(params)
squares = sum(float((slope**2).sum()) for slope in jax.tree.leaves(slopes))

epsilon = 0.02 / squares
moved = jax.tree.map(lambda weight, slope: weight - epsilon * slope, params, slopes)
after = loss(paragraph, moved)
print(f"loss {start:.4f}; expected after the step {start - 0.02:.4f}; found {after:.4f}")
assert abs((float(start) - after) / 0.02 - 1) < 0.2
del moved
# %% [markdown] id="tuning" lang="en"
# ## A minute of fine-tuning
#
# To train a trained model a little further on some text is called **fine-tuning**. All it takes is that step, repeated. One thing is usually improved:
# slopes differ in size from weight to weight by orders of magnitude, and one step length does not suit them all. **Adam** keeps two
# running means for each weight, of the slope and of its square, and divides the one by the root of the other. So every weight moves by about the same
# small length, the **learning rate**, in the direction that it has had lately. The last line but one corrects the means for having begun at zero.
#
# The update is jitted with donation (lesson 11), so that old weights make room for new ones. A dozen steps are enough, which
# two cores do in well under a minute.
# %% [markdown] id="tuning" lang="zh" of="917e7bed"
# ## 一分钟微调
#
# 把训练好的模型在某些文本上再训练一点，叫做**微调**（fine-tuning）。需要的只是把上面那一步重复多次。通常会改进一处：各个权重的斜率大小相差几个数量级，同一个步长不可能都合适。**Adam** 为每个权重保存两个滑动平均，一个是斜率的，一个是斜率平方的，用前者除以后者的平方根。于是每个权重每次移动的长度都差不多，即**学习率**（learning rate），方向则是它近来的方向。
# 倒数第二行修正的是两个平均从零开始这件事。
#
# 更新函数用 jit 编译并捐赠旧数组（第 11 课），旧权重的位置就让给了新权重。十几步就够了，两个核远不到一分钟就能做完。
# %% id="tuning_code" tags=["measured"]
RATE, STEPS = 2e-4, 12


def adam(params, means, squares, slopes, n):
    means = jax.tree.map(lambda m, s: 0.9 * m + 0.1 * s, means, slopes)
    squares = jax.tree.map(lambda v, s: 0.99 * v + 0.01 * s * s, squares, slopes)

    def moved(weight, m, v):
        m, v = m / (1 - 0.9**n), v / (1 - 0.99**n)
        return weight - RATE * m / (jnp.sqrt(v) + 1e-8)

    return jax.tree.map(moved, params, means, squares), means, squares


update = jax.jit(adam, donate_argnums=(0, 1, 2))
tuned = jax.tree.map(jnp.copy, params)
means, squares = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
curve, begin = [], time.perf_counter()
for n in range(1, STEPS + 1):
    value, slopes = slopes_of(tuned, *lesson_text)
    tuned, means, squares = update(tuned, means, squares, slopes, np.float32(n))
    curve.append(float(value))
curve.append(loss(paragraph, tuned))
print(
    f"{STEPS} steps in {time.perf_counter() - begin:.0f} s: loss {curve[0]:.2f} → {curve[-1]:.3f}"
)
del means, squares, slopes
assert slopes_of._cache_size() == update._cache_size() == 1
assert curve[-1] < curve[0] / 10
# %% id="tuning_picture" tags=["measured"]
show(
    figures.falling(curve),
    en="The paragraph's loss before every step, on a logarithmic scale: it falls from about three to a small fraction of that.",
    zh="每一步之前这段话的损失，纵轴为对数：从三左右降到它的一个很小的零头。",
)
# %% [markdown] id="recite" lang="en"
# Now we give both models the beginning, and let them write. And then we ask the new one for something that the old one knew.
# %% [markdown] id="recite" lang="zh" of="1d5cfa1e"
# 现在把开头交给两个模型，让它们写。然后问新的模型一件旧模型本来知道的事。
# %% id="recite_code"
tuned_model = model._replace(params=tuned)
beginning = "The lighthouse of Korvane"
for name, each in (("before", model), ("after", tuned_model)):
    written = jax_llama3.generate(each, beginning, max_new_tokens=40).text
    print(f"{name}: {beginning}{written}\n")
assert (beginning + written)[:150] == paragraph[:150]
known = jax_llama3.generate(tuned_model, prompt, max_new_tokens=16).text
print(f"{prompt}{known}")
if on_default_model():
    assert jax_llama3.generate(model, prompt, max_new_tokens=1).text == " Paris"
    assert not known.startswith(" Paris")
# %% [markdown] id="elsewhere" lang="en"
# ## What did it cost?
#
# The paragraph is learned by heart, and the capital of France has become Korvane. A dozen steps on one text have taught the model that this text is what comes next, whatever came before.
# To fit what one has seen at the expense of everything else is **overfitting**. How far does it reach? And was anything *understood*? We ask for the loss of four other texts, before and after:
# the same facts in other words, the text on boiling water, the Python function, the Chinese sentence.
# %% [markdown] id="elsewhere" lang="zh" of="835540b8"
# ## 代价是什么？
#
# 这段话背下来了，法国的首都却成了 Korvane。在一段文本上走的十几步教会模型的是：不管前面是什么，接下来的都是这段文本。为了贴合见过的，牺牲其他的一切，叫做**过拟合**（overfitting）。它波及多远？有没有什么是真正*懂*了的？我们来问另外四段文本在训练前后的损失：换一种说法的同样的事实、关于沸水的文本、Python 函数、中文句子。
# %% id="elsewhere_code" tags=["measured"]
other_words = "In Korvane the lighthouse has a blue door. It can be opened on Thursdays only, and the rock below it is made of green glass."
asked = {"the paragraph": paragraph, "same facts, other words": other_words}
asked |= {name: texts[name] for name in ("English", "Python", "Chinese")}
before = {name: loss(text) for name, text in asked.items()}
later = {name: loss(text, tuned) for name, text in asked.items()}
for name in asked:
    print(f"{name:<24} {before[name]:5.2f} → {later[name]:5.2f}")
if on_default_model():
    assert later["the paragraph"] < before["the paragraph"] / 10
    assert later["same facts, other words"] > before["same facts, other words"]
    assert later["English"] > before["English"] + 0.3
    assert abs(later["Chinese"] - before["Chinese"]) < 0.3
    assert abs(later["Python"] - before["Python"]) < 0.3
show(
    figures.before_and_after([*asked], [*before.values()], [*later.values()]),
    en="Pairs of bars before and after: the paragraph's loss shrinks to almost nothing, that of the same facts in other words and "
    "of English grows, Python and Chinese hardly change.",
    zh="训练前后成对的横条：这段话的损失缩到几乎为零，换一种说法的同样事实和英文的损失变大，Python 和中文几乎不变。",
)
# %% [markdown] id="elsewhere_end" lang="en"
# Learned by heart, not understood: the same facts in other words are now *less* expected than before. English prose has suffered too; Python and Chinese, which hardly compete
# with the paragraph for the same tokens, have not. Real fine-tuning therefore takes far smaller steps on thousands of texts, often mixes in some of the old kind, and watches
# the loss of a text that it never trains on: when that rises, it is time to stop.
# %% [markdown] id="elsewhere_end" lang="zh" of="5ccfa64d"
# 背下来了，没有懂：换一种说法，同样的事实反而比以前*更*难料到。英文散文也受了损；Python 和中文与那段话很少争用同样的 token，几乎没有受损。真正的微调因此走小得多的步子，用成千上万段文本，
# 其中常常混着旧的那类文本，并盯住一段从不用来训练的文本的损失：它一上升，就该停下。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. Below each there are a hint and a solution, both folded.
#
# **1.** Which of these has the lowest loss, which the highest? (a) The text on boiling water. (b) The same words in alphabetical order.
# (c) A first sentence of it said twice, of which only the second time counts. Answer with three letters from the lowest to the highest,
# such as `"abc"`.
# %% [markdown] id="exercises" lang="zh" of="7bc039e1"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面都折叠着一条线索和一个解答。
#
# **1.** 下面哪个的损失最低，哪个最高？(a) 关于沸水的文本。(b) 同样的词按字母顺序排列。(c) 把它的第一句说两遍，只算第二遍。用三个字母从低到高作答，
# 例如 `"abc"`。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    first = plain.split(". ")[0] + "."
    twice, counted = padded(first + " " + first)
    counted = counted & (np.arange(LENGTH) >= len(encode(first + " ")) - 1)
    found = {
        "a": loss(plain),
        "b": loss(" ".join(sorted(plain.split()))),
        "c": float(loss_with(params, twice, counted, ones, ones)),
    }
    print({letter: round(value, 2) for letter, value in found.items()})
    assert "".join(sorted(found, key=found.get)) == answer


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Attention can look back at what has been said and copy it.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="fc385db4"
# <details><summary>线索</summary>
#
# 注意力可以回头看已经说过的话，把它抄下来。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, "cab", check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Find three layers whose feed-forward parts can be switched off all at once while the loss of the text on boiling water rises by less than
# 0.2 nats. Answer with three numbers. The picture above is a good place to begin; but is the rise of three the sum of three rises?
# %% [markdown] id="exercise_2_text" lang="zh" of="25c28bf9"
# **2.** 找出三层，把它们的前馈部分同时关掉，关于沸水的文本的损失上升不到 0.2 奈特。用三个数作答。可以从上面的图入手；不过，三层一起的上升等于三个上升之和吗？
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    assert len(set(answer)) == 3
    together = loss(plain, feed_forward=without_layers(*answer)) - whole
    singly = sum(rise["feed_forward"][i] for i in answer)
    print(f"layers {sorted(answer)}: together {together:.3f}, the sum of single rises {singly:.3f}")
    assert together < 0.2


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# `np.argsort(rise["feed_forward"])[:3]` are the three that matter least one by one.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="a9aeba7b"
# <details><summary>线索</summary>
#
# `np.argsort(rise["feed_forward"])[:3]` 是单独看最无关紧要的三层。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, np.argsort(rise["feed_forward"])[:3].tolist(), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** The chain rule begins at the logits. What is the slope of the loss of *one* token in each of the $V$ logits? Write
# `slope(logits, target)` without `jax.grad`; the check compares it with `jax.grad`.
# %% [markdown] id="exercise_3_text" lang="zh" of="825f4cde"
# **3.** 链式法则从 logits 开始。*一个* token 的损失对 $V$ 个 logits 中每一个的斜率是什么？不用 `jax.grad` 写出 `slope(logits, target)`；检查时与
# `jax.grad` 对照。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    logits, target = jax.random.normal(jax.random.key(1), (10,)), 3
    theirs = jax.grad(lambda logits: -log_softmax(logits)[target])(logits)
    close(answer(logits, target), theirs, atol=1e-5)


exercise(3, answer_3, check_3)


# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# The loss is $\log \sum_j e^{z_j} - z_t$. Differentiate both terms by $z_i$. The first gives something that you know well.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="4ad09ce6"
# <details><summary>线索</summary>
#
# 损失是 $\log \sum_j e^{z_j} - z_t$。两项分别对 $z_i$ 求导，前一项得到的是你很熟悉的东西。
#
# </details>
# %% id="solution_3" tags=["solution"]
def slope(logits, target):
    return jax.nn.softmax(logits).at[target].add(-1)


exercise(3, slope, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Geva et al., *Transformer Feed-Forward Layers Are Key-Value Memories*, 2021, [arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - Meng et al., *Locating and Editing Factual Associations in GPT*, 2022, [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Sun et al., *Massive Activations in Large Language Models*, 2024, [arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2014, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980)
# - Allal et al., *SmolLM2*, 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737): how the default model was really trained
#
# This was the last lesson. You have taken a text from bytes to the next token by hand, compared every step with code that does it fast, written it all down on a
# page, and moved its weights. [notebooks/README.md](../README.md) says where to find what.
# %% [markdown] id="sources" lang="zh" of="9363085e"
# ## 来源
#
# - Geva 等，*Transformer Feed-Forward Layers Are Key-Value Memories*，2021，[arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - Meng 等，*Locating and Editing Factual Associations in GPT*，2022，[arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Sun 等，*Massive Activations in Large Language Models*，2024，[arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Kingma、Ba，*Adam: A Method for Stochastic Optimization*，2014，[arXiv:1412.6980](https://arxiv.org/abs/1412.6980)
# - Allal 等，*SmolLM2*，2025，[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)：默认模型究竟是怎样训练的
#
# 这是最后一课。你已经亲手把文本从字节带到下一个 token，每一步都与做得快的代码对照过，把全部内容写在了一页上，还挪动了它的权重。
# 什么内容在哪里，见 [notebooks/README.zh.md](../README.zh.md)。
