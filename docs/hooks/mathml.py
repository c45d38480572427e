"""Formulas as MathML, which browsers draw by themselves: nothing is fetched or run by a page."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what pymdownx.arithmatex leaves of $...$ and $$...$$
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(text: str, **_: Any) -> str:
    return FORMULA.sub(_mathml, text)


def _mathml(found: re.Match[str]) -> str:
    display = found[2] == "["
    made = convert(html.unescape(found[3]).strip(), display="block" if display else "inline")
    return f'<div class="formula">{made}</div>' if display else made
