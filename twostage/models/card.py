"""Model cards: the YAML header of a Markdown file with license, languages and more, in the format of Hugging Face."""

from pathlib import Path
from typing import Any

CARDS = ("CARD.md", "README.md")  # the name used here, and that in a snapshot of a hub
FENCE = "---\n"
LONGEST = 1 << 20  # maximum number of characters that are read from a card


def read_card(folder: Path) -> dict[str, Any]:
    """The header of the card in ``folder``; empty if there is no card, or none with a header that can be read."""
    for name in CARDS:
        try:
            with (folder / name).open(encoding="utf-8") as file:
                return card_header(file.read(LONGEST))
        except (OSError, UnicodeDecodeError):
            continue
    return {}


def card_header(text: str) -> dict[str, Any]:
    """The fields of the YAML header between two lines of dashes at the start of a card.

    >>> card_header("---\\nlicense: mit\\n---\\n# a model\\n")
    {'license': 'mit'}
    """
    import yaml  # type: ignore[import-untyped]

    if not text.startswith(FENCE):
        return {}
    header, fence, _ = text.removeprefix(FENCE).partition(f"\n{FENCE}")
    try:
        fields = yaml.safe_load(header) if fence else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
