# %% [markdown] id="title" lang="en"
# # 00 · One prompt, one token, the whole map
#
# *Reading time 16 minutes. Before it: Python and matrix products, nothing else. What it proves: a language model is one
# function from numbers to numbers, and the map below shows the function that really runs.*
#
# This page runs a real language model, SmolLM2-135M-Instruct. It was trained to do one thing: given the beginning of a
# text, the **prompt**, say what comes next. It does not read words. The text is cut into pieces, each a word, a part of
# a word or a symbol; such a piece is called a **token**. For every token it knows, the model says how likely that token
# is to be the next one. Hugging Face trained it on two trillion tokens, mostly web pages and code, and then on
# instructions with their answers, which is what "Instruct" means.
#
# Why not Llama 3 itself? The architecture is the same: the same steps in the same order. But Llama 3 8B is sixty times
# as large, takes 16 GB in its own 16-bit format, and asks you to accept Meta's licence first. SmolLM2 comes as one file
# of less than 100 MB (a `GGUF` file with about 4 bits per number; lesson 02 opens it) and runs on any laptop. We widen
# its numbers to 32 bits, `float32`, which changes none of them, and compute with those. Lesson 15 runs the real Llama
# through the same code.
#
# The course takes one prompt, "The capital of France is", through the whole network by hand. This lesson goes all the
# way once, quickly, and draws the map; the other lessons open its boxes one by one. If you have only an hour, there is
# a short route at the end of this page.
# %% [markdown] id="title" lang="zh" of="8bc29016"
# # 00 · 一个提示、一个 token、一张全图
#
# *阅读时间 16 分钟。前置：Python 与矩阵乘法，此外不需要别的。本课证明：语言模型就是一个从数到数的函数，而下面这张图画的，正是真正运
# 行的那个函数。*
#
# 这一页运行的是一个真正的语言模型：SmolLM2-135M-Instruct。训练它只为一件事：给它一段文本的开头，即**提示**（prompt），它说出接下来
# 是什么。它读的不是单词。文本先被切成小段，每段可以是一个词、词的一部分或一个符号；这样的一小段叫作 **token**。对认识的每一个
# token，模型都给出它是下一个 token 的可能性。Hugging Face 用两万亿个 token 训练了它，主要是网页和代码，然后再用指令与对应的回答训
# 练，名字里的“Instruct”就是这个意思。
#
# 为什么不直接用 Llama 3？两者的架构相同：同样的步骤，同样的次序。但 Llama 3 8B 的规模是它的六十倍，按自己的 16 位格式存放要占 16
# GB，而且要先接受 Meta 的许可协议。SmolLM2 只是一个不到 100 MB 的文件（`GGUF` 文件，每个数约占 4 比特，第 02 课会打开它），随便一台
# 笔记本电脑都能运行。我们把其中的数加宽到 32 位，即 `float32`，每个数的值都不变，然后用它们来计算。第 15 课用同样的代码运行真正的
# Llama。
#
# 本课程带着一个提示“The capital of France is”，亲手走完整个网络。这一课先从头到尾快速走一遍，并画出全图；后面的课再把图中的
# 方框一个个打开。如果你只有一小时，本页末尾有一条短路线。
# %% id="setup"
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3_course import bars, close, exercise, expect, load_model, show, trace
from jax_llama3_course.figures import the_map as figures

model = load_model()
# %% [markdown] id="experiment_text" lang="en"
# ## Change one word
#
# An experiment before any explanation. We give the model four prompts that differ in one word, and let it add one token
# to each. What do you expect?
# %% [markdown] id="experiment_text" lang="zh" of="afbc5671"
# ## 只改一个词
#
# 先做实验，再讲道理。我们给模型四个提示，彼此只差一个词，让它各接上一个 token。你猜结果会是什么？
# %% id="experiment_code"
countries = ["France", "Japan", "Germany", "Australia"]
prompts = [f"The capital of {country} is" for country in countries]
completions = jax_llama3.generate(model, prompts, max_new_tokens=1)
for prompt, completion in zip(prompts, completions, strict=True):
    print(f"{prompt} …{completion.text}")

answers = [completion.text for completion in completions]
# en: On the course's own model the answers are known, and `expect` asserts them; another model may give different ones.
# zh: 在本课程自己的模型上，答案是已知的，`expect` 会断言它们；换了别的模型，答案可以不同。
expect(answers, [" Paris", " Tokyo", " Berlin", " Sydney"])
# %% [markdown] id="experiment_end" lang="en"
# One word changed in the middle, and the answer at the end changed with it. So something in there must carry "Japan"
# from the place where it stands to the place where the answer comes out. (Lesson 09 finds out where it travels.) Nobody
# wrote a table of capitals into the program. There is only a long list of numbers that training has found, and a few
# kinds of arithmetic.
#
# The last answer is wrong: the capital of Australia is Canberra. The model was trained to continue texts as people
# write them, and people write wrong sentences too. It says what is likely, not what is true. In exercise 1 you will
# talk it out of Sydney.
# %% [markdown] id="experiment_end" lang="zh" of="1f6c9a8a"
# 中间改了一个词，末尾的答案也跟着变了。所以里面一定有什么东西，把“Japan”从它所在的位置带到了给出答案的位置。（它怎么走，第 09 课
# 会查明。）并没有人把各国首都的表写进程序。程序里只有训练得到的一长串数，和寥寥几种算术。
#
# 最后一个答案是错的：澳大利亚的首都是 Canberra。模型学的是像人那样把文本接着写下去，而人也会写出错误的句子。它说的是什么可能，
# 不是什么属实。在练习 1 里，你可以说服它放弃 Sydney。
# %% [markdown] id="model_text" lang="en"
# ## What a model consists of
#
# `load_model` gave us three things.
#
# - `model.config` says how the network is built: how many numbers here, how many repetitions there. It is a plain record of
#   a dozen values, printed below.
# - `model.params` holds the **parameters**: all the numbers that training has found. Everything the model knows is in them.
# - `model.tokenizer` turns text into numbers and back.
#
# Nothing else is hidden anywhere. The network itself is a function, `jax_llama3.forward`. It takes the parameters and some
# numbers and returns numbers. Call it twice with the same input and you get the same output.
# %% [markdown] id="model_text" lang="zh" of="27b968a6"
# ## 模型由什么组成
#
# `load_model` 给了我们三样东西。
#
# - `model.config` 说明网络的构造：这里有多少个数，那里重复多少次。它只是一个普通的记录，有十来个值，打印在下面。
# - `model.params` 存放**参数**（parameter）：训练得到的所有数。模型知道的一切都在其中。
# - `model.tokenizer` 是分词器（tokenizer），把文本变成数，再变回来。
#
# 除此之外，没有任何东西藏在别处。网络本身是一个函数 `jax_llama3.forward`：传入参数和一些数，返回一些数。用同样的输入调用两次，
# 得到同样的输出。
# %% id="model_code"
config, params, tokenizer = model
D, V, L = config.dim, config.vocab_size, config.n_layers
for name, value in vars(config).items():
    print(f"{name:<15} {value}")

# en: `jax.tree.leaves` lists all arrays in `params`; lesson 02 explains such trees.
# zh: `jax.tree.leaves` 列出 `params` 里的所有数组；这样的树第 02 课会讲。
n_parameters = sum(array.size for array in jax.tree.leaves(params))
assert n_parameters == jax_llama3.count_params(config)
expect(n_parameters, 134_515_008)
print(f"{n_parameters:,} parameters")

# en: Llama 3 8B: about sixty times as many, at two bytes each about 16 GB.
# zh: Llama 3 8B：大约六十倍，每个参数两个字节，约 16 GB。
n_llama3 = jax_llama3.count_params(preset("llama3-8b"))
expect(round(n_llama3 / n_parameters), 60)
assert round(2 * n_llama3 / 1e9) == 16
# %% [markdown] id="ids_text" lang="en"
# ## Text becomes ids
#
# The network computes with numbers only. So there is a fixed list of all tokens that the model knows, its
# **vocabulary**, and each token has a place in that list: its **token id**. The tokenizer cuts our prompt into tokens
# and gives their ids. Look at the spaces: they belong to the tokens, so the tokens' texts joined together are exactly
# the prompt again. Lesson 01 shows how the tokenizer decides where to cut.
# %% [markdown] id="ids_text" lang="zh" of="2979b234"
# ## 文本变成编号
#
# 网络只能对数做计算。因此有一张固定的清单，列出模型认识的所有 token，这就是**词表**（vocabulary）；每个 token 在清单中的位置就是它
# 的**编号**（token id）。分词器把提示切成 token，并给出它们的编号。注意空格：空格属于 token，所以把各个 token 的文本连起来，恰好就
# 是原来的提示。分词器怎样决定在哪里切，第 01 课会讲。
# %% id="ids_code"
prompt = "The capital of France is"
# en: `bos=True` puts the mark for the beginning of a text first, if the model wants one; this one does not (lesson 01).
# zh: `bos=True` 在最前面放上表示文本开头的标记，如果模型需要；这个模型不需要（第 01 课）。
ids = tokenizer.encode(prompt, bos=True)
T = len(ids)
for token in ids:
    print(f"{token:>7}  {tokenizer.decode([token])!r}")

assert tokenizer.decode(ids, skip_special=True) == prompt
assert all(0 <= token < V for token in ids)
expect(ids, [504, 3575, 282, 4649, 314])
# %% [markdown] id="arrays_text" lang="en"
# ## Arrays in JAX
#
# Everything in the network is an **array**: numbers of one kind (its `dtype`), laid out in rows, columns and so on (its
# `shape`). A vector has one axis, a matrix two, and there may be more. If you know NumPy, you know nearly all of it:
# `jax.numpy`, always imported as `jnp`, has the same functions under the same names.
#
# If you don't: operations work number by number. `x.mean(-1)` averages along the last axis, so $[T\ D]$ becomes $[T]$;
# with `keepdims=True` it becomes $[T\ 1]$. `None` in an index adds an axis of size 1, and `...` stands for all axes
# that are not named. Where two shapes differ, an axis of size 1 is repeated to fit. This is called **broadcasting**:
# $[T\ D] / [T\ 1]$ divides each row by its own number.
#
# Four things are different in JAX.
#
# 1. *Arrays never change.* `x[0] = 5` is an error. `x.at[0].set(5)` returns a new array and leaves `x` as it was. So no
#    function can spoil your data: what you passed in is still there afterwards.
# 2. *Numbers have 32 bits, even if you ask for 64.* Where NumPy makes `float64`, JAX makes `float32`, about 7 decimal
#    digits. Asking for `dtype=jnp.float64` is not enough: you get a warning and `float32` all the same. To get 64 bits
#    you have to turn on the setting `jax_enable_x64` as well. The course never needs it.
# 3. *Arrays live on a device*, the processor or a graphics card, and the same code runs on either. `np.asarray` brings
#    an array back to NumPy.
# 4. *A call returns before the work is done.* You notice this only when you measure time. Printing an array, or turning
#    it into a Python number or truth value (as `assert` does), waits for its numbers.
#
# We give each axis a letter and keep it for the whole course: $T$ tokens, $D$ numbers for each token, $V$ tokens in the
# vocabulary, $L$ layers. (A **layer** is a part of the network that is repeated, each time with parameters of its own;
# the map will show it.) The function `trace` asserts that an array has the axes we claim, and prints them.
# %% [markdown] id="arrays_text" lang="zh" of="c232ebd4"
# ## JAX 的数组
#
# 网络中的一切都是**数组**（array）：同一种类的数（`dtype`），按行、列等等排开（`shape`）。向量有一个轴，矩阵有
# 两个，还可以更多。会用 NumPy 就几乎全会了：`jax.numpy`（总是以 `jnp` 的名字导入）有同样的函数、同样的名字。
#
# 没用过也不要紧：运算对每个数逐一进行。`x.mean(-1)` 沿最后一个轴取平均，$[T\ D]$ 变成 $[T]$；加上 `keepdims=True` 则是 $[T\ 1]$。下标里的
# `None` 增加一个大小为 1 的轴，`...` 代表没有写出的所有轴。两个形状不同时，大小为 1 的轴会重复到合适的大小，这叫**广播**（broadcasting）：$[T\ D] / [T\ 1]$ 把每一行除以它自己的那个数。
#
# JAX 有四点不同。
#
# 1. *数组永不改变。* `x[0] = 5` 会报错；`x.at[0].set(5)` 返回一个新数组，`x` 保持原样。所以没有函数能弄坏你的数据：传进去的数组，事后原样还在。
# 2. *数是 32 位，就算你要 64 位。* NumPy 给出 `float64` 的地方，JAX 给出 `float32`，大约 7 位十进制有效数字。写上 `dtype=jnp.float64` 还不够：你会得到一条警告，拿到的仍是 `float32`。要得到 64 位，还必须打开 `jax_enable_x64` 这个设置。本课程用不着它。
# 3. *数组位于某个设备上*：处理器或显卡，同样的代码在两者上都能运行。`np.asarray` 把数组取回 NumPy。
# 4. *函数返回时，计算可能还没完成。* 只有测时间时才会察觉。打印数组，或把它变成 Python 的数或真假值（如 `assert`），会等它的数算好。
#
# 每个轴用一个字母表示，全课程统一：$T$ 个 token，每个 token 有 $D$ 个数，词表里有 $V$ 个 token，共 $L$ 层。（**层**（layer）是网络中重复出现的
# 一部分，每次用各自的参数；图中会画出来。）函数 `trace` 断言数组的轴正如我们所说，并打印出来。
# %% id="arrays_code"
x = jnp.array([1.0, 2.0, 3.0])
try:
    x[0] = 5.0
    raise AssertionError("an array has changed")
except TypeError:
    print("x[0] = 5.0 is refused")
y = x.at[0].set(5.0)
print("x", x, " y", y)
assert x[0] == 1
assert y[0] == 5

assert x.dtype == jnp.float32
assert np.array([1.0]).dtype == np.float64
assert jnp.arange(3).dtype == jnp.int32

# en: Asking for 64 bits gives 32, and a warning.
# zh: 要 64 位，得到的是 32 位和一条警告。
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    asked = jnp.array([1.0], dtype=jnp.float64)
print("asked for float64, got", asked.dtype)
assert asked.dtype == jnp.float32
assert "float64" in str(caught[0].message)
with jax.enable_x64(True):
    assert jnp.array([1.0], dtype=jnp.float64).dtype == jnp.float64

# en: A matrix product, with shapes: [2 3] @ [3 4] is [2 4].
# zh: 矩阵乘法的形状：[2 3] @ [3 4] 得到 [2 4]。
matrix = jnp.ones((2, 3)) @ jnp.ones((3, 4))
trace("matrix", matrix, "2 4")
assert (np.asarray(matrix) == 3).all()

table = jnp.array([[1.0, 3.0], [10.0, 30.0]])
assert (table / table.mean(-1, keepdims=True) == jnp.array([[0.5, 1.5], [0.5, 1.5]])).all()
# %% [markdown] id="rows_text" lang="en"
# ## Ids become rows
#
# An id is only a name: that 504 is smaller than 3575 means nothing. So the first thing the network does is look up each
# id in a table, the **embedding**. It has one row of $D$ numbers for each token of the vocabulary, and training has
# found these numbers, like all the others. $T$ ids become $T$ rows, an array $[T\;D]$. From here on the network sees
# only rows.
#
# In the picture each small rectangle is one number: red above zero, blue below, pale near zero. Only the first 40 of
# each row are drawn.
# %% [markdown] id="rows_text" lang="zh" of="40e1208d"
# ## 编号变成行
#
# 编号只是名字：504 比 3575 小，这没有任何意义。所以网络做的第一件事，是拿每个编号去查一张表，即**嵌入**（embedding）。词表中的每个
# token 在表里占一行，每行 $D$ 个数；这些数和别的参数一样，也是训练得到的。$T$ 个编号变成 $T$ 行，即 $[T\;D]$ 的数组。从这里开始，网络看到的只有行。
#
# 图中每个小方格是一个数：红色大于零，蓝色小于零，颜色浅则接近零。每行只画出前 40 个数。
# %% id="rows_code"
rows = trace("rows", params.embedding[jnp.array(ids)], "T D", T=T, D=D)
assert params.embedding.shape == (V, D)
show(
    figures.text_to_rows(prompt, [tokenizer.decode([token]) for token in ids], ids, rows),
    en="From left to right: the prompt, its five tokens, their ids, and for each id a strip of coloured cells, the first "
    "numbers of its row.",
    zh="从左到右：提示、它的五个 token、各自的编号，以及每个编号对应的一条彩色格子，即那一行开头的一些数。",
)
# %% [markdown] id="forward_text" lang="en"
# ## Ids become logits
#
# Now the whole network in one call. `forward` takes a batch, several rows of ids at once, so our one row goes in as a
# matrix $[1\;T]$. The result holds, for each of the $T$ positions, one number for each of the $V$ tokens of the
# vocabulary. These numbers are the **logits**. The larger a token's logit, the more the model expects this token *right
# after this position*. So row 0 is about what may follow the first token, and the last row is about what may follow the
# whole prompt.
# %% [markdown] id="forward_text" lang="zh" of="e93ec7dd"
# ## 编号变成 logits
#
# 现在一次调用就走完整个网络。`forward` 一次处理一批，即若干行编号；我们只有一行，所以传入一个 $[1\;T]$ 的矩阵。结果里，$T$ 个位置中
# 的每一个都给词表的 $V$ 个 token 各配一个数。这些数就是 **logits**。某个 token 的 logit 越大，模型就越认为它会*紧接在这个位置之
# 后*。所以第 0 行说的是第一个 token 之后可能是什么，最后一行说的是整个提示之后可能是什么。
# %% id="forward_code"
batch = trace("ids", jnp.array([ids]), "1 T", T=T)
# en: The second result is a cache, which we do not use until lesson 10.
# zh: 第二个结果是缓存，第 10 课才用到。
logits, _ = jax_llama3.forward(params, batch, config)
trace("logits", logits, "1 T V", T=T, V=V)
again, _ = jax_llama3.forward(params, batch, config)
assert (again == logits).all()

# en: After each position: the token with the largest logit.
# zh: 每个位置之后：logit 最大的 token。
for t in range(T):
    guess = int(logits[0, t].argmax())
    print(f"after {tokenizer.decode(ids[: t + 1])!r:<28} {tokenizer.decode([guess])!r}")
# %% [markdown] id="softmax_text" lang="en"
# ## Logits become probabilities
#
# Logits may be negative, and their sum is nothing in particular. We want probabilities: numbers from 0 to 1 whose sum
# is 1. The **softmax** makes them. It takes the exponential, which is always positive, and divides by the sum:
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}.$$
#
# A constant added to all logits cancels in this fraction, so only differences count: a token whose logit is larger by 1
# is $e \approx 2.72$ times as likely. That is also why we may subtract the largest logit first. We have to, since
# $e^{100}$ is too large for `float32`.
#
# The function `close` is one of ours: it asserts that two arrays agree number by number, up to a small allowance for
# rounding, and prints what it has checked.
# %% [markdown] id="softmax_text" lang="zh" of="45b7a4f6"
# ## Logits 变成概率
#
# Logits 可以是负数，加起来也没有固定的和。我们要的是概率：0 到 1 之间、总和为 1 的数。**Softmax** 就做这件事：先取指数，指数总是正的，
# 再除以总和，
#
# $$p_i = \frac{e^{z_i}}{\sum_j e^{z_j}}.$$
#
# 给所有 logits 加上同一个常数，会在这个分式中约掉，所以只有差值起作用：一个 token 的 logit 大 1，概率就是 $e \approx 2.72$ 倍。也正因如此，
# 我们可以先减去最大的 logit；而且必须减，因为 $e^{100}$ 超出了 `float32` 的范围。
#
# 函数 `close` 是我们自己的：它断言两个数组逐个数相等（允许很小的舍入误差），并打印检查了什么。
# %% id="softmax_code"
last = logits[0, -1]


def softmax(z):
    powers = jnp.exp(z - z.max())
    return powers / powers.sum()


p = trace("p", softmax(last), "V", V=V)
close(p, jax.nn.softmax(last), atol=1e-6)
close(p.sum(), 1.0, atol=1e-4)
close(softmax(last + 7), p, atol=1e-5)
assert jnp.isinf(jnp.exp(jnp.float32(100)))

likeliest = [int(i) for i in jax.lax.top_k(p, 5)[1]]
for token in likeliest:
    print(f"{token:>7}  {tokenizer.decode([token])!r:<10} {p[token]:.3f}")

# en: How many times as likely the first token is as the second depends on the difference of their logits alone.
# zh: 第一名的概率是第二名的多少倍，只取决于两者 logit 的差。
first, second = likeliest[:2]
np.testing.assert_allclose(p[first] / p[second], jnp.exp(last[first] - last[second]), rtol=1e-3)
# %% id="picture"
show(
    bars(
        [p[token] for token in likeliest],
        [repr(tokenizer.decode([token])) for token in likeliest],
        "probability of being the next token",
    ),
    en="Horizontal bars: the probabilities of the five likeliest next tokens; the first is by far the longest.",
    zh="横向柱状图：五个最可能的下一个 token 的概率，第一个远远长于其余。",
)
# %% [markdown] id="greedy_text" lang="en"
# ## Probabilities become a token, and tokens a text
#
# The simplest choice is to take the likeliest token. This is called the **greedy** choice; lesson 12 has others.
# Softmax does not change the order, so we may as well take the largest logit.
#
# To go on, append the chosen token to the ids and run the network again. That is all there is to writing a text: one
# token at a time, and the same function each time. We do it by hand and compare with `jax_llama3.generate`. That
# function is much faster (lessons 10 and 11 say why), but it must give the same ids.
# %% [markdown] id="greedy_text" lang="zh" of="52a470ec"
# ## 概率变成 token，token 变成文本
#
# 最简单的选法是取最可能的 token，这叫**贪心**（greedy）选法；第 12 课还有别的选法。Softmax 不改变大小顺序，所以直接取最大的 logit
# 也一样。
#
# 要继续写下去，就把选出的 token 接到编号后面，再运行一次网络。写出一段文本不过如此：每次一个 token，每次都是同一个函数。我们亲手做
# 一遍，再与 `jax_llama3.generate` 比较：后者快得多（原因见第 10、11 课），但必须给出同样的编号。
# %% id="greedy_code"
chosen = int(last.argmax())
assert chosen == int(p.argmax())
expect((chosen, tokenizer.decode([chosen])), (7042, " Paris"))
expect(f"{p[chosen]:.2f}", "0.77")

text = [*ids]
for _ in range(2):
    all_logits, _ = jax_llama3.forward(params, jnp.array([text]), config)
    text.append(int(all_logits[0, -1].argmax()))
print(tokenizer.decode(text))

completion = jax_llama3.generate(model, prompt, max_new_tokens=2, ignore_eos=True)
assert text[T:] == list(completion.tokens)
# %% [markdown] id="map_text" lang="en"
# ## The map
#
# What happened inside `forward`? From the bottom up:
#
# - Each id is replaced by its row of the embedding, as we have seen: $T$ ids become an array $[T\;D]$.
# - This array is the start of the **residual stream**, the thick line: $D$ numbers for each position, running from
#   bottom to top. The parts beside it *read* the stream and *add* their results to it. None of them replaces it.
# - A layer has two such parts. **Attention** lets a position read earlier positions as well as itself; it is the only
#   part that carries anything from one token to another. The **feed-forward network** works on each position alone.
#   Both see the stream through a norm, which brings its numbers to a common size.
# - After $L$ layers, a last norm and one matrix turn each position's $D$ numbers into $V$ logits.
#
# Two points are worth a second look, since many drawings get them wrong. The input of a part branches off *before* its
# norm, and the stream itself runs past the norm untouched. And each layer has *two* additions: the feed-forward network
# reads a stream to which attention has already added.
# %% [markdown] id="map_text" lang="zh" of="0dfd4b60"
# ## 全图
#
# `forward` 里面发生了什么？从下往上看：
#
# - 每个编号换成它在嵌入中的那一行，这我们已经见过：$T$ 个编号变成 $[T\;D]$ 的数组。
# - 这个数组是**残差流**（residual stream）的起点，也就是图中的粗线：每个位置 $D$ 个数，从下流到上。旁边的部件从流中*读*，再把结果*加*回流中，谁也不会替换它。
# - 每一层有两个这样的部件。**注意力**（attention）让一个位置除自己之外还读取更早的位置，只有它能把信息从一个 token 传给另一个。**前
#   馈网络**（feed-forward network）则对每个位置单独计算。两者读到的都是归一化之后的残差流，归一化把其中的数调到统一的大小。
# - 经过 $L$ 层之后，最后一次归一化和一个矩阵把每个位置的 $D$ 个数变成 $V$ 个 logits。
#
# 图中有两处值得再看一眼，许多图在这里画错了。部件的输入在归一化*之前*分出，残差流本身从归一化旁边原样流过。另外，每层有*两次*加法：
# 前馈网络读到的，是注意力已经加过之后的流。
# %% id="map"
show(
    figures.network(),
    en="The network from bottom to top: ids, embedding, then a thick line, the residual stream. In each layer two branches "
    "leave it, go through a norm and attention, or a norm and the feed-forward network, and are added back. At the top: "
    "norm, output matrix, logits, softmax, next token.",
    zh="自下而上的网络：编号、嵌入，然后是一条粗线，即残差流。每层有两条支路从它分出，分别经过归一化与注意力、归一化与前馈网络，"
    "再加回去。上方依次是归一化、输出矩阵、logits、softmax、下一个 token。",
)
# %% [markdown] id="proof_text" lang="en"
# ## Is the map true?
#
# A drawing proves nothing, so we check it against the network that ran. `forward` hands every intermediate array, with
# its name, to a function of ours, here `look`, which keeps them in a dictionary. Lesson 03 says more about such functions.
# The names: `resid_pre` is the stream where it enters a layer, `resid_mid` between the two additions, `resid_post`
# where it leaves; `attn.out` and `mlp.out` are what the two parts add.
#
# If the map is right, each addition is exactly an addition, and the stream at the top is the embedding plus everything that
# all layers have added.
# %% [markdown] id="proof_text" lang="zh" of="6daa43c1"
# ## 这张图是真的吗？
#
# 图本身证明不了什么，所以我们拿真正运行过的网络来检验它。`forward` 会把每个中间数组连同名字交给我们的一个函数，这里叫 `look`，它把
# 数组存进字典。这样的函数第 03 课会细说。名字的含义：`resid_pre` 是进入一层时的残差流，`resid_mid` 是两次加法之间的，`resid_post` 是离开这一层时的；`attn.out` 与 `mlp.out` 是两个部件加进去的内容。
#
# 如果图是对的，那么每次加法都恰好是加法，顶端的残差流就等于嵌入加上所有层加进去的一切。
# %% id="proof_code"
seen = {}


def look(name, array):
    seen[name] = array
    return array


jax_llama3.forward(params, batch, config, tap=look)
stream = trace("stream", seen["embed"], "1 T D", T=T, D=D)
close(stream[0], rows, atol=0)
for layer in range(L):
    at = f"layers.{layer}."
    assert (seen[at + "resid_pre"] == stream).all()
    stream = stream + seen[at + "attn.out"]
    assert (seen[at + "resid_mid"] == stream).all()
    stream = stream + seen[at + "mlp.out"]
    assert (seen[at + "resid_post"] == stream).all()
    assert stream.shape == (1, T, D)
print(f"{L} layers, {2 * L} additions, not a bit of difference")

# en: The top of the map: last norm, output matrix.
# zh: 图的顶端：最后的归一化与输出矩阵。
mean_of_squares = (stream**2).mean(-1, keepdims=True)
normed = stream / jnp.sqrt(mean_of_squares + config.norm_eps) * params.norm
output = params.embedding if params.output is None else params.output
close(normed @ output.T, logits, atol=1e-3)
# %% [markdown] id="wrong_map_text" lang="en"
# Can this check fail at all? If the stream went *through* the norm, as the wrong drawings show it, the sums would be
# different. We try that map on the first layer.
#
# The map makes one more claim: only attention connects positions, and it never reads a later one. So if we replace the
# last token of the prompt, everything before the last position must stay as it was.
# %% [markdown] id="wrong_map_text" lang="zh" of="15a8f547"
# 这个检验有可能失败吗？假如残差流真像错误的图那样*穿过*归一化，和就会不同。我们在第一层上试试那种图。
#
# 图里还有一条论断：只有注意力连接不同的位置，而且从不读更晚的位置。因此把提示的最后一个 token 换掉，最后一个位置之前的一切都必须保
# 持原样。
# %% id="wrong_map_code"
start = seen["layers.0.resid_pre"]
through = start / jnp.sqrt((start**2).mean(-1, keepdims=True) + config.norm_eps)
through = through * params.layers[0].attn_norm + seen["layers.0.attn.out"]
difference = float(jnp.abs(through - seen["layers.0.resid_mid"]).max())
assert difference > 0.1
print("the wrong map differs by more than 0.1")

other = batch.at[0, -1].set(ids[0])
other_logits, _ = jax_llama3.forward(params, other, config)
assert (other_logits[:, :-1] == logits[:, :-1]).all()
assert not (other_logits[:, -1] == logits[:, -1]).all()
print(f"last token replaced: the first {T - 1} rows of logits are the same, the last is not")
# %% [markdown] id="course" lang="en"
# ## What the lessons open
#
# | Lesson | Opens |
# |---|---|
# | 01 | "text → ids": how the tokenizer finds where to cut |
# | 02 | the parameters: weight files from several sources, and how they become one tree of arrays |
# | 03 | the embedding, and the norm before every part |
# | 04 | attention: what one position takes from the earlier ones |
# | 05 | how attention knows the order of the tokens |
# | 06 | why attention runs several times side by side, and what is shared |
# | 07 | the feed-forward network, and the whole map as code |
# | 08 | how to know that a network is right: a plausible answer proves little |
# | 09 | experiments: what the stream says halfway up, and what happens when you change something |
# | 10 | writing many tokens without computing the old ones again |
# | 11 | the same, compiled: fast because no shape ever changes |
# | 12 | choosing the next token in ways other than greedy; conversations |
# | 13 | several prompts of different lengths at once |
# | 14 | what all this costs, in operations and in memory traffic |
# | 15 | a model sixty times as large: the same map, the same code |
# | 16 | one page: text to text without this library |
# | 17 | what it was trained for: how wrong its predictions are, as one number, and a minute of training of your own |
# %% [markdown] id="course" lang="zh" of="17a8522d"
# ## 各课打开图中的哪一块
#
# | 课 | 打开的内容 |
# |---|---|
# | 01 | “文本 → 编号”：分词器怎样决定在哪里切 |
# | 02 | 参数：几种来源的权重文件，怎样变成同一棵数组的树 |
# | 03 | 嵌入，以及每个部件之前的归一化 |
# | 04 | 注意力：一个位置从更早的位置取来什么 |
# | 05 | 注意力怎样知道 token 的顺序 |
# | 06 | 注意力为什么要并排做多次，其中又共用什么 |
# | 07 | 前馈网络，以及写成代码的全图 |
# | 08 | 怎样知道网络是对的：看似合理的回答说明不了什么 |
# | 09 | 实验：残差流在半路上说些什么，改动某处会怎样 |
# | 10 | 连续写出许多 token，而不重算旧的 |
# | 11 | 同一件事，编译之后：形状从不改变，所以快 |
# | 12 | 用贪心之外的方法选下一个 token；对话 |
# | 13 | 同时处理多个长短不一的提示 |
# | 14 | 这一切的代价：运算量与内存读写量 |
# | 15 | 大六十倍的模型：同一张图，同样的代码 |
# | 16 | 一页代码：不用本库，从文本到文本 |
# | 17 | 它是为什么而训练的：用一个数说明它的预测错得多厉害，再亲手训练一分钟 |
# %% [markdown] id="route" lang="en"
# ## If you have one hour
#
# Read this lesson and then only the sections named here. Each name is a heading to look for on the linked page.
#
# - This lesson, all of it.
# - [04](04_one_head.ipynb#maps), `One head in three pictures`: which token looks at which.
# - [05](05_rope.ipynb#circle_text), `RoPE in one picture: arrows that turn`: a position becomes an angle.
# - [07](07_the_whole_network.ipynb#whole), `The whole network` and `The next token`: the map of this lesson as a few
#   lines of code.
# - [09](09_experiments.ipynb#lens), `The logit lens` and `Patching: where is "France"?`: reading the stream halfway up, then
#   changing it.
# - [10](10_generating.ipynb#needed), `What a new token needs`: why the next token costs so little work.
#
# Nothing has to be run: the pages show all results. If a section uses a name that you have not met, go up the page to its
# definition.
# %% [markdown] id="route" lang="zh" of="0ba448a1"
# ## 如果你只有一小时
#
# 读完这一课，然后只读这里列出的几节。每个名字都是链接所指页面上的一个标题。
#
# - 这一课，从头到尾。
# - [04](04_one_head.ipynb#maps)，`三幅图看懂一个头`：哪个 token 看哪个 token。
# - [05](05_rope.ipynb#circle_text)，`一幅图看懂 RoPE：转动的箭头`：位置怎样变成角度。
# - [07](07_the_whole_network.ipynb#whole)，`完整的网络` 与 `下一个 token`：本课的全图写成几行代码。
# - [09](09_experiments.ipynb#lens)，`logit 透镜` 与 `打补丁：“France”在哪里？`：先在半路上读残差流，再去改动它。
# - [10](10_generating.ipynb#needed)，`新 token 需要什么`：为什么下一个 token 只需要很少的计算。
#
# 什么都不必运行，页面上已有全部结果。某一节用到没见过的名字时，往上翻就能找到它的定义。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Talk the model out of Sydney. Write a prompt about Australia after which " Canberra" is the likeliest next
# token. The prompt must not contain the word Canberra.
# %% [markdown] id="exercises" lang="zh" of="bf1679fe"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 说服模型放弃 Sydney。写一个关于 Australia 的提示，使最可能的下一个 token 是“ Canberra”。提示里不能出现 Canberra 这个词。
# %% id="exercise_1"
answer_1 = None


def next_token(prompt):
    logits, _ = jax_llama3.forward(params, jnp.array([tokenizer.encode(prompt, bos=True)]), config)
    return tokenizer.decode([int(logits[0, -1].argmax())])


def check_1(answer):
    assert "Australia" in answer
    assert "canberra" not in answer.lower()
    print(f"{answer} …{next_token(answer)}")
    expect(next_token(answer), " Canberra")


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Arguing does not help: after "... is not Sydney but" this model says Melbourne. Which words stand near "Canberra" in
# texts that people write? Think of what the city is known for.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="e85a7d8e"
# <details><summary>线索</summary>
#
# 争辩没有用：在“... is not Sydney but”之后，这个模型会说 Melbourne。人们写的文本里，“Canberra”附近常有哪些词？想想这座城市以什么闻名。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, "The federal capital of Australia is", check_1)

# en: Arguing does not help.
# zh: 争辩没有用。
arguing = "The capital of Australia is not Sydney but"
print(f"{arguing} …{next_token(arguing)}")
expect(next_token(arguing), " Melbourne")
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Predict before you run. We replace the token at position 2, " of", with " Paris" and leave the others alone. At
# which positions will the logits change? Give a set of positions; the first is 0. The check then tries it.
# %% [markdown] id="exercise_2_text" lang="zh" of="a1e536eb"
# **2.** 先预测，再运行。我们把位置 2 的 token “ of”换成“ Paris”，其余不动。哪些位置的 logits 会改变？用一个集合给出这些位置，第一个位置是 0。
# 检查代码会真的做一遍。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    changed, _ = jax_llama3.forward(params, batch.at[0, 2].set(chosen), config)
    differs = (changed != logits)[0].any(axis=-1)
    print("positions whose logits have changed:", [t for t in range(T) if differs[t]])
    assert answer == {t for t in range(T) if differs[t]}


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Which positions read position 2? Attention reads the position itself and earlier ones, never later ones.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="d45fa3a5"
# <details><summary>线索</summary>
#
# 哪些位置会读取位置 2？注意力读取自己和更早的位置，从不读更晚的位置。
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, set(range(2, T)), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** `forward` goes on with whatever `look` returns. So such a function can also *change* the network. Write one
# that returns zeros for the output of attention in every layer and everything else unchanged. What can the last row of
# logits still know about the prompt? The check compares it with a prompt that has only the last token.
# %% [markdown] id="exercise_3_text" lang="zh" of="40a9e267"
# **3.** `look` 返回什么，`forward` 就接着用什么。所以这样的函数还能*改动*网络的计算。写一个函数：对每一层注意力的输出返回零，其余原
# 样返回。这时，最后一行 logits 还能知道提示的哪些内容？检查代码把它与只含最后一个 token 的提示相比较。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    whole, _ = jax_llama3.forward(params, batch, config, tap=answer)
    alone, _ = jax_llama3.forward(params, batch[:, -1:], config, tap=answer)
    close(whole[0, -1], alone[0, -1], atol=1e-3)
    assert jnp.abs(whole[0, -1] - last).max() > 1
    guess = tokenizer.decode([int(whole[0, -1].argmax())])
    print(f"without attention: {prompt} …{guess}")


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# The names are those of the proof above: the output of attention in layer 7 is called `layers.7.attn.out`. You can test
# a name with `name.endswith(...)`, and `0 * array` has the right shape.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="87142f52"
# <details><summary>线索</summary>
#
# 名字就是上面证明里用的那些：第 7 层注意力的输出叫 `layers.7.attn.out`。可以用 `name.endswith(...)` 判断名字；`0 * array` 的形状正合适。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, lambda name, array: 0 * array if name.endswith("attn.out") else array, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Allal and others, *SmolLM2: When Smol Goes Big*, 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737), and the
#   model card of [SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct), which says what
#   it was trained on
# - Meta, *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783), and the model card
#   of [Meta-Llama-3-8B](https://huggingface.co/meta-llama/Meta-Llama-3-8B), where you accept the licence
# - Vaswani and others, *Attention Is All You Need*, 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - He and others, *Deep Residual Learning for Image Recognition*, 2015, [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - The JAX documentation on [32 and 64 bits](https://docs.jax.dev/en/latest/default_dtypes.html)
#
# Next: lesson 01 opens the first arrow, from text to ids.
# %% [markdown] id="sources" lang="zh" of="a0942d16"
# ## 来源
#
# - Allal 等，*SmolLM2: When Smol Goes Big*，2025，[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)；以及 [SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) 的模型卡，其中说明了训练数据
# - Meta，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)；以及
#   [Meta-Llama-3-8B](https://huggingface.co/meta-llama/Meta-Llama-3-8B) 的模型卡，在那里接受许可协议
# - Vaswani 等，*Attention Is All You Need*，2017，[arXiv:1706.03762](https://arxiv.org/abs/1706.03762)
# - He 等，*Deep Residual Learning for Image Recognition*，2015，[arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - JAX 文档中关于 [32 位与 64 位](https://docs.jax.dev/en/latest/default_dtypes.html) 的说明
#
# 下一课：第 01 课打开第一个箭头，从文本到编号。
