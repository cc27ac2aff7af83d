# %% [markdown] id="title" lang="en"
# # 08 · Is it right?
#
# *Reading time 18 minutes. Before it: lessons 02 to 07. What it proves: the network agrees with an independent program at every
# position and layer, the agreement is close enough to exclude seventeen plausible errors, and the right next token excludes only six of them.*
#
# The network of lesson 07 says " Paris". That is pleasant, and it is weak evidence. The answer is one of tens of thousands of ids, and
# only the largest logit was looked at; all the others could be wrong. A program with an error in it usually runs, writes fluent text,
# and is a little worse than it should be. How do we know that ours has none?
# %% [markdown] id="title" lang="zh" of="70453dd7"
# # 08 · 它对吗？
#
# *阅读时间 18 分钟。前置：第 02 至 07 课。本课证明：网络在每个位置、每一层都与一个独立的程序一致；这种一致足够精确，能排除十七种看似合理
# 的错误；而“下一个 token 正确”只能排除其中六种。*
#
# 第 07 课的网络说出了“ Paris”。令人高兴，但这是很弱的证据。答案只是几万个编号中的一个，我们只看了最大的那个 logit，其余的可能全错。有错误
# 的程序往往照样能跑，写出通顺的文字，只是比应有的水平差一点。怎么知道我们的程序没有错？
# %% id="setup"
import dataclasses
import os
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore", message="IProgress not found")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

import jax_llama3
from convert.export import to_hf
from convert.layout import interleaved
from jax_llama3_course import close, exercise, load_model, model_folder, show, trace

model = load_model()
is_default = model_folder().name == "smollm2-135m-instruct"
config, params = model.config, model.params
D, V, L = config.dim, config.vocab_size, config.n_layers
N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
G = N // K

PROMPT = "The capital of France is"
TEXT = "The capital of France is Paris, and 2 + 3 = 5. def main(): return 中国的首都是北京"
ids = {text: model.tokenizer.encode(text, bos=True) for text in (PROMPT, TEXT)}
print("tokens:", *(len(ids[text]) for text in ids))
# %% [markdown] id="hand" lang="en"
# ## The network once more, with handles
#
# Below is everything from lessons 03 to 07 in one function. It is written for this lesson: what could be done wrongly is an
# argument whose default is right. It also returns the residual stream, from the embedding to the end.
# %% [markdown] id="hand" lang="zh" of="2ff76557"
# ## 再写一遍网络，这次装上把手
#
# 下面的函数包含第 03 至 07 课的全部内容，专为本课而写：凡是可能做错的地方都是一个参数，默认值就是正确的做法。它还返回从嵌入到末尾的残差流。
# %% id="hand_code"


def rms_norm(x, weight, eps):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rope(x, angle):
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def network(
    ids,
    params=params,
    config=config,
    *,
    norm=rms_norm,
    rotate=rope,
    rotate_v=False,
    start=0,
    sees=lambda query, key: key <= query,
    masked=-jnp.inf,
    scale=H**-0.5,
    kv_head=lambda n: n // G,
    activation=jax.nn.silu,
    swap_gate=False,
):
    t = jnp.arange(len(ids))
    angle = (start + t)[:, None] * jax_llama3.model.rope.rope_frequencies(config)
    mask = sees(t[:, None], t[None, :])
    heads = jnp.array([kv_head(n) for n in range(N)])
    eps = config.norm_eps
    x = params.embedding[jnp.array(ids)]
    stream = [x]
    for layer in params.layers:
        h = norm(x, layer.attn_norm, eps)
        q = jnp.einsum("TD,NHD->TNH", h, layer.wq)
        k = jnp.einsum("TD,KHD->TKH", h, layer.wk)
        v = jnp.einsum("TD,KHD->TKH", h, layer.wv)
        q, k = rotate(q, angle), rotate(k, angle)
        v = rotate(v, angle) if rotate_v else v
        scores = jnp.einsum("TNH,SNH->NTS", q, k[:, heads]) * scale
        scores = jnp.where(mask, scores, masked)
        z = jnp.einsum("NTS,SNH->TNH", jax.nn.softmax(scores, axis=-1), v[:, heads])
        x = x + jnp.einsum("TNH,DNH->TD", z, layer.wo)
        h = norm(x, layer.ffn_norm, eps)
        gate = jnp.einsum("TD,FD->TF", h, layer.w_gate)
        up = jnp.einsum("TD,FD->TF", h, layer.w_up)
        gate, up = (up, gate) if swap_gate else (gate, up)
        x = x + jnp.einsum("TF,DF->TD", activation(gate) * up, layer.w_down)
        stream.append(x)
    x = norm(x, params.norm, eps)
    stream[-1] = x
    output = params.embedding if params.output is None else params.output
    return jnp.einsum("TD,VD->TV", x, output), stream


logits, stream = network(ids[PROMPT])
trace("logits", logits, "T V", T=len(ids[PROMPT]), V=V)
library, _ = jax_llama3.forward(params, np.array([ids[PROMPT]]), config)
close(logits, library[0], atol=1e-3)
# %% [markdown] id="reference" lang="en"
# ## An independent reference
#
# Our two programs agree, but one author wrote both, and may have been wrong twice. **Parity** means agreement with a program that shares
# neither code nor author: here `transformers`, in PyTorch. It gets the same weights (`to-hf`, lesson 02) and the same ids.
#
# Be exact about what this can show. The weights went through our converter, so an error there would be handed on to both. That is why
# lesson 02 read each format with its own library. And ids are given, so the tokenizer is not tested here. What is tested is the network.
# %% [markdown] id="reference" lang="zh" of="8191b832"
# ## 独立的参考程序
#
# 我们的两个程序一致，但出自同一作者之手，可能错了两次。**对照**（parity）是指与一个代码和作者都不同的程序一致：这里用 PyTorch 写的
# `transformers`。给它同样的权重（`to-hf`，第 02 课）和同样的编号。
#
# 要说清楚这能证明什么。权重经过了我们的转换器，那里的错误会同时传给双方，所以第 02 课用各格式自己的库去读。编号是直接给定的，所以这里不测
# 分词器。测的是网络。
# %% id="reference_code"
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
reference, reference_stream = {}, {}
with tempfile.TemporaryDirectory() as folder:
    to_hf(model_folder(), Path(folder, "hf"))
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        Path(folder, "hf"),
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
    ).eval()
    for text in ids:
        with torch.inference_mode():
            result = theirs(torch.tensor([ids[text]]), output_hidden_states=True, use_cache=False)
        reference[text] = result.logits[0].numpy().copy()
        reference_stream[text] = [hidden[0].numpy().copy() for hidden in result.hidden_states]
del theirs, result
trace("reference", reference[TEXT], "T V", T=len(ids[TEXT]), V=V)
assert len(reference_stream[TEXT]) == L + 1
# %% [markdown] id="parity" lang="en"
# ## Every logit at every position
#
# The logits at position $t$ depend on tokens $0 \dots t$ alone. So one run on a text tests as many prompts as the text has tokens, and each
# with all $V$ logits. There is no reason to look at the last position only, or at the largest logit only.
#
# We ask that no logit differs by more than $10^{-3}$. Where this **tolerance** comes from is the subject of the next parts. The text
# mixes languages, digits and code on purpose: what a test does not exercise, it does not test.
# %% [markdown] id="parity" lang="zh" of="7dff9638"
# ## 每个位置上的每个 logit
#
# 位置 $t$ 的 logits 只取决于第 $0 \dots t$ 个 token。所以在一段文本上运行一次，就测试了与 token 数一样多的提示，而且每个提示都有全部 $V$ 个
# logits。没有理由只看最后一个位置，也没有理由只看最大的 logit。
#
# 我们要求任何 logit 的差不超过 $10^{-3}$。这个**容差**（tolerance）从何而来，是后面几节的内容。文本有意混合了多种语言、数字和代码：没有用到
# 的地方就等于没有测到。
# %% id="parity_code"
TOLERANCE = 1e-3


def difference(ours, text):
    return np.abs(np.asarray(ours) - reference[text])


noise = 0.0
for text in ids:
    by_hand, _ = network(ids[text])
    library = jax_llama3.forward(params, np.array([ids[text]]), config)[0][0]
    close(by_hand, reference[text], atol=TOLERANCE)
    close(library, reference[text], atol=TOLERANCE)
    noise = max(noise, difference(by_hand, text).max(), difference(library, text).max())
    assert (library.argmax(-1) == reference[text].argmax(-1)).all()
largest = float(np.abs(reference[TEXT]).max())
print(f"the largest logit is about {largest:.0f}")
# %% [markdown] id="noise" lang="en"
# ## Why not zero, and why not more
#
# Two right programs differ, because float32 addition depends on its order, and every library sums in an order of its own. Each sum is
# rounded to 24 bits. Around the largest logit neighbouring float32 numbers are about $4 \cdot 10^{-6}$ apart, and thousands of
# roundings pass through all layers to the logits. On this model they add up to around $10^{-4}$. So the tolerance must lie above that.
# And it must lie below what the smallest error does. How large is that? There is only one way to find out: make errors.
# %% [markdown] id="noise" lang="zh" of="b0de0d03"
# ## 为什么不是零，又为什么不能再大
#
# 两个正确的程序也会有差别，因为 float32 加法的结果取决于次序，而每个库都有自己的求和次序。每个和都舍入到 24 位。在最大的 logit 附近，相邻
# 的 float32 数相差约 $4 \cdot 10^{-6}$，成千上万次舍入穿过所有层到达 logits。在这个模型上累积到大约 $10^{-4}$，所以容差必须高于它。
# 容差还必须低于最小的错误造成的影响。那又是多大？只有一个办法知道：动手制造错误。
# %% id="noise_code"
a, b = np.float32(1e8), np.float32(1)
assert (b + a) - a == 0
assert b + (a - a) == 1

spacing = float(np.spacing(np.float32(largest)))
print(f"float32 numbers near {largest:.0f} are {spacing:.1e} apart")
assert spacing < noise < TOLERANCE
if is_default:
    assert noise < TOLERANCE / 3
# %% [markdown] id="mutations" lang="en"
# ## A table of mutations
#
# A **mutation** is a deliberate error, one at a time: the angle base of another model, a mask that lets one token too many through, heads
# that read the wrong key head, rows of q and k in Meta's order. All of them run without a complaint.
# For each we note
#
# - the next token of our prompt, and whether it is still the right one;
# - at how many positions of the longer text the top token is the reference's;
# - the largest difference of a logit in that text.
#
# The first two rows should pass. The second shifts all positions by 1000; lesson 05 proved that this changes nothing. It is a different
# program with the same function, and a test that failed it would be too strict.
# %% [markdown] id="mutations" lang="zh" of="70bce69c"
# ## 变异表
#
# **变异**（mutation）是故意制造的错误，一次一个：用别的模型的角度基数，掩码多放行一个 token，查询头读错了键的头，q 和 k 的行按 Meta 的次序
# 排列。它们全都照样运行，毫无怨言。对每一个我们记下：
#
# - 提示的下一个 token，以及它是否仍然正确；
# - 在较长文本的多少个位置上，第一名的 token 与参考程序相同；
# - 该文本中 logit 的最大差。
#
# 前两行应当通过。第二行把所有位置平移 1000；第 05 课证明了这不改变任何结果。它是另一个程序，却是同一个函数；连它都判为不合格的测试就太严了。
# %% id="mutations_code"


def eps_outside(x, weight, eps):
    return x / (jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) + eps) * weight


def mean_removed(x, weight, eps):
    return rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


def in_metas_order(weight):
    flat = np.asarray(weight).reshape(-1, D)
    return jnp.asarray(interleaved(flat, H).reshape(weight.shape))


def with_unpermuted(layers):
    return params._replace(
        layers=tuple(
            layer._replace(wq=in_metas_order(layer.wq), wk=in_metas_order(layer.wk))
            if index in layers
            else layer
            for index, layer in enumerate(params.layers)
        )
    )


change = dataclasses.replace
RIGHT = {"right": {}, "positions from 1000": {"start": 1000}}
MUTATIONS = {
    "theta / 10": {"config": change(config, rope_theta=config.rope_theta / 10)},
    "theta x 5": {"config": change(config, rope_theta=config.rope_theta * 5)},
    "eps / 10": {"config": change(config, norm_eps=config.norm_eps / 10)},
    "eps outside the root": {"norm": eps_outside},
    "mean subtracted": {"norm": mean_removed},
    "no mask": {"sees": lambda query, key: key <= query + V},
    "mask off by one": {"sees": lambda query, key: key <= query + 1},
    "masked scores are 0": {"masked": 0.0},
    "tiled GQA": {"kv_head": lambda n: n % K},
    "scores not scaled": {"scale": 1.0},
    "scaled by sqrt(D)": {"scale": D**-0.5},
    "q, k not reordered": {"params": with_unpermuted(range(L))},
    "no RoPE": {"rotate": lambda x, angle: x},
    "RoPE backwards": {"rotate": lambda x, angle: rope(x, -angle)},
    "v rotated too": {"rotate_v": True},
    "GELU for SiLU": {"activation": jax.nn.gelu},
    "gate and up swapped": {"swap_gate": True},
}
if K in (1, N):
    del MUTATIONS["tiled GQA"]

right_token = int(reference[PROMPT][-1].argmax())
rows = {}
print(f"{'':<22}{'next token':<12}{'':<8}{'top token':<11}{'largest':>8}{'  at 0':>9}")
for name, options in (RIGHT | MUTATIONS).items():
    short, _ = network(ids[PROMPT], **options)
    long, _ = network(ids[TEXT], **options)
    token = int(short[-1].argmax())
    same = float((np.asarray(long).argmax(-1) == reference[TEXT].argmax(-1)).mean())
    differences = difference(long, TEXT)
    rows[name] = token == right_token, same, differences.max(), differences[0].max()
    cells = [f"{d:.2g}" if d > TOLERANCE else "< 0.001" for d in rows[name][2:]]
    kept = "right" if rows[name][0] else "WRONG"
    shown = repr(model.tokenizer.decode([token]))
    print(f"{name:<22}{shown:<12}{kept:<8}{same:<11.0%}{cells[0]:>8}{cells[1]:>9}")
# %% [markdown] id="table" lang="en"
# Read the columns against each other. The next token clears more than half of the errors. The top token at all positions is better,
# but it still clears a wrong $\varepsilon$. The logits catch every one, and let both right programs pass.
#
# The last column is a warning of another kind: at position 0, with a single token, angles are zero and the only key has weight one. Nothing
# that is wrong with RoPE, scaling or the order of q and k can show. A test on one token, or on very short ones, has no power.
# %% [markdown] id="table" lang="zh" of="b962e482"
# 把各列放在一起看。只看下一个 token，一半以上的错误都能过关。看所有位置的第一名要好些，但错误的 $\varepsilon$ 仍能过关。logits 抓住了每一个
# 错误，又让两个正确的程序通过。
#
# 最后一列是另一种警告：在位置 0 只有一个 token，角度为零，唯一的键的权重是 1。RoPE、缩放、q 和 k 的次序有任何错误都显不出来。只测一个 token，
# 或只测很短的文本，测试就没有分辨力。
# %% id="table_code"
assert len(MUTATIONS) == 17 - (K in (1, N))
assert all(rows[name][2] <= TOLERANCE for name in RIGHT)
assert all(rows[name][2] > TOLERANCE for name in MUTATIONS)
kept = [name for name in MUTATIONS if rows[name][0]]
everywhere = [name for name in MUTATIONS if rows[name][1] == 1]
smallest = min(rows[name][2] for name in MUTATIONS)
print(f"{len(kept)} of {len(MUTATIONS)} mutations keep the next token")
print("these keep the top token at every position:", ", ".join(everywhere))
if is_default:
    assert len(kept) > len(MUTATIONS) / 2
    assert "eps / 10" in everywhere
    assert noise < TOLERANCE < smallest / 10

unseen_at_0 = [
    "theta / 10",
    "theta x 5",
    "scores not scaled",
    "scaled by sqrt(D)",
    "q, k not reordered",
    "no RoPE",
    "RoPE backwards",
    "v rotated too",
]
assert all(rows[name][3] <= TOLERANCE for name in unseen_at_0)
# %% id="table_picture"
figure, axes = plt.subplots(figsize=(7.5, 4.6))
order = sorted(MUTATIONS, key=lambda name: rows[name][2])
colours = ["#d95f02" if rows[name][0] else "#7f7f7f" for name in order]
axes.barh(order, [rows[name][2] for name in order], color=colours)
axes.set_xscale("log")
axes.set_xlim(1e-5, 200)
axes.axvline(TOLERANCE, color="black", linewidth=1.2)
axes.axvline(noise, color="tab:blue", linewidth=1.2, linestyle="--")
axes.text(TOLERANCE * 1.15, len(order) - 0.2, "tolerance", fontsize=8)
axes.text(noise * 0.85, len(order) - 0.2, "float32 noise", fontsize=8, color="tab:blue", ha="right")
axes.set_ylim(-0.6, len(order) + 0.7)
axes.set_xlabel("largest logit difference on the text  (orange: the next token is still right)")
show(
    figure,
    en="Horizontal bars on a log scale: every mutation lies far right of the tolerance; most bars are orange, their next token is right.",
    zh="对数刻度的横向条形图：每个变异都远在容差右侧；多数条形为橙色，即下一个 token 仍然正确。",
)
# %% [markdown] id="token" lang="en"
# ## The right token proves nothing
#
# A well-known prompt for Llama 3 is "the answer to the ultimate question of life, the universe, and everything is ", and the
# proof of success is a "42". It proves little. Take the crudest error there is, attention without a mask, where every token sees its
# future. It ruins most positions. But for some prompts the last token is the right one all the same, this one among them: the small model does
# not know the joke, but with the mask and without it says the same. The last position has no future to look into: a mask hides nothing
# from it. Only what the positions before it hand over is spoilt.
#
# So neither a "42" nor a " Paris" tells a right program from a wrong one. The table above does.
# %% [markdown] id="token" lang="zh" of="7b9f7086"
# ## 正确的 token 证明不了什么
#
# Llama 3 有一个有名的提示：“the answer to the ultimate question of life, the universe, and everything is ”，说出“42”就算成功。这证明不了
# 多少。取最粗暴的错误：没有掩码的注意力，每个 token 都看得到自己的未来。它毁掉了多数位置。但对某些提示，最后的 token 照样正确，这个提示
# 也在其中：小模型不懂这个典故，但有没有掩码，它说的都一样。最后一个位置没有未来可看，掩码对它什么也不遮；被破坏的只是前面各位置交给它的内容。
#
# 所以无论“42”还是“ Paris”，都不能把正确的程序与错误的程序区分开。上面的表能。
# %% id="token_code"
FAMOUS = "the answer to the ultimate question of life, the universe, and everything is "
agree = []
for prompt in (FAMOUS, "Red, green, blue. Red, green,"):
    prompt_ids = model.tokenizer.encode(prompt, bos=True)
    right, _ = network(prompt_ids)
    unmasked, _ = network(prompt_ids, **MUTATIONS["no mask"])
    tokens = [model.tokenizer.decode([int(each[-1].argmax())]) for each in (right, unmasked)]
    worst = float(jnp.abs(right - unmasked).max())
    agree.append(tokens[0] == tokens[1])
    print(
        f"{prompt[-30:]!r:<34} right {tokens[0]!r:<8} no mask {tokens[1]!r:<8} off by {worst:.0f}"
    )
    assert worst > 1
assert not is_default or all(agree)
# %% [markdown] id="layers" lang="en"
# ## Where does it begin?
#
# When parity fails, the next question is where. The residual stream is compared layer by layer, each difference divided by the length
# of the reference's vector, the worst position counted. A right program stays at the level of rounding from beginning to end. An error
# in every layer leaves it at the first. An error in one layer leaves it exactly there: we put only one layer's q and k into the wrong order.
# %% [markdown] id="layers" lang="zh" of="7d42637d"
# ## 从哪里开始错的？
#
# 对照不通过时，下一个问题是错在哪里。逐层比较残差流：每个差除以参考向量的长度，取最差的位置。正确的程序从头到尾都停留在舍入的水平。每层都有的
# 错误在第一层就离开这个水平。只在某一层的错误恰好在那一层离开：我们只把一层的 q 和 k 换成错误的次序。
# %% id="layers_code"


def by_layer(stream, text=TEXT):
    errors = []
    for ours, theirs in zip(stream, reference_stream[text], strict=True):
        length = np.linalg.norm(theirs, axis=-1)
        errors.append((np.linalg.norm(np.asarray(ours) - theirs, axis=-1) / length).max())
    return np.array(errors)


middle = L // 2
cases = {
    "right": {},
    "eps / 10": MUTATIONS["eps / 10"],
    "theta x 5": MUTATIONS["theta x 5"],
    f"q, k of layer {middle} not reordered": {"params": with_unpermuted([middle])},
}
curves = {name: by_layer(network(ids[TEXT], **options)[1]) for name, options in cases.items()}
first_wrong = {
    name: int(np.argmax(curve > 1e-4)) - 1 for name, curve in curves.items() if name != "right"
}
for name, index in first_wrong.items():
    print(f"{name:<32} first seen behind layer {index}")
assert all(curve[0] == 0 for curve in curves.values())
assert curves["right"].max() < 1e-4
assert list(first_wrong.values()) == [0, 0, middle]
# %% id="layers_picture"
figure, axes = plt.subplots(figsize=(7.5, 3.6))
for (name, curve), marker in zip(curves.items(), "o^sv", strict=True):
    axes.plot(range(1, L + 1), curve[1:], marker=marker, markersize=4, label=name)
axes.set_yscale("log")
axes.set_xlabel("layers passed (the last point is behind the final norm)")
axes.set_ylabel("relative difference")
axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
show(
    figure,
    en="Relative difference to the reference over the layers: the right program stays below 1e-4, two mutations are high "
    "from the first layer, a third leaves the noise at the middle layer.",
    zh="与参考程序的相对差随层数的变化：正确的程序始终低于 1e-4，两个变异从第一层起就很高，第三个在中间一层离开噪声。",
)
# %% [markdown] id="precision" lang="en"
# ## Test in float32, even if you run in bfloat16
#
# In bfloat16 each number is rounded to 8 bits, and the noise is larger by a factor of thousands. Then the tolerance has to be larger
# too, and errors slip under it. Below is the library itself in bfloat16, against the same reference: beside it a wrong $\varepsilon$ is
# invisible, and on the short prompt a wrong $\theta$ is no clearer than the noise.
#
# So parity is a matter of float32: the same code, the same weights, only wider. What bfloat16 costs is another question, with another
# measure, the Kullback-Leibler divergence of the next token's distribution from that of float32, in nats, on average:
#
# $$\mathrm{KL} = \sum_v p_v \,(\log p_v - \log \tilde p_v).$$
# %% [markdown] id="precision" lang="zh" of="eb54131e"
# ## 即使用 bfloat16 运行，也要用 float32 测试
#
# bfloat16 把每个数舍入到 8 位，噪声大了几千倍。于是容差也得放大，错误便从下面溜过去。下面是本库自己用 bfloat16 运行的结果，与同一个参考比较：
# 在它旁边，错误的 $\varepsilon$ 完全看不见；在短提示上，错误的 $\theta$ 也与噪声不相上下。
#
# 所以对照是 float32 的事：同样的代码，同样的权重，只是更宽。bfloat16 的代价是另一个问题，用另一种量来衡量：下一个 token 的分布相对于 float32
# 分布的 Kullback-Leibler 散度，单位是奈特，取平均：
#
# $$\mathrm{KL} = \sum_v p_v \,(\log p_v - \log \tilde p_v).$$
# %% id="precision_code" tags=["measured"]
narrow = jax.tree.map(lambda weight: weight.astype(jnp.bfloat16), params)


def divergence(ours, text):
    p = jax.nn.log_softmax(reference[text])
    return float((jnp.exp(p) * (p - jax.nn.log_softmax(ours))).sum(-1).mean())


effects = {}
for text in ids:
    results = {
        "right, bfloat16": jax_llama3.forward(narrow, np.array([ids[text]]), config)[0][0],
        "eps / 10, float32": network(ids[text], **MUTATIONS["eps / 10"])[0],
        "theta x 5, float32": network(ids[text], **MUTATIONS["theta x 5"])[0],
    }
    print(f"{len(ids[text])} tokens")
    for name, ours in results.items():
        effects[name, text] = float(difference(ours, text).max())
        kl = divergence(ours, text)
        print(f"  {name:<20} largest {effects[name, text]:.1g}   mean KL {kl:.0e}")
if is_default:
    assert effects["right, bfloat16", TEXT] > 1000 * noise
    assert effects["right, bfloat16", TEXT] > 10 * effects["eps / 10, float32", TEXT]
    assert effects["right, bfloat16", PROMPT] > effects["theta x 5, float32", PROMPT] / 2
    assert divergence(results["right, bfloat16"], TEXT) < 0.02
assert effects["right, bfloat16", TEXT] > TOLERANCE
# %% [markdown] id="summary" lang="en"
# What remains is a recipe. Compare with a program that is not yours; all logits, all positions, float32; a tolerance between the measured noise
# and the smallest mutation; a text long and varied enough to use everything (scaled RoPE shows faintly in short texts, fully at large distances); and
# prove the power of the test by errors made on purpose. This project's own tests do the same with about a hundred mutations.
# %% [markdown] id="summary" lang="zh" of="fab8c8c2"
# 最后剩下一份配方。与不是自己写的程序比较；比较所有 logits、所有位置，用 float32；容差取在实测噪声与最小变异之间；文本要足够长、足够多样，用到
# 所有部分（缩放的 RoPE 在短文本里只露出一点，距离远时才充分显现）；并用故意制造的错误证明测试有分辨力。本项目自己的测试也是这样做的，变异有约一百个。
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. The cell behind each holds a solution.
#
# **1.** Give a changed tree of weights with which the top token stays the same at *every* position of *every* text, and parity fails.
# %% [markdown] id="exercises" lang="zh" of="c00f8611"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题后面的单元格是一个解答。
#
# **1.** 给出一棵改动过的权重树：在*任何*文本的*每个*位置上第一名的 token 都不变，而对照不通过。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    for text in ids:
        ours, _ = network(ids[text], params=answer)
        assert (np.asarray(ours).argmax(-1) == reference[text].argmax(-1)).all()
        assert difference(ours, text).max() > TOLERANCE


exercise(1, answer_1, check_1)
# %% id="solution_1" tags=["solution"]
# en: The last norm's weights times a positive number: all logits grow alike.
# zh: 最后一个归一化的权重乘以一个正数：所有 logits 按同样的倍数放大。
exercise(1, params._replace(norm=1.05 * params.norm), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** A constant added to all logits of a position changes no probability. Write `distance(a, b)` of two arrays [T V]: the largest
# difference that a reader of probabilities could notice, in logarithms. It is zero for `a` and `a + 3`.
# %% [markdown] id="exercise_2_text" lang="zh" of="fcf28609"
# **2.** 给一个位置的所有 logits 加上同一个常数，概率不变。写出两个 [T V] 数组的 `distance(a, b)`：只看概率的人所能察觉的最大差，以对数计。
# 对 `a` 和 `a + 3`，它为零。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    a = jnp.asarray(reference[PROMPT])
    assert answer(a, a + 3) < TOLERANCE
    assert answer(a, a + jnp.arange(len(a))[:, None]) < TOLERANCE
    b = 1.1 * a
    expected = np.abs(jax.nn.log_softmax(a) - jax.nn.log_softmax(b)).max()
    assert abs(answer(a, b) - expected) < TOLERANCE


exercise(2, answer_2, check_2)
# %% id="solution_2" tags=["solution"]
exercise(2, lambda a, b: jnp.abs(jax.nn.log_softmax(a) - jax.nn.log_softmax(b)).max(), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** One layer of `suspect` is damaged. Which? Find its number from the residual stream.
# %% [markdown] id="exercise_3_text" lang="zh" of="f70b7533"
# **3.** `suspect` 有一层坏了。是哪一层？从残差流找出它的编号。
# %% id="exercise_3"
damaged = int(np.random.default_rng(8).integers(L))
suspect = with_unpermuted([damaged])
answer_3 = None


def check_3(answer):
    assert answer == damaged


exercise(3, answer_3, check_3)
# %% id="solution_3" tags=["solution"]
suspect_stream = network(ids[TEXT], params=suspect)[1]
exercise(3, int(np.argmax(by_layer(suspect_stream) > 1e-4)) - 1, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Goldberg, *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM Computing Surveys 23, 1991
# - DeMillo, Lipton and Sayward, *Hints on Test Data Selection*, IEEE Computer 11, 1978: mutations as a measure of tests
# - Hugging Face, *transformers*, [github.com/huggingface/transformers](https://github.com/huggingface/transformers)
#
# Next: lesson 09 changes the network on purpose once more, this time to learn from it.
# %% [markdown] id="sources" lang="zh" of="8f0734dd"
# ## 来源
#
# - Goldberg，*What Every Computer Scientist Should Know About Floating-Point Arithmetic*，ACM Computing Surveys 23，1991
# - DeMillo、Lipton、Sayward，*Hints on Test Data Selection*，IEEE Computer 11，1978：用变异衡量测试
# - Hugging Face，*transformers*，[github.com/huggingface/transformers](https://github.com/huggingface/transformers)
#
# 下一课：第 09 课再次有意改动网络，这一次是为了从中学到东西。
