"""Formulas as MathML, which browsers draw by themselves: nothing is fetched or run by a page."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# what pymdownx.arithmatex leaves of $...$ and $$...$$
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(text: str, **_: Any) -> str:
    return FORMULA.sub(_mathml, text)


def _mathml(match: re.Match[str]) -> str:
    display = match[2] == "["
    mathml = convert(html.unescape(match[3]).strip(), display="block" if display else "inline")
    return f'<div class="formula">{mathml}</div>' if display else mathml
