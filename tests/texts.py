"""Random texts to compare tokenizers on: a named family for every kind of text that trips one up."""

import random
import re
from collections.abc import Callable

Random = random.Random

# First and last code point of the letters of each script, in hexadecimal. Gaps are meant.
_SCRIPTS = """
latin 41-24F ipa 250-2AF greek 370-3FF cyrillic 400-52F armenian 531-58A hebrew 591-5F4
arabic 600-6FF syriac 700-74F thaana 780-7B1 nko 7C0-7FF samaritan 800-83E mandaic 840-85E
devanagari 900-97F bengali 980-9FE gurmukhi A01-A76 gujarati A81-AFF oriya B01-B77 tamil B82-BFA
telugu C00-C7F kannada C80-CF2 malayalam D00-D7F sinhala D81-DF4 thai E01-E5B lao E81-EDF
tibetan F00-FDA myanmar 1000-109F georgian 10A0-10FF jamo 1100-11FF ethiopic 1200-139F
cherokee 13A0-13FD canadian 1400-167F ogham 1680-169C runic 16A0-16F8 tagalog 1700-171F
khmer 1780-17F9 mongolian 1800-18AA limbu 1900-194F tai 1950-19DF balinese 1B00-1B7E
sundanese 1B80-1BBF batak 1BC0-1BFF lepcha 1C00-1C4F glagolitic 2C00-2C5F coptic 2C80-2CFF
tifinagh 2D30-2D7F hiragana 3041-309F katakana 30A0-30FF bopomofo 3105-312F han 4E00-9FFF
yi A000-A4C6 lisu A4D0-A4FF vai A500-A62B bamum A6A0-A6F7 javanese A980-A9DF cham AA00-AA5F
meetei ABC0-ABF9 hangul AC00-D7A3 presentation FB50-FDFF halfwidth FF00-FFEF linearb 10000-100FA
gothic 10330-1034A deseret 10400-1044F cypriot 10800-1083F phoenician 10900-1091F
kharoshthi 10A00-10A58 turkic 10C00-10C48 brahmi 11000-1107F chakma 11100-11147
cuneiform 12000-12399 hieroglyphs 13000-1342F tangut 17000-187F7 nushu 1B170-1B2FB
mathematical 1D400-1D7FF mende 1E800-1E8D6 adlam 1E900-1E95F extension_b 20000-2A6DF
extension_g 30000-3134A
"""
SCRIPTS = {
    name: (int(first, 16), int(last, 16))
    for name, first, last in re.findall(r"(\w+) (\w+)-(\w+)", _SCRIPTS)
}
# Letters, digits and signs that Unicode 14 to 15.1 added: libraries know them since 2021 to 2023.
_RECENT = [(0x870, 0x887), (0x10570, 0x10595), (0x10F70, 0x10F85), (0x12F90, 0x12FF0)]
_RECENT += [(0x16A70, 0x16AC9), (0x1DF00, 0x1DF1E), (0x1E290, 0x1E2AE), (0x1F6DC, 0x1F6DF)]
_RECENT += [(0x11F04, 0x11F10), (0x11F50, 0x11F59), (0x1E4D0, 0x1E4F9), (0x2EBF0, 0x2EE5D)]
# Letters and digits that Unicode 16 and 17 added: one table of Unicode has them and another not.
NEWEST = [(0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3)]
NEWEST += [(0x10D40, 0x10D65), (0x10D6F, 0x10D85), (0x10EC2, 0x10EC4), (0x11380, 0x113D3)]
NEWEST += [(0x116D0, 0x116E3), (0x11BC0, 0x11BE0), (0x11BF0, 0x11BF9), (0x11DB0, 0x11DE9)]
NEWEST += [(0x13460, 0x143FA), (0x16100, 0x1611D), (0x16130, 0x16139), (0x16D40, 0x16D79)]
NEWEST += [(0x16FF4, 0x16FF6), (0x18CFF, 0x18CFF), (0x1CCF0, 0x1CCF9), (0x1E5D0, 0x1E5FA)]
_UNASSIGNED = [(0x378, 0x379), (0x530, 0x530), (0xE5C, 0xE7F), (0x1FC5, 0x1FC5), (0x2FE0, 0x2FEF)]
_UNASSIGNED += [(0xFDD0, 0xFDEF), (0xFFFE, 0xFFFF), (0x1FFFE, 0x1FFFF), (0x40000, 0xDFFFF)]
_PRIVATE = [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)]
_MARKS = [(0x300, 0x36F), (0x483, 0x489), (0x591, 0x5C7), (0x64B, 0x65F), (0x1AB0, 0x1ACE)]
_MARKS += [(0x1DC0, 0x1DFF), (0x20D0, 0x20F0), (0x3099, 0x309A), (0xFE20, 0xFE2F)]
_SYMBOLS = [(0x21, 0x2F), (0x5B, 0x60), (0xA1, 0xBF), (0x2010, 0x205E), (0x20A0, 0x20C0)]
_SYMBOLS += [(0x2190, 0x23FF), (0x2500, 0x27BF), (0x2A00, 0x2AFF), (0x3001, 0x3020)]
_ZEROES = [0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xBE6, 0xE50, 0xF20, 0x1040, 0x17E0]
_ZEROES += [0x1810, 0xA620, 0xFF10, 0x104A0, 0x11066, 0x1D7CE, 0x1E950, 0x1FBF0]
_NUMBERS = "²³¹⁰⁴⁹₀₅₉¼½¾⅓⅞ⅠⅣⅫⅷↀ①⑳⒈㈠㊿〇〡〩一二三十百千万億௰௱௲፩፲፼൰༳༬𐄇𐅀𒐀𝍠🄀🄌"
_WHITE = [" ", " ", " ", "\n", "\n", "\t", "\r\n", "\r", "\v", "\f", "\u0085", "\u00a0", "\u1680"]
_WHITE += [
    "\n\r",
    " \r",
    "\r \n",
    "\u2003",
    "\u2009",
    "\u2028",
    "\u2029",
    "\u202f",
    "\u205f",
    "\u3000",
    "\u200b",
    "\ufeff",
]
_BIDI = ["\u200e", "\u200f", "\u061c", "\u202a", "\u202b", "\u202c", "\u202e", "\u2067", "\u2069"]
_ENDINGS = "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'Ve 'M 'LL 'lL 'D 'ſ ’s ’ll 'x ''s 'sm 's1 's's 'Sam 'Today 'REal"
_ENDINGS += " 'Very 'Medium 'LLama 'Dear"
_WORDS = "I you We they don can won it that rock O John ÉTÉ über the end 90 你 да".split()
_EMOJI = "😀 🙂 ❤️ ☕ ✈️ ⚽ 1️⃣ #️⃣ 👍🏽 👋🏿 🤷🏻‍♀️ 👨‍👩‍👧‍👦 👩‍❤️‍💋‍👨 🧑🏾‍🚀 🏳️‍🌈 🏴‍☠️ 🐻‍❄️ 🇩🇪 🇨🇳 🇺🇳 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🫨 🪿 🫩".split()
_TONES = ["", "\u200d", "\ufe0f", "\ufe0e", "🏻", "🏿", "\u20e3"]
SPECIAL_NAMES = """
<|begin_of_text|> <|end_of_text|> <|eot_id|> <|eom_id|> <|start_header_id|> <|end_header_id|>
<|python_tag|> <|image|> <|step_id|> <|finetune_right_pad_id|> <|reserved_special_token_0|>
<|reserved_special_token_3|> <|reserved_special_token_247|> <|endoftext|> <|im_start|> <|im_end|>
<repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> <issue_comment> <issue_closed>
<jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> <empty_output>
<s> </s> <unk> <0x0A> [INST] <<SYS>>
""".split()
_CODE = """
def|f(x,|*args): |return|x**2+1|if|self._id!=None:|#|TODO|"\\n"|{"key":|[1,|2.50e-10,|null]}|</div>|
<a|href="https://example.org/a?b=c&d=%20e">|SELECT|*|FROM|t;|0xFF|a&&b||x->y|std::vector<int>|\\\\frac{1}{2}|
$HOME/.bashrc|import|numpy|as|np|lambda:|@property|'it''s'|`ls|-la`|/*|comment|*/|//|===|<!--|-->
"""
_CODE_WORDS = _CODE.replace("\n", "").split("|")


_PREFIXES = " un re in im dis pre over inter trans sub non anti co de mis out up over- self-".split(
    " "
)
_STEMS = (
    "import port form tract sent struct spect able def table gener connect press vers cogn graph"
)
_STEMS += (
    " light house comput develop establish knowledg program work water think school nation play"
)
_STEMS += " act rel sign creat serv mov duct ject posit fact mark view stand code electr chem relig"
_SUFFIXES = (
    "  s ed ing er ion ation able ible ment ly ness al ally ity ive ize ized ful ant 's ism".split(
        " "
    )
)
_PROSE = """
All human beings are born free and equal in dignity and rights. Alle Menschen sind frei und gleich an
Würde und Rechten geboren. Tous les êtres humains naissent libres et égaux en dignité et en droits.
Все люди рождаются свободными и равными в своем достоинстве и правах. Όλοι οι άνθρωποι γεννιούνται
ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. 人人生而自由，在尊严和权利上一律平等。
すべての人間は、生まれながらにして自由であり、 모든 인간은 태어날 때부터 자유로우며 يولد جميع الناس أحرارًا متساوين
في الكرامة والحقوق. כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. सभी मनुष्यों को गौरव और अधिकारों के मामले में
เราทุกคนเกิดมาอย่างอิสระ Tất cả mọi người sinh ra đều được tự do và bình đẳng. Bütün insanlar hür doğarlar.
"""


def _within(rng: Random, ranges: list[tuple[int, int]]) -> str:
    return chr(rng.randint(*rng.choice(ranges)))


def _some(rng: Random, choices: list[str] | str, most: int) -> str:
    return "".join(rng.choice(choices) for _ in range(rng.randint(1, most)))


def _word(rng: Random, ranges: list[tuple[int, int]], most: int = 8) -> str:
    return "".join(_within(rng, ranges) for _ in range(rng.randint(1, most)))


def one_script(rng: Random) -> str:
    script = [rng.choice(list(SCRIPTS.values()))]
    return " ".join(_word(rng, script) for _ in range(rng.randint(1, 4)))


def many_scripts(rng: Random) -> str:
    words = [_word(rng, list(SCRIPTS.values()), 4) for _ in range(rng.randint(2, 5))]
    return rng.choice(["", " ", ", ", "-"]).join(words)


def latin(rng: Random) -> str:
    words = [_word(rng, [(0x61, 0x7A), (0x61, 0x7A), (0x41, 0x5A)]) for _ in range(8)]
    return "".join(
        word + rng.choice([" ", " ", ", ", ". ", "\n", "?!", "(", '"']) for word in words
    )


def english(rng: Random) -> str:
    words = [
        rng.choice(_PREFIXES) + rng.choice(_STEMS.split()) + rng.choice(_SUFFIXES)
        for _ in range(rng.randint(2, 10))
    ]
    change = rng.choice([str, str, str, str.title, str.upper])
    return rng.choice([" ", " ", "_", ", "]).join(change(word) for word in words)


def prose(rng: Random) -> str:
    words = _PROSE.split()
    start = rng.randrange(len(words) - 1)
    said = " ".join(words[start : start + rng.randint(1, 12)])
    return rng.choice([said, said, said.upper(), said.title(), f"“{said}”", f"*{said}*\n"])


def accented(rng: Random) -> str:
    return " ".join(_word(rng, [(0xC0, 0x24F), (0x1E00, 0x1EFF)]) for _ in range(rng.randint(1, 4)))


def contractions(rng: Random) -> str:
    pairs = [rng.choice(_WORDS) + rng.choice(_ENDINGS.split()) for _ in range(rng.randint(1, 6))]
    return rng.choice(["", " ", " "]).join(pairs)


def emoji(rng: Random) -> str:
    return "".join(rng.choice(_EMOJI) + rng.choice(["", "", " ", "a", "!"]) for _ in range(6))


def emoji_parts(rng: Random) -> str:
    parts = [(0x1F300, 0x1FAFF), (0x1F1E6, 0x1F1FF), (0x2600, 0x27BF)]
    return "".join(_within(rng, parts) + rng.choice(_TONES) for _ in range(rng.randint(1, 8)))


def controls(rng: Random) -> str:
    kinds = [(0, 0x1F), (0, 0x1F), (0x7F, 0x9F), (0x20, 0x7E), (0xFFF9, 0xFFFD), (0xE0000, 0xE007F)]
    return _word(rng, kinds, 20)


def rare_bytes(rng: Random) -> str:
    # In UTF-8 they hold bytes so rare that a trained vocabulary may have no token for them.
    rare = [(0x04, 0x06), (0x13, 0x16), (0x1D, 0x1D), (0x40000, 0xBFFFF)]
    return "".join(rng.choice(["", *" .!-a1é"]) + _within(rng, rare) for _ in range(8)) + "!"


def combining(rng: Random) -> str:
    bases = [(0x61, 0x7A), (0x3B1, 0x3C9), (0x5D0, 0x5EA), (0x3042, 0x3093), (0x20, 0x20)]
    return "".join(
        _within(rng, bases) + "".join(_within(rng, _MARKS) for _ in range(rng.randint(0, 3)))
        for _ in range(rng.randint(1, 10))
    )


def right_to_left(rng: Random) -> str:
    letters = [(0x5D0, 0x5EA), (0x620, 0x64A), (0x671, 0x6D3)]
    between = [" ", "، ", " 123 ", "؟ ", " abc ", ".", *_BIDI]
    words = [_word(rng, letters, 6) + rng.choice(between) for _ in range(rng.randint(1, 6))]
    return "".join(words)


def digits(rng: Random) -> str:
    runs = []
    for _ in range(rng.randint(1, 5)):
        zero = rng.choice(_ZEROES)
        runs.append("".join(chr(zero + rng.randrange(10)) for _ in range(rng.randint(1, 7))))
    return rng.choice(["", " ", ".", ",", "-", "x"]).join(runs)


def numbers(rng: Random) -> str:
    return _some(rng, [*_NUMBERS, *"0123456789", " ", "x", ".", "/"], 20)


def whitespace(rng: Random) -> str:
    runs = [rng.choice(_WHITE) * rng.choice([1, 1, 2, 3, 7, 40]) for _ in range(rng.randint(1, 8))]
    return "".join(run + rng.choice(["", "", "a", "1", "!", "你", "é"]) for run in runs)


def blank_run(rng: Random) -> str:
    unit = rng.choice([" ", "\n", "\t", "\r\n", " \n", "\n\t", "\u3000", " \r", "\r \n"])
    return rng.choice(["", "x"]) + unit * rng.randint(1, 200) + rng.choice(["", "x", ".", " x"])


def code(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(1, 4)):
        words = [rng.choice(_CODE_WORDS) for _ in range(rng.randint(1, 5))]
        lines.append(rng.choice(["", "    ", "\t", "        "]) + " ".join(words))
    return rng.choice(["\n", "\r\n", "\n\n"]).join(lines)


def cjk(rng: Random) -> str:
    kinds = [(0x4E00, 0x9FFF)] * 4 + [(0x3041, 0x30FF), (0xAC00, 0xD7A3), (0x3400, 0x4DBF)]
    marks = ["", "", "，", "。", "「", "」", "？", "、", " ", "A", "3"]
    return "".join(_within(rng, kinds) + rng.choice(marks) for _ in range(rng.randint(1, 16)))


def symbols(rng: Random) -> str:
    return "".join(
        _word(rng, _SYMBOLS, 5) + rng.choice(["", " ", "a", "1", "\n"]) for _ in range(4)
    )


def repeats(rng: Random) -> str:
    unit = rng.choice(
        [*"aZ0 =-_.!", "ab", "ha", "的", "é", "'s", "\u0301", "🙂", "\u200d", "0x", "1."]
    )
    return unit * rng.randint(2, 90)


def unassigned(rng: Random) -> str:
    return _word(rng, [*_UNASSIGNED, *_PRIVATE, (0x61, 0x7A), (0x20, 0x20), (0x30, 0x39)], 12)


def recent(rng: Random) -> str:
    return _among_ascii(rng, rng.choice(_RECENT))


def newest(rng: Random) -> str:
    return _among_ascii(rng, rng.choice(NEWEST))


def _among_ascii(rng: Random, letters: tuple[int, int]) -> str:
    others = ["'s ", "  ", "a", "7", "!", " "]
    pieces = [_within(rng, [letters]) + rng.choice(others) for _ in range(rng.randint(1, 6))]
    return rng.choice(others) + "".join(pieces)


def anything(rng: Random) -> str:
    # Surrogates (D800 to DFFF) are no text.
    ends = [(0, 0x7F), (0, 0x24F), (0, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x1FFFF)]
    return _word(rng, [*ends, (0x10000, 0x10FFFF)], 20)


def mojibake(rng: Random) -> str:
    return one_script(rng).encode()[:24].decode("latin-1")


def special_names(rng: Random) -> str:
    pieces = []
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(SPECIAL_NAMES)
        broken = [name, name, name[:-1], name[1:], name.upper(), name.replace("|", "| ")]
        pieces.append(rng.choice(broken) + rng.choice(["", "", " ", "\n", "a", "\n\nsystem", "你"]))
    return "".join(pieces)


def mixture(rng: Random) -> str:
    chosen = rng.sample([family for family in FAMILIES.values() if family is not mixture], 3)
    return rng.choice(["", " ", "\n"]).join(family(rng)[: rng.randint(1, 12)] for family in chosen)


FAMILIES: dict[str, Callable[[Random], str]] = {
    family.__name__: family
    for family in (
        one_script,
        many_scripts,
        latin,
        english,
        prose,
        accented,
        contractions,
        emoji,
        emoji_parts,
        controls,
        rare_bytes,
        combining,
        right_to_left,
        digits,
        numbers,
        whitespace,
        blank_run,
        code,
        cjk,
        symbols,
        repeats,
        unassigned,
        recent,
        newest,
        anything,
        mojibake,
        special_names,
        mixture,
    )
}


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Different texts: each special token's name alone, then random ones of the families in turn."""
    rng = random.Random(seed)
    texts: dict[str, None] = dict.fromkeys(SPECIAL_NAMES)
    families = list(FAMILIES.values())
    turn = 0
    while len(texts) < count:
        texts[families[turn % len(families)](rng)] = None
        turn += 1
    return list(texts)


def is_newest(text: str) -> bool:
    return any(first <= ord(char) <= last for char in text for first, last in NEWEST)
