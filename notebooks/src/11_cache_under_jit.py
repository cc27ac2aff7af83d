# %% [markdown] id="title" lang="en"
# # 11 · A KV cache under jit
#
# *Reading time 20 minutes. Before it: lesson 10. What it proves: a cache that grows is compiled anew for every token, one of
# fixed size only once; and where a fixed size can silently go wrong.*
#
# Lesson 10 generated with a cache that grew by concatenation. That was exact, and slow: Python handed each small operation to
# the machine one at a time. Now the whole step shall be compiled, so that it runs as one program. This asks for something the
# growing cache does not have: a shape that stays.
# %% [markdown] id="title" lang="zh" of="c0e63541"
# # 11 · jit 下的 KV 缓存
#
# *阅读时间 20 分钟。前置：第 10 课。本课证明：会变长的缓存每来一个 token 就要重新编译，固定大小的缓存只编译一次；以及固定大小在哪里会悄悄
# 出错。*
#
# 第 10 课用拼接出来的、不断变长的缓存生成文本。结果精确，但很慢：Python 把一个个小运算逐个交给机器。现在要把整个一步编译成一个程序来
# 运行。这就需要一样变长的缓存所没有的东西：不变的形状。
# %% id="setup"
import dataclasses
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import lax

import jax_llama3
from jax_llama3.decoding.programs import bucket
from jax_llama3.model.rope import rope_frequencies
from jax_llama3.runtime.compilation import count_compilations
from jax_llama3_course import BLUE, GREY, ORANGE, close, exercise, load_model, show, trace

model = load_model()
config, params = model.config, model.params
is_default = jax_llama3.count_params(config) == 134_515_008
V, N, K, H = config.vocab_size, config.n_heads, config.n_kv_heads, config.head_dim

# en: All layers work alike, so two are enough for what is made by hand: they compile faster.
# zh: 各层的做法相同，亲手实现的部分用两层就够，编译也更快。
L = 2
small_config = dataclasses.replace(config, n_layers=L)
small = params._replace(layers=params.layers[:L])
prompt = model.tokenizer.encode("The capital of France is", bos=True)
P0 = len(prompt)
# %% [markdown] id="jit" lang="en"
# ## What jit does
#
# `jax.jit(f)` returns a compiled version of `f`; to use it is called **jit**, "just in time", for the compiling happens at the
# first call. That call goes like this:
#
# 1. JAX runs the Python code of `f` once, but not on numbers. Each argument is replaced by a stand-in that knows only its
#    shape and its dtype. What is done to the stand-ins is written down. This is **tracing**.
# 2. The list of operations is compiled into one program for exactly these shapes.
# 3. The program is run on the numbers.
#
# Every later call with the same shapes and dtypes goes straight to 3: the Python code is not run again. A call with *another*
# shape or dtype goes through all three. We can watch it: whatever Python does on the side, such as appending to a list, happens only in step 1.
# %% [markdown] id="jit" lang="zh" of="a0fb5013"
# ## jit 做什么
#
# `jax.jit(f)` 返回 `f` 的编译版本；这种用法就叫 **jit**（just in time，即时），因为编译发生在第一次调用时。第一次调用分三步：
#
# 1. JAX 把 `f` 的 Python 代码运行一遍，但不是对数值运行。每个参数都换成一个替身，只知道自己的形状和数据类型；对替身做的每个运算都被
#    记录下来。这叫**追踪**（tracing）。
# 2. 把这串运算编译成一个程序，只适用于这些形状。
# 3. 用真正的数值运行这个程序。
#
# 之后形状和数据类型都相同的调用直接进入第 3 步，Python 代码不再运行。形状或数据类型*不同*的调用则三步都要走。这可以看得到：Python 顺手做的事，例如往列表里
# 追加一项，只在第 1 步发生。
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

# en: The library counts what is compiled inside a block.
# zh: 本库可以统计一段代码中编译了多少个程序。
with count_compilations() as old_shape:
    compiled_mean(np.ones(5, np.float32))
with count_compilations() as new_shape:
    compiled_mean(np.ones(7, np.float32))
assert (old_shape.count, new_shape.count) == (0, 1)
# %% [markdown] id="static" lang="en"
# A shape that is known when the program is compiled is a **static shape**, and a compiled program has no others. The *values*
# are not known then. So Python's `if` on a value cannot work, and no result may have a length that depends on one. JAX says
# so at once.
# %% [markdown] id="static" lang="zh" of="28da39c2"
# 编译时就已知的形状叫**静态形状**（static shape），编译后的程序里只有这一种。*数值*在那时是未知的，所以不能用 Python 的 `if` 去判断
# 一个值，也不能有长度取决于数值的结果。JAX 会立即指出这一点。
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
# the new keys or values behind the `length` that are there. The positions are `length`, `length + 1`, ..., and the mask
# compares them with the place of each key. There are two ways to append.
#
# - **grow**: concatenate. Result: $[P+T, K, H]$, one longer at each token.
# - **write**: the array has room for $S$ tokens from the start, its **capacity**. `lax.dynamic_update_slice` returns it with
#   the new rows at the given place. Result: $[S, K, H]$, always.
#
# What of the empty slots behind the filled ones? A slot's place is its position, and an empty one lies after every query.
# The causal mask hides it without any addition.
# %% [markdown] id="network" lang="zh" of="0ba4d577"
# ## 一个网络，两种追加方式
#
# 网络就是第 10 课的那个，处理一段文本的 $T$ 个新编号，只留一处没有定：`append(slots, new, length)` 把新的键或值放到已有的 `length` 个
# 之后。新 token 的位置是 `length`、`length + 1`……，掩码把它们与每个键所在的位置比较。追加有两种方式。
#
# - **grow**：拼接。结果是 $[P+T, K, H]$，每来一个 token 就长一格。
# - **write**：数组一开始就留出 $S$ 个 token 的空间，这叫**容量**（capacity）。`lax.dynamic_update_slice` 返回在指定位置写入新行后的
#   数组，结果始终是 $[S, K, H]$。
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
# ## Counted: one compilation per token, or two in all
#
# Both are jitted and generate six tokens, and we count. `length` is an argument like the others, so its value may change
# without another compilation; only shapes and dtypes count. (The choice of the next token is done in NumPy, which compiles nothing.)
# %% [markdown] id="count" lang="zh" of="7fb4ca58"
# ## 数一数：每个 token 编译一次，还是总共两次
#
# 两种方式都用 jit，各生成六个 token，并统计编译次数。`length` 和别的参数一样传入，值变了不会引起重新编译，起作用的只有形状和数据类型。（下一个
# token 用 NumPy 来选，它什么也不编译。）
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
print("grow: ", grown_counts, "=", sum(grown_counts))
print("write:", fixed_counts, "=", sum(fixed_counts))
assert grown_counts == [1] * STEPS
assert fixed_counts == [1, 1] + [0] * (STEPS - 2)
# %% [markdown] id="same" lang="en"
# Growing compiles at every token, for ever. The fixed cache compiles twice: for the shape of the prompt and for the shape of
# one token. And the results? They must be the same, and those of the library's `forward` over the whole sequence without any
# cache. Nor may it matter what is in the empty slots, as long as it is finite: its weight after the softmax is exactly zero.
# (Zero times infinity or NaN would be NaN.)
# %% [markdown] id="same" lang="zh" of="6dac99af"
# 变长的方式永远是每个 token 编译一次。固定的缓存只编译两次：一次针对提示的形状，一次针对单个 token 的形状。结果呢？两者必须相同，也必须
# 与本库的 `forward` 不用缓存、对整个序列计算的结果相同。空槽里有什么也不应有影响，只要是有限的数：经过 softmax 之后它的权重恰好为零。
# （零乘以无穷或 NaN 会得到 NaN。）
# %% id="same_code"
assert grown_ids == fixed_ids
trace("grown k", grown_cache[0][0], "S K H", S=P0 + STEPS - 1, K=K, H=H)
trace("fixed k", fixed_cache[0][0], "S K H", S=S, K=K, H=H)
close(grown_logits, fixed_logits, atol=1e-3)
whole, _ = jax_llama3.forward(small, np.array([fixed_ids[:-1]]), small_config)
close(fixed_logits, whole[0, P0 - 1 :], atol=1e-3)

# en: All positions of the prompt too, and again with rubbish in the empty slots: bit-equal.
# zh: 提示的所有位置也要一致；再在空槽里放上无用的数，结果逐位相同。
first, _ = fixed(small, np.array(prompt, np.int32), empty(S), np.int32(0))
close(first, whole[0, :P0], atol=1e-3)
rubbish = [(k + 100.0, v - 1000.0) for k, v in empty(S)]
again, _ = fixed(small, np.array(prompt, np.int32), rubbish, np.int32(0))
assert (again == first).all()
# %% [markdown] id="time_text" lang="en"
# What a compilation costs, measured: four further tokens in each way. The numbers depend on the machine and on what
# else it is doing; the difference between the two is almost all compilation.
# %% [markdown] id="time_text" lang="zh" of="982dbd85"
# 编译的代价，实测：两种方式各再生成四个 token。数值取决于机器和它当时的负载；两者之差几乎全是编译。
# %% id="time_code" tags=["measured"]
for name, step, cache in (("grow", growing, grown_cache), ("write", fixed, fixed_cache)):
    start = time.perf_counter()
    for i in range(4):
        length = np.int32(P0 + STEPS - 1 + i)
        logits, cache = step(small, np.array(fixed_ids[-1:], np.int32), cache, length)
        logits.block_until_ready()
    print(f"{name:<6} {(time.perf_counter() - start) / 4 * 1000:.0f} ms per token")
# %% [markdown] id="drawing_text" lang="en"
# Both ways in a drawing: on the left a new array in every round, and a program compiled for its shape; on the right one array
# that fills up. The price of the right side is the room that is held before it is needed.
# %% [markdown] id="drawing_text" lang="zh" of="87f19dd2"
# 把两种方式画出来：左边每一轮都是一个新数组，还要为它的形状编译一个程序；右边是同一个数组逐渐填满。右边的代价是提前占用的空间。
# %% id="drawing"
rounds = 5
figure, panels = plt.subplots(1, 2, figsize=(10, 3.6))
slots = P0 + rounds + 2
for panel, is_fixed in zip(panels, (False, True), strict=True):
    for r in range(rounds):
        held = P0 + r
        for s in range(slots if is_fixed else held):
            is_new = s < held and (r == 0 or s == held - 1)
            colour = ORANGE if is_new else BLUE if s < held else GREY
            cell = plt.Rectangle((s, r + 0.1), 1, 0.8, facecolor=colour, edgecolor="#333333")
            panel.add_patch(cell)
        program = f"program {min(r, 1) + 1 if is_fixed else r + 1}"
        panel.text((slots if is_fixed else held) + 0.4, r + 0.5, program, va="center", fontsize=9)
    panel.set_xlim(0, slots + 4)
    panel.set_ylim(rounds, 0)
    panel.set_xticks([])
    panel.set_yticks(np.arange(rounds) + 0.5, np.arange(rounds))
    panel.set_ylabel("round")
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
panels[0].set_title("grow: a new array each round")
panels[1].set_title("write: one array of fixed size")
handles = [
    plt.Rectangle((0, 0), 1, 1, facecolor=c, edgecolor="#333333") for c in (ORANGE, BLUE, GREY)
]
figure.legend(handles, ["written now", "kept", "empty slot"], loc="outside lower center", ncols=3)
show(
    figure,
    en="Left: five rows of boxes, each one box longer than the last, with programs 1 to 5. Right: five rows of equal length, "
    "filled one box further each time, with program 1 for the first row and program 2 for all others.",
    zh="左：五行方格，每行比上一行长一格，对应程序 1 到 5。右：五行等长的方格，每行多填一格；第一行用程序 1，其余都用程序 2。",
)
# %% [markdown] id="donation" lang="en"
# ## Donation
#
# A jitted function never changes its arguments. `fixed` therefore returns *another* array of $S$ slots, and to write one slot
# it first copies all the others, at every token. If the caller promises not to use the old array again, the program may write
# into it. This promise is called **donation**: `donate_argnames="cache"`.
#
# Three things can be seen. The memory address of the cache is the same before and after. The old array is deleted, and
# whoever touches it gets an error. And the compiler's own account says that the results lie in the memory of the arguments.
# %% [markdown] id="donation" lang="zh" of="829ba143"
# ## 捐赠
#
# 经 jit 编译的函数从不改变它的参数。所以 `fixed` 返回的是*另一个*有 $S$ 个槽的数组：为了写一个槽，每个 token 都要把其余的槽全部复制一遍。
# 如果调用者保证不再使用旧数组，程序就可以直接写在里面。这种保证叫**捐赠**（donation）：`donate_argnames="cache"`。
#
# 可以看到三点。缓存的内存地址前后相同；旧数组已被删除，谁再碰它就会报错；编译器自己的统计也表明，结果就放在参数的内存里。
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
# ## The silent clamp
#
# What if the cache is full? A compiled program does not stop with an error here, for `dynamic_update_slice` promises that
# its slice lies inside: a start that is too large is moved back until it fits. Nothing is said. The newest key is written over
# the one before it.
# %% [markdown] id="clamp" lang="zh" of="a16d78a0"
# ## 悄悄的钳制（clamp）
#
# 缓存满了会怎样？编译后的程序不会在这里报错停下，因为 `dynamic_update_slice` 保证写入的一段总在数组之内：起点太大，就往回移到放得下为止，什么
# 提示也没有。于是最新的键盖住了它前面的那个。
# %% id="clamp_code"
four = jnp.arange(4)
print("write 9 at place 4 of", four, "->", lax.dynamic_update_slice(four, jnp.array([9]), (4,)))
assert lax.dynamic_update_slice(four, jnp.array([9]), (4,)).tolist() == [0, 1, 2, 9]

# en: A cache with room for the prompt alone, and one token more.
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
# `jax_llama3` refuses in Python, before anything compiled runs: `prefill`, `decode` and `forward` compare `lengths` with
# the capacity and raise a `ValueError`. Inside a caller's own jit the lengths have no values yet, and nothing can be raised.
# There a token without a slot gets NaN logits, which cannot be mistaken for an answer.
# %% [markdown] id="refuse" lang="zh" of="8ba034ad"
# `jax_llama3` 在 Python 一侧就会拒绝，不等编译后的程序运行：`prefill`、`decode` 和 `forward` 把 `lengths` 与容量比较，不够就抛出
# `ValueError`。而在调用者自己的 jit 里，长度还没有值，无法报错；此时没有槽可放的 token 得到的 logits 是 NaN，不会被误当成答案。
# %% id="refuse_code"
full = jax_llama3.init_cache(small_config, 1, P0, "float32")
_, full = jax_llama3.prefill(small, np.array([prompt]), np.array([P0]), full, small_config)
try:
    jax_llama3.decode(small, one, full, small_config)
    raise AssertionError("a token without a slot was accepted")
except ValueError as error:
    assert f"needs {P0 + 1} cache slots and the cache has {P0}" in str(error)
    print("refused:", error)

inside = jax.jit(lambda params, ids, cache: jax_llama3.forward(params, ids, small_config, cache)[0])
assert jnp.isnan(inside(small, one[None], full)).all()
# %% [markdown] id="library" lang="en"
# ## The library: prefill, decode, buckets
#
# One shape per prompt length would still be too many. So `prefill` fills up the ids on the right to the next power of two, at
# least 16: the **bucket** of that length. All lengths in a bucket share their programs (`prefill` has three: what comes before
# the layers, one layer, which serves for all layers in turn, and what comes after). `lengths` says how many ids are real.
# The others do get keys and values, in slots after the real ones; but the cache's `lengths` does not count them, no query sees
# them, and the next tokens are written over them.
#
# `decode` always takes one id per row, so it has one shape. Both donate the cache: use the one that comes back.
# %% [markdown] id="library" lang="zh" of="68406fb3"
# ## 本库：prefill、decode 与桶
#
# 每种提示长度一个形状，还是太多。所以 `prefill` 在右边把编号补到下一个 2 的幂，至少 16：这就是该长度的**桶**（bucket）。同一个桶里的
# 各种长度共用同样的程序（`prefill` 有三个：各层之前的部分，一个供所有层轮流使用的层，各层之后的部分）。`lengths` 说明其中有多少个是真的。补上的那些也会算出键和值，落在真的之后的槽里；但缓存的 `lengths` 不计入它们，
# 没有查询看得到它们，后面的 token 会把它们覆盖掉。
#
# `decode` 每行总是一个编号，所以只有一种形状。两者都捐赠缓存：要用返回的那一个。
# %% id="library_code"
assert [bucket(n) for n in (1, 5, 16, 17, 32, 33)] == [16, 16, 16, 32, 32, 64]

# en: Compiled once more here: no earlier cell has used this capacity.
# zh: 这里会重新编译：前面没有用过这个容量。
CAPACITY = 64
counts = {}
for length in (P0, 9, 16, 17, 30):
    tokens = np.full((1, length), prompt[0], np.int32)
    tokens[0, :P0] = prompt
    theirs = jax_llama3.init_cache(small_config, 1, CAPACITY, "float32")
    with count_compilations() as compiled:
        jax_llama3.prefill(small, tokens, np.array([length], np.int32), theirs, small_config)
    counts[length] = compiled.count
    what = "something new" if compiled.count else "nothing"
    print(f"prefill of {length:>2} ids, bucket {bucket(length)}: compiled {what}")
assert [count > 0 for count in counts.values()] == [True, False, False, True, False]

theirs = jax_llama3.init_cache(small_config, 1, CAPACITY, "float32")
trace("their k", theirs.k[0], "B S K H", B=1, S=CAPACITY, K=K, H=H)
place = theirs.k[0].unsafe_buffer_pointer()
logits, theirs = jax_llama3.prefill(
    small, np.array([prompt], np.int32), np.array([P0], np.int32), theirs, small_config
)
rows, counts = [np.asarray(logits)[0]], []
for token in fixed_ids[P0 : P0 + STEPS - 1]:
    with count_compilations() as compiled:
        logits, theirs = jax_llama3.decode(small, np.array([token], np.int32), theirs, small_config)
        rows.append(np.asarray(logits)[0])
    counts.append(compiled.count)
print("decode, compiled per token:", counts)
assert counts == [1] + [0] * (STEPS - 2)
close(np.stack(rows), fixed_logits, atol=1e-3)
close(theirs.k[0][0, : P0 + STEPS - 1], fixed_cache[0][0][: P0 + STEPS - 1], atol=1e-3)
assert int(theirs.lengths[0]) == P0 + STEPS - 1
assert theirs.k[0].unsafe_buffer_pointer() == place
# %% [markdown] id="fork" lang="en"
# ## Forking one prefix into several continuations
#
# Old keys and values do not change (lesson 10), so one prefix can serve many continuations: prefill it once, then go on from
# it in different ways. Only donation stands in between: the first continuation takes the cache with it. So each one gets a
# copy. It costs the memory of the whole capacity; nothing is computed again.
#
# Here with all layers. Each result is compared with a prefill of the whole text.
# %% [markdown] id="fork" lang="zh" of="3dd2f241"
# ## 一个前缀，分成几种续写
#
# 旧的键和值不会变（第 10 课），所以一个前缀可以供多种续写共用：只预填充一次，再从它出发分别继续。唯一要注意的是捐赠：第一种续写会把缓存
# 带走。所以每一种都用一份副本；代价是整个容量的内存，但不需要重新计算。
#
# 这里用上全部的层。每个结果都与对整段文本的预填充比较。
# %% id="fork_code"


def read(text_ids, cache):
    tokens, lengths = np.array([text_ids], np.int32), np.array([len(text_ids)], np.int32)
    return jax_llama3.prefill(params, tokens, lengths, cache, config)


def fresh():
    return jax_llama3.init_cache(config, 1, CAPACITY, "float32")


prefix = model.tokenizer.encode("The capital of", bos=True)
_, shared = read(prefix, fresh())
words = []
for text in (" France is", " Italy is", " Japan is"):
    more = model.tokenizer.encode(text, start=False)
    mine = jax.tree.map(jnp.copy, shared)
    logits, mine = read(more, mine)
    expected, _ = read(prefix + more, fresh())
    close(logits, expected, atol=1e-3)
    words.append(model.tokenizer.decode([int(jnp.argmax(logits[0]))]))
    print("The capital of" + text + words[-1])
assert not shared.k[0].is_deleted()
if is_default:
    assert words == [" Paris", " Rome", " Tokyo"]

# en: Without a copy there is no second continuation.
# zh: 不复制，就没有第二种续写。
read(more, shared)
try:
    read(more, shared)
    raise AssertionError("a donated cache was used again")
except RuntimeError as error:
    assert "deleted" in str(error)
    print("the second use of one cache is refused")
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Prompts of the lengths 3, 5, 16, 17, 30, 33 and 100 arrive, all with the same capacity, in a new process. For how
# many of them does `prefill` compile anything? Write a function that answers this for any list of lengths.
# %% [markdown] id="exercises" lang="zh" of="a6128048"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 在一个新进程里先后来了长度为 3、5、16、17、30、33、100 的提示，容量都相同。其中有几个会让 `prefill` 编译？写一个函数，对任意的长度
# 列表作出回答。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    assert answer([3, 5, 16, 17, 30, 33, 100]) == 4
    assert answer([1]) == 1
    assert answer([64, 65, 128, 129]) == 3


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
exercise(1, lambda lengths: len({bucket(length) for length in lengths}), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Write a function `(slots, new, length)` like `write`, but one that never overwrites an old slot: rows for which there
# is no room are dropped. It must work under jit with `length` as a value. (Look at `mode` of `slots.at[...].set`.)
# %% [markdown] id="exercise_2_text" lang="zh" of="3d1184e6"
# **2.** 写一个像 `write` 那样以 `(slots, new, length)` 为参数的函数，但它绝不覆盖旧的槽：放不下的行就丢掉。它必须能在 jit 下工作，其中
# `length` 是数值。（看看 `slots.at[...].set` 的 `mode`。）
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
# %% id="solution_2" tags=["solution"]


def write_or_drop(slots, new, length):
    return slots.at[length + jnp.arange(len(new))].set(new, mode="drop")


exercise(2, write_or_drop, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Take back the last `n` tokens of a `jax_llama3` cache: write `(cache, n)` that returns a cache from which the text goes
# on as if they had never been there. Nothing needs to be copied or cleared. Why not?
# %% [markdown] id="exercise_3_text" lang="zh" of="e267709e"
# **3.** 撤回 `jax_llama3` 缓存里最后的 `n` 个 token：写一个以 `(cache, n)` 为参数的函数，返回的缓存可以接着写下去，就像那些 token 从未
# 出现过。什么都不用复制，也不用清空。为什么？
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
# %% id="solution_3" tags=["solution"]
exercise(3, lambda cache, n: cache._replace(lengths=cache.lengths - n), check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Frostig, Johnson and Leary, *Compiling Machine Learning Programs via High-level Tracing*, 2018
# - Pope et al., *Efficiently Scaling Transformer Inference*, 2022, [arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kwon et al., *Efficient Memory Management for Large Language Model Serving with PagedAttention*, 2023,
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180): how a server avoids the room that stands empty
#
# Next: lesson 12 chooses the next token in other ways than the greedy one, and knows when to stop.
# %% [markdown] id="sources" lang="zh" of="b61b88ba"
# ## 来源
#
# - Frostig、Johnson、Leary，*Compiling Machine Learning Programs via High-level Tracing*，2018
# - Pope 等，*Efficiently Scaling Transformer Inference*，2022，[arXiv:2211.05102](https://arxiv.org/abs/2211.05102)
# - Kwon 等，*Efficient Memory Management for Large Language Model Serving with PagedAttention*，2023，
#   [arXiv:2309.06180](https://arxiv.org/abs/2309.06180)：服务器怎样避免空占内存
#
# 下一课：第 12 课用贪心以外的办法选择下一个 token，并知道何时停下。
