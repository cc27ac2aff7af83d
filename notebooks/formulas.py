"""Formulas of the lessons as MathML, with the spaces that browsers leave out or put in wrongly."""

import re

_OPEN, _COMMA, _EQUALS, _BAR, _BARS = (
    "&#x00028;",
    "&#x0002C;",
    "&#x0003D;",
    "&#x0007C;",
    "&#x02016;",
)
_BEFORE_A_SIGN = "|".join((_OPEN, _COMMA, _EQUALS, "&#x02265;", "&#x02264;"))
# The converter's MathML, and what a browser needs to set it as TeX does.
_MENDED = [
    # \mathrm{i}: browsers slant a single letter that does not say it is upright.
    (r"<mi>&#x00069;</mi>", '<mi mathvariant="normal">i</mi>'),
    (r"<mo>&#x0221E;</mo>", "<mi>&#x0221E;</mi>"),
    # A function has a space on both sides, but none before its parenthesis.
    (rf"<m([io])>(cos|sin|log|ln|exp|max|min)</m\1>(?=<mo stretchy=\"false\">{_OPEN})",
     r'<mo lspace="0.167em" rspace="0">\2</mo>'),
    (r"<m([io])>(cos|sin|log|ln|exp|max|min)</m\1>",
     r'<mo lspace="0.167em" rspace="0.167em">\2</mo>'),
    # A minus is a sign after what opens or compares; elsewhere it stands between two terms.
    (rf"(<mo[^>]*>(?:{_BEFORE_A_SIGN})</mo>)<mo>&#x02212;</mo>",
     r'\1<mo form="prefix" lspace="0" rspace="0">&#x02212;</mo>'),
    (rf"<mo[^>]*>({_BAR}|{_BARS})</mo>", r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'),
    # 131{,}072 is one number.
    (rf"(?<=\d)</mn><mrow><mo>{_COMMA}</mo></mrow><mn>(?=\d)", ","),
]  # fmt: skip


def mathml(content: str, options: dict) -> str:
    """A formula of LaTeX; options as markdown-it's dollarmath gives them."""
    from latex2mathml.converter import convert

    made = convert(content, display="block" if options["display_mode"] else "inline")
    for pattern, replacement in _MENDED:
        made = re.sub(pattern, replacement, made)
    return made
