# %% [markdown] id="title" lang="en"
# # 01 · Text to ids
#
# *Reading time 18 minutes. Before it: lesson 00. What it proves: about forty lines of plain Python give the same ids as
# the fast libraries that everyone uses, for the default model and for Llama 3.*
#
# Why does a language model spell badly? Why does the same Chinese text cost more with one model than with another? Why can a
# single space at the end of a prompt spoil the answer?
#
# The reasons are not in the network. They are in the small program that runs before it and cuts the text into tokens.
# That program learns nothing while the network is trained: it was made earlier, once, by counting. But everything the
# network ever sees has gone through it. In this lesson we write it ourselves.
# %% [markdown] id="title" lang="zh" of="e3bb99eb"
# # 01 · 从文本到编号
#
# *阅读时间 18 分钟。前置：第 00 课。本课证明：大约四十行普通的 Python，对默认模型和 Llama 3 都能给出与大家常用的快速库相同的编号。*
#
# 语言模型为什么拼写不好？同样的中文，为什么在不同模型上花费不同？提示末尾的一个空格，为什么会毁掉回答？
#
# 原因不在网络里，而在网络前面那个把文本切成 token 的小程序里。训练网络时它什么也不学：它是事先靠计数一次性做好的。可网络看到的一切
# 都要先经过它。这一课，我们自己动手把它写出来。
# %% id="setup"
import random
import unicodedata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import regex
import tiktoken

import jax_llama3
from jax_llama3.bench.presets import preset
from jax_llama3.text.tokenizer import TextStream
from jax_llama3.text.vocabulary import MetaVocabulary
from jax_llama3_course import exercise, expect, load_model, on_default_model, show
from jax_llama3_course.figures import text_to_ids as figures

model = load_model()
# %% [markdown] id="vocabularies_text" lang="en"
# ## Two vocabularies
#
# We look at two vocabularies: that of the default model, SmolLM2, and that of Llama 3. Meta publishes the latter in its
# package `llama-models`. We read only that one file of it. If the package is not installed, the cells about Llama 3 do
# nothing.
# %% [markdown] id="vocabularies_text" lang="zh" of="02faff15"
# ## 两个词表
#
# 我们看两个词表：默认模型 SmolLM2 的，和 Llama 3 的。后者由 Meta 在软件包 `llama-models` 中公布，我们只读取其中的文件。如果没有安装这个包，
# 有关 Llama 3 的单元格就什么也不做。
# %% id="vocabularies_code"
tokenizer, vocabulary = model.tokenizer, model.tokenizer.vocabulary
print(f"default model: {vocabulary.size:>7,} tokens")

package = find_spec("llama_models")
if package:
    file = Path(package.submodule_search_locations[0]) / "llama3" / "tokenizer.model"
    llama3 = MetaVocabulary(file.read_bytes())
    print(f"Llama 3:       {llama3.size:>7,} tokens")
else:
    llama3 = None
    print("Llama 3: pip install --no-deps llama-models==0.3.0")
# %% [markdown] id="bytes_text" lang="en"
# ## Bytes
#
# What should a token be? Whole words won't do: there is always one that is missing from the list. Single characters
# would do, but there are more than 140,000 of them, most of them very rare, and a text would become very long.
#
# So we go one level deeper. A **byte** is a number from 0 to 255, and every text in a computer is stored as bytes. The
# usual rule for this is **UTF-8**: English letters take one byte each, é takes two, most Chinese characters take three,
# an emoji takes four. With 256 tokens, one for each byte, *any* text can be written, in any language. No text is ever
# unknown; it can only be long.
# %% [markdown] id="bytes_text" lang="zh" of="9843d939"
# ## 字节
#
# 一个 token 应该是什么？整个单词不行：总有清单里没有的词。单个字符可以，但字符有十四万多个，大多极少出现，而且文本会变得很长。
#
# 于是再往下走一层。**字节**（byte）是 0 到 255 的一个数，计算机里的任何文本都以字节存放。通常的规则是 **UTF-8**：英文字母各占一个字
# 节，é 占两个，大多数汉字占三个，emoji 占四个。有 256 个 token，每个字节一个，就能写出任何语言的*任何*文本。不会再有不认识的文本，
# 只会有太长的文本。
# %% id="bytes_code"
for character in "eé中🙂":
    print(character, [*character.encode()])
assert [len(character.encode()) for character in "eé中🙂"] == [1, 2, 3, 4]

characters = sum(unicodedata.category(chr(i)) not in ("Cn", "Co", "Cs") for i in range(0x110000))
assert characters > 140_000

text = "naïve 你好 🙂"
assert bytes([*text.encode()]).decode() == text
print(f"{len(text)} characters, {len(text.encode())} bytes")
# %% [markdown] id="training_text" lang="en"
# ## Byte-pair encoding
#
# To make texts short again, frequent byte sequences get tokens of their own. **BPE**, byte-pair encoding, finds them by
# counting:
#
# 1. Write a large text as bytes.
# 2. Find the pair of neighbouring tokens that occurs most often.
# 3. Join the two into one new token, everywhere. This is a **merge**. Its place in the list of merges is its *rank*:
#    the first merge has the lowest.
# 4. Go back to 2, until the vocabulary has the size you want.
#
# Below we do this on one sentence, in a few lines. Nothing in them knows what a word is, and yet words come out.
# %% [markdown] id="training_text" lang="zh" of="36c8f8eb"
# ## 字节对编码
#
# 要让文本重新变短，就给常见的字节序列各设一个 token。**BPE**（byte-pair encoding，字节对编码）靠计数找出它们：
#
# 1. 把大量文本写成字节。
# 2. 找出出现次数最多的一对相邻 token。
# 3. 在所有地方把这两个连成一个新 token。这叫一次**合并**（merge）。它在合并清单中排第几，就是它的*序号*（rank）：最先的合并序号最小。
# 4. 回到第 2 步，直到词表达到想要的大小。
#
# 下面在一句话上做一遍，只要几行。这几行完全不知道什么是词，词却自己出现了。
# %% id="training_code"


def join(parts, pair):
    joined, i = [], 0
    while i < len(parts):
        step = 2 if tuple(parts[i : i + 2]) == pair else 1
        joined.append(b"".join(parts[i : i + step]))
        i += step
    return joined


sentence = b"the cat and the hat and the other cat that sat there"
parts = [bytes([byte]) for byte in sentence]
learned = []
for _ in range(8):
    pairs = [*pairwise(parts)]
    best = max(dict.fromkeys(pairs), key=pairs.count)
    parts = join(parts, best)
    learned.append(b"".join(best))
print("learned:", *learned)
print("now:    ", b"|".join(parts).decode())
assert b"".join(parts) == sentence
assert b"the " in learned
assert b"cat " in learned
# %% [markdown] id="loop_text" lang="en"
# ## The merge loop
#
# How is a finished vocabulary used? The same way: start with bytes and repeat the merges, always the one with the
# lowest rank first, until none applies. In both of our vocabularies the ids of ordinary tokens follow the order of the
# merges, so the id itself can serve as the rank.
#
# That is the whole algorithm. We watch it work on one word: each line is the word after one more merge.
# %% [markdown] id="loop_text" lang="zh" of="b49fbf7e"
# ## 合并循环
#
# 做好的词表怎么用？方法相同：从字节开始，反复合并，总是先做序号最小的，直到没有可做的合并。我们这两个词表里，普通 token 的编号都按
# 合并的先后排列，所以编号本身就可以当序号。
#
# 这就是全部算法。我们在一个词上看它怎样进行：每一行是再做一次合并之后的这个词。
# %% id="loop_code"
special_ids = set(vocabulary.special.values())
ranks = {vocabulary.token_bytes(i): i for i in range(vocabulary.size) if i not in special_ids}


def merge_loop(piece, ranks, history=None):
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        if history is not None:
            history.append([*parts])
        candidates = [
            (ranks[left + right], i)
            for i, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not candidates:
            return parts
        _, i = min(candidates)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


word, history = " Strasbourg", []
by_hand = [ranks[part] for part in merge_loop(word.encode(), ranks, history)]
for parts in history:
    print(*(repr(part)[1:] for part in parts))
print(by_hand)
assert by_hand == tokenizer.encode(word)
# en: On the course's own model we know what comes out, and `expect` asserts it; another model may differ.
# zh: 在本课程自己的模型上，结果是已知的，`expect` 会断言它；换了别的模型，结果可以不同。
expect(len(by_hand), 3)
# %% [markdown] id="tree_text" lang="en"
# Drawn as a tree, the same merges read from the bottom to the top. Each box holds a token and its rank; ␣ is a space.
# Two tokens are joined wherever two lines meet. The green boxes are what is left: the word's three tokens. Nobody has
# to know that the names of many towns end in "bourg". It was frequent, so it got a token.
# %% [markdown] id="tree_text" lang="zh" of="169fcf9d"
# 把同样的合并画成树，从下往上读。每个方框里是一个 token 和它的序号，␣ 表示空格；两条线相遇的地方，就是两个 token 合并的地方。绿色方框是
# 最后剩下的：这个词的三个 token。谁也不需要知道许多城市的名字以“bourg”结尾。它常见，于是有了自己的 token。
# %% id="tree"
show(
    figures.merge_tree(history, ranks),
    en="A tree of merges over the eleven bytes of the word, drawn from bottom to top; each box holds a token and its rank. "
    "Three boxes are left at the top, in green.",
    zh="由这个词的十一个字节向上画出的合并树；每个方框里是一个 token 和它的序号。最后剩下的三个方框为绿色。",
)
# %% [markdown] id="spelling_text" lang="en"
# Two things follow. First, the network sees three ids here and no letters. It does not know how a word is spelt unless
# its training texts have said so.
#
# Second, to the tokenizer the same word is a different thing with a space before it, or with different capitals. Of the
# four spellings below, two are tokens, each with a row of its own in the embedding: the ones with only the P as a
# capital, with and without a space before it. The other two have no token and no row. They are put together from two
# tokens each, "par" + "is" and "PAR" + "IS", which also occur in quite different words. The network has to learn that
# all four mean one city.
# %% [markdown] id="spelling_text" lang="zh" of="c1e63c44"
# 由此有两个后果。第一，网络在这里看到的是三个编号，没有字母。除非训练文本说过，它并不知道一个词怎样拼写。
#
# 第二，对分词器来说，同一个词前面多一个空格，或者大小写不同，就是另一样东西。下面四种写法中，有两种各是一个 token，在嵌入中各有自己
# 的一行：只有首字母大写的那两种，一种前面带空格，一种不带。另外两种没有对应的 token，也就没有行，而是各由两个 token 拼成：“par” +
# “is”与“PAR” + “IS”，这些 token 也出现在毫不相干的词里。四种写法指的是同一座城市，这件事网络只能靠学习得知。
# %% id="spelling_code"
forms = ["Paris", " Paris", "paris", "PARIS"]
cuts = {
    form: [vocabulary.token_bytes(i).decode() for i in tokenizer.encode(form)] for form in forms
}
for form, cut in cuts.items():
    print(f"{form!r:<9} {cut!s:<15} {tokenizer.encode(form)}")
expect([form for form in forms if form.encode() in ranks], ["Paris", " Paris"])
expect(list(cuts.values()), [["Paris"], [" Paris"], ["par", "is"], ["PAR", "IS"]])
assert len({tuple(cut) for cut in cuts.values()}) == 4
# %% [markdown] id="split_text" lang="en"
# ## The split comes first
#
# Left alone, the loop would also make tokens like "dog." and "dog!" and "of the", and waste places in the vocabulary on
# them. So the text is cut into pieces first, and no merge ever crosses a cut. The cutting is done by a **regular
# expression**, a description of which characters may stand together. It is a list of alternatives. At each place the
# first one that fits takes as much as it can. `\p{L}` is any letter, `\p{N}` any digit or other number character, `\s`
# any whitespace: a space, a tab, a newline.
#
# Here are Llama 3's seven alternatives, and what they do to a text in two languages. Each line of the result shows the
# number of the alternative that fitted, then the piece, then the tokens that BPE makes of it. Pieces and tokens are two
# different things: a piece is the *most* that one token can cover.
# %% [markdown] id="split_text" lang="zh" of="9358304b"
# ## 先做切分
#
# 如果放任不管，循环还会造出“dog.”、“dog!”、“of the”这样的 token，白占词表的位置。所以要先把文本切成小段，合并从不跨过切口。切分
# 由**正则表达式**（regular expression）完成，它描述哪些字符可以连在一起。它由若干个分支组成；在每个位置上，第一个符合的分支尽量多地
# 取走字符。`\p{L}` 是任何字母，`\p{N}` 是任何数字字符，`\s` 是任何空白字符：空格、制表符、换行。
#
# 下面是 Llama 3 的七个分支，以及它们怎样处理一段中英混排的文本。结果的每一行依次是：符合的是第几个分支、切出的一段、BPE 对这一段给
# 出的 token。段与 token 是两回事：一个 token *最多*覆盖一整段。
# %% id="split_code"
branches = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
]
LLAMA3 = "|".join(branches)
mixed = "Llama 3 speaks 中文 too: 今天天气不错，we'll walk 1234 steps! 😀"

pieces = regex.findall(LLAMA3, mixed)
assert "".join(pieces) == mixed
if llama3:
    place = 0
    for piece in pieces:
        fits = [n for n, b in enumerate(branches, 1) if regex.compile(b).match(mixed, place)]
        place += len(piece)
        tokens = [llama3.token_bytes(i) for i in llama3.encode(piece)]
        shown = " | ".join(token.decode(errors="backslashreplace") for token in tokens)
        print(f"{fits[0]}  {piece!r:<12} {shown}")
    # en: Cutting first and encoding each piece is the same as encoding the text.
    # zh: 先切分再逐段编码，与直接编码整段文本相同。
    assert [i for piece in pieces for i in llama3.encode(piece)] == llama3.encode(mixed)
    assert len(pieces) < len(llama3.encode(mixed))
# %% [markdown] id="chinese_text" lang="en"
# ## There is no class for Chinese
#
# Does this expression recognise Chinese, as is sometimes said? No: nothing in it names a script. Chinese characters are
# simply letters, `\p{L}`, like those of English. And since Chinese has no spaces between words, the second alternative
# takes a whole run of characters, up to the next one that is not a letter, as *one* piece. Punctuation marks are not
# letters, so one of them may even stand first in a piece, as above in "，we". All cutting within Chinese is left to
# BPE, which joins what was frequent in its training text.
# %% [markdown] id="chinese_text" lang="zh" of="faa35300"
# ## 并没有中文这一类
#
# 有人说这个表达式能识别中文，是这样吗？不是：里面没有一处提到任何文字系统。汉字只是字母，即 `\p{L}`，与英文字母一样。而中文的词之间
# 没有空格，所以第二个分支会把直到下一个非字母字符为止的整串汉字当作*一段*。标点不是字母，于是它甚至可以排在一段的开头，如上面的
# “，we”。中文内部怎么切，完全交给 BPE，它把训练文本中常见的连在一起。
# %% id="chinese_code"
assert "Han" not in LLAMA3
assert "\\u" not in LLAMA3
assert LLAMA3.isascii()
assert regex.fullmatch(r"\p{L}+", "今天天气不错")

assert regex.findall(LLAMA3, "今天天气不错") == ["今天天气不错"]
assert regex.findall(LLAMA3, "今天天气不错，我们去散步。") == ["今天天气不错", "，我们去散步", "。"]

# en: Other scripts of letters alone are treated the same: Russian, Greek, Korean. (Thai vowel signs are not letters and cut.)
# zh: 只由字母构成的其他文字待遇相同：俄文、希腊文、韩文。（泰文的元音符号不算字母，会在那里切开。）
for phrase in ("привет", "γειά", "안녕"):
    assert regex.findall(LLAMA3, phrase) == [phrase]
assert len(regex.findall(LLAMA3, "สวัสดี")) == 3
# en: Digits go in threes from the left; the default model's split takes each digit alone.
# zh: 数字从左起三个一段；默认模型的切分则让每个数字单独成段。
assert regex.findall(LLAMA3, "1234567") == ["123", "456", "7"]
expect(len(tokenizer.encode("1234567")), 7)
# %% [markdown] id="not_text_text" lang="en"
# ## Tokens are bytes, not text
#
# BPE joins bytes and does not know where a character ends. So one token may be the first two bytes of a Chinese
# character, and the next token the third. Such a token has no text. Of Llama 3's 128,000 ordinary tokens, 1,352 are not
# valid UTF-8 by themselves: 128 single bytes and 1,224 longer ones.
#
# Two rules follow. Decode the *joined bytes* of all tokens, never token by token. And when you show a text while it is
# being written, hold back the bytes of a character that is not complete yet. This library's `TextStream` does that.
# %% [markdown] id="not_text_text" lang="zh" of="ac680804"
# ## Token 是字节，不是文本
#
# BPE 连接的是字节，并不知道一个字符在哪里结束。所以一个 token 可能是某个汉字的前两个字节，下一个 token 才是第三个。这样的 token 没有
# 对应的文本。Llama 3 的 128,000 个普通 token 中，有 1,352 个单独看不是合法的 UTF-8：128 个是单个字节，1,224 个更长。
#
# 由此得出两条规则。解码时要先把所有 token 的*字节连起来*，决不能逐个 token 解码。边写边显示文本时，字符还不完整就先扣住它的字节；本库
# 的 `TextStream` 就是这样做的。
# %% id="not_text_code"


def is_text(token):
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


if llama3:
    llama3_ids = range(llama3.size - 256)
    llama3_ranks = {llama3.token_bytes(i): i for i in llama3_ids}
    torn = [token for token in llama3_ranks if not is_text(token)]
    assert len(llama3_ranks) == 128_000
    assert len(torn) == 1_352
    assert sum(len(token) == 1 for token in torn) == 128
    print("Llama 3:      ", len(torn), "tokens are not text, for example", *torn[200:204])

torn = [token for token in ranks if not is_text(token)]
expect(len(torn), 313)
print("default model:", len(torn), "tokens are not text")

ids = tokenizer.encode("天气不错")
one_by_one = "".join(vocabulary.token_bytes(i).decode(errors="replace") for i in ids)
joined = b"".join(vocabulary.token_bytes(i) for i in ids).decode()
print(one_by_one, "->", joined)
assert joined == tokenizer.decode(ids) == "天气不错"
expect("\ufffd" in one_by_one, True)

stream = TextStream(tokenizer)
shown = [stream.push([i]) for i in ids]
print(shown)
assert "".join(shown) == "天气不错"
assert not any("\ufffd" in piece for piece in shown)
# %% [markdown] id="thousand_text" lang="en"
# ## By hand, a thousand times
#
# The split and the loop together make an encoder. We compare ours with `tiktoken`, the library that Llama 3's tokenizer
# is built on, on 1,000 random strings of letters in many scripts, digits, spaces and signs.
#
# One rule is still missing, and it is easy to overlook. If a whole piece is in the vocabulary, it is taken as it is,
# *before* any merge. For most pieces the loop would get there too. For 588 of Llama 3's tokens it would not: no
# sequence of merges by rank leads to them. The Vietnamese word in the code is one. And a thousand random strings do not
# reveal it: none of them contains such a piece, so without the rule all 1,000 would still agree. Many tests are not the
# same as the right tests.
# %% [markdown] id="thousand_text" lang="zh" of="76cc6d6c"
# ## 手算一千次
#
# 切分加上循环就是一个完整的编码器。我们拿它与 `tiktoken` 比较，Llama 3 的分词器就建立在这个库之上。测试用 1,000 个随机字符串，
# 其中有多种文字的字母、数字、空格和符号。
#
# 还差一条规则，很容易忽略：如果整段就在词表里，就直接取它，*先于*任何合并。对大多数段来说，循环最终也会得到它。但 Llama 3 有 588 个
# token 不是这样：按序号合并，怎么也得不到它们。代码中的那个越南语词就是一例。而一千个随机字符串发现不了这一点：其中没有一个含有这样
# 的段，所以去掉这条规则，1,000 个字符串照样全部一致。测试多，不等于测试对。
# %% id="thousand_code"


def encode_by_hand(text, pattern, ranks):
    ids = []
    for piece in regex.findall(pattern, text):
        data = piece.encode()
        ids += [ranks[part] for part in ([data] if data in ranks else merge_loop(data, ranks))]
    return ids


rng = random.Random(0)
alphabet = "abcdefghijklmnopqrstuvwxyz" * 2 + "ETAOINS" + "     '.,!?-\n\t0123456789"
alphabet += "éüñßпривет中文你好世界的是，。🙂😀안녕ไทยệợềđ"
strings = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1_000)]

if llama3:
    fast = tiktoken.Encoding(
        "llama3", pat_str=LLAMA3, mergeable_ranks=llama3_ranks, special_tokens={}
    )
    for string in strings:
        ours = encode_by_hand(string, LLAMA3, llama3_ranks)
        assert ours == fast.encode_ordinary(string) == llama3.encode(string)
    print(f"{len(strings):,} strings: our ids are tiktoken's")

    # en: On these strings the loop alone would do.
    # zh: 对这些字符串，只用循环也够了。
    for string in strings:
        cut = [merge_loop(piece.encode(), llama3_ranks) for piece in regex.findall(LLAMA3, string)]
        assert [llama3_ranks[part] for parts in cut for part in parts] == llama3.encode(string)

    # en: A token that only the whole-piece rule can reach.
    # zh: 只有“整段优先”的规则才能得到的 token。
    viet = " việc".encode()
    print(merge_loop(viet, llama3_ranks), "is not", [viet])
    assert viet in llama3_ranks
    assert len(merge_loop(viet, llama3_ranks)) > 1
    assert encode_by_hand(" việc", LLAMA3, llama3_ranks) == llama3.encode(" việc")
    assert llama3.encode(" việc") == [llama3_ranks[viet]]
    unreachable = [t for t in llama3_ranks if merge_loop(t, llama3_ranks) != [t]]
    assert len(unreachable) == 588
# %% [markdown] id="default_text" lang="en"
# The default model splits differently: every digit is set apart first, then GPT-2's expression does the rest. Its
# vocabulary is kept in another file format and read by another library, `tokenizers`. The loop is the same, and so is
# the result.
#
# This vocabulary has a hole. It has tokens for only 235 of the 256 bytes. Thirteen of the other 21 occur in no UTF-8
# text. But eight are possible: six are control characters, and two are the first bytes of code points to which Unicode
# has given no character yet. This model's tokenizer silently drops such characters. "Any text can be written" holds
# only for a vocabulary that has all bytes, as Llama 3's does.
# %% [markdown] id="default_text" lang="zh" of="0ed1ef5a"
# 默认模型用的是另一种切分：先把每个数字单独分开，再用 GPT-2 的表达式。它的词表用另一种文件格式存放，由另一个库 `tokenizers` 读取。循环
# 却是同一个，结果也一样。
#
# 这个词表有一处缺口：256 个字节中，只有 235 个有自己的 token。其余 21 个字节中，13 个不会出现在任何 UTF-8 文本里，另外 8 个却可能出现：
# 六个是控制字符，两个是 Unicode 尚未分配字符的码位的首字节。这个模型的分词器会悄悄丢掉这样的字符。只有像
# Llama 3 那样包含全部字节的词表，才真正做到“任何文本都能写出”。
# %% id="default_code"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
if on_default_model():
    for string in strings:
        runs = regex.split(r"(\p{N})", string)
        ours = [i for run in runs for i in encode_by_hand(run, GPT2, ranks)]
        assert ours == tokenizer.encode(string)
    print(f"{len(strings):,} strings: our ids are the model's")

    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    never = [0xC0, 0xC1, *range(0xF5, 0x100)]
    assert len(absent) == 256 - 235
    assert len(never) == 13
    assert [byte for byte in absent if byte not in never] == [4, 6, 19, 20, 22, 29, 0xF1, 0xF2]
    assert tokenizer.encode("a\x04b") == tokenizer.encode("a") + tokenizer.encode("b")
if llama3:
    assert all(bytes([byte]) in llama3_ranks for byte in range(256))
# %% [markdown] id="special_text" lang="en"
# ## Special tokens
#
# Some ids stand for no text at all. A **special token** is a signal: a text begins here, it ends here, the user has
# finished speaking. It has a name that we can write, such as `<|begin_of_text|>`, but no bytes of text lead to it.
#
# Llama 3 has 256 of them after the ordinary tokens: $128000 + 256 = 128256$, and this is the number of rows of its
# embedding. Most are reserved and still unused. Rely on their ids, not on their names: id 128004 is
# `<|finetune_right_pad_id|>` in the package that we read here and `<|fim_suffix|>` in Meta's older repository `llama3`.
#
# What if a user types `<|eot_id|>`? Then it is text, ten characters, and must be encoded as text. If it became the
# signal, users could end their own turn and speak as somebody else. So this library's `encode` never turns anything in
# the text into a special token. `bos=True` puts the special token for the beginning before the text, if the model wants
# one. The default model wants none.
# %% [markdown] id="special_text" lang="zh" of="e2de3dae"
# ## 特殊 token
#
# 有些编号根本不对应文本。**特殊 token**（special token）是一种信号：文本从这里开始，到这里结束，用户的话到此为止。它有一个便于书写的
# 名字，例如 `<|begin_of_text|>`，但没有任何文本字节能得到它。
#
# Llama 3 在普通 token 之后有 256 个特殊 token：$128000 + 256 = 128256$，这正是它的嵌入的行数。其中大多数是预留的，尚未使用。可靠的是编号，不是
# 名字：编号 128004 在我们读取的这个软件包里叫 `<|finetune_right_pad_id|>`，在 Meta 较早的代码库 `llama3` 里却叫 `<|fim_suffix|>`。
#
# 如果用户自己输入 `<|eot_id|>` 呢？那它就是十个字符的文本，也必须当作文本来编码。要是变成了信号，用户就能结束自己这一轮，再冒充别人
# 说话。所以本库的 `encode` 决不会把文本中的任何内容变成特殊 token。`bos=True` 则在模型需要时，把表示文本开头的特殊 token 放到文本之
# 前。默认模型不需要。
# %% id="special_code"
if llama3:
    assert len(llama3.special) == 256
    assert len(llama3_ranks) + len(llama3.special) == 128_256 == llama3.size
    assert preset("llama3-8b").vocab_size == llama3.size
    assert sorted(llama3.special.values()) == [*range(128_000, 128_256)]
    assert llama3.special["<|finetune_right_pad_id|>"] == 128_004
    for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|eot_id|>"):
        print(llama3.special[name], name)
    reserved = sum("reserved" in name for name in llama3.special)
    print(reserved, "are reserved")
    assert reserved > 200

    typed = llama3.encode("<|eot_id|>")
    assert len("<|eot_id|>") == 10
    print("typed:", [llama3.token_bytes(i).decode() for i in typed])
    assert llama3.special["<|eot_id|>"] == 128_009
    assert max(typed) < 128_000

assert all(not special_ids & set(tokenizer.encode(name)) for name in vocabulary.special)
expect(tokenizer.encode("Hi", bos=True), tokenizer.encode("Hi"))
# %% [markdown] id="seventeen_text" lang="en"
# ## The seventeen ids of lesson 15
#
# Now we can read the ids of the prompt that lesson 15 gives to the real Llama 3 8B. It ends with a space, on purpose.
# That space is a token of its own, 220, since digits never take a space with them (third alternative above). In " 42"
# too, the space comes first and then "42". So the prompt ends exactly where its continuation begins.
#
# Before a word it is the other way round: there the space belongs to the word's token.
# %% [markdown] id="seventeen_text" lang="zh" of="d455335f"
# ## 第 15 课的十七个编号
#
# 有了这些知识，就能读懂第 15 课交给真正的 Llama 3 8B 的那个提示的编号了。它故意以空格结尾。这个空格自成一个 token，即 220，
# 因为数字从来不带空格（上面的第三个分支）。在“ 42”里也是先有空格，再有“42”。所以提示恰好结束在后续文本开始的地方。
#
# 在单词前面则相反：那里的空格属于单词的 token。
# %% id="seventeen_code"
question = "the answer to the ultimate question of life, the universe, and everything is "
if llama3:
    seventeen = [llama3.special["<|begin_of_text|>"], *llama3.encode(question)]
    for token in seventeen:
        print(f"{token:>7} {llama3.token_bytes(token).decode()!r}")
    expected = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323]
    assert seventeen == [*expected, 4395, 374, 220]
    assert len(seventeen) == 17

    # en: Before digits the space stays alone; before a word it does not.
    # zh: 在数字前空格单独成 token；在单词前则不然。
    assert llama3.encode(question + "42") == [*seventeen[1:], 2983]
    assert llama3.encode(question + "love")[:-1] == seventeen[1:-1]
# %% [markdown] id="space_text" lang="en"
# ## A space at the end
#
# So what happens if you end a prompt with a space and want a word next? We try it on the default model. In its training
# texts, too, the space before a word was part of the word's token, and a space alone stood before digits. That is what
# it has learned to continue. Hence the advice never to end a prompt with a space.
# %% [markdown] id="space_text" lang="zh" of="03bb3e36"
# ## 末尾的一个空格
#
# 那么，提示以空格结尾，又想让模型接一个单词，会怎样？我们在默认模型上试试。在它的训练文本里也一样：单词前的空格属于单词的 token，而
# 单独的空格出现在数字之前。它学会的就是这样接下去。所以才有“提示不要以空格结尾”的建议。
# %% id="space_code"
endings = ["The capital of France is", "The capital of France is "]
completions = jax_llama3.generate(model, endings, max_new_tokens=1)
for ending, completion in zip(endings, completions, strict=True):
    print(f"{ending!r:<29} {completion.text!r}")
expect([completion.text for completion in completions], [" Paris", "2"])

space = ranks[b" "]
assert tokenizer.encode(endings[1]) == [*tokenizer.encode(endings[0]), space]
expect(tokenizer.encode(" 2"), [space, ranks[b"2"]])
expect(tokenizer.encode(" Paris"), [ranks[b" Paris"]])
# %% [markdown] id="two_text" lang="en"
# ## One text, two vocabularies
#
# Ids mean nothing without their vocabulary: 7042 is " Paris" for one model and something else for another. And the same
# text has different lengths. Below, each of four texts is encoded with both vocabularies. English needs about as many
# tokens in both. Chinese needs more than twice as many in the default model's vocabulary, which has few tokens for it.
#
# A larger vocabulary makes texts shorter, so that the network runs fewer times for a text. The price is rows of the
# embedding: $D$ numbers for each token, used or not.
# %% [markdown] id="two_text" lang="zh" of="dc73ab34"
# ## 同一段文本，两个词表
#
# 离开词表，编号毫无意义：7042 在一个模型里是“ Paris”，在另一个里是别的东西。同一段文本的长度也不同。下面四段文本分别用两个词表编码。
# 英文在两个词表下需要的 token 数差不多。中文在默认模型的词表下要多一倍以上，因为其中给中文的 token 很少。
#
# 词表越大，文本越短，同一段文本运行网络的次数就越少。代价是嵌入的行数：每个 token 要 $D$ 个数，不管用不用得上。
# %% id="two_code"
texts = {
    "English": "The capital of France is Paris, and it lies on the Seine.",
    "Chinese": "法国的首都是巴黎，它位于塞纳河畔。",
    "Python": "def square(x):\n    return x * x\n",
    "digits": "3.14159265358979",
}
if llama3:
    print(f"id 7042: {tokenizer.decode([7042])!r} and {llama3.token_bytes(7042).decode()!r}")
    counts = {}
    for name, text in texts.items():
        ours, theirs = tokenizer.encode(text), llama3.encode(text)
        assert tokenizer.decode(ours) == text
        assert b"".join(map(llama3.token_bytes, theirs)).decode() == text
        counts[name] = [len(text.encode()), len(ours), len(theirs)]
        print("{:<8} {:>3} bytes: {:>3} and {:>3} tokens".format(name, *counts[name]))
    if on_default_model():
        assert counts["Chinese"][1] > 2 * counts["Chinese"][2]
        assert counts["English"][1] == counts["English"][2]
        assert tokenizer.decode([7042]) != llama3.token_bytes(7042).decode()

    rows = llama3.size - model.config.vocab_size
    print(f"Llama 3's vocabulary in this model: {rows * model.config.dim:,} parameters more")
# %% id="picture"
if llama3:
    rates = {
        name: [counts[each][0] / counts[each][k] for each in texts]
        for k, name in enumerate(("default model", "Llama 3"), 1)
    }
    show(
        figures.bytes_per_token([*texts], rates),
        en="Bars: bytes per token of four texts under two vocabularies. English and Python are close; Chinese and digits take "
        "clearly more tokens with the default model's vocabulary.",
        zh="柱状图：四段文本在两个词表下每个 token 的字节数。英文与 Python 相近；中文和数字在默认模型的词表下明显需要更多 token。",
    )
# %% [markdown] id="exercises" lang="en"
# ## Exercises
#
# Put your answer in place of `None` and run the cell. A hint and a solution are folded away below each exercise.
#
# **1.** Write `decode`: a function from ids to text, for `vocabulary`. Where the ids end inside a character, the text
# should end with the character U+FFFD.
# %% [markdown] id="exercises" lang="zh" of="3aa58eff"
# ## 练习
#
# 用你的答案替换 `None`，然后运行。每题下面折叠着一条线索和一个解答。
#
# **1.** 写出 `decode`：按 `vocabulary` 把编号变回文本的函数。如果编号在一个字符中间结束，文本应以字符 U+FFFD 结尾。
# %% id="exercise_1"
answer_1 = None


def check_1(answer):
    for string in strings[:100]:
        assert answer(tokenizer.encode(string)) == string
    whole = tokenizer.encode("天气不错")
    for end in range(1, len(whole)):
        assert answer(whole[:end]) == tokenizer.decode(whole[:end])


exercise(1, answer_1, check_1)
# %% [markdown] id="hint_1" lang="en"
# <details><summary>Hint</summary>
#
# Join the bytes first. `bytes.decode` has an argument that says what to do with bytes that are not text.
#
# </details>
# %% [markdown] id="hint_1" lang="zh" of="58c62498"
# <details><summary>线索</summary>
#
# 先把字节连起来。`bytes.decode` 有一个参数，规定遇到不成文本的字节怎么办。
#
# </details>
# %% id="solution_1" tags=["solution"]
exercise(
    1,
    lambda ids: b"".join(vocabulary.token_bytes(i) for i in ids).decode(errors="replace"),
    check_1,
)
# %% [markdown] id="exercise_2_text" lang="en"
# **2.** If you cut a text in two and encode both parts, do you get the ids of the whole? Find a pair of texts `a, b`
# for which you do not: the ids of `a + b` differ from those of `a` followed by those of `b`, although there are
# *equally many*.
# %% [markdown] id="exercise_2_text" lang="zh" of="0f345af4"
# **2.** 把文本切成两段分别编码，得到的还是整段的编号吗？找一对文本 `a, b`，使答案为“否”：`a + b` 的编号不同于 `a` 的编号后接 `b` 的编号，
# 但*个数相同*。
# %% id="exercise_2"
answer_2 = None


def check_2(answer):
    a, b = answer
    apart, together = tokenizer.encode(a) + tokenizer.encode(b), tokenizer.encode(a + b)
    print([tokenizer.decode([i]) for i in apart], "is not")
    print([tokenizer.decode([i]) for i in together])
    assert apart != together
    assert len(apart) == len(together)


exercise(2, answer_2, check_2)
# %% [markdown] id="hint_2" lang="en"
# <details><summary>Hint</summary>
#
# Cut inside a rare word. It is easier to let the computer look: take a sentence with some rare names and try every cut.
#
# </details>
# %% [markdown] id="hint_2" lang="zh" of="9ee495ff"
# <details><summary>线索</summary>
#
# 在一个罕见的词中间切开。更省事的办法是让计算机去找：取一个含有罕见名字的句子，试遍每一个切口。
#
# </details>
# %% id="solution_2" tags=["solution"]


def first_pair(text):
    for i in range(1, len(text)):
        apart = tokenizer.encode(text[:i]) + tokenizer.encode(text[i:])
        together = tokenizer.encode(text)
        if apart != together and len(apart) == len(together):
            return text[:i], text[i:]
    return None


exercise(2, first_pair("The capital of Liechtenstein is Vaduz"), check_2)
# %% [markdown] id="exercise_3_text" lang="en"
# **3.** Why merge at all? One could also cut a piece from the left and always take the longest token that fits. Write
# this as a function of `piece` (bytes) and `ranks` that returns the list of tokens. Predict first: will it need more
# tokens than BPE or fewer? The check compares both on five words.
# %% [markdown] id="exercise_3_text" lang="zh" of="dd33fd84"
# **3.** 为什么非要合并？也可以从左边起，每次取能放下的最长的 token。写成以 `piece`（字节）和 `ranks` 为参数的函数，返回 token 的列表。
# 先预测一下：它需要的 token 会比 BPE 多，还是少？检查代码在五个词上比较两者。
# %% id="exercise_3"
answer_3 = None


def check_3(answer):
    words = ["unbelievable", "Strasbourg", "tokenization", "antidisestablishment", "Liechtenstein"]
    differ = 0
    for word in [f" {word}".encode() for word in words]:
        cut, merged = answer(word, ranks), merge_loop(word, ranks)
        print(f"{b'|'.join(cut).decode():<30} {b'|'.join(merged).decode()}")
        assert b"".join(cut) == word
        rest = word
        for token in cut:
            assert token in ranks
            assert not any(rest[:n] in ranks for n in range(len(token) + 1, len(rest) + 1))
            rest = rest[len(token) :]
        differ += cut != merged
    print(f"the two differ on {differ} of {len(words)} words")


exercise(3, answer_3, check_3)
# %% [markdown] id="hint_3" lang="en"
# <details><summary>Hint</summary>
#
# Try the lengths from `len(piece)` down to 1 and stop at the first that is in `ranks`. Take that token off the piece
# and start again.
#
# </details>
# %% [markdown] id="hint_3" lang="zh" of="71177602"
# <details><summary>线索</summary>
#
# 长度从 `len(piece)` 往下试到 1，遇到第一个在 `ranks` 里的就停。从这一段里取下这个 token，再从头来。
#
# </details>
# %% id="solution_3" tags=["solution"]


def longest_first(piece, ranks):
    parts = []
    while piece:
        n = next(n for n in range(len(piece), 0, -1) if piece[:n] in ranks)
        parts.append(piece[:n])
        piece = piece[n:]
    return parts


exercise(3, longest_first, check_3)
# %% [markdown] id="sources" lang="en"
# ## Sources
#
# - Sennrich, Haddow and Birch, *Neural Machine Translation of Rare Words with Subword Units*, 2015,
#   [arXiv:1508.07909](https://arxiv.org/abs/1508.07909)
# - Meta, *The Llama 3 Herd of Models*, 2024, [arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - The library [tiktoken](https://github.com/openai/tiktoken)
# - Meta's [llama-models](https://github.com/meta-llama/llama-models), which contains Llama 3's vocabulary, and the
#   older [llama3](https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py), with other names for some special
#   tokens
#
# Next: lesson 02 opens the files of weights.
# %% [markdown] id="sources" lang="zh" of="d2bbb174"
# ## 来源
#
# - Sennrich、Haddow、Birch，*Neural Machine Translation of Rare Words with Subword Units*，2015，[arXiv:1508.07909](https://arxiv.org/abs/1508.07909)
# - Meta，*The Llama 3 Herd of Models*，2024，[arXiv:2407.21783](https://arxiv.org/abs/2407.21783)
# - [tiktoken](https://github.com/openai/tiktoken) 库
# - Meta 的 [llama-models](https://github.com/meta-llama/llama-models)，其中有 Llama 3 的词表；以及较早的 [llama3](https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py)，其中有些特殊 token 的名字不同
#
# 下一课：第 02 课打开权重文件。
