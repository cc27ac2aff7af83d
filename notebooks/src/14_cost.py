# %% [markdown] id="title" lang="en"
# # 14 · What it costs: FLOPs, bytes, roofline, measured
#
# *Reading time 25 minutes. Before it: lessons 07 and 10 to 13. What it proves: operations counted by hand agree with
# XLA's own count, and bytes counted by hand are a lower bound on XLA's; together with two limits of the machine they say
# how fast a model can be.*
#
# How fast can a model write? You can answer that before you reach for a stopwatch. A forward pass has to do a certain
# number of operations and read a certain number of bytes, and a machine manages only so many of each per second. One
# operation on floating-point numbers, an addition or a multiplication, is a **FLOP**. FLOPs measure an amount of work,
# FLOP/s a speed; the two are easily confused.
#
# We count operations and bytes by hand, compare them with the compiler's count, measure the machine, and put everything
# into one picture. Then we ask what could make a model faster: a GPU, smaller numbers, or a cleverer way to compute
# attention.
# %% [markdown] id="title" lang="zh" of="4fadc78f"
# # 14 · 代价：FLOP、字节、roofline 与实测
#
# *阅读时间 25 分钟。前置：第 07 课、第 10 至 13 课。本课证明：亲手数出的运算次数与 XLA 自己的计数一致，亲手数出的字节数是 XLA 计数的下界；再加上机器的两个
# 极限，就能说出一个模型最快能有多快。*
#
# 一个模型能写多快？不用秒表也能回答。一次前向计算必须完成一定次数的运算，也必须读取一定数量的字节；而机器每秒能做的运算、
# 能读的字节都是有限的。对浮点数做一次加法或一次乘法，叫做一个 **FLOP**。FLOPs 是工作量，FLOP/s 是速度，两者很容易混淆。
#
# 我们亲手数出运算次数和字节数，与编译器的计数对照，再测量机器，把一切放进同一张图。然后再问怎样才能更快：换一块 GPU、用更小的数，还是用更巧的注意力算法。
# %% id="setup"
import dataclasses
import math
import statistics
import time
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import jax_llama3
from jax_llama3.bench.cost import cache_bytes_per_token, forward_flops, weight_bytes
from jax_llama3.bench.limits import bandwidth_probe, peak_flops
from jax_llama3.bench.presets import preset
from jax_llama3.kernels import ops_for
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.linear import linear
from jax_llama3.model.ops import PLAIN
from jax_llama3.model.params import contracted_axes
from jax_llama3.model.quantization import dequantize, quantize, quantize_array
from jax_llama3_course import close, exercise, expect, load_model, on_default_model, show, trace
from jax_llama3_course.figures import cost as figures

model = load_model()
config, params = model.config, model.params
llama = preset("llama3-8b")
ids = model.tokenizer.encode("The capital of France is", bos=True)
D, V, F = config.dim, config.vocab_size, config.ffn_dim
N, K, H, L = config.n_heads, config.n_kv_heads, config.head_dim, config.n_layers
# %% [markdown] id="product" lang="en"
# ## Operations: one product
#
# A matrix product makes $T \times F$ numbers. Each is a sum of $D$ products: $D$ multiplications and (nearly) $D$
# additions. So applying a weight $[F\ D]$ to $T$ tokens costs
#
# $$2\,T\,F\,D \text{ operations}, \qquad (TD + FD + TF) \times \text{bytes per number}.$$
#
# The second count is what has to move: the input and the weight are read, the result is written. JAX can tell us what
# XLA, its compiler, makes of a compiled program: `cost_analysis()` gives operations and bytes, `memory_analysis()` the
# sizes of its buffers. Nothing has to run; shapes are enough. For one product, XLA's count equals ours to the last
# operation.
# %% [markdown] id="product" lang="zh" of="93517958"
# ## 运算次数：一次乘积
#
# 一次矩阵乘积产生 $T \times F$ 个数，每个数是 $D$ 个乘积之和：$D$ 次乘法和（差不多）$D$ 次加法。所以把权重 $[F\ D]$ 作用于 $T$ 个
# token，需要
#
# $$2\,T\,F\,D \text{ 次运算}, \qquad (TD + FD + TF) \times \text{每个数的字节数}.$$
#
# 后一个量是必须搬运的字节：读输入、读权重、写结果。JAX 可以告诉我们，它的编译器 XLA 如何看待编译好的程序：`cost_analysis()` 给出
# 运算次数和字节数，`memory_analysis()` 给出各缓冲区的大小。什么都不必运行，有形状就够了。对于一次乘积，它的计数与我们的完全相同。
# %% id="product_code"
cpu = jax.devices("cpu")[0]


def shaped(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def analyse(function, *arguments):
    with jax.default_device(cpu):
        compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.cost_analysis(), compiled.memory_analysis()


T = 64
cost, memory = analyse(lambda x, w: jnp.einsum("TD,FD->TF", x, w), shaped(T, D), shaped(F, D))
assert cost["flops"] == 2 * T * F * D
assert cost["bytes accessed"] == 4 * (T * D + F * D + T * F)
assert memory.output_size_in_bytes == 4 * T * F
print(f"{T} tokens times [F D]: {cost['flops']:,.0f} FLOPs, {cost['bytes accessed']:,.0f} bytes")


# %% [markdown] id="network" lang="en"
# ## Operations: the network
#
# The network is a list of such products, so we only have to add them up. We count weights, each of which costs two
# operations. For each layer and token there are $NHD$ weights for the queries, $KHD$ each for keys and values, $DNH$ for
# the way back to the residual stream, and three matrices of $FD$ in the feed-forward network. At the end come $VD$ more
# for every token whose logits we want.
#
# Attention itself has no weights, but it has products. A query and a key make one score: $H$ multiplications and
# additions. That score then weights the $H$ numbers of a value, which takes as many again. So each pair of a token and
# one that it may see costs $4H$ operations in each of the $N$ heads. $T$ new tokens after $P$ old ones make
#
# $$\text{pairs} = T P + \frac{T (T + 1)}{2},$$
#
# because every new token sees all the old ones, itself, and the new ones before it. We leave out norms, RoPE, softmax and
# SiLU: they cost a few operations per number, where a product costs hundreds.
# %% [markdown] id="network" lang="zh" of="1e2bfecb"
# ## 运算次数：整个网络
#
# 网络就是一串这样的乘积，加起来就行。先数权重，每个权重要两次运算。每层、每个 token：查询 $NHD$ 个，键和值各 $KHD$ 个，回到残差流的 $DNH$ 个，再加前馈网络的三个 $FD$ 矩阵。最后，每个需要 logits 的 token 再加 $VD$ 个。
#
# 注意力本身没有权重，却有乘积。一个查询与一个键产生一个分数：$H$ 次乘法和 $H$ 次加法；这个分数再给一个值的 $H$ 个元素加权，又是同样多。所以一个
# token 与一个它能看到的 token 组成一对，在 $N$ 个头的每一个里要花 $4H$ 次运算。在 $P$ 个旧 token 之后的 $T$ 个新 token 组成
#
# $$\text{对的个数} = T P + \frac{T (T + 1)}{2},$$
#
# 因为每个新 token 都看得到全部旧 token、它自己，以及排在它前面的新 token。归一化、RoPE、softmax 和 SiLU 不计：它们对每个数只做几次运算，
# 而乘积要做几百次。
# %% id="network_code"
def count_flops(config, tokens, depth, logits):
    c = config
    queries_and_back = 2 * c.n_heads * c.head_dim * c.dim
    keys_and_values = 2 * c.n_kv_heads * c.head_dim * c.dim
    matrices = queries_and_back + keys_and_values + 3 * c.ffn_dim * c.dim
    pairs = tokens * depth + tokens * (tokens + 1) // 2
    attention = 4 * c.head_dim * c.n_heads * pairs
    return c.n_layers * (2 * tokens * matrices + attention) + 2 * logits * c.vocab_size * c.dim


for each in (config, llama):
    for sizes in ((1, 0, 1), (64, 0, 1), (1, 1000, 1), (7, 300, 7)):
        assert count_flops(each, *sizes) == forward_flops(each, *sizes)

for name, each in (("this model", config), ("Llama 3 8B", llama)):
    one = count_flops(each, 1, 0, 1)
    unread = 0 if each.tie_embeddings else each.vocab_size * each.dim
    read = jax_llama3.count_params(each) - unread
    assert abs(one / (2 * read) - 1) < 0.01
    print(f"{name}: {one / 1e9:.3f} GFLOPs for one token, {one / read:.3f} per parameter read")
# %% [markdown] id="two" lang="en"
# Hence the rule of thumb: **two operations per parameter and token**. Each parameter is read and takes part in one
# multiplication and one addition. Attention's share grows slowly: how many cached tokens does it take before attention
# costs as much as all the matrices together?
# %% [markdown] id="two" lang="zh" of="f11a4b4a"
# 由此得到一条经验法则：**每个参数、每个 token 两次运算**。一个参数读进来，乘一次，加一次。注意力的份额增长得很慢：缓存里要有多少个 token，注意力的代价才赶得上所有矩阵之和？
# %% id="two_code"
for name, each in (("this model", config), ("Llama 3 8B", llama)):
    per_old_token = 4 * each.head_dim * each.n_heads * each.n_layers
    same = count_flops(each, 1, 0, 1) / per_old_token
    assert count_flops(each, 1, math.ceil(same), 1) >= 2 * count_flops(each, 1, 0, 1)
    print(f"{name}: {per_old_token:,} FLOPs per old token; as much as the rest at {same:,.0f}")


# %% [markdown] id="xla" lang="en"
# ## What XLA counts
#
# Now the whole network, without a cache, as XLA compiled it. XLA must find all of our operations, and it finds more, for
# two reasons. First, the causal mask saves nothing here: the product computes all $T^2$ scores, and the mask then throws
# the upper half away. So XLA counts $T^2$ pairs where the mask lets $T(T+1)/2$ through. Second, it counts the small
# things that we left out. They had better be small: we allow one per cent. We give the library its plain operations, so
# that XLA sees every product; the next section says why.
# %% [markdown] id="xla" lang="zh" of="a909de1d"
# ## XLA 数出来的
#
# 现在看 XLA 编译出的整个网络，不带缓存。它必须找到我们数的全部运算；它还会多数出一些，原因有两个。第一，因果掩码在这里什么也没省：乘积算出全部 $T^2$ 个
# 分数，掩码再扔掉右上的一半；掩码只放行 $T(T+1)/2$ 对，XLA 数的却是 $T^2$ 对。第二，它把我们略去的小项也数了进去。这些必须很小：我们只允许它们占百分之一。这里让本库使用普通运算，好让 XLA 看见每个乘积；原因见下一节。
# %% id="xla_code"
def plain_logits(config, params, tokens):
    return jax_llama3.forward(params, tokens, config, ops=PLAIN)[0]


def abstract(config, dtype="float32"):
    return jax_llama3.abstract_params(config, dtype)


def hidden_pairs(config, tokens):
    masked = tokens**2 - tokens * (tokens + 1) // 2
    return 4 * config.head_dim * config.n_heads * config.n_layers * masked


T = 64
weights = abstract(config)
cost, memory = analyse(partial(plain_logits, config), weights, shaped(1, T, dtype="int32"))
ours = count_flops(config, T, 0, T)
square = ours + hidden_pairs(config, T)
assert ours < square <= cost["flops"] < 1.01 * square
print(f"by hand, pairs that the mask lets through: {ours:,}")
print(f"by hand, all pairs:                        {square:,}")
print(f"XLA:                                       {cost['flops']:,.0f}")
print(f"the small things: {cost['flops'] / square - 1:.2%} more")
# %% [markdown] id="quadratic_text" lang="en"
# To test the part that grows with the square of $T$, two layers of the model are enough. With twice the tokens, the
# matrices cost twice as much, so in $f(2T) - 2 f(T)$ only the quadratic part remains: $4HNL\,(4T^2 - 2T^2)$.
# %% [markdown] id="quadratic_text" lang="zh" of="fa2d120c"
# 要检验随 $T$ 的平方增长的那部分，取模型的两层就够了。token 数加倍，矩阵的代价也加倍；所以 $f(2T) - 2 f(T)$ 剩下的只有平方部分，即
# $4HNL\,(4T^2 - 2T^2)$。
# %% id="quadratic_code"
short = dataclasses.replace(config, n_layers=2)


def analyse_short(tokens):
    row = shaped(1, tokens, dtype="int32")
    return analyse(partial(plain_logits, short), abstract(short), row)


T = 256
(once, _), (twice, _) = analyse_short(T), analyse_short(2 * T)
quadratic = twice["flops"] - 2 * once["flops"]
expected = 4 * H * N * short.n_layers * (4 * T**2 - 2 * T**2)
assert abs(quadratic / expected - 1) < 0.1
print(f"quadratic part: XLA / by hand = {quadratic / expected:.2f}")
# %% [markdown] id="blind" lang="en"
# ## What XLA cannot see
#
# XLA counts what it can see. On a CPU, if numba is installed, `jax_llama3` hands its products to small kernels of its
# own: one for one to three rows and one for twelve or more, where they are faster than XLA's product. To XLA that is a
# call to outside code, and it counts nothing for it. So the same analysis of a single token reports almost no work at
# all. A number from a tool is not yet a fact: compare it with what must be true.
#
# For decoding, therefore, we analyse a form in which XLA sees everything: four rows, too many for one kernel and too few
# for the other, and a tap, which makes the library compute all scores in the open. Each row then attends to all $S$ slots
# of its cache.
# %% [markdown] id="blind" lang="zh" of="f68fc695"
# ## XLA 看不见的地方
#
# XLA 只数它看得见的东西。在 CPU 上，若装有 numba，`jax_llama3` 会把乘积交给自己的小内核：一个管一到三行，一个管十二行及以上，在这些情况下它们比 XLA 的乘积快。对 XLA 来说这是一次对外调用，计为零。于是同样的分析用在单个 token 上，报告里几乎没有工作量。工具给出的数字还不是事实：要拿必然成立的事去对照。
#
# 因此对于解码，我们换一种 XLA 能完整看见的形式：四行（对一个内核太多，对另一个太少），再加一个探针，有了它，本库就会把全部分数都明着算出来。这样每一行都要看
# 自己缓存的全部 $S$ 个槽位。
# %% id="blind_code"
fastest = partial(jax_llama3.forward, config=short)
one_token, _ = analyse(fastest, abstract(short), shaped(1, 1, dtype="int32"))
share = one_token["flops"] / count_flops(short, 1, 0, 1)
assert share < 0.01 if has_kernels() else 0.99 < share < 1.02
print(f"one token, kernels {has_kernels()}: XLA sees {share:.1%} of the work")


def open_tap(name, array):
    return array


B, S = 4, 128
cache = jax.eval_shape(partial(jax_llama3.init_cache, short, B, S, jnp.float32))
step = partial(jax_llama3.decode, config=short, tap=open_tap)
decoded, _ = analyse(step, abstract(short), shaped(B, dtype="int32"), cache)
ours = B * count_flops(short, 1, S - 1, 1)
assert ours <= decoded["flops"] < 1.02 * ours
print(f"decoding {B} rows over {S} slots: XLA / by hand = {decoded['flops'] / ours:.3f}")


# %% [markdown] id="bytes" lang="en"
# ## Bytes: the weights
#
# A forward pass reads every weight once, whether it serves one token or a thousand. The one exception is an embedding
# that does not double as the output matrix: of it, only the rows of the tokens at hand are read.
# %% [markdown] id="bytes" lang="zh" of="e39e265a"
# ## 字节：权重
#
# 每次前向计算都要把每个权重读一遍，不管是为一个 token 还是为一千个。唯一的例外是不兼作输出矩阵的嵌入：只需读出用到的那几个 token 的行。
# %% id="bytes_code"
def count_bytes(config, itemsize):
    c = config
    queries_and_back = 2 * c.n_heads * c.head_dim * c.dim
    keys_and_values = 2 * c.n_kv_heads * c.head_dim * c.dim
    layer = queries_and_back + keys_and_values + 3 * c.ffn_dim * c.dim + 2 * c.dim
    return itemsize * (c.n_layers * layer + c.dim + c.vocab_size * c.dim)


for each in (config, llama):
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        assert count_bytes(each, itemsize) == weight_bytes(abstract(each, dtype))
assert count_bytes(config, 4) == weight_bytes(params)
assert 15.0e9 < count_bytes(llama, 2) < 15.05e9
print(f"this model, float32: {count_bytes(config, 4) / 1e9:.2f} GB a forward pass")
print(f"Llama 3 8B, bfloat16: {count_bytes(llama, 2) / 1e9:.2f} GB a forward pass")

# en: XLA's buffers: the weights and the ids come in, the logits go out.
# zh: XLA 的缓冲区：输入是权重和编号，输出是 logits。
T = 64
held = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(weights))
assert memory.argument_size_in_bytes - held == 4 * T
assert memory.output_size_in_bytes == 4 * T * V
assert cost["bytes accessed"] > weight_bytes(weights)
print(f"temporary memory: {memory.temp_size_in_bytes / 1e6:.2f} MB")
_, shallow = analyse_short(T)
assert memory.temp_size_in_bytes < 2 * shallow.temp_size_in_bytes


# %% [markdown] id="bytes_note" lang="en"
# The sizes of the buffers are exact. The temporary memory is small, and it does not grow with the number of layers: each
# layer reuses the room that the one before it has freed. XLA's count of bytes for a whole network is looser: it adds up
# what every operation reads and writes, though much of that never leaves the processor's own cache. Our count is the
# least that must come from memory; XLA's lies above it.
#
# ## Bytes: the cache
#
# A decoding step also reads the keys and values of all tokens so far, and stores its own. Over all layers, one token takes
#
# $$2 \cdot L \cdot K \cdot H \cdot \text{bytes per number}.$$
#
# It says $K$ here and not $N$: that is what grouped queries save.
# %% [markdown] id="bytes_note" lang="zh" of="9830a540"
# 缓冲区的大小是精确的。临时内存很小，也不随层数增长：每一层都在前一层腾出的地方工作。XLA 对整个网络的字节计数要宽松些：它把每个操作的读和写都加起来，尽管其中许多从未离开处理器自己的高速缓存。我们数的是必须从内存读取的最少字节，XLA 的数比它大。
#
# ## 字节：缓存
#
# 解码一步还要读取此前所有 token 的键和值，并存下自己的。一个 token 在所有层里共占
#
# $$2 \cdot L \cdot K \cdot H \cdot \text{每个数的字节数}.$$
#
# 这里是 $K$ 而不是 $N$：这正是分组查询省下来的。
# %% id="cache_code"
def kv_bytes(config, itemsize):
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * itemsize


capacity = 16
real = jax_llama3.init_cache(config, 1, capacity, jnp.bfloat16)
trace("cache.k[0]", real.k[0], "B S K H", B=1, S=capacity, K=K, H=H)
assert sum(each.nbytes for each in (*real.k, *real.v)) == capacity * kv_bytes(config, 2)
assert kv_bytes(config, 2) == cache_bytes_per_token(config, 2)
assert kv_bytes(llama, 2) == 131_072

# en: `expect` checks a number that is known for the course's own model; with another model it does nothing.
# zh: `expect` 核对在课程自己的模型上已知的数；换了别的模型，它什么也不做。
expect(kv_bytes(config, 2), 23_040)
print(f"bytes per token in bfloat16: {kv_bytes(config, 2):,}; Llama 3 8B: {kv_bytes(llama, 2):,}")
full = llama.max_seq_len * kv_bytes(llama, 2)
assert full == 2**30
print(f"Llama 3 8B at its full context of {llama.max_seq_len:,} tokens: {full:,} bytes a row")
# %% [markdown] id="with_without" lang="en"
# ## With a cache and without
#
# Lesson 10 showed that both give the same tokens. Now we can say what the cache saves. Without a cache, each new token
# takes a forward pass over the whole text; to compile only once, we pad the text to a fixed width, which the causal mask
# makes harmless. With a cache, each new token costs a single row.
# %% [markdown] id="with_without" lang="zh" of="b0bf4b6f"
# ## 有缓存与没有缓存
#
# 第 10 课证明了两者给出同样的 token。现在可以算出缓存省了多少。没有缓存时，每个新 token 都要对整段文本做一次前向计算；为了只编译一次，
# 我们把文本填充到固定宽度，有因果掩码在，这样做无害。有缓存时，每个新 token 只需算一行。
# %% id="with_without_code"
n_new, width = 16, 32
start = len(ids)
without = n_new * count_flops(config, width, 0, width)
with_cache = count_flops(config, start, 0, 1)
with_cache += sum(count_flops(config, 1, start + i, 1) for i in range(n_new - 1))
print(
    f"{n_new} tokens without a cache: {without / 1e9:.0f} GFLOPs, with one {with_cache / 1e9:.1f}"
)
print(f"ratio {without / with_cache:.0f}")
assert without > 20 * with_cache


@jax.jit
def next_token(params, tokens, last):
    return jnp.argmax(jax_llama3.forward(params, tokens, config)[0][0, last])


def generate_without_cache(n):
    row = np.zeros((1, width), np.int32)
    row[0, :start] = ids
    for position in range(start, start + n):
        row[0, position] = next_token(params, row, position - 1)
    return row[0, start : start + n].tolist()


def generate_with_cache(model):
    return jax_llama3.generate(model, ids, max_new_tokens=n_new, ignore_eos=True)


small = model._replace(params=quantize(params))
cached = generate_with_cache(model)
assert generate_without_cache(1) == cached.tokens[:1]
print(repr(model.tokenizer.decode(cached.tokens[:8])))
# %% id="speeds" tags=["measured"]
begin = time.perf_counter()
tokens_without = generate_without_cache(n_new)
seconds_without = time.perf_counter() - begin
assert tokens_without == cached.tokens
speed = generate_with_cache(model).generation_tps
small_speed = generate_with_cache(small).generation_tps
print(f"without a cache      {n_new / seconds_without:6.1f} tokens/s")
print(f"with a cache         {speed:6.1f} tokens/s")
print(f"with int8 weights    {small_speed:6.1f} tokens/s")


# %% [markdown] id="not_the_ratio" lang="en"
# Compare the ratio of the times with the ratio of the operations: it is far smaller. The long pass does many times more work
# per second than the single row. So operations alone do not explain how long decoding takes. Bytes do.
#
# ## The roofline
#
# A machine has two limits: how many operations it does in a second, its peak, and how many bytes it reads from memory in
# a second, its **bandwidth**. A piece of work takes at least the longer of these two times:
#
# $$\text{time} \ge \max\left(\frac{\text{FLOPs}}{\text{peak}},\ \frac{\text{bytes}}{\text{bandwidth}}\right).$$
#
# Which of the two is longer depends on a single number, the **arithmetic intensity**, FLOPs per byte:
# $I = \text{FLOPs} / \text{bytes}$. The speed that can be reached is then
#
# $$\text{FLOP/s} \le \min(\text{peak},\ I \cdot \text{bandwidth}).$$
#
# Drawn over $I$ this is a slope and then a flat top: the **roofline**. The corner is at
# $I = \text{peak} / \text{bandwidth}$. Left of it memory decides, right of it arithmetic. Decoding one row does two
# operations for each weight of four bytes (float32): $I = 1/2$, as far to the left as you can be. A prompt of $T$ tokens
# uses each weight $T$ times: $I \approx T/2$.
# %% [markdown] id="not_the_ratio" lang="zh" of="fc864936"
# 把时间之比与运算次数之比对照一下：前者小得多。长的那次计算每秒完成的运算是单行的许多倍。可见光凭运算次数解释不了解码要花多久；
# 字节数可以。
#
# ## roofline 模型
#
# 机器有两个极限：每秒能做多少次运算，即峰值；以及每秒能从内存读多少字节，即**带宽**（bandwidth）。一件工作所需的时间，至少是下面两个时间中较长的那个：
#
# $$\text{时间} \ge \max\left(\frac{\text{FLOPs}}{\text{峰值}},\ \frac{\text{字节数}}{\text{带宽}}\right).$$
#
# 哪个更长，取决于一个数，即**算术强度**（arithmetic intensity），也就是每字节的 FLOPs：$I = \text{FLOPs} / \text{字节数}$。于是能达到的速度是
#
# $$\text{FLOP/s} \le \min(\text{峰值},\ I \cdot \text{带宽}).$$
#
# 以 $I$ 为横轴画出来，先是一段斜坡，然后是平顶：这就是 **roofline**（屋顶线）。拐角在 $I = \text{峰值} / \text{带宽}$ 处。拐角左边由内存决定，右边由运算决定。单行解码对每个四字节的权重（float32）做两次运算：$I = 1/2$，已经在最左边了。$T$ 个 token 的提示把每个权重用 $T$ 次，因此 $I \approx T/2$。
# %% id="intensity"
def intensity(config, itemsize, rows=1, tokens=1, depth=0):
    flops = rows * count_flops(config, tokens, depth, 1)
    cached = rows * (depth + tokens) * kv_bytes(config, itemsize)
    return flops / (count_bytes(config, itemsize) + cached)


for B in (1, 8, 64):
    near, far = intensity(llama, 2, B), intensity(llama, 2, B, depth=8000)
    print(f"8B, bfloat16, {B:>2} rows: {near:6.2f} FLOPs a byte; after 8,000 tokens {far:5.2f}")
assert abs(intensity(config, 4) - 0.5) < 0.01
assert abs(intensity(llama, 2) - 1) < 0.01
assert abs(intensity(llama, 2, tokens=512) / 512 - 1) < 0.1

# en: Batches have a limit: with ever more rows the intensity tends to attention's own, N/K, plus the FLOPs of
# en: the weights divided by the bytes of one row's cache.
# zh: 批次有极限：行数越来越多时，强度趋于注意力自身的强度 N/K，再加上权重的 FLOPs 除以一行缓存的字节数。
limit = 4 * llama.head_dim * llama.n_heads * llama.n_layers / kv_bytes(llama, 2)
assert limit == llama.n_heads / llama.n_kv_heads == 4
weights_only = count_flops(llama, 1, 0, 1) / (8000 * kv_bytes(llama, 2))
assert intensity(llama, 2, 10**6, depth=8000) < limit + weights_only
# %% [markdown] id="batching" lang="en"
# ## Moving along the roofline
#
# There are two ways to move to the right. **More rows**: a batch reads the weights once for all of its rows, so $B$ rows
# give $B$ times the intensity, and nearly $B$ times the tokens in the same time, until the corner is reached. The caches
# are not shared: each row reads its own, so with long texts the gain ends early. **Fewer bytes**: quantised weights of
# one byte have four times the intensity of float32, and a step that is limited by memory takes a quarter of the time.
#
# A third way leaves the intensity alone and moves the limit: a machine with more bandwidth. The table below is for Llama
# 3 8B on a processor that reads 3.35 TB/s, the data sheet's figure for NVIDIA's H100 SXM. Nothing in the table is
# measured; it says what the bytes allow.
# %% [markdown] id="batching" lang="zh" of="69f53c95"
# ## 沿着屋顶线移动
#
# 往右走有两条路。**更多的行**：一个批次的所有行只需读一遍权重，所以 $B$ 行的强度是 $B$ 倍，同样时间里产出的 token 也接近 $B$ 倍，直到拐角为止。缓存则无法共享：每行都要读自己的，所以文本一长，收益很快就到头。**更少的字节**：量化成一字节的权重，强度是 float32 的四倍，
# 受内存限制的一步只要四分之一的时间。
#
# 还有第三条路，强度不变，改变极限：换带宽更大的机器。下表是 Llama 3 8B 在一个每秒能读 3.35 TB 的处理器上的情形，这是 NVIDIA H100 SXM 数据手册上的
# 数值。表中没有一个数是测出来的；它说的是字节数所允许的上限。
# %% id="batching_code"
bandwidth_h100 = 3.35e12


def bound(nbytes, rows, depth):
    return rows * bandwidth_h100 / (nbytes + rows * depth * kv_bytes(llama, 2))


int8 = weight_bytes(jax.eval_shape(quantize, abstract(llama, "bfloat16")))
bfloat16 = count_bytes(llama, 2)
assert 0.5 < int8 / bfloat16 < 0.51
for name, nbytes in (("bfloat16", bfloat16), ("int8", int8)):
    for B in (1, 16):
        bounds = [bound(nbytes, B, depth) for depth in (0, 8000)]
        print(f"{name:>8} weights, {B:>2} rows: at most {bounds[0]:6,.0f} tokens/s,", end=" ")
        print(f"after 8,000 tokens {bounds[1]:6,.0f}")
assert round(bound(bfloat16, 1, 0)) == 223
assert bound(bfloat16, 16, 0) == 16 * bound(bfloat16, 1, 0)
assert bound(bfloat16, 16, 8000) < 9 * bound(bfloat16, 1, 8000)


# %% [markdown] id="roofline_text" lang="en"
# Now this machine. `bandwidth_probe` reads 512 MB against the clock, `peak_flops` multiplies large matrices. The circles
# show one matrix of the model, the output matrix, multiplied by 1 to 256 rows; the other two marks show the whole model,
# decoding and reading a prompt. Everything is in float32.
# %% [markdown] id="roofline_text" lang="zh" of="2831f80f"
# 现在看这台机器。`bandwidth_probe` 读 512 MB 并计时，`peak_flops` 乘大矩阵。圆点是模型中的一个矩阵（输出矩阵）与 1 到 256 行相乘；另外两个点是整个模型：解码，以及读提示。全部用 float32。
# %% id="roofline" tags=["measured"]
def median_seconds(function, *arguments):
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


bandwidth, peak = bandwidth_probe()(), peak_flops(jnp.float32)
corner = peak / bandwidth
print(
    f"{bandwidth / 1e9:.1f} GB/s, {peak / 1e9:.0f} GFLOP/s: the corner is at {corner:.1f} FLOPs a byte"
)

products = ops_for(jax.default_backend(), 1, 64).products
head = jax.jit(lambda x, w: linear("BTD,VD->BTV", x, w, products=products))
output = params.embedding if params.output is None else params.output
where, reached = [], []
for T in (1, 4, 16, 64, 256):
    flops, nbytes = 2 * T * V * D, 4 * (T * D + V * D + T * V)
    where.append(flops / nbytes)
    reached.append(flops / median_seconds(head, jnp.ones((1, T, D)), output))
long = 64
prompt = (ids * long)[:long]
for _ in range(2):
    one_pass = jax_llama3.generate(model, prompt, max_new_tokens=n_new, ignore_eos=True)
prefill_speed = one_pass.prompt_tps * count_flops(config, long, 0, 1) / long
decode_speed = speed * count_flops(config, 1, start + n_new // 2, 1)
drawn = [
    figures.Points("output matrix, 1 4 16 64 256 rows", "o", where, reached),
    figures.Points("whole model, decoding", "s", [intensity(config, 4)], [decode_speed]),
    figures.Points(
        "whole model, prompt of 64", "^", [intensity(config, 4, tokens=long)], [prefill_speed]
    ),
]
show(
    figures.roofline(peak, bandwidth, drawn),
    en="A slope that turns flat: decoding and one row stand at the foot of the slope, four rows far below it, many rows "
    "and the prompt right of the corner.",
    zh="先是斜坡后是平顶：解码和单行乘积在斜坡脚下，四行的乘积远在线下方，行数多的乘积和读提示在拐角右边。",
)
# %% [markdown] id="reading" lang="en"
# How do you read such a picture? A point on the *slope* needs no faster code: only fewer bytes, more rows or a machine
# with more bandwidth would help. A point at the *flat top* gains nothing from fewer bytes; it needs fewer operations, or
# a machine that does more of them. And a point *far below* the line spends time that the model of two limits does not
# explain. There it pays to look.
#
# Here the circle for four rows is such a point. It has four times the intensity of one row and yet hardly more speed. You
# met the reason above: four rows are too many for one kernel and too few for the other. So XLA computes the product
# itself, and on a CPU it first copies the weight into another order, which takes more time than multiplying it by four
# rows. The check below asks XLA which of the products it computes itself. (A point may even stand a little above the
# line: the limits are measured too, and a small machine is never quiet.)
# %% [markdown] id="reading" lang="zh" of="b546e9ff"
# 这样的图怎么读？*斜坡*上的点不需要更快的代码：只有减少字节、增加行数，或者换带宽更大的机器才有用。*平顶*处的点，减少字节毫无用处；它需要的是更少的运算，或者每秒能做更多运算的机器。而*远在线下方*的点，有一部分时间是两个极限解释不了的，值得去查。
#
# 这里就是四行的那个圆点。它的强度是单行的四倍，速度却几乎没有提高。原因前面已经见过：四行对一个内核太多，对另一个又太少。于是由 XLA 自己来算，而它在 CPU 上会先把权重按另一种次序复制一份，这比拿权重去乘四行还费时间。下面的检查就是问 XLA：哪些乘积是它自己算的。
# （点甚至可能略高于线：极限本身也是测出来的，而小机器上总有别的程序在运行。）
# %% id="reading_code"
for rows in (1, 4, 16):
    product, _ = analyse(head, shaped(1, rows, D), shaped(V, D))
    share = product["flops"] / (2 * rows * V * D)
    print(f"{rows:>2} rows: XLA itself does {max(share, 0):.0%} of the work")
    if rows == 1 and has_kernels():
        assert share < 0.01
    if rows == 4:
        assert share > 0.99
# %% [markdown] id="gpu" lang="en"
# ## How a GPU compares
#
# What changes on a GPU? Both limits, and not by the same factor. For the H100 SXM, NVIDIA's data sheet gives 1,979
# TFLOP/s in bfloat16 "with sparsity", which is 989 for ordinary (dense) matrices, and 3.35 TB/s. The picture sets these
# figures beside those that we measured on this machine. The dots are not measured: they are Llama 3 8B at the intensities
# that we counted, placed on the GPU's line.
#
# The corner has moved to the right, to 295 FLOPs a byte. A GPU is even more starved for bytes than a CPU: to use all of
# its arithmetic when decoding, it needs about 295 rows at once, with nothing cached. With 8,000 tokens cached, no number
# of rows is enough, because the intensity has a limit, and that limit is far below the corner. So servers batch, and the
# cache decides how much they gain by it.
# %% [markdown] id="gpu" lang="zh" of="f0462e72"
# ## 与 GPU 相比
#
# 换成 GPU 会怎样？两个极限都变了，但倍数不同。NVIDIA 的数据手册给出，H100 SXM 的 bfloat16 是 1,979 TFLOP/s（“with sparsity”，稀疏），对普通（稠密）矩阵就是
# 989；带宽 3.35 TB/s。图中把它们与这台机器上测得的数并列。黑点不是测出来的：它们是 Llama 3 8B 按上文数出的强度，标在 GPU 的线上。
#
# 拐角移到了右边，到了每字节 295 次运算。GPU 比 CPU 更缺字节：解码时要用满它的运算能力，在缓存为空时大约要同时算 295 行。缓存了 8,000 个 token
# 之后，多少行都不够，因为强度有极限，而极限远在拐角左边。所以服务器都做批处理，而收益有多大，由缓存决定。
# %% id="gpu_code"
peak_h100 = 1979e12 / 2
corner_h100 = peak_h100 / bandwidth_h100
assert round(corner_h100) == 295


def least_seconds(flops, nbytes):
    return max(flops / peak_h100, nbytes / bandwidth_h100)


assert 290 < next(B for B in range(1, 1000) if intensity(llama, 2, B) > corner_h100) < 310
assert intensity(llama, 2, 10**6, depth=8000) < 20 < corner_h100
print(f"corner at {corner_h100:.0f} FLOPs a byte")
# %% id="gpu_picture" tags=["measured"]
work = [
    ("decoding, 1 row", intensity(llama, 2)),
    ("64 rows, 8,000 cached", intensity(llama, 2, 64, depth=8000)),
    ("64 rows", intensity(llama, 2, 64)),
    ("prompt of 2,000", intensity(llama, 2, tokens=2000)),
]
machines = [("this machine, float32", peak, bandwidth)]
machines += [("H100 SXM, bfloat16, data sheet", peak_h100, bandwidth_h100)]
show(
    figures.two_rooflines(machines, work),
    en="Two rooflines, the GPU's far above and with its corner further to the right; on it, decoding stands low on the slope, the "
    "prompt on the flat top.",
    zh="两条屋顶线，GPU 的高得多，拐角也更靠右；线上，解码在斜坡低处，读提示在平顶上。",
)
# %% [markdown] id="first" lang="en"
# ## The first token and those after it
#
# The two kinds of work explain something that you have surely seen: a chat model pauses, and then its words stream out.
# The pause is the **time to first token**. The prompt is read in one pass, at the flat top: its time grows with the
# prompt and is decided by operations. Every token after that is one row at the foot of the slope: its time is decided by
# bytes, and hardly depends on the prompt. Reading a token costs a small fraction of what writing one costs.
#
# In numbers, for Llama 3 8B at the data sheet's limits: a prompt of 2,000 tokens takes at least 29 ms, which is 15 µs a
# token. Each token after it takes at least 4.6 ms. So reading a long text is cheap, and writing one is expensive. Below,
# we measure the same on this machine.
# %% [markdown] id="first" lang="zh" of="2a4e5a0f"
# ## 第一个 token 与其后的 token
#
# 这两类工作解释了你一定见过的现象：聊天模型先停顿一下，然后一个个词飞快地冒出来。停顿的这段时间就是**首 token 延迟**（time to first token）。提示是一次读完的，位于平顶：
# 所需时间随提示变长，由运算次数决定。其后的每个 token 是斜坡脚下的一行：所需时间由字节数决定，与提示长短几乎无关。读一个 token 的代价，只有写一个 token 的一小部分。
#
# 以 Llama 3 8B 和数据手册上的极限来算：2,000 个 token 的提示至少要 29 毫秒，合每个 token 15 微秒；其后的每个 token 至少要 4.6 毫秒。所以读长文便宜，写长文贵。下面还有这台机器上的实测。
# %% id="first_code"
prompts = [2**n for n in range(4, 14)]
first = [
    least_seconds(count_flops(llama, T, 0, 1), count_bytes(llama, 2) + T * kv_bytes(llama, 2))
    for T in prompts
]
read = least_seconds(count_flops(llama, 2000, 0, 1), count_bytes(llama, 2))
written = least_seconds(
    count_flops(llama, 1, 2000, 1), count_bytes(llama, 2) + 2000 * kv_bytes(llama, 2)
)
assert 0.029 < read < 0.030
assert 14e-6 < read / 2000 < 15e-6
assert 0.0045 < written < 0.0047
assert written > 250 * read / 2000
show(
    figures.seconds_to_tokens(prompts, first, written),
    en="The least time to the first token: level for short prompts, then rising in proportion to the prompt; the time of a "
    "token after it is a level line at the bottom.",
    zh="首 token 的最短时间：提示短时是平的，之后与提示长度成正比上升；其后每个 token 的时间是底部的一条水平线。",
)
# %% id="first_measured" tags=["measured"]
after = one_pass.generation_seconds / one_pass.generation_tokens
print(f"prompt of {long} tokens: first token after {one_pass.prompt_seconds:.2f} s")
print(f"each token after it: {after:.3f} s; a token read: {one_pass.prompt_seconds / long:.4f} s")
assert one_pass.prompt_seconds / long < after


# %% [markdown] id="int8" lang="en"
# ## The price of int8
#
# Fewer bytes mean more speed, as you saw when we timed the int8 weights. What do they cost? Int8 keeps each weight as a
# whole number from $-127$ to 127. Each row of a matrix, which is one of its outputs, gets one scale: the row's largest
# absolute value divided by 127. So no weight moves by more than half a step. We do that by hand, for any number of bits;
# for eight bits, the library's `quantize` gives the same numbers.
#
# Then we look at what comes out. To compare two predictions $p$ and $q$ of the next token, there is one number that takes
# in the whole vocabulary, the **KL divergence**:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i} .$$
#
# It is never negative, and zero only where both are equal. It says how much log-probability is lost, on average, if the
# tokens come from $p$ and you expected $q$. At 0.001 nats you would hardly notice; at 1 the two tell different stories.
# %% [markdown] id="int8" lang="zh" of="4b6b6a36"
# ## int8 的价格
#
# 字节少，速度就快，前面给 int8 权重计时的时候已经看到了。代价是什么？int8 把每个权重存成 $-127$ 到 127 的整数，矩阵的每一行（也就是它的每个输出）再存一个缩放系数：该行最大的绝对值除以 127。这样，每个权重的移动都不超过半格。我们亲手对任意比特数做一遍；取八比特时，本库的 `quantize` 给出同样的数。
#
# 然后看输出。要比较下一个 token 的两种预测 $p$ 和 $q$，有一个数顾及整个词表，即 **KL 散度**（KL divergence）：
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \log \frac{p_i}{q_i} .$$
#
# 它从不为负，只有两者相等时才是零。它的意思是：如果 token 实际按 $p$ 出现，而你预期的是 $q$，平均会损失多少对数概率。0.001 奈特几乎察觉不到；到了 1，
# 两者讲的就是不同的故事了。
# %% id="int8_code" tags=["measured"]
@partial(jax.jit, static_argnames="contracted")
def rounded(weight, contracted, bits):
    levels = 2.0 ** (bits - 1) - 1
    axes = tuple(range(-contracted, 0))
    scale = jnp.abs(weight).max(axis=axes, keepdims=True) / levels
    return jnp.round(weight / jnp.where(scale == 0, 1, scale)) * scale


def with_bits(params, bits):
    def each(path, leaf):
        contracted = contracted_axes(jax.tree_util.keystr(path, simple=True, separator="."))
        return rounded(leaf, contracted, bits) if contracted else leaf

    return jax.tree_util.tree_map_with_path(each, params)


theirs = dequantize(quantize_array(params.layers[0].wo, 2), jnp.float32)
close(rounded(params.layers[0].wo, 2, 8), theirs, atol=1e-6)
step = jnp.abs(params.layers[0].wo).max(axis=(1, 2)) / 127
moved = jnp.abs(theirs - params.layers[0].wo).max(axis=(1, 2))
assert (moved <= 0.5001 * step).all()

text = "Water boils when its vapour pressure equals the pressure of the air around it. High in the "
text += (
    "mountains the air is thin, so water boils at a lower temperature, and potatoes take longer."
)
row = np.array([model.tokenizer.encode(text, bos=True)])


def log_probabilities(params):
    return jax.nn.log_softmax(jax_llama3.forward(params, row, config)[0][0])


def kl(log_p, log_q):
    return float((jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean())


exact = log_probabilities(params)
assert abs(kl(exact, exact)) < 1e-6
bits = [8, 7, 6, 5, 4]
found = {}
for each in bits:
    log_q = log_probabilities(with_bits(params, each))
    found[each] = kl(exact, log_q)
    same = float((log_q.argmax(-1) == exact.argmax(-1)).mean())
    print(
        f"{each} bits: KL {found[each]:.4f} nats, the same first choice at {same:.0%} of positions"
    )

library = log_probabilities(small.params)
print(f"`quantize`: KL {kl(exact, library):.4f} nats")
ratio = count_bytes(config, 4) / weight_bytes(small.params)
print(f"bytes: float32 / int8 = {ratio:.2f}")
assert all(found[more] < found[fewer] for more, fewer in pairwise(bits))
if on_default_model():
    assert 3.9 < ratio < 4
    assert kl(exact, library) < 0.01
# %% id="int8_picture"
show(
    figures.by_bits(bits, [found[each] for each in bits]),
    en="KL divergence against bits per weight: lowest at eight bits and rising steeply, by about the same factor for every bit "
    "taken away.",
    zh="KL 散度随每个权重的比特数变化：八比特时最低，每去掉一个比特就陡增大致相同的倍数。",
)
# %% [markdown] id="int8_end" lang="en"
# Eight bits cost next to nothing, and only a quarter of the bytes are read. Each bit that you take away doubles the step,
# and twice the error means about four times the divergence, which grows with the square of the error near its minimum.
# Four-bit files, such as the one this model comes from, therefore do not use one scale for a whole row: they have one for
# every 32 weights.
# %% [markdown] id="int8_end" lang="zh" of="fe08794d"
# 八比特几乎没有代价，读取的字节却只有四分之一。每少一个比特，格子就宽一倍；误差大一倍，散度大约变成四倍，因为它在最小值附近按误差的平方增长。所以四比特的文件（本模型就来自这样一个文件）不让整行共用一个缩放系数，而是每 32 个权重用一个。
# %% [markdown] id="flash" lang="en"
# ## Flash attention: never write the scores down
#
# There is one more way to move fewer bytes. Attention over $T$ tokens makes a square of $T \times T$ scores for every
# head, writes it, reads it for the softmax, and reads it again for the weighted sum. With 8,000 tokens and 32 heads, the
# scores of one layer take 8 GB, for a result of $T \times N \times H$ numbers. Must the square exist at all?
#
# The weighted sum could be built up tile by tile, a few keys at a time, and each tile forgotten. What seems to stand in
# the way is the softmax: it divides by a sum over *all* keys, and to be safe from overflow it subtracts the *largest*
# score of all. Both are known only at the end. **Flash attention** carries three things along for every query: the
# largest score so far, $m$, the sum of $e^{s - m}$ so far, and the sum of $e^{s - m} v$ so far. When a tile brings a
# larger score, both sums are too large by the same known factor, $e^{m_\text{new} - m_\text{old}}$, and are shrunk by it.
# At the end one sum is divided by the other.
# %% [markdown] id="flash" lang="zh" of="f4f2187e"
# ## flash attention：根本不写下分数
#
# 还有一种减少字节的办法。对 $T$ 个 token 的注意力，每个头都要造出一个 $T \times T$ 的分数方阵，写下来，计算 softmax 时读一遍，计算加权和时再读一遍。8,000 个 token、32 个头时，一层就有 8 GB，而结果只有 $T \times N \times H$ 个数。这个方阵非得存在吗？
#
# 加权和本可以一块一块地累加，每次取几个键，用完就丢。看上去，拦路的是 softmax：它要除以对*所有*键求的和，为了不溢出还要减去*最大*的分数，
# 而这两样都要到最后才知道。**flash attention** 为每个查询随身带着三样东西：目前为止最大的分数 $m$，目前为止 $e^{s - m}$ 之和，目前为止 $e^{s - m} v$ 之和。
# 当某一块带来更大的分数时，两个和都大了同一个已知的倍数 $e^{m_\text{新} - m_\text{旧}}$，按它缩小即可。最后把两个和相除。
# %% id="flash_picture"
show(
    figures.tiles(),
    en="A square of scores with queries down and keys across, of which one column of tiles is filled; beside it three boxes: "
    "the largest score so far and two sums.",
    zh="分数的方阵，纵向是查询，横向是键，其中一列块被填上颜色；旁边三个方框：目前最大的分数和两个和。",
)


# %% id="flash_code"
def full_attention(q, k, v):
    scores = q @ k.T / q.shape[-1] ** 0.5
    visible = jnp.arange(len(k)) <= jnp.arange(len(q))[:, None]
    return jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1) @ v


def flash_attention(q, k, v, tile):
    # en: One step for each tile; the keys and values of a last, shorter tile are filled up with zeros.
    # zh: 每块走一步；最后一块不足时，键和值用零补齐。
    filled = -len(k) % tile
    keys, values = (jnp.pad(x, ((0, filled), (0, 0))).reshape(-1, tile, H) for x in (k, v))

    def step(state, part):
        largest, total, mixed = state
        first, keys, values = part
        scores = q @ keys.T / H**0.5
        visible = first + jnp.arange(tile) <= jnp.arange(len(q))[:, None]
        scores = jnp.where(visible, scores, -jnp.inf)
        new_largest = jnp.maximum(largest, scores.max(-1, keepdims=True))
        shrink = jnp.exp(largest - new_largest)
        powers = jnp.exp(scores - new_largest)
        total = total * shrink + powers.sum(-1, keepdims=True)
        mixed = mixed * shrink + powers @ values
        return (new_largest, total, mixed), None

    start = jnp.full((len(q), 1), -jnp.inf), jnp.zeros((len(q), 1)), jnp.zeros((len(q), H))
    firsts = jnp.arange(len(keys)) * tile
    (_, total, mixed), _ = jax.lax.scan(step, start, (firsts, keys, values))
    return mixed / total


seen = {}


def keep(name, array):
    seen[name] = array
    return array


jax_llama3.forward(params, row, config, tap=keep)
layer = f"layers.{L // 2}.attn."
for head_number, tile in ((0, 1), (0, 16), (N - 1, 7), (N - 1, row.shape[1])):
    q = seen[f"{layer}q"][0, :, head_number]
    k, v = (seen[layer + name][0, :, head_number * K // N] for name in "kv")
    by_tiles = flash_attention(q, k, v, tile)
    close(by_tiles, full_attention(q, k, v), atol=1e-5)
    close(by_tiles, seen[f"{layer}z"][0, :, head_number], atol=1e-5)
# %% [markdown] id="flash_memory" lang="en"
# The result is the same whatever the size of a tile. And the memory? We ask XLA for the temporary memory of both forms,
# compiled for 2,048 tokens and one head. The full form needs at least the whole square of scores, the other about one
# tile's width of it.
# %% [markdown] id="flash_memory" lang="zh" of="87b1386d"
# 不管块有多大，结果都一样。那么内存呢？我们向 XLA 询问两种写法的临时内存，按 2,048 个 token、一个头编译。完整的写法至少需要整个分数方阵，
# 另一种大约只需要其中一块的宽度。
# %% id="flash_memory_code"
T, tile = 2048, 128
arguments = [shaped(T, H)] * 3
_, whole_memory = analyse(full_attention, *arguments)
_, tiled_memory = analyse(partial(flash_attention, tile=tile), *arguments)
assert whole_memory.temp_size_in_bytes >= 4 * T * T
assert tiled_memory.temp_size_in_bytes < whole_memory.temp_size_in_bytes / 10
assert 4 * 32 * 8000**2 > 8e9
print(f"scores [T T]: {4 * T * T / 1e6:.1f} MB; a tile: {4 * T * tile / 1e6:.1f} MB")
print(f"temporary memory: full {whole_memory.temp_size_in_bytes / 1e6:.1f} MB,", end=" ")
print(f"tiled {tiled_memory.temp_size_in_bytes / 1e6:.1f} MB")
# %% [markdown] id="flash_end" lang="en"
# There are as many operations as before, so this helps where bytes decide, which on a GPU is nearly everywhere. There a
# tile stays in the small fast memory beside the arithmetic, and the square never touches the large slow one. Tiles that
# the mask hides altogether (grey in the drawing) can be skipped, which nearly halves the operations, too.
# %% [markdown] id="flash_end" lang="zh" of="c7a4a347"
# 运算次数与原来一样多，所以这种办法在由字节数决定的地方才有用，而在 GPU 上几乎处处如此。在那里，一块分数留在运算单元旁边小而快的存储器里，整个方阵从不碰大而慢的
# 显存。完全被掩码遮住的块（图中灰色）可以跳过，于是运算也省了将近一半。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Llama 3 8B on the H100 of the data sheet, 8,000 tokens cached in each row. You may halve the bytes of *one*
# thing: the weights (int8) or the cache (int8). Which gives more tokens a second with 1 row? Which with 64? Predict, then
# let the cell compute it. Answer with a pair of words, each `"weights"` or `"cache"`.
# %% [markdown] id="exercises" lang="zh" of="4e3d168b"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 数据手册上的 H100，Llama 3 8B，每行缓存了 8,000 个 token。只能把*一样*东西的字节数减半：权重（int8）或缓存（int8）。1 行时，减哪一样每秒产出的 token 更多？64 行时呢？先预测，再让单元格去算。用两个词作答，每个是 `"weights"` 或 `"cache"`。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    better = []
    for rows in (1, 64):
        cached = rows * 8000 * kv_bytes(llama, 2)
        seconds = {
            "weights": (int8 + cached) / bandwidth_h100,
            "cache": (bfloat16 + cached * 0.52) / bandwidth_h100,
        }
        better.append(min(seconds, key=seconds.get))
        print(
            f"{rows:>2} rows:", {name: f"{rows / s:,.0f} tokens/s" for name, s in seconds.items()}
        )
    assert list(answer) == better


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Halving helps most where most of the bytes are. Each row's 8,000 tokens take about 1 GB; the weights take 15 GB, once
# for all rows.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="ae89857d"
# <details><summary>线索</summary>
#
# 字节最多的地方，减半最有用。每行的 8,000 个 token 大约占 1 GB；权重一共 15 GB，只读一次。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(1, ("weights", "cache"), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Somebody deletes `* shrink` in both lines of `flash_attention`. Most results are then wrong, but not all. Find a
# row of 8 scores, not all equal, for which tiles of 2 still give the right softmax.
# %% [markdown] id="exercise_2_text" lang="zh" of="3ee230cf"
# **2.** 有人把 `flash_attention` 里两处 `* shrink` 都删掉了。这样大多数结果就错了，但并非全部。给出 8 个不全相等的分数，使得每块取 2 个时仍能得到正确的 softmax。
# %% id="exercise_2"
answer_2 = None


def without_shrink(scores, tile):
    largest, total, powers = -np.inf, 0.0, []
    for first in range(0, len(scores), tile):
        largest = max(largest, *scores[first : first + tile])
        powers += [math.exp(score - largest) for score in scores[first : first + tile]]
        total = sum(powers)
    return np.array(powers) / total


def check_2(answer):
    assert len(answer) == 8
    assert len(set(answer)) > 1
    np.testing.assert_allclose(
        without_shrink(answer, 2), jax.nn.softmax(np.array(answer)), rtol=1e-3
    )


rising = [float(n) for n in range(8)]
assert np.abs(without_shrink(rising, 2) - np.asarray(jax.nn.softmax(jnp.array(rising)))).max() > 0.1
exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# `shrink` is $e^{m_\text{old} - m_\text{new}}$. When is it 1 in every tile after the first?
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="728d037e"
# <details><summary>线索</summary>
#
# `shrink` 是 $e^{m_\text{旧} - m_\text{新}}$。什么时候它在第一块之后的每一块里都等于 1？
#
# </details>
# %% id="solution_2" tags=["solution"]
exercise(2, [3.0, 1.0, 2.0, 0.0, -1.0, 2.5, 1.5, 0.5], check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Round only one part of the network to 5 bits: the embedding (which here is the output matrix as well), all of
# attention's matrices, or all of the feed-forward part's. Which one changes the predictions most? Predict first; the cell
# then measures the KL divergence of each. Answer `"embedding"`, `"attention"` or `"feed-forward"`.
# %% [markdown] id="exercise_3_text" lang="zh" of="94067032"
# **3.** 只把网络的一个部分舍入到 5 比特：嵌入（在这里兼作输出矩阵）、注意力的全部矩阵，或前馈部分的全部矩阵。哪一个对预测的影响最大？先猜；单元格随后量出各自的 KL 散度。
# 回答 `"embedding"`、`"attention"` 或 `"feed-forward"`。
# %% id="exercise_3"
answer_3 = None
fields = {"attention": ("wq", "wk", "wv", "wo"), "feed-forward": ("w_gate", "w_up", "w_down")}


def only(part, coarse):
    if part == "embedding":
        return params._replace(embedding=coarse.embedding, output=coarse.output)
    layers = [
        layer._replace(**{name: getattr(other, name) for name in fields[part]})
        for layer, other in zip(params.layers, coarse.layers, strict=True)
    ]
    return params._replace(layers=tuple(layers))


def check_3(answer):
    coarse = with_bits(params, 5)
    moved = {
        part: kl(exact, log_probabilities(only(part, coarse))) for part in ("embedding", *fields)
    }
    print({part: round(value, 4) for part, value in moved.items()})
    assert answer == max(moved, key=moved.get)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Think of how many matrices there are of each kind, and of how many layers an error has to pass through. Then try; there
# are only three answers.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="3db0c183"
# <details><summary>线索</summary>
#
# 想想每一类各有多少个矩阵，误差又要穿过多少层。然后试一试，答案只有三种。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, "feed-forward", check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Williams, Waterman and Patterson, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*,
#   2009, [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kaplan et al., *Scaling Laws for Neural Language Models*, 2020, [arXiv:2001.08361](https://arxiv.org/abs/2001.08361)
# - Dao et al., *FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness*, 2022,
#   [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)
# - Milakov and Gimelshein, *Online normalizer calculation for softmax*, 2018,
#   [arXiv:1805.02867](https://arxiv.org/abs/1805.02867)
# - NVIDIA, *H100 Tensor Core GPU*, data sheet, column H100 SXM,
#   [nvidia.com](https://www.nvidia.com/en-us/data-center/h100/)
# - [docs/performance.md](../../docs/performance.md): measurements of this library, beside others
#
# Next: lesson 15 turns to the real Llama 3 8B.
# %% [markdown] id="sources" lang="zh" of="6d89674c"
# ## 来源
#
# - Williams、Waterman、Patterson，*Roofline: An Insightful Visual Performance Model for Multicore Architectures*，2009，
#   [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kaplan 等，*Scaling Laws for Neural Language Models*，2020，[arXiv:2001.08361](https://arxiv.org/abs/2001.08361)
# - Dao 等，*FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness*，2022，
#   [arXiv:2205.14135](https://arxiv.org/abs/2205.14135)
# - Milakov、Gimelshein，*Online normalizer calculation for softmax*，2018，[arXiv:1805.02867](https://arxiv.org/abs/1805.02867)
# - NVIDIA，*H100 Tensor Core GPU* 数据手册，H100 SXM 一栏，[nvidia.com](https://www.nvidia.com/en-us/data-center/h100/)
# - [docs/performance.md](../../docs/performance.md)：本库的实测结果，与其他实现并列
#
# 下一课：第 15 课来看真正的 Llama 3 8B。
