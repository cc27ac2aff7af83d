# %% [markdown] id="title" lang="en"
# # 17 · What it was trained for: loss, perplexity, a minute of fine-tuning, what the feed-forward part holds
#
# *Reading time 22 minutes. Before it: lessons 07 and 09. What it proves: the one number that training makes small can be
# computed by hand from the logits; a minute of training on two CPU cores teaches a model a paragraph that it had never
# seen; and switching off the feed-forward parts one at a time shows where the network depends on them.*
#
# In all the lessons so far we ran a network whose 134 million numbers were simply there. Where do they come from? Nobody
# wrote them. They began as noise and were moved a little, again and again, to make one number smaller: how surprised the
# model is by the next token of a text that people wrote.
#
# We compute this number and see what it is for noise and for the trained model. We look at two things that training has
# left in the weights. Then we train for a minute ourselves.
# %% [markdown] id="title" lang="zh" of="ed5332a4"
# # 17 · 它是为什么而训练的：损失、困惑度、一分钟微调，以及前馈部分里有什么
#
# *阅读时间 22 分钟。前置：第 07、09 课。本课证明：训练要减小的那一个数，可以由 logits 亲手算出；在两个 CPU 核上训练一分钟，就能让模型学会一段它从未见过的文字；把前馈部分逐层关掉，就能看出网络在哪里依赖它们。*
#
# 前面十几课一直在运行一个网络，它的 1.34 亿个数就摆在那里。这些数从何而来？不是谁写下来的。它们最初是噪声，后来一次又一次地挪动一点点，好让一个数变小：面对人写的文本，模型对下一个 token 有多意外。
#
# 我们来算这个数，看看噪声和训练好的模型各得多少；再看训练在权重里留下的两样东西；然后亲自训练一分钟。
# %% id="setup"
import time

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
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
# The model gives every token a probability $p$ of coming next. Then the text goes on, and we see which one it was. How
# good was the guess? We measure it by $-\log p$ of the token that came: 0 if the model was certain of it, 0.7 at even
# odds, 4.6 at one in a hundred. With the natural logarithm, the unit is the nat.
#
# For a text we take the mean over its tokens. This mean is called the **cross-entropy** of the text under the model, and
# it is the *loss* that training makes small:
#
# $$\text{loss} = -\frac{1}{T} \sum_{i=1}^{T} \log p(\text{token}_i \mid \text{tokens before it}).$$
#
# One forward pass gives all of these numbers: the row at position $i$ predicts the token at $i + 1$, and the causal mask
# ensures that it has not seen that token. We do it by hand; `jax_llama3.score` must agree.
# %% [markdown] id="surprise" lang="zh" of="83ffa346"
# ## 一个 token 一个数
#
# 模型给每个 token 一个概率 $p$，即它成为下一个的可能性。接着文本往下走，我们看到了究竟是哪一个。猜得好不好？用实际出现的那个 token 的 $-\log p$ 来衡量：模型有十足把握时是 0，一半对一半时是 0.7，只有百分之一的把握时是 4.6。用自然对数时，单位叫奈特（nat）。
#
# 对一段文本，取各个 token 的平均。这个平均值叫做文本在该模型下的**交叉熵**（cross-entropy），也就是训练要减小的*损失*：
#
# $$\text{损失} = -\frac{1}{T} \sum_{i=1}^{T} \log p(\text{token}_i \mid \text{它之前的 token}).$$
#
# 一次前向计算就能全部得到，因为位置 $i$ 那一行预测的是 $i + 1$ 处的 token，而因果掩码保证它没有看到过那个 token。我们亲手来算；`jax_llama3.score` 必须给出同样的数。
# %% id="surprise_code"
def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))


def token_losses(params, ids, tap):
    logits, _ = jax_llama3.forward(params, ids[None, :-1], config, tap=tap)
    log_p = log_softmax(logits[0])
    return -log_p[jnp.arange(len(ids) - 1), ids[1:]]


LENGTH = 32
ones = np.ones((L, LENGTH, 1), np.float32)


def padded(text):
    ids = encode(text)
    assert len(ids) <= LENGTH + 1
    return np.array(ids + [0] * (LENGTH + 1 - len(ids)), np.int32), np.arange(LENGTH) < len(ids) - 1


@jax.jit
def run(params, ids, feed_forward, attention):
    # en: The loss of every token, and all arrays that a tap sees (lesson 03). What a layer's two parts add is
    # en: multiplied by a factor for every row: 1 leaves it as it is, 0 switches the part off (lesson 09).
    # zh: 每个 token 的损失，以及探针看到的所有数组（第 03 课）。每层两个部分所加的内容，逐行乘以一个系数：
    # zh: 1 表示照旧，0 表示关掉（第 09 课）。
    seen = {}

    def tap(name, array):
        _, layer, *rest = name.split(".") if name.startswith("layers.") else ("", "0")
        if rest == ["mlp", "out"]:
            array = array * feed_forward[int(layer)]
        if rest == ["attn", "out"]:
            array = array * attention[int(layer)]
        seen[name] = array
        return array

    return token_losses(params, ids, tap), seen


sentence = "The capital of France is Paris, and the capital of Italy is Rome."
ids, counted = padded(sentence)
losses, _ = run(params, ids, ones, ones)
nats = trace("nats", losses[counted], "T", T=len(encode(sentence)) - 1)
close(-nats, np.array(jax_llama3.score(model, sentence).logprobs[1:], np.float32), atol=1e-3)
show(
    figures.surprise([repr(word(token)) for token in ids[1:][counted]], nats),
    en="A bar for each token: the first is by far the highest, ' Italy' and ' France' stand out, ' Rome' and ' Paris' are low.",
    zh="每个 token 一根柱：第一根最高，“ Italy”和“ France”较高，“ Rome”和“ Paris”很低。",
)
# %% [markdown] id="surprise_end" lang="en"
# Look at which tokens are cheap and which are expensive. After a bare "The" nearly anything may come, so " capital" costs
# 11 nats; the second time, after " and the", it costs half a nat. Which country comes is anybody's guess, so " Italy" is
# expensive. But once the country is there, its capital " Rome" costs a quarter of a nat: *that* the model knows. To make
# the loss small, a model has to learn all of this at once: grammar, repetition and geography. Nobody asks for them one by
# one.
# %% [markdown] id="surprise_end" lang="zh" of="df7c32c9"
# 看看哪些 token 便宜，哪些贵。单独一个“The”之后几乎什么都可能出现，所以“ capital”要 11 奈特；第二次，在“ and the”之后，它只要半个奈特。接下来是哪个国家，谁也说不准，所以“ Italy”很贵。但国家一旦出现，它的首都“ Rome”只要四分之一奈特：*这一点*模型是知道的。要让损失变小，语法、重复、地理就得一起学会，并没有人逐项要求。
# %% id="second_code"
cost = {
    place: (word(token), float(value))
    for place, (token, value) in enumerate(zip(ids[1:][counted], nats, strict=True))
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
# A loss in nats is hard to picture. Raise $e$ to the power of the loss, and you get the **perplexity**: the model is as
# unsure as if, at every token, it had to choose among that many equally likely ones. A model that knows nothing has the
# whole vocabulary to choose from, and its loss is $\log V$.
#
# Let us check. We fill the same network with random numbers, much as it was before the first step of training. Then we see
# how well the trained network predicts different texts. To compile only once, we have padded all texts to one length; the
# padding is left out of the mean.
# %% [markdown] id="perplexity" lang="zh" of="87c6bab0"
# ## 困惑度
#
# 以奈特计的损失不够直观。以损失为指数取 $e$ 的幂，就得到**困惑度**（perplexity）：模型有多拿不准，相当于每次都要从这么多个同样可能的 token 中挑一个。什么也不知道的模型面对的是整个词表，损失就是 $\log V$。
#
# 来验证一下。我们给同一个网络填上随机数，差不多就是训练开始之前的样子。再看训练好的网络对各种文本预测得怎么样。为了只编译一次，所有文本都填充到了同一长度，求平均时不计填充。
# %% id="perplexity_code" tags=["measured"]
def mean(losses, counted):
    return jnp.where(counted, losses, 0).sum() / counted.sum()


def loss(text, params=params, feed_forward=ones, attention=ones):
    ids, counted = padded(text)
    return float(mean(run(params, ids, feed_forward, attention)[0], counted))


close(loss(sentence), nats.mean(), atol=1e-4)
plain = (
    "Water boils when its vapour pressure equals the pressure of the air around it. "
    "Mountain air is thin, so there it boils at a lower temperature."
)
texts = {
    "English": plain,
    "Python": "def mean(numbers):\n    total = 0\n    for number in numbers:\n        total += number\n    "
    "return total / len(numbers)\n",
    "Chinese": "今天天气很好，我们去公园看花。",
    "backwards": " ".join(reversed(plain.split())),
}
found = {name: loss(text) for name, text in texts.items()}
for name, text in texts.items():
    per_character = found[name] * (len(encode(text)) - 1) / len(text)
    print(f"{name:<10} loss {found[name]:5.2f}  perplexity {np.exp(found[name]):8,.1f}", end="  ")
    print(f"nats per character {per_character:.2f}")

rng = np.random.default_rng(0)


def random(weight):
    if weight.ndim == 1:  # a norm's
        return np.ones_like(weight)
    return rng.standard_normal(weight.shape, np.float32) / D**0.5


noise = jax.tree.map(random, params)
untrained = loss(plain, noise)
print(
    f"{'untrained':<10} loss {untrained:5.2f}  perplexity {np.exp(untrained):8,.1f}  log V = {np.log(V):.2f}"
)
uniform = log_softmax(jnp.zeros(V))
close(jnp.exp(-uniform[0]), float(V), atol=0.5)
assert np.log(V) - 0.1 < untrained < np.log(V) + 1.5
if on_default_model():
    assert found["backwards"] > found["English"] + 2
    assert found["Chinese"] < found["English"]
    assert len(encode(texts["Chinese"])) > 1.5 * len(texts["Chinese"])


# %% [markdown] id="perplexity_note" lang="en"
# The same words backwards are another matter: the model has learned what order words come in. Random weights do even a
# little worse than knowing nothing, because they favour some tokens at random instead of treating all alike.
#
# Now a warning. By the loss per token, Chinese is easier for this model than English, which it is not. The vocabulary has
# few Chinese tokens, so a character often becomes two or three tokens, and the later ones are easy to guess once the
# first is there. Perplexities can be compared only between texts, or models, with the same kind of tokens. The last
# column, per character, shows how hard Chinese really is for it.
# %% [markdown] id="perplexity_note" lang="zh" of="9753409c"
# 同样的词倒过来就是另一回事：模型学到的正是词的次序。随机权重甚至比一无所知还差一点，因为它给出的概率并不均匀，而是随机地有大有小。
#
# 还要提醒一句。按每个 token 的损失来看，中文对这个模型来说比英文还容易，其实不然。词表里中文 token 很少，一个汉字往往要变成两三个 token，而第一个一旦出现，后面的就容易猜了。只有 token 的种类相同，文本之间、模型之间的困惑度才能相比。最后一列按字符计算，从中可以看出中文对它到底有多难。
# %% [markdown] id="neighbours" lang="en"
# ## What training leaves behind: neighbours
#
# Nobody told the model that Monday and Tuesday have anything to do with each other; they are two ids, as unrelated as any
# other two. But they occur in the same kinds of sentence, so what moves one row of the embedding tends to move the other
# in the same direction. We look for the rows with the largest cosine to a given row, and do the same in the random
# embedding.
# %% [markdown] id="neighbours" lang="zh" of="ab5846bd"
# ## 训练留下了什么：邻居
#
# 没有人告诉模型星期一与星期二有什么关系；它们只是两个编号，与任何两个编号一样互不相干。但它们出现在同一类句子里，所以推动嵌入中这一行的，往往也会朝同一方向推动那一行。我们找出与给定的一行余弦最大的那些行，再在随机的嵌入里做同样的事。
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
# In lesson 07 you saw that most of a layer's weights are in its feed-forward part. What is it for? Attention moves
# information from token to token; the feed-forward part looks at one token's row alone and adds something to it. A common
# reading (Geva et al., below) is that it is a memory: each of the $F$ rows of the gate matrix is a key that fires on some
# pattern, and the matching column of the down matrix is a value that is then added. Facts seem to be stored there (Meng
# et al., below).
#
# We test what can be tested here: we switch off the feed-forward part of one layer (with a tap, as in lesson 09), measure
# the loss, and compare it with the loss when that layer's attention is off.
# %% [markdown] id="feed_forward" lang="zh" of="350b6af6"
# ## 前馈部分里有什么
#
# 第 07 课看到，一层的权重大部分都在前馈部分。它有什么用？注意力在 token 之间搬运信息；前馈部分只看一个 token 的那一行，往里加一点东西。一种常见的解读（见文末 Geva 等）是，它是一种记忆：
# 门控矩阵的 $F$ 行，每一行是一个键，遇到某种模式就激活；下投影矩阵里对应的那一列是值，随即加进来。关于事物的知识似乎就存在那里（见文末 Meng 等）。
#
# 我们只检验这里能检验的：关掉某一层的前馈部分（像第 09 课那样用探针），测量损失，再与关掉那一层的注意力时的损失比较。
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
if on_default_model():
    assert typical < 0.2
# %% [markdown] id="riddle" lang="en"
# Most layers can spare their feed-forward part: switch off one, and the loss typically rises by less than a fifth of a nat. Switch
# off all of them, and the loss soars. So the work is spread out, and each part adds a little to what the others have
# done. Two bars stick out. Layer 0 is no surprise: it works on the bare embedding, and everything after it relies on what
# it adds. But why layer 11?
#
# A tap can tell us. We switch off that part in the first token's row only, and then in all rows but the first. We also
# measure the length of the vector that it adds to each row.
# %% [markdown] id="riddle" lang="zh" of="297073e7"
# 大多数层没有前馈部分也过得去：关掉一层的，损失通常只上升不到五分之一奈特。全部关掉，损失就猛增。可见工作是分散的，每一层都在别的层之上添一点。有两根柱子特别高。第 0 层不奇怪：它直接处理嵌入，后面的各层都依赖它加上的东西。可为什么是第 11 层？
#
# 探针能给出回答。先只在第一个 token 的那一行关掉这个部分，再在其余各行关掉。同时量一量它给每一行加上的向量有多长。
# %% id="riddle_code" tags=["measured"]
ids, counted = padded(plain)
_, seen = run(params, ids, ones, ones)
strange = max(largest)
place = f"layers.{strange}.mlp."
added = jnp.linalg.norm(seen[f"{place}out"][0], axis=-1)[counted]
print(f"length of what {place}out adds: first row {added[0]:,.0f}, others {added[1:].mean():.0f}")


def off_in(rows):
    factors = ones.copy()
    factors[strange, rows] = 0
    return loss(plain, feed_forward=factors)


first, others = off_in(slice(0, 1)), off_in(slice(1, None))
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
# It is the first row and nothing else. Two of the 1,536 columns of this layer's down matrix write a vector into it that
# is hundreds of times as long as what the other rows get on average. That is the row that lesson 09 found: the attention
# sink, where heads look when they have nothing to say. Such **massive activations** have been found in many models. So
# what matters most in this feed-forward part is no fact about the world. It is a part of the machinery, which training
# arrived at because it made the loss smaller.
#
# ## A neuron for one subject
#
# And the facts? One number between the gate and the down matrix, with the column that it multiplies, is called a
# **neuron**. We ask each of the $L \times F$ neurons what it contributes to " Paris" after "The capital of France is":
# its activity times the product of its column with the row of " Paris" in the output matrix (less the mean row, and with
# the final norm's weight). Then we look at which tokens the column of the largest contributor points to.
# %% [markdown] id="riddle_end" lang="zh" of="512bb327"
# 就在第一行，与别的行无关。这一层的下投影矩阵有 1,536 列，其中两列往第一行写进一个向量，长度是其他各行平均所得的几百倍。这正是第 09 课找到的那一行：注意力汇聚点，头无话可说时就看着它。这样的**巨量激活**（massive activations）在许多模型里都有发现。所以这个前馈部分里最要紧的并不是关于世界的知识，而是机器的一个零件；训练形成了它，是因为它让损失更小。
#
# ## 一个专管某个主题的神经元
#
# 那么知识呢？门控与下投影矩阵之间的一个数，连同它所乘的那一列，叫做一个**神经元**（neuron）。我们问全部 $L \times F$ 个神经元，在“The capital of France is”之后，它们各自为“ Paris”贡献了多少：激活值乘以它的列与输出矩阵中“ Paris”那一行的乘积（那一行先减去各行的平均，再乘上最后一个归一化的权重）。然后看贡献最大的那个神经元，它的列指向哪些 token。
# %% id="neuron_code"
def activities(prompt):
    ids, counted = padded(prompt)
    _, seen = run(params, ids, ones, ones)
    gates = jnp.stack([seen[f"layers.{i}.mlp.gate"][0, counted.sum()] for i in range(L)])
    ups = jnp.stack([seen[f"layers.{i}.mlp.up"][0, counted.sum()] for i in range(L)])
    return jax.nn.silu(gates) * ups


output = params.embedding if params.output is None else params.output
(answer,) = encode(" Paris")[-1:]
wanted = (output[answer] - output.mean(0)) * params.norm
prompt = "The capital of France is"
active = trace("active", activities(prompt), "L F", L=L, F=config.ffn_dim)
given = active * jnp.stack([wanted @ layer.w_down for layer in params.layers])
layer, neuron = (int(place) for place in jnp.unravel_index(given.argmax(), given.shape))
column = params.layers[layer].w_down[:, neuron] * jnp.sign(active[layer, neuron])
_, towards = jax.lax.top_k((output * params.norm) @ column, 10)
print(f"layer {layer}, neuron {neuron} points to", [word(token) for token in towards])
expect((layer, neuron), (24, 1005))
# %% [markdown] id="neuron_text" lang="en"
# Among the tokens that it points to are " capitals", " metropolis" and " cities". Does it also *fire* for cities, and for
# nothing else? We try it on nine prompts. Then we switch off this one number out of about 46,000 and see what becomes of
# " Paris".
# %% [markdown] id="neuron_text" lang="zh" of="10e49bf3"
# 它所指的 token 里有“ capitals”、“ metropolis”和“ cities”。那么，它是不是也只在问到城市时才*激活*？我们用九个提示来试。再把约 46,000 个数中的这一个关掉，看看“ Paris”的概率会怎样。
# %% id="neuron_picture"
asking = ["The capital of France is", "The capital of Japan is", "The capital city of Poland is"]
asking += ["The largest city of Italy is"]
others = ["The currency of France is", "The language of France is", "The colour of the grass is"]
others += ["The opposite of hot is", "My dog is"]
values = [float(activities(each)[layer, neuron]) for each in asking + others]
show(
    bars(values, asking + others, f"activity of neuron {neuron} in layer {layer}"),
    en="Bars for nine prompts: the four that ask for a city have long bars, the other five next to none.",
    zh="九个提示的横条：问到城市的四个很长，其余五个几乎为零。",
)


# en: A row of zeros in the up matrix switches the neuron off.
# zh: 上投影矩阵里的一行换成零，这个神经元就关掉了。
silenced = params.layers[layer].w_up.at[neuron].set(0)
layers = list(params.layers)
layers[layer] = layers[layer]._replace(w_up=silenced)
without = params._replace(layers=tuple(layers))
ids, counted = padded(prompt + " Paris")
with_it, without_it = (
    float(jnp.exp(-run(each, ids, ones, ones)[0][counted][-1])) for each in (params, without)
)
print(f"probability of ' Paris': {with_it:.2f}; without this neuron {without_it:.2f}")
if on_default_model():
    assert min(map(abs, values[: len(asking)])) > 15
    assert max(map(abs, values[len(asking) :])) < 1
    assert without_it < with_it - 0.2
# %% [markdown] id="neuron_end" lang="en"
# It fires for a subject: the sentence asks for a city. It does not know which city, because it also fires for Japan,
# Poland and Italy; other parts pick Paris. Without it, " Paris" loses much of its probability. That is what it means to
# read the feed-forward part as a memory: a key, "a city comes next", and a value, "towards the names of cities". But be
# careful: we looked for the most striking neuron. Few are as clear as this one.
# %% [markdown] id="neuron_end" lang="zh" of="78ec7185"
# 它为一个主题而激活：句子问的是一座城市。它不知道是哪一座，因为问到日本、波兰和意大利时它同样激活；选出巴黎的是别的部分。没有它，“ Paris”的概率就掉了一大截。把前馈部分看作记忆，就是这个意思：一个键，即“接下来是一座城市”；一个值，即“往城市的名字那边推”。不过要当心，我们挑的是最突出的一个。这样清楚的神经元并不多见。
# %% [markdown] id="gradient" lang="en"
# ## One step of training
#
# Training needs to know which way to move each weight. `jax.grad` (lesson 09) gives the slope of the loss with respect to
# every one of them: the gradient, a tree of the same form as the weights. Subtract the gradient times a small
# $\varepsilon$ from the weights and the loss becomes smaller, and we can say by how much: $\varepsilon$ times the sum of
# the squares of all slopes. If that comes true, the slopes are right.
#
# Our text is a paragraph that no model can have seen, because we made it up.
# %% [markdown] id="gradient" lang="zh" of="a1e498d1"
# ## 训练走一步
#
# 训练需要知道每个权重该往哪边挪。`jax.grad`（第 09 课）给出损失对每个权重的斜率，合起来就是梯度，一棵结构与权重相同的树。取一个很小的 $\varepsilon$，从权重中减去 $\varepsilon$ 乘以梯度，损失就变小，而且可以预先说出变小多少：$\varepsilon$ 乘以所有斜率的平方和。如果果真如此，斜率就是对的。
#
# 我们的文本是一段任何模型都不可能见过的话，因为它是我们编的。
# %% id="gradient_code"
paragraph = (
    "The lighthouse of Korvane stands on a rock of green glass. "
    "Its blue door opens only on Thursdays, and its keeper reads letters to the sea."
)


def mean_loss(params, ids, counted):
    return mean(run(params, ids, ones, ones)[0], counted)


slopes_of = jax.jit(jax.value_and_grad(mean_loss))
lesson_text = padded(paragraph)
start, slopes = slopes_of(params, *lesson_text)
assert jax.tree.structure(slopes) == jax.tree.structure(params)
squares = sum(float(np.vdot(slope, slope)) for slope in jax.tree.leaves(slopes))

epsilon = 0.02 / squares
moved = jax.tree.map(lambda weight, slope: weight - epsilon * slope, params, slopes)
after = loss(paragraph, moved)
print(f"loss {start:.4f}; expected after the step {start - 0.02:.4f}; found {after:.4f}")
assert abs((float(start) - after) / 0.02 - 1) < 0.2
del moved
# %% [markdown] id="tuning" lang="en"
# ## A minute of fine-tuning
#
# Training a trained model a little further on some text is called **fine-tuning**. All it takes is that step, repeated.
# One improvement is usual: slopes differ by orders of magnitude from weight to weight, so no single step length suits
# them all. **Adam** keeps two running means for each weight, one of the slope and one of its square, and divides the
# first by the square root of the second. So every weight moves by about the same small length, the **learning rate**,
# against the slope that it has had lately. The first line of `moved` corrects the means for having started at zero.
#
# The update is compiled with donation (lesson 11), so that the new weights take over the memory of the old ones. Eight
# steps are enough, and two cores do them in well under a minute.
# %% [markdown] id="tuning" lang="zh" of="b440644c"
# ## 一分钟微调
#
# 把训练好的模型在某些文本上再训练一点，叫做**微调**（fine-tuning）。只要把上面那一步重复多次就行。通常会改进一处：各个权重的斜率相差几个数量级，同一个步长不可能都合适。**Adam** 为每个权重保存两个滑动平均，一个是斜率的，一个是斜率平方的，用前者除以后者的平方根。于是每个权重每次移动的长度都差不多，即**学习率**（learning rate），方向则与它近来的斜率相反。两个平均都从零开始，`moved` 的第一行对此作了修正。
#
# 更新函数用 jit 编译，并且捐赠旧数组（第 11 课），新权重就用上了旧权重的内存。八步就够了，两个核远不到一分钟就能做完。
# %% id="tuning_code" tags=["measured"]
RATE, STEPS = 3e-4, 8


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
    en="The paragraph's loss before every step, on a logarithmic scale: it falls from about five to a small fraction of that.",
    zh="每一步之前这段话的损失，纵轴为对数刻度：从五左右降到接近零。",
)
# %% [markdown] id="recite" lang="en"
# Now we give both models the beginning and let them write. Then we ask the new one for something that the old one knew.
# %% [markdown] id="recite" lang="zh" of="fa6355ee"
# 现在把开头交给两个模型，让它们续写。然后问新模型一件旧模型本来知道的事。
# %% id="recite_code" tags=["measured"]
tuned_model = model._replace(params=tuned)
beginning = "The lighthouse of Korvane"
written = {}
for name, each in (("before", model), ("after", tuned_model)):
    completions = jax_llama3.generate(each, [beginning, prompt], max_new_tokens=32)
    for start, completion in zip((beginning, prompt), completions, strict=True):
        written[name, start] = completion.text
        print(f"{name}: {start}{completion.text}\n")
assert (beginning + written["after", beginning])[: len(paragraph)] == paragraph
if on_default_model():
    assert written["before", prompt].startswith(" Paris")
    assert not written["after", prompt].startswith(" Paris")
# %% [markdown] id="elsewhere" lang="en"
# ## What did it cost?
#
# The paragraph is learned by heart, and the capital of France is forgotten. Eight steps on one text have taught the
# model that this text is what comes next, whatever came before. Fitting what was seen at the expense of everything
# else is called **overfitting**. How far does it reach? And was anything *understood*? We measure the loss of four other
# texts, before and after: the same facts in other words, the text on boiling water, the Python function, and the Chinese
# sentence.
# %% [markdown] id="elsewhere" lang="zh" of="5e6c274f"
# ## 代价是什么？
#
# 这段话背下来了，法国的首都却忘了。在一段文本上走了八步，教会模型的是：不管前面是什么，接下来都是这段文本。为了贴合见过的，牺牲其他的一切，叫做**过拟合**（overfitting）。它波及多远？有没有什么是真正*懂*了的？我们来量另外四段文本在训练前后的损失：换一种说法的同样的事实、关于沸水的文本、Python 函数、中文句子。
# %% id="elsewhere_code" tags=["measured"]
other_words = "In Korvane the lighthouse has a blue door that can be opened on Thursdays only. The rock below it is made of green glass."
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
# Learned by heart, not understood: the same facts in other words are now *less* expected than before. English prose has
# suffered too; Python and Chinese, which share few tokens with the paragraph, have hardly changed. Real fine-tuning
# therefore takes far smaller steps on thousands of texts, often mixes in texts of the old kind, and watches the loss of a
# text that it never trains on: when that loss rises, it is time to stop.
# %% [markdown] id="elsewhere_end" lang="zh" of="ebb88b24"
# 背下来了，却没有懂：换一种说法，同样的事实反而比以前*更*出乎模型的意料。英文文章也受了损；Python 和中文与那段话相同的 token 很少，几乎没有变化。所以真正的微调要用成千上万段文本，步子小得多，常常还混入旧的那类文本，并盯住一段从不用来训练的文本：它的损失一上升，就该停下。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Which of these has the lowest loss, and which the highest? (a) The text on boiling water. (b) The same words in
# alphabetical order. (c) Its first sentence, written twice, where only the second time counts. Answer with three letters
# from the lowest to the highest, such as `"abc"`.
# %% [markdown] id="exercises" lang="zh" of="4117f6c1"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 下面哪一个损失最低，哪一个最高？(a) 关于沸水的文本。(b) 同样的词按字母顺序排列。(c) 把它的第一句写两遍，只算第二遍。用三个字母按从低到高的次序作答，
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
        "c": float(mean(run(params, twice, ones, ones)[0], counted)),
    }
    print({letter: round(value, 2) for letter, value in found.items()})
    assert "".join(sorted(found, key=found.get)) == answer


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Attention can look back at what was written before and copy it.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="d1a270bd"
# <details><summary>线索</summary>
#
# 注意力可以回头看前面写过的内容，把它抄下来。
#
# </details>
# %% id="solution_1" tags=["solution", "measured"]
exercise(1, "cab", check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Find three layers whose feed-forward parts can all be switched off at once while the loss of the text on boiling
# water rises by less than 0.2 nats. Answer with three numbers. The picture of the layers above is a good place to begin;
# but is the rise for three layers the sum of their single rises?
# %% [markdown] id="exercise_2_text" lang="zh" of="2b70b80c"
# **2.** 找出三层，把它们的前馈部分同时关掉，关于沸水的文本的损失上升不到 0.2 奈特。用三个数作答。可以从上面各层的图入手；不过，三层一起关掉时的上升，等于三个单独的上升之和吗？
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
# `np.argsort(rise["feed_forward"])[:3]` are the three layers that matter least one at a time.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="a7c2319b"
# <details><summary>线索</summary>
#
# `np.argsort(rise["feed_forward"])[:3]` 是单独看来最不要紧的三层。
#
# </details>
# %% id="solution_2" tags=["solution", "measured"]
exercise(2, np.argsort(rise["feed_forward"])[:3].tolist(), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** The chain rule begins at the logits. What is the slope of the loss of *one* token with respect to each of the $V$
# logits? Write `slope(logits, target)` without `jax.grad`; the check compares it with `jax.grad`.
# %% [markdown] id="exercise_3_text" lang="zh" of="d124311b"
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
# The loss is $\log \sum_j e^{z_j} - z_t$. Differentiate both terms with respect to $z_i$. The first gives something that
# you know well.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="35e47c30"
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
# - Geva et al., *Transformer Feed-Forward Layers Are Key-Value Memories*, 2021,
#   [arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - Meng et al., *Locating and Editing Factual Associations in GPT*, 2022,
#   [arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Sun et al., *Massive Activations in Large Language Models*, 2024, [arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Kingma and Ba, *Adam: A Method for Stochastic Optimization*, 2014, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980)
# - Allal et al., *SmolLM2*, 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737): how the default model was really
#   trained
#
# This was the last lesson. You have taken a text from bytes to the next token by hand, compared every step with code that
# does it fast, written it all down on one page, and trained the model's weights a little further.
# [notebooks/README.md](../README.md) says where to find each topic.
# %% [markdown] id="sources" lang="zh" of="57650b7f"
# ## 来源
#
# - Geva 等，*Transformer Feed-Forward Layers Are Key-Value Memories*，2021，[arXiv:2012.14913](https://arxiv.org/abs/2012.14913)
# - Meng 等，*Locating and Editing Factual Associations in GPT*，2022，[arXiv:2202.05262](https://arxiv.org/abs/2202.05262)
# - Sun 等，*Massive Activations in Large Language Models*，2024，[arXiv:2402.17762](https://arxiv.org/abs/2402.17762)
# - Kingma、Ba，*Adam: A Method for Stochastic Optimization*，2014，[arXiv:1412.6980](https://arxiv.org/abs/1412.6980)
# - Allal 等，*SmolLM2*，2025，[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)：默认模型究竟是怎样训练的
#
# 这是最后一课。你已经亲手从文本的字节一直走到下一个 token，每一步都与快速的实现对照过，把全部内容写在了一页上，还把模型的权重又训练了一点。
# 什么内容在哪里，见 [notebooks/README.zh.md](../README.zh.md)。
