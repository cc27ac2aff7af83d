# %% [markdown] id="title" lang="en"
# # 11 · A KV cache under jit
#
# *Reading time 22 minutes. Before it: lesson 10. What it proves: a cache that grows needs a new program for every token;
# one of fixed size needs two in all, one for the prompt and one for every token after it; and where a fixed size can
# silently go wrong.*
#
# The cache of lesson 10 cut 35 rows down to 9, yet each token still took a while. Why? Python handed many small
# operations to the machine one by one. A compiled program does them all in one go. So let us compile the whole step. This
# brings a surprise: a program is compiled for fixed shapes, and our cache changes its shape at every token.
#
# This lesson gives the cache a shape that stays, counts what is compiled, and shows what you can do with such a cache,
# such as reading a beginning once and continuing it in several ways.
# %% [markdown] id="title" lang="zh" of="868c4e45"
# # 11 · jit 下的 KV 缓存
#
# *阅读时间 22 分钟。前置：第 10 课。本课证明：会变长的缓存每来一个 token 就要一个新程序；固定大小的缓存总共只要两个，一个用于提示，一个用于之后的每个 token；以及固定大小在哪里会悄悄出错。*
#
# 第 10 课的缓存把 35 行减到 9 行，可是每个 token 仍然要等一会儿。为什么？因为 Python 把许多小运算逐个交给机器。编译好的程序则一口气把它们做完。那就把整个一步编译成程序。这时会遇到一个意外：程序是为固定的形状编译的，而我们的缓存每来一个 token 就改变一次形状。
#
# 本课给缓存一个不变的形状，数一数编译了多少次，再看看这样的缓存有什么用处，例如一段开头只读一次，就能分成几种续写。
# %% id="setup"
import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jax_llama3
from jax_llama3.decoding.programs import bucket
from jax_llama3.model.rope import rope_frequencies
from jax_llama3.runtime.compilation import count_compilations
from jax_llama3_course import close, exercise, expect, load_model, show, trace
from jax_llama3_course.figures import cache as figures

model = load_model()
config, params = model.config, model.params
V, N, K, H = config.vocab_size, config.n_heads, config.n_kv_heads, config.head_dim

# en: All layers work alike, so two are enough for the part made by hand, and they compile faster.
# zh: 各层的做法相同，亲手实现的部分用两层就够，编译也更快。
L = 2
small_config = dataclasses.replace(config, n_layers=L)
small = params._replace(layers=params.layers[:L])
prompt = model.tokenizer.encode("The capital of France is", bos=True)
P0 = len(prompt)
# %% [markdown] id="jit" lang="en"
# ## What jit does
#
# `jax.jit(f)` returns a compiled version of `f`. The name **jit** stands for "just in time": the compiling happens at the
# first call. That call goes like this:
#
# 1. JAX runs the Python code of `f` once, but not on numbers. Each argument is replaced by a stand-in that knows only its
#    shape and its dtype, and every operation on the stand-ins is recorded. This is **tracing**.
# 2. The list of operations is compiled into one program, for exactly these shapes.
# 3. The program runs on the numbers.
#
# Every later call with the same shapes and dtypes goes straight to 3, and the Python code is not run again. A call with
# *another* shape or dtype goes through all three. We can watch this: any side effect in Python, such as appending to a
# list, happens only in step 1.
# %% [markdown] id="jit" lang="zh" of="33f8e4b9"
# ## jit 做什么
#
# `jax.jit(f)` 返回 `f` 的编译版本。**jit** 是 just in time（即时）的缩写，因为编译发生在第一次调用时。第一次调用分三步：
#
# 1. JAX 把 `f` 的 Python 代码运行一遍，但不是对数值运行。每个参数都换成一个替身，只知道自己的形状和数据类型；对替身做的每个运算都记录下来。这叫**追踪**（tracing）。
# 2. 把这串运算编译成一个程序，只适用于这些形状。
# 3. 用真正的数值运行这个程序。
#
# 之后形状和数据类型都相同的调用直接进入第 3 步，Python 代码不再运行。形状或数据类型*不同*的调用则三步都要走。这一点看得见：Python 代码的副作用，例如往列表里追加一项，只在第 1 步发生。
# %% id="jit_code"
traced = []


def mean_square(x):
    traced.append(x.shape)
    return (x * x).mean()


compiled_mean = jax.jit(mean_square)
for size in (5, 5, 6, 5, 6):
    compiled_mean(np.ones(size, np.float32))
print("five calls, traced for the shapes", traced)
assert traced == [(5,), (6,)]

# en: The library can count what is compiled inside a block.
# zh: 本库可以统计一段代码中编译了多少个程序。
with count_compilations() as old_shape:
    compiled_mean(np.ones(5, np.float32))
with count_compilations() as new_shape:
    compiled_mean(np.ones(7, np.float32))
with count_compilations() as new_dtype:
    compiled_mean(np.ones(5, np.int32))
assert (old_shape.count, new_shape.count, new_dtype.count) == (0, 1, 1)
# %% [markdown] id="static" lang="en"
# A shape that is known when the program is compiled is a **static shape**, and a compiled program has no others. The
# *values* are not known then. So Python's `if` on a value cannot work, and no result can have a length that depends on a
# value. JAX refuses both straight away.
# %% [markdown] id="static" lang="zh" of="d2129777"
# 编译时就已知的形状叫**静态形状**（static shape），编译后的程序里只有这一种形状。*数值*在编译时还不知道，所以不能用 Python 的 `if` 去判断一个值，也不能有长度取决于数值的结果。这两种写法 JAX 都会立即拒绝。
# %% id="static_code"
refusals = {
    "if on a value": (lambda x: x if x[0] > 0 else -x, jax.errors.TracerBoolConversionError),
    "length by a value": (lambda x: x[x > 0], jax.errors.NonConcreteBooleanIndexError),
}
for name, (function, expected) in refusals.items():
    try:
        jax.jit(function)(np.ones(3, np.float32))
        raise AssertionError(f"{name} was compiled")
    except expected as error:
        print(f"{name:<18} refused with {type(error).__name__}")
# %% [markdown] id="network" lang="en"
# ## One network, two ways to append
#
# The network is that of lesson 10, for a text of $T$ new ids, with one thing left open: `append(slots, new, length)` puts
# the new keys or values after the `length` that are there already. The new positions are `length`, `length + 1`, ..., and
# the mask compares them with the place of each key. There are two ways to append:
#
# - **grow**: concatenate. The result is $[P+T, K, H]$, longer by one with each token.
# - **write**: the array has room for $S$ tokens from the start. $S$ is its **capacity**. `lax.dynamic_update_slice`
#   returns it with the new rows at the given place. The result is always $[S, K, H]$.
#
# What about the empty slots after the filled ones? A slot's place is its position, so an empty slot comes after every query,
# and the causal mask hides it. Nothing else is needed.
# %% [markdown] id="network" lang="zh" of="50a682d5"
# ## 一个网络，两种追加方式
#
# 网络就是第 10 课的那个，处理一段文本的 $T$ 个新编号，只有一处尚未确定：`append(slots, new, length)` 把新的键或值放到已有的 `length` 个之后。新 token 的位置是 `length`、`length + 1`……，掩码把它们与每个键所在的位置比较。追加有两种方式：
#
# - **grow**：拼接。结果是 $[P+T, K, H]$，每来一个 token 就长一格。
# - **write**：数组一开始就留出 $S$ 个 token 的空间，$S$ 就是它的**容量**（capacity）。`lax.dynamic_update_slice` 返回在指定位置写入新行后的数组，结果始终是 $[S, K, H]$。
#
# 已填的槽后面的空槽怎么办？槽的序号就是位置，空槽都在所有查询之后，因果掩码自然会把它们挡住，不需要额外处理。
# %% id="network_code"
frequencies = rope_frequencies(config)


def norm(x, weight):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * weight


def rotate(x, positions):
    angles = positions[:, None] * frequencies
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(layer, x, slots, length, append):
    h = norm(x, layer.attn_norm)
    positions = length + jnp.arange(len(x))
    q = rotate(jnp.einsum("TD,NHD->TNH", h, layer.wq), positions)
    k = rotate(jnp.einsum("TD,KHD->TKH", h, layer.wk), positions)
    v = jnp.einsum("TD,KHD->TKH", h, layer.wv)
    k, v = append(slots[0], k, length), append(slots[1], v, length)
    mask = jnp.arange(len(k))[None, :] <= positions[:, None]
    scores = jnp.einsum("TKGH,SKH->KGTS", q.reshape(len(q), K, -1, H), k) / H**0.5
    scores = jnp.where(mask, scores, -jnp.inf)
    z = jnp.einsum("KGTS,SKH->TKGH", jax.nn.softmax(scores, axis=-1), v)
    return jnp.einsum("TNH,DNH->TD", z.reshape(q.shape), layer.wo), (k, v)


def feed_forward(layer, x):
    h = norm(x, layer.ffn_norm)
    return (jax.nn.silu(h @ layer.w_gate.T) * (h @ layer.w_up.T)) @ layer.w_down.T


def run(params, ids, cache, length, append):
    x = params.embedding[ids]
    kept = []
    for layer, slots in zip(params.layers, cache, strict=True):
        attended, slots = attend(layer, x, slots, length, append)
        kept.append(slots)
        x = x + attended
        x = x + feed_forward(layer, x)
    output = params.embedding if params.output is None else params.output
    return norm(x, params.norm) @ output.T, kept


def grow(slots, new, length):
    return jnp.concatenate([slots, new])


def write(slots, new, length):
    return lax.dynamic_update_slice(slots, new, (length, 0, 0))


def empty(slots):
    return [(jnp.zeros((slots, K, H)), jnp.zeros((slots, K, H))) for _ in range(L)]


# %% [markdown] id="count" lang="en"
# ## The count: a program per token, or two in all
#
# We jit both, let each generate six tokens, and count. `length` is an argument like the others: its value may change without
# another compilation, since only shapes and dtypes count. (NumPy picks the next token; it compiles nothing.)
# %% [markdown] id="count" lang="zh" of="5bab5649"
# ## 数一数：每个 token 一个程序，还是总共两个
#
# 两种方式都用 jit 编译，各生成六个 token，并统计编译次数。`length` 和别的参数一样传入：它的值变了不会引起重新编译，起作用的只有形状和数据类型。（下一个 token 用 NumPy 来选，它什么也不编译。）
# %% id="count_code"
STEPS = 6
S = P0 + STEPS + 5
growing = jax.jit(lambda params, ids, cache, length: run(params, ids, cache, length, grow))
fixed = jax.jit(lambda params, ids, cache, length: run(params, ids, cache, length, write))


def generate(step, cache, steps):
    new, length = np.array(prompt, np.int32), 0
    ids, rows, counts = list(prompt), [], []
    for _ in range(steps):
        with count_compilations() as compiled:
            logits, cache = step(small, new, cache, np.int32(length))
            rows.append(np.asarray(logits)[-1])
        counts.append(compiled.count)
        length += len(new)
        new = np.array([rows[-1].argmax()], np.int32)
        ids.append(int(new[0]))
    return ids, np.stack(rows), counts, cache


grown_ids, grown_logits, grown_counts, grown_cache = generate(growing, empty(0), STEPS)
fixed_ids, fixed_logits, fixed_counts, fixed_cache = generate(fixed, empty(S), STEPS)
print("grow:  programs compiled per token", grown_counts, "=", sum(grown_counts))
print("write: programs compiled per token", fixed_counts, "=", sum(fixed_counts))
assert grown_counts == [1] * STEPS
assert fixed_counts == [1, 1] + [0] * (STEPS - 2)
assert sum(fixed_counts) == 2

# en: A prompt of another length is another shape, one more program. One token after it is not.
# zh: 长度不同的提示是另一种形状，要再编译一个程序；它之后的单个 token 则不用。
short, at = np.array(prompt[:3], np.int32), np.int32(3)
with count_compilations() as other_prompt:
    _, short_cache = fixed(small, short, empty(S), np.int32(0))
with count_compilations() as one_more_token:
    fixed(small, np.array(prompt[3:4], np.int32), short_cache, at)
assert (other_prompt.count, one_more_token.count) == (1, 0)
# %% [markdown] id="same" lang="en"
# The growing cache compiles at every token, without end. The fixed cache needs two programs in all, however long the text
# gets: one for the shape of the prompt, and one for the shape of a single token. (A prompt of another length brings one
# more program. The library keeps their number small too, as we shall see below.)
#
# And the results? They must be the same both ways, and equal to those of the library's `forward` over the whole text
# without any cache. What lies in the empty slots must not matter either, as long as it is finite: its weight after the
# softmax is exactly zero. But zero times NaN is NaN, so a NaN in an empty slot would spoil everything.
# %% [markdown] id="same" lang="zh" of="63c475a4"
# 变长的缓存每来一个 token 就编译一次，没有尽头。固定大小的缓存不论文本多长，总共只要两个程序：一个针对提示的形状，一个针对单个 token 的形状。（另一种长度的提示要再加一个程序；本库也有办法让这类程序保持很少，见后文。）
#
# 结果呢？两种方式必须相同，也必须与本库的 `forward` 不用缓存、对整段文本计算的结果相同。空槽里有什么也不应有影响，只要是有限的数：经过 softmax 之后它的权重恰好为零。但零乘以 NaN 还是 NaN，所以空槽里若有一个 NaN，就会毁掉一切。
# %% id="same_code"
assert grown_ids == fixed_ids
trace("grown k", grown_cache[0][0], "S K H", S=P0 + STEPS - 1, K=K, H=H)
trace("fixed k", fixed_cache[0][0], "S K H", S=S, K=K, H=H)
close(grown_logits, fixed_logits, atol=1e-3)
whole, _ = jax_llama3.forward(small, np.array([fixed_ids[:-1]]), small_config)
close(fixed_logits, whole[0, P0 - 1 :], atol=1e-3)

# en: All positions of the prompt too, and again with rubbish in the empty slots: equal bit for bit.
# zh: 提示的所有位置也要一致；再在空槽里放上无用的数，结果逐比特相同。
first, _ = fixed(small, np.array(prompt, np.int32), empty(S), np.int32(0))
close(first, whole[0, :P0], atol=1e-3)
rubbish = [(k + 100.0, v - 1000.0) for k, v in empty(S)]
again, _ = fixed(small, np.array(prompt, np.int32), rubbish, np.int32(0))
assert (again == first).all()
spoilt = [(k, v + jnp.nan) for k, v in empty(S)]
again, _ = fixed(small, np.array(prompt, np.int32), spoilt, np.int32(0))
assert jnp.isnan(again).all()
# %% [markdown] id="time_text" lang="en"
# What does a compilation cost? We measure four more tokens each way. The numbers depend on the machine and on what else
# it is doing, but the difference between the two ways is almost entirely compiling.
# %% [markdown] id="time_text" lang="zh" of="79d249ad"
# 编译的代价有多大？我们来实测：两种方式各再生成四个 token。数值取决于机器和它当时的负载，但两者之差几乎全是编译。
# %% id="time_code" tags=["measured"]
for name, step, cache in (("grow", growing, grown_cache), ("write", fixed, fixed_cache)):
    with count_compilations() as compiled:
        start = time.perf_counter()
        for i in range(4):
            length = np.int32(P0 + STEPS - 1 + i)
            logits, cache = step(small, np.array(fixed_ids[-1:], np.int32), cache, length)
            logits.block_until_ready()
        milliseconds = (time.perf_counter() - start) / 4 * 1000
    print(
        f"{name:<6} {milliseconds:.0f} ms per token, "
        f"of which {compiled.seconds / 4 * 1000:.0f} ms compiling"
    )
# %% [markdown] id="drawing_text" lang="en"
# Here is a drawing of both ways. On the left, every round makes a new array and needs a new program for its shape. On the
# right, one array fills up. Its price is room that is reserved before it is needed.
# %% [markdown] id="drawing_text" lang="zh" of="e5e2d036"
# 把两种方式画出来。左边每一轮都是一个新数组，还要为它的形状编译一个新程序；右边是同一个数组逐渐填满。右边的代价是提前占用的空间。
# %% id="drawing"
show(
    figures.grow_and_write(prompt=P0, rounds=5),
    en="Left: five rows of boxes, each one box longer than the last, with programs 1 to 5. Right: five rows of equal length, "
    "filled one box further each time, with program 1 for the first row and program 2 for all others.",
    zh="左：五行方格，每行比上一行长一格，对应程序 1 到 5。右：五行等长的方格，每行多填一格；第一行用程序 1，其余都用程序 2。",
)
# %% [markdown] id="donation" lang="en"
# ## Donation: writing in place
#
# A jitted function never changes its arguments. So `fixed` returns *another* array of $S$ slots, and at every token it
# copies all the other slots just to write one. If the caller promises never to use the old array again, the program may
# write into it instead. This promise is called **donation**: `donate_argnames="cache"`.
#
# How do we know that it works? There are three signs. The memory address of the cache is the same before and after. The
# old array is deleted, and using it raises an error. And the compiler itself reports that the results lie in the memory
# of the arguments.
# %% [markdown] id="donation" lang="zh" of="b3818c85"
# ## 捐赠：就地写入
#
# 经 jit 编译的函数从不改变它的参数。所以 `fixed` 返回的是*另一个*有 $S$ 个槽的数组：为了写一个槽，每来一个 token 都要把其余的槽全部复制一遍。如果调用者保证不再使用旧数组，程序就可以直接写在里面。这种保证叫**捐赠**（donation）：`donate_argnames="cache"`。
#
# 怎么知道它真的有效？有三点可以验证：缓存的内存地址前后相同；旧数组已经删除，再用它就会报错；编译器自己的报告也表明，结果就放在参数的内存里。
# %% id="donation_code"


def write_step(params, ids, cache, length):
    return run(params, ids, cache, length, write)


def addresses(cache):
    return [each.unsafe_buffer_pointer() for each in jax.tree.leaves(cache)]


donating = jax.jit(write_step, donate_argnames="cache")
one, at = np.array(fixed_ids[P0 : P0 + 1], np.int32), np.int32(P0)

# en: Without donation: the old cache stays, and the new one lies elsewhere.
# zh: 不捐赠：旧缓存还在，新缓存在别处。
_, before = fixed(small, np.array(prompt, np.int32), empty(S), np.int32(0))
kept_logits, after = fixed(small, one, before, at)
assert not set(addresses(before)) & set(addresses(after))
assert not before[0][0].is_deleted()

# en: With donation: the same memory, and the old arrays are gone.
# zh: 捐赠：还是那块内存，旧数组没有了。
places = addresses(before)
donated_logits, after = donating(small, one, before, at)
assert addresses(after) == places
assert all(each.is_deleted() for each in jax.tree.leaves(before))
close(donated_logits, kept_logits, atol=1e-4)
try:
    before[0][0] + 1
    raise AssertionError("a donated array was used")
except RuntimeError as error:
    assert "deleted" in str(error)
    print("refused:", str(error).split(" with ")[0])

cache_bytes = sum(each.nbytes for each in jax.tree.leaves(after))
for name, function in (("kept", fixed), ("donated", donating)):
    memory = function.lower(small, one, after, at).compile().memory_analysis()
    print(f"{name:<8} results in the arguments' memory: {memory.alias_size_in_bytes:,} bytes")
    assert memory.alias_size_in_bytes == (cache_bytes if name == "donated" else 0)
# %% [markdown] id="clamp" lang="en"
# ## When the cache is full: the silent clamp
#
# What happens when the cache is full? You might expect an error. But `dynamic_update_slice` promises that its slice lies
# inside the array: a start that is too large is moved back until the slice fits. There is no warning. The newest key is
# written over the one before it.
# %% [markdown] id="clamp" lang="zh" of="da5e152c"
# ## 缓存满了：悄悄的钳制（clamp）
#
# 缓存满了会怎样？你也许以为会报错。但 `dynamic_update_slice` 保证写入的一段总在数组之内：起点太大，就往回移到放得下为止，什么提示也没有。于是最新的键盖住了它前面的那个。
# %% id="clamp_code"
four = jnp.arange(4)
print("write 9 at place 4 of", four, "->", lax.dynamic_update_slice(four, jnp.array([9]), (4,)))
assert lax.dynamic_update_slice(four, jnp.array([9]), (4,)).tolist() == [0, 1, 2, 9]

# en: A cache with room for the prompt alone, and one more token.
# zh: 容量只够放下提示的缓存，再来一个 token。
_, full = fixed(small, np.array(prompt, np.int32), empty(P0), np.int32(0))
bad_logits, overwritten = fixed(small, one, full, np.int32(P0))
assert (overwritten[0][0][: P0 - 1] == full[0][0][: P0 - 1]).all()
assert (overwritten[0][0][P0 - 1] != full[0][0][P0 - 1]).any()
assert jnp.isfinite(bad_logits).all()
wrong_by = float(jnp.abs(bad_logits - kept_logits).max())
print(f"the logits look healthy and are off by up to {wrong_by:.1f}")
assert wrong_by > 0.1
# %% [markdown] id="refuse" lang="en"
# `jax_llama3` refuses a full cache in Python, before anything compiled runs: `prefill`, `decode` and `forward` compare
# `lengths` with the capacity and raise a `ValueError`. Inside a caller's own jit the lengths have no values yet, so
# nothing can be raised. There a token without a slot gets NaN logits, which nobody can mistake for an answer.
# %% [markdown] id="refuse" lang="zh" of="cf04d4b8"
# 缓存放不下时，`jax_llama3` 在 Python 一侧就会拒绝，不等编译后的程序运行：`prefill`、`decode` 和 `forward` 把 `lengths` 与容量比较，不够就抛出 `ValueError`。而在调用者自己的 jit 里，长度还没有值，无法报错；此时没有槽可放的 token 得到的 logits 是 NaN，谁也不会把它误当成答案。
# %% id="refuse_code"
full = jax_llama3.init_cache(small_config, 1, P0, "float32")
_, full = jax_llama3.prefill(small, np.array([prompt]), np.array([P0]), full, small_config)
calls = {
    "prefill": lambda: jax_llama3.prefill(small, one[None], np.array([1]), full, small_config),
    "decode": lambda: jax_llama3.decode(small, one, full, small_config),
    "forward": lambda: jax_llama3.forward(small, one[None], small_config, full),
}
for name, call in calls.items():
    try:
        call()
        raise AssertionError(f"{name} accepted a token without a slot")
    except ValueError as error:
        assert f"needs {P0 + 1} cache slots and the cache has {P0}" in str(error)
        print(f"{name} refused:", error)

inside = jax.jit(lambda params, ids, cache: jax_llama3.forward(params, ids, small_config, cache)[0])
assert jnp.isnan(inside(small, one[None], full)).all()
# %% [markdown] id="library" lang="en"
# ## The library: prefill, decode, buckets
#
# One program for every length of prompt would still be too many. So `prefill` lengthens the ids on the right to the next
# power of two, at least 16. This is the **bucket** of the prompt's length, and all lengths in a bucket share their
# programs. (`prefill` has three: one for what comes before the layers; one for a single layer, run for all layers in
# turn; and one for what comes after.) `lengths` says how many of the ids are real. The others get keys and values too, in
# slots after the real ones. But the cache's own `lengths` does not count them, no query of a real token sees them, and
# the next tokens are written over them.
#
# `decode` always takes one id per row, so it has one shape and one program. Both donate the cache, so go on with the one
# that they return.
# %% [markdown] id="library" lang="zh" of="339af075"
# ## 本库：prefill、decode 与桶
#
# 每种提示长度一个程序，还是太多。所以 `prefill` 在右边把编号补到下一个 2 的幂，至少 16：这就是该长度的**桶**（bucket），同一个桶里的各种长度共用同样的程序。（`prefill` 有三个程序：各层之前的部分，一个供所有层轮流使用的层，各层之后的部分。）`lengths` 说明其中有多少个编号是真的。补上的那些也会得到键和值，放在真的之后的槽里；但缓存自己的 `lengths` 不计入它们，真正的 token 的查询都看不到它们，后面的 token 会把它们覆盖掉。
#
# `decode` 每行总是一个编号，所以只有一种形状、一个程序。两者都会捐赠缓存，所以之后要用返回的那一个。
# %% id="library_code"
assert [bucket(n) for n in (1, 5, 16, 17, 32, 33)] == [16, 16, 16, 32, 32, 64]

# en: No earlier cell has used these buckets, so everything is compiled anew.
# zh: 前面没有用过这两个桶，所以这里全部重新编译。
CAPACITY = 64
counts = {}
for length in (17, 25, 32, 33, 60):
    tokens = np.resize(prompt, (1, length)).astype(np.int32)
    theirs = jax_llama3.init_cache(small_config, 1, CAPACITY, "float32")
    with count_compilations() as compiled:
        jax_llama3.prefill(small, tokens, np.array([length], np.int32), theirs, small_config)
    counts[length] = compiled.count
    print(
        f"prefill of {length:>2} ids, bucket {bucket(length)}: {compiled.count} programs compiled"
    )
assert [*counts.values()] == [3, 0, 0, 3, 0]

theirs = jax_llama3.init_cache(small_config, 1, CAPACITY, "float32")
trace("their k", theirs.k[0], "B S K H", B=1, S=CAPACITY, K=K, H=H)
place = theirs.k[0].unsafe_buffer_pointer()
logits, theirs = jax_llama3.prefill(
    small, np.array([prompt], np.int32), np.array([P0], np.int32), theirs, small_config
)
assert int(theirs.lengths[0]) == P0
assert (theirs.k[0][0, P0 : bucket(P0)] != 0).any()
assert (theirs.k[0][0, bucket(P0) :] == 0).all()
rows, counts = [np.asarray(logits)[0]], []
for token in fixed_ids[P0 : P0 + STEPS - 1]:
    with count_compilations() as compiled:
        logits, theirs = jax_llama3.decode(small, np.array([token], np.int32), theirs, small_config)
        rows.append(np.asarray(logits)[0])
    counts.append(compiled.count)
print("decode: programs compiled per token", counts)
assert counts == [1] + [0] * (STEPS - 2)
close(np.stack(rows), fixed_logits, atol=1e-3)
close(theirs.k[0][0, : P0 + STEPS - 1], fixed_cache[0][0][: P0 + STEPS - 1], atol=1e-3)
assert int(theirs.lengths[0]) == P0 + STEPS - 1
assert theirs.k[0].unsafe_buffer_pointer() == place
# %% [markdown] id="first_token" lang="en"
# ## The first token, and the ones after it, measured
#
# Now we can measure what lesson 10 claimed about the time to first token. First the work, as XLA counts it: a program for
# 64 rows does about 64 times as many operations as a program for one row. Both read the very same weights.
# %% [markdown] id="first_token" lang="zh" of="f60109c4"
# ## 实测：第一个 token 与之后的 token
#
# 现在可以实测第 10 课关于首 token 延迟的说法。先看 XLA 统计的运算量：处理 64 行的程序，运算量约为处理一行的程序的 64 倍，读取的权重却是同一份。
# %% id="first_token_code"
operations = {}
for rows in (1, 64):
    lowered = fixed.lower(small, np.zeros(rows, np.int32), empty(64), np.int32(0))
    operations[rows] = lowered.cost_analysis()["flops"]
    print(f"{rows:>2} rows: {operations[rows]:>13,.0f} operations")
assert 60 < operations[64] / operations[1] < 65

# en: For what follows: a cache for the whole model, and a prompt read into one.
# zh: 供后面使用：整个模型的缓存，以及把提示读进缓存。
ROOM = 288


def fresh():
    return jax_llama3.init_cache(config, 1, ROOM, "float32")


def read(text_ids, cache):
    tokens, lengths = np.array([text_ids], np.int32), np.array([len(text_ids)], np.int32)
    return jax_llama3.prefill(params, tokens, lengths, cache, config)


# %% [markdown] id="first_token_text" lang="en"
# Then the time, with all layers of the model. (We take the fastest of several runs, so compiling is not counted. In a new
# process the first answer waits for that as well.)
#
# - A longer prompt takes longer. This is the wait before the first token.
# - But *per token*, reading is far cheaper than writing. `prefill` fetches each weight from memory once for all its rows;
#   `decode` fetches all of them for a single row.
# %% [markdown] id="first_token_text" lang="zh" of="e62c5c0c"
# 再看时间，这次用上模型的全部层。（取几次运行中最快的一次，所以不含编译；在一个新进程里，第一个回答还要等编译完成。）
#
# - 提示越长，用时越长。这就是第一个 token 之前的等待。
# - 但平均到*每个 token*，读比写便宜得多。`prefill` 把每个权重从内存取来一次，供所有的行使用；`decode` 为了一行就要取来全部权重。
# %% id="first_token_time" tags=["measured"]


def fastest(call, cache, runs):
    # en: `call` takes a cache and returns logits and a cache, as prefill and decode do.
    # zh: `call` 接受一个缓存，返回 logits 和缓存，与 prefill、decode 一样。
    times = []
    for _ in range(runs):
        mine = jax.block_until_ready(jax.tree.map(jnp.copy, cache))
        start = time.perf_counter()
        jax.block_until_ready(call(mine))
        times.append(time.perf_counter() - start)
    return min(times)


per_token = {}
for length in (16, 64, 256):
    text = np.resize(prompt, length)
    seconds = fastest(lambda cache, text=text: read(text, cache), fresh(), runs=3)
    per_token[length] = seconds / length
    print(f"prefill {length:>3} tokens: {seconds * 1000:>5.0f} ms", end="")
    print(f" = {per_token[length] * 1000:>5.1f} ms per token")

_, held = read(np.resize(prompt, 256), fresh())
seconds = fastest(lambda cache: jax_llama3.decode(params, one, cache, config), held, runs=5)
print(f"decode    1 token : {seconds * 1000:>5.0f} ms = {seconds * 1000:>5.1f} ms per token")
assert per_token[256] < seconds
# %% [markdown] id="fork" lang="en"
# ## Forking one prefix into several continuations
#
# Old keys and values do not change (lesson 10), so one beginning can serve many continuations: prefill it once, then go
# on from it in different ways. Only donation stands in the way, because the first continuation takes the cache with it.
# So each one gets a copy. A copy takes up memory for the whole capacity, but nothing is computed again. (Chat servers
# share the instructions that stand before every conversation in a similar way.)
#
# We use all layers, and compare each result with a prefill of its whole text.
# %% [markdown] id="fork" lang="zh" of="40505c46"
# ## 一个前缀，分成几种续写
#
# 旧的键和值不会变（第 10 课），所以一段开头可以供多种续写共用：只预填充一次，再从它出发分别继续。唯一的障碍是捐赠：第一种续写会把缓存带走。所以每一种都用一份副本。副本要占用整个容量的内存，但什么都不用重新计算。（每段对话之前都有同一份说明，聊天服务器也用类似的办法共用它。）
#
# 这里用上全部的层，每个结果都与对整段文本的预填充比较。
# %% id="fork_code"
prefix = model.tokenizer.encode("The capital of", bos=True)
_, shared = read(prefix, fresh())
texts, answers, rows_read = [], [], len(prefix)
for text in (" France is", " Italy is", " Japan is"):
    more = model.tokenizer.encode(text, start=False)
    mine = jax.tree.map(jnp.copy, shared)
    logits, mine = read(more, mine)
    rows_read += len(more)
    expected, _ = read(prefix + more, fresh())
    close(logits, expected, atol=1e-3)
    texts.append(more)
    answers.append(model.tokenizer.decode([int(jnp.argmax(logits[0]))]))
    print("The capital of" + text + answers[-1])
assert not shared.k[0].is_deleted()
expect(answers, [" Paris", " Rome", " Tokyo"])

without = sum(len(prefix) + len(more) for more in texts)
assert rows_read == without - (len(texts) - 1) * len(prefix)
print(f"{rows_read} tokens read with the fork, {without} without")

# en: Without a copy there is no second continuation.
# zh: 不复制，就没有第二种续写。
spent = jax.tree.map(jnp.copy, shared)
read(more, spent)
try:
    read(more, spent)
    raise AssertionError("a donated cache was used again")
except RuntimeError as error:
    assert "deleted" in str(error)
    print("the second use of one cache is refused")
# %% id="fork_picture"
tokens = [[model.tokenizer.decode([i]) for i in each] for each in (prefix, *texts)]
show(
    figures.forked(tokens[0], tokens[1:], answers),
    en="On the left a row of three blue slots, the prefix, prefilled once. Three arrows lead to three copies of it. Each copy is "
    "continued with two tokens of its own in orange and has an empty slot left; an arrow leads to the token it predicts.",
    zh="左边是三个蓝色的槽，即只预填充一次的前缀。三个箭头指向它的三份副本；每份副本接上各自的两个橙色 token，还剩一个空槽，再有一个箭头指向它预测的 token。",
)
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. Each exercise is followed by a hint and a solution, both folded.
#
# **1. Who has to wait?** Prompts of lengths 3, 5, 16, 17, 30 and 33 arrive one after another, all with the same capacity,
# which has not been used before. How many of the six wait for something to be compiled? The check runs them and counts.
# %% [markdown] id="exercises" lang="zh" of="a0f1c1b1"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面有一条线索和一个解答，都是折叠的。
#
# **1. 谁要等？** 先后来了长度为 3、5、16、17、30、33 的提示，都用同一个此前没有用过的容量。六个提示里，有几个要等编译？检查会真的运行并计数。
# %% id="exercise_1"
answer_1 = None
unused = itertools.count(CAPACITY + 1)


def check_1(answer):
    waited, capacity = 0, next(unused)
    for length in (3, 5, 16, 17, 30, 33):
        tokens = np.full((1, length), prompt[0], np.int32)
        theirs = jax_llama3.init_cache(small_config, 1, capacity, "float32")
        with count_compilations() as compiled:
            jax_llama3.prefill(small, tokens, np.array([length], np.int32), theirs, small_config)
        waited += compiled.count > 0
        print(f"{length:>2} ids: {compiled.count} programs compiled")
    assert answer == waited, f"it was {waited}"


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# All lengths in one bucket share their programs. How many different buckets are there among the six lengths?
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="95702080"
# <details><summary>线索</summary>
#
# 同一个桶里的长度共用程序。这六种长度落在几个不同的桶里？
#
# </details>
# %% id="solution_1" tags=["solution"]
buckets = {bucket(length) for length in (3, 5, 16, 17, 30, 33)}
exercise(1, len(buckets), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2. No silent clamp.** Write a function of `(slots, new, length)` like `write`, but one that never overwrites an old
# slot: rows for which there is no room are dropped. It must work under jit, with `length` as a traced argument, not a
# fixed number.
# %% [markdown] id="exercise_2_text" lang="zh" of="3af97cfc"
# **2. 不许悄悄钳制。** 写一个像 `write` 那样以 `(slots, new, length)` 为参数的函数，但它绝不覆盖旧的槽：放不下的行就丢掉。它必须能在 jit 下工作，`length` 是被追踪的参数，而不是固定的数。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    slots, new = jnp.zeros((4, K, H)), jnp.ones((2, K, H))
    jitted = jax.jit(answer)
    for length, filled in (
        (0, [1, 1, 0, 0]),
        (2, [0, 0, 1, 1]),
        (3, [0, 0, 0, 1]),
        (4, [0, 0, 0, 0]),
    ):
        written = jitted(slots, new, np.int32(length))
        assert written.shape == slots.shape
        assert written[:, 0, 0].tolist() == filled


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# `slots.at[places].set(rows, mode=...)` writes rows at any places. Look up which values `mode` may take.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="f07a4533"
# <details><summary>线索</summary>
#
# `slots.at[places].set(rows, mode=...)` 可以把若干行写到任意位置。查一查 `mode` 可以取什么值。
#
# </details>
# %% id="solution_2" tags=["solution"]


def write_or_drop(slots, new, length):
    return slots.at[length + jnp.arange(len(new))].set(new, mode="drop")


exercise(2, write_or_drop, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3. Undo.** Take back the last `n` tokens of a `jax_llama3` cache: write a function of `(cache, n)` that returns a
# cache from which the text goes on as if those tokens had never been there. Nothing has to be copied or cleared. Why not?
# %% [markdown] id="exercise_3_text" lang="zh" of="c7acba93"
# **3. 撤回。** 撤回 `jax_llama3` 缓存里最后的 `n` 个 token：写一个以 `(cache, n)` 为参数的函数，返回一个缓存，从它接着写下去，就像那些 token 从未出现过。什么都不用复制，也不用清空。为什么？
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    _, cache = read(prompt + prompt[:3], fresh())
    back = answer(cache, 3)
    assert back.lengths.tolist() == [P0]
    logits, _ = jax_llama3.decode(params, one, back, config)
    expected, _ = read([*prompt, int(one[0])], fresh())
    np.testing.assert_allclose(logits, expected, atol=1e-3)


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Which of the cache's three fields says which slots are filled? The mask hides the slots after those until they are
# written over. A cache is a named tuple, so `cache._replace(field=...)` gives one with another value in a field.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="6ac36b21"
# <details><summary>线索</summary>
#
# 缓存有三个字段，哪一个说明已填了哪些槽？在那之后的槽都由掩码挡住，直到有新内容写进去。缓存是具名元组，`cache._replace(字段=...)` 返回一个换了该字段的新缓存。
#
# </details>
# %% id="solution_3" tags=["solution"]
exercise(3, lambda cache, n: cache._replace(lengths=cache.lengths - n), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Frostig, Johnson and Leary, *Compiling Machine Learning Programs via High-level Tracing*, 2018
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102):
#   prefill and the tokens after it as two kinds of work
# - Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*, 2023,
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180): how a server shares prefixes and wastes no empty slots
#
# Next: lesson 12 chooses the next token in ways other than the greedy one, and knows when to stop.
# %% [markdown] id="sources" lang="zh" of="258a411d"
# ## 来源
#
# - Frostig、Johnson、Leary，*Compiling Machine Learning Programs via High-level Tracing*，2018
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)：把预填充与之后的 token 当作两类工作
# - Kwon 等，*Efficient Memory Management for Large Language Model Serving with PagedAttention*，2023，[arXiv:2309.06180](https://arxiv.org/abs/2309.06180)：服务器怎样共用前缀，又不浪费空槽
#
# 下一课：第 12 课用贪心以外的办法选择下一个 token，并知道何时停下。
