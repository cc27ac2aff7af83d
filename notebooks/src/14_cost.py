# %% [markdown] id="title" lang="en"
# # 14 · What it costs: FLOPs, bytes, roofline, measured
#
# *Reading time 20 minutes. Before it: lessons 10 to 13. What it proves: the operations counted by hand agree with
# XLA's own count, and the bytes bound XLA's from below; together with two limits of the machine they say how fast a model can be.*
#
# How fast can a model write? Before any stopwatch there is arithmetic. A forward pass has to do a number of operations, and
# it has to read a number of bytes; a machine does so many of each in a second. One operation on floating point numbers, an
# addition or a multiplication, is a **FLOP**. FLOPs are an amount of work, FLOP/s a speed; the two are easily mixed up.
#
# We count both by hand, compare with what the compiler counts, measure the machine, and put all of it into one picture.
# %% [markdown] id="title" lang="zh" of="767c6a0d"
# # 14 · 代价：FLOP、字节、roofline 与实测
#
# *阅读时间 20 分钟。前置：第 10 至 13 课。本课证明：亲手数出的运算次数与 XLA 自己的计数一致，字节数是 XLA 计数的下界；再加上机器的两个
# 极限，就能说出一个模型最快能有多快。*
#
# 一个模型能写多快？拿出秒表之前，先做算术。一次前向计算必须完成一定次数的运算，也必须读取一定数量的字节；而机器每秒能做的运算、
# 能读的字节都是有限的。对浮点数做一次加法或一次乘法，叫做一个 **FLOP**。FLOPs 是工作量，FLOP/s 是速度，两者很容易混淆。
#
# 我们亲手数出这两个量，与编译器的计数对照，再测量机器，最后把一切放进同一张图。
# %% id="setup"
import dataclasses
import math
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_llama3
from jax_llama3.bench.cost import cache_bytes_per_token, forward_flops, weight_bytes
from jax_llama3.bench.limits import bandwidth_probe, peak_flops
from jax_llama3.bench.presets import preset
from jax_llama3.kernels import ops_for
from jax_llama3.kernels.cpu.registration import has_kernels
from jax_llama3.model.linear import linear
from jax_llama3.model.ops import PLAIN
from jax_llama3.model.quantization import quantize
from jax_llama3_course import exercise, load_model, show, trace

model = load_model()
config, params = model.config, model.params
llama = preset("llama3-8b")
is_default = config == preset("smollm2-135m")
ids = model.tokenizer.encode("The capital of France is", bos=True)
D, V, F = config.dim, config.vocab_size, config.ffn_dim
N, K, H, L = config.n_heads, config.n_kv_heads, config.head_dim, config.n_layers
# %% [markdown] id="product" lang="en"
# ## Operations: one product
#
# A matrix product makes $T \times F$ numbers. Each is a sum over $D$ products: $D$ multiplications and (nearly) $D$
# additions. So a weight $[F\ D]$ applied to $T$ tokens costs
#
# $$2\,T\,F\,D \text{ operations}, \qquad (TD + FD + TF) \times \text{bytes per number}.$$
#
# The second count is what has to move: the input and the weight are read, the result is written. JAX can tell what XLA, its
# compiler, thinks of a compiled program: `cost_analysis()` gives operations and bytes, `memory_analysis()` the sizes of its
# buffers. Nothing runs; shapes are enough. For one product it says the same as we do, to the last operation.
# %% [markdown] id="product" lang="zh" of="a9250f00"
# ## 运算次数：一次乘积
#
# 一次矩阵乘积产生 $T \times F$ 个数，每个数是 $D$ 个乘积之和：$D$ 次乘法和（差不多）$D$ 次加法。所以把权重 $[F\ D]$ 作用于 $T$ 个
# token，需要
#
# $$2\,T\,F\,D \text{ 次运算}, \qquad (TD + FD + TF) \times \text{每个数的字节数}.$$
#
# 后一个量是必须搬运的字节：读输入、读权重、写结果。JAX 可以告诉我们，它的编译器 XLA 如何看待编译好的程序：`cost_analysis()` 给出
# 运算次数和字节数，`memory_analysis()` 给出各缓冲区的大小。什么都不必运行，有形状就够了。对于一次乘积，它的答案与我们数出的一次不差。
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
# The network is a list of such products, so we need only add them up. Per layer and token, counted in weights, each of which costs two operations: the queries $NHD$, keys and
# values $KHD$ each, the way back $DNH$, and three matrices $FD$ of the feed-forward network. At the end $VD$ for every
# token whose logits we want.
#
# Attention has no weights, but it has products. A query and a key make one score: $H$ multiplications and additions. The
# score then weights $H$ numbers of a value: as many again. So each pair of a token and one that it may see costs $4H$
# in each of the $N$ heads. $T$ new tokens after $P$ old ones make
#
# $$\text{pairs} = T P + \frac{T (T + 1)}{2},$$
#
# for every new token sees all old ones, itself, and the new ones before it. Norms, RoPE, softmax and SiLU are left out: they
# cost a few operations per number, where a product costs hundreds.
# %% [markdown] id="network" lang="zh" of="76b79222"
# ## 运算次数：整个网络
#
# 网络就是一串这样的乘积，加起来就行。按权重数计（每个权重两次运算），每层、每个 token：查询 $NHD$，键和值各 $KHD$，回到残差流的 $DNH$，以及前馈网络的三个 $FD$
# 矩阵。最后，每个需要 logits 的 token 再加 $VD$。
#
# 注意力没有权重，却有乘积。一个查询与一个键产生一个分数：$H$ 次乘法和加法；这个分数再给一个值的 $H$ 个数加权：又是同样多。所以一个
# token 与一个它能看到的 token 组成一对，在 $N$ 个头的每一个里要花 $4H$ 次运算。在 $P$ 个旧 token 之后的 $T$ 个新 token 组成
#
# $$\text{对的个数} = T P + \frac{T (T + 1)}{2},$$
#
# 因为每个新 token 看得到全部旧 token、它自己，以及排在它前面的新 token。归一化、RoPE、softmax 和 SiLU 不计：它们对每个数只做几次运算，
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
# Hence the rule of thumb: **two operations per parameter and token**. A parameter is read, multiplied once and added once.
# Attention adds to it slowly: for how many cached tokens does it cost as much as all matrices together?
# %% [markdown] id="two" lang="zh" of="def67d8e"
# 由此得到一条经验法则：**每个参数、每个 token 两次运算**。一个参数读进来，乘一次，加一次。注意力的份额增长得很慢：缓存里要有多少个
# token，它的代价才与所有矩阵加起来一样大？
# %% id="two_code"
for name, each in (("this model", config), ("Llama 3 8B", llama)):
    per_old_token = 4 * each.head_dim * each.n_heads * each.n_layers
    same = count_flops(each, 1, 0, 1) / per_old_token
    assert count_flops(each, 1, math.ceil(same), 1) >= 2 * count_flops(each, 1, 0, 1)
    print(f"{name}: {per_old_token:,} FLOPs per old token; as much as the rest at {same:,.0f}")
# %% [markdown] id="xla" lang="en"
# ## What XLA counts
#
# Now the whole network, without a cache, as XLA compiled it. It must have all of our operations, and two more things. First,
# the causal mask saves nothing here: the product computes all $T^2$ scores and the mask then throws the upper half away, so
# XLA counts $T^2$ pairs where the mask lets $T(T+1)/2$ through. Second, it counts the small things that we left out. They
# must be small: we allow one per cent. The library is given its plain operations, so that XLA sees every product; below we see why.
# %% [markdown] id="xla" lang="zh" of="850e3d3d"
# ## XLA 数出来的
#
# 现在看 XLA 编译出的整个网络，不带缓存。它必须包含我们数的全部运算，另外还多两样。第一，因果掩码在这里什么也没省：乘积算出全部 $T^2$ 个
# 分数，掩码再扔掉右上的一半；掩码只放行 $T(T+1)/2$ 对，XLA 数的却是 $T^2$ 对。第二，它把我们略去的小项也数了进去。这些必须很小：我们
# 只允许百分之一。这里交给本库的是它的普通运算，好让 XLA 看见每个乘积；原因见下文。
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
# Two layers of the model are enough to test the part that grows with the square. Twice the tokens make the matrices twice as
# dear; what $f(2T) - 2 f(T)$ leaves is the quadratic part alone, $4HNL\,(4T^2 - 2T^2)$.
# %% [markdown] id="quadratic_text" lang="zh" of="d6926d3d"
# 要检验随平方增长的那部分，取模型的两层就够了。token 数加倍，矩阵的代价也加倍；$f(2T) - 2 f(T)$ 剩下的只有平方部分，即
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
# ## Where the instrument is blind
#
# XLA counts what it can see. On a CPU, `jax_llama3` hands its products to small kernels of its own, one for few rows and one for
# many, if numba is installed (they are faster than XLA's products). To XLA that is a call to the outside, and it counts nothing for
# it. So the same analysis of one token reports almost no work at all. A number from a tool is not yet a fact: compare it
# with what must be true.
#
# For decoding we therefore ask about a form that XLA sees whole: four rows, too many for the one kernel and too few for the other, and a tap, for which
# the library computes all scores in the open. Each row then attends to all $S$ slots of its cache.
# %% [markdown] id="blind" lang="zh" of="8443a63b"
# ## 仪器看不见的地方
#
# XLA 只数它看得见的东西。在 CPU 上，若装有 numba，`jax_llama3` 会把乘积交给自己的小内核，一个管少数几行，一个管很多行（它们比 XLA 的乘积快）。对 XLA 来说
# 这是一次对外调用，计为零。于是同样的分析用在一个 token 上，报告说几乎没有工作量。工具给出的数字还不是事实：要拿必然成立的东西去对照。
#
# 因此对于解码，我们换一种 XLA 能完整看见的形式：四行（对一个内核太多，对另一个太少），再加一个探针，此时本库会公开地算出全部分数。这样每一行都要看
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
# Every weight is read once per forward pass, whether it serves one token or a thousand. The one exception is an embedding
# that is not used as the output matrix as well: of it only the rows of the tokens are read.
# %% [markdown] id="bytes" lang="zh" of="4f36ce1d"
# ## 字节：权重
#
# 每次前向计算都要把每个权重读一遍，不管是为一个 token 还是为一千个。唯一的例外是不兼作输出矩阵的嵌入：它只需读出那几个 token 的行。
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

# en: XLA's buffers: what comes in is the weights and the ids, what goes out the logits.
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
# layer works in the room that the one before has left. XLA's count of bytes for a whole network is looser: it adds up what
# every operation reads and writes, though much of that never leaves the processor's own cache. Ours is the least that must
# come from memory; XLA's lies above it.
#
# ## Bytes: the cache
#
# A decoding step also reads the keys and values of all tokens so far, and stores its own. One token takes, over all layers,
#
# $$2 \cdot L \cdot K \cdot H \cdot \text{bytes per number}.$$
#
# $K$ stands here and not $N$: that is what grouped queries save.
# %% [markdown] id="bytes_note" lang="zh" of="9a5746cc"
# 缓冲区的大小是精确的。临时内存很小，也不随层数增长：每一层都在前一层腾出的地方工作。XLA 对整个网络的字节计数要宽松些：它把每个操作的
# 读和写都加起来，尽管其中许多从未离开处理器自己的高速缓存。我们的数是必须来自内存的最少字节，XLA 的数在它之上。
#
# ## 字节：缓存
#
# 解码的一步还要读取此前所有 token 的键和值，并存下自己的。一个 token 在所有层里共占
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
if is_default:
    assert kv_bytes(config, 2) == 23_040
print(f"bytes per token in bfloat16: {kv_bytes(config, 2):,}; Llama 3 8B: {kv_bytes(llama, 2):,}")
full = llama.max_seq_len * kv_bytes(llama, 2)
assert full == 2**30
print(f"Llama 3 8B at its full context of {llama.max_seq_len:,} tokens: {full:,} bytes a row")
# %% [markdown] id="with_without" lang="en"
# ## With a cache and without
#
# Lesson 10 showed that both give the same tokens. Now we can say what the cache saves. Without one, each new token means a
# forward pass over the whole text; to compile once, we pad it to a fixed width, which the causal mask makes harmless. With
# one, each new token costs a single row.
# %% [markdown] id="with_without" lang="zh" of="8b77e201"
# ## 有缓存与没有缓存
#
# 第 10 课说明了两者给出同样的 token。现在可以说出缓存省了多少。没有缓存时，每个新 token 都要对整段文本做一次前向计算；为了只编译一次，
# 我们把它填充到固定宽度，有因果掩码在，这样做无害。有缓存时，每个新 token 只需算一行。
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


cached = generate_with_cache(model)
assert generate_without_cache(1) == cached.tokens[:1]
print(repr(model.tokenizer.decode(cached.tokens[:8])))
# %% id="speeds" tags=["measured"]
begin = time.perf_counter()
tokens_without = generate_without_cache(n_new)
seconds_without = time.perf_counter() - begin
assert tokens_without == cached.tokens
speed = generate_with_cache(model).generation_tps
small = generate_with_cache(model._replace(params=quantize(params))).generation_tps
print(f"without a cache      {n_new / seconds_without:6.1f} tokens/s")
print(f"with a cache         {speed:6.1f} tokens/s")
print(f"with int8 weights    {small:6.1f} tokens/s")
# %% [markdown] id="not_the_ratio" lang="en"
# Compare the ratio of the times with the ratio of the operations: it is far smaller. The long pass does many times more work
# per second than the single row. So operations alone do not explain the time of decoding. Bytes do.
#
# ## The roofline
#
# A machine has two limits: how many operations it does in a second, and how many bytes it reads from memory in a second,
# its **bandwidth**. A piece of work needs at least the longer of two times:
#
# $$\text{time} \ge \max\left(\frac{\text{FLOPs}}{\text{peak}},\ \frac{\text{bytes}}{\text{bandwidth}}\right).$$
#
# Which one it is depends on a single number, the **arithmetic intensity**: FLOPs per byte,
# $I = \text{FLOPs} / \text{bytes}$. Then the speed that can be reached is
#
# $$\text{FLOP/s} \le \min(\text{peak},\ I \cdot \text{bandwidth}).$$
#
# Drawn over $I$ this is a slope and then a flat top: the **roofline**. The corner is at $I = \text{peak} / \text{bandwidth}$.
# Left of it memory decides, right of it arithmetic. Decoding one row does two operations for each weight of four bytes
# (float32): $I = 1/2$, as far to the left as one can be. A prompt of $T$ tokens uses each weight $T$ times: $I \approx T/2$.
# %% [markdown] id="not_the_ratio" lang="zh" of="39690480"
# 把时间之比与运算次数之比对照一下：前者小得多。长的那次计算每秒完成的运算是单行的许多倍。可见光凭运算次数解释不了解码的时间；
# 字节数可以。
#
# ## roofline 模型
#
# 机器有两个极限：每秒能做多少次运算，以及每秒能从内存读多少字节，即**带宽**（bandwidth）。一件工作至少需要两个时间中较长的那个：
#
# $$\text{时间} \ge \max\left(\frac{\text{FLOPs}}{\text{峰值}},\ \frac{\text{字节数}}{\text{带宽}}\right).$$
#
# 究竟是哪个，取决于一个数，即**算术强度**（arithmetic intensity）：每字节的 FLOPs，$I = \text{FLOPs} / \text{字节数}$。于是能达到的速度是
#
# $$\text{FLOP/s} \le \min(\text{峰值},\ I \cdot \text{带宽}).$$
#
# 以 $I$ 为横轴画出来，先是一段斜坡，然后是平顶：这就是 **roofline**（屋顶线）。拐角在 $I = \text{峰值} / \text{带宽}$ 处。左边由内存决定，
# 右边由运算决定。单行解码对每个四字节的权重（float32）做两次运算：$I = 1/2$，已经靠左到头了。$T$ 个 token 的提示把每个权重用 $T$ 次：
# $I \approx T/2$。
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
# en: the weights over the bytes of one row's cache.
# zh: 批次有极限：行数越来越多时，强度趋于注意力自身的强度 N/K，再加上权重的 FLOPs 除以一行缓存的字节数。
limit = 4 * llama.head_dim * llama.n_heads * llama.n_layers / kv_bytes(llama, 2)
assert limit == llama.n_heads / llama.n_kv_heads == 4
weights_only = count_flops(llama, 1, 0, 1) / (8000 * kv_bytes(llama, 2))
assert intensity(llama, 2, 10**6, depth=8000) < limit + weights_only
# %% [markdown] id="batching" lang="en"
# ## Moving along it
#
# There are two ways to the right. **More rows**: a batch reads the weights once for all of its rows, so $B$ rows give $B$
# times the intensity, and nearly $B$ times the tokens in the same time, until the corner is reached. The caches do not share:
# each row reads its own, so with long texts the gain ends early. **Fewer bytes**: quantised weights of one byte have four times
# the intensity of float32, and a step that is bound by memory takes a quarter of the time.
#
# A third way changes no intensity but the bound itself: a machine with more bandwidth. In the table, a processor that reads
# 3.35 TB/s, the datasheet's figure for an H100 (SXM), and Llama 3 8B.
# %% [markdown] id="batching" lang="zh" of="d4d6f894"
# ## 沿着屋顶线移动
#
# 往右走有两条路。**更多的行**：一个批次的所有行只需读一遍权重，所以 $B$ 行的强度是 $B$ 倍，同样的时间里得到的 token 也接近 $B$ 倍，直到
# 拐角为止。缓存则无法共享：每行都要读自己的，所以文本一长，收益很快就到头。**更少的字节**：量化成一字节的权重，强度是 float32 的四倍，
# 受内存限制的一步只要四分之一的时间。
#
# 还有第三条路，不改变强度，而是改变极限本身：换带宽更大的机器。下表假设一个每秒能读 3.35 TB 的处理器（H100 SXM 数据手册上的数值），
# 模型是 Llama 3 8B。
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
if is_default:
    ratio = count_bytes(config, 4) / weight_bytes(jax.eval_shape(quantize, params))
    assert 3.9 < ratio < 4
# %% [markdown] id="roofline_text" lang="en"
# Last, this machine. `bandwidth_probe` reads 512 MB and takes the time, `peak_flops` multiplies large matrices. The
# circles are one matrix of the model, the output matrix, with 1 to 256 rows; the two others are the whole model, decoding and
# reading a prompt. All are float32.
# %% [markdown] id="roofline_text" lang="zh" of="a28d3615"
# 最后看这台机器。`bandwidth_probe` 读 512 MB 并计时，`peak_flops` 乘大矩阵。圆点是模型中的一个矩阵（输出矩阵），乘以 1 到 256 行；另外两个点
# 是整个模型：解码，以及读提示。全部是 float32。
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
points = []
for T in (1, 4, 16, 64, 256):
    taken = median_seconds(head, jnp.ones((1, T, D)), output)
    flops, nbytes = 2 * T * V * D, 4 * (T * D + V * D + T * V)
    points.append((flops / nbytes, flops / taken / 1e9))
long = 64
prompt = (ids * long)[:long]
one_pass = jax_llama3.generate(model, prompt, max_new_tokens=1, ignore_eos=True)
one_pass = jax_llama3.generate(model, prompt, max_new_tokens=1, ignore_eos=True)
prefill_speed = one_pass.prompt_tps * count_flops(config, long, 0, 1) / long / 1e9
decode_speed = speed * count_flops(config, 1, start + n_new // 2, 1) / 1e9

figure, axes = plt.subplots(figsize=(7, 4))
over = np.geomspace(0.2, 300, 200)
axes.plot(over, np.minimum(peak, over * bandwidth) / 1e9, color="black", label="limit, measured")
axes.plot(*zip(*points, strict=True), "o", label="output matrix, 1 4 16 64 256 rows")
axes.plot(intensity(config, 4), decode_speed, "s", label="whole model, decoding")
axes.plot(intensity(config, 4, tokens=long), prefill_speed, "^", label="whole model, prompt of 64")
axes.axvline(corner, color="grey", linestyle=":", label="corner")
axes.set_xscale("log")
axes.set_yscale("log")
axes.set_xlabel("arithmetic intensity, FLOPs per byte")
axes.set_ylabel("GFLOP/s")
axes.legend(loc="lower right")
show(
    figure,
    en="A slope that turns flat: decoding and one row stand at the foot of the slope, many rows and the prompt right of the corner.",
    zh="先是斜坡后是平顶：解码和单行乘积在斜坡脚下，行数多的乘积和读提示在拐角右边。",
)
# %% [markdown] id="reading" lang="en"
# Points near the line need no faster code: only fewer bytes, more rows or another machine would help. Points far below it show
# time that the model of two limits does not explain, and there it pays to look. A point may even stand a little above the line:
# the limits are measured too, and a small machine is never quiet.
# %% [markdown] id="reading" lang="zh" of="6fe4ecf0"
# 靠近线的点不需要更快的代码：只有减少字节、增加行数或换机器才有用。远在线下方的点说明，有些时间是两个极限解释不了的，值得去查。
# 点甚至可能略高于线：极限本身也是测出来的，而小机器上总有别的程序在运行。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** One row of Llama 3 8B in bfloat16: at how many cached tokens does a step read as many bytes of cache as of weights?
# %% [markdown] id="exercises" lang="zh" of="46e3a91b"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** bfloat16 的 Llama 3 8B，一行：缓存里有多少个 token 时，一步读取的缓存字节数与权重字节数相等？
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    np.testing.assert_allclose(answer * 131_072, count_bytes(llama, 2), rtol=1e-3)


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, count_bytes(llama, 2) / kv_bytes(llama, 2), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** From how many rows on is decoding bound by arithmetic, not by memory? A function of the peak, the bandwidth and the
# bytes per weight; leave the cache out.
# %% [markdown] id="exercise_2_text" lang="zh" of="7a40dabf"
# **2.** 从多少行开始，解码受限于运算而不是内存？写成峰值、带宽和每个权重字节数的函数；不计缓存。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    for peak, bandwidth, itemsize in ((200e9, 20e9, 4), (200e9, 20e9, 1), (989e12, 3.35e12, 2)):
        rows = answer(peak, bandwidth, itemsize)
        weights = 1e9
        seconds = 2 * weights * rows / peak, itemsize * weights / bandwidth
        np.testing.assert_allclose(*seconds, rtol=1e-6)


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, lambda peak, bandwidth, itemsize: peak / bandwidth * itemsize / 2, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** How many tokens per second, at most, does a machine with 100 GB/s decode of Llama 3 70B (`preset("llama3-70b")`)
# in int8, one row, nothing cached?
# %% [markdown] id="exercise_3_text" lang="zh" of="d1782934"
# **3.** 一台带宽 100 GB/s 的机器解码 int8 的 Llama 3 70B（`preset("llama3-70b")`），一行、缓存为空，每秒最多多少个 token？
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    nbytes = weight_bytes(jax.eval_shape(quantize, abstract(preset("llama3-70b"), "bfloat16")))
    np.testing.assert_allclose(answer, 100e9 / nbytes, rtol=0.01)


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
exercise(3, 100e9 / count_bytes(preset("llama3-70b"), 1), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Williams, Waterman and Patterson, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*, 2009,
#   [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kaplan et al., *Scaling Laws for Neural Language Models*, 2020, [arXiv:2001.08361](https://arxiv.org/abs/2001.08361)
# - [docs/performance.md](../../docs/performance.md): what was measured of this library, beside others
#
# Next: lesson 15 turns to the real Llama 3 8B.
# %% [markdown] id="sources" lang="zh" of="11d36df9"
# ## 来源
#
# - Williams、Waterman、Patterson，*Roofline: An Insightful Visual Performance Model for Multicore Architectures*，2009，
#   [doi:10.1145/1498765.1498785](https://doi.org/10.1145/1498765.1498785)
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kaplan 等，*Scaling Laws for Neural Language Models*，2020，[arXiv:2001.08361](https://arxiv.org/abs/2001.08361)
# - [docs/performance.md](../../docs/performance.md)：本库的实测结果，与其他实现并列
#
# 下一课：第 15 课转向真正的 Llama 3 8B。
