"""Settings as the documents tell them: dataclasses, and the comments that stand behind their fields."""

import inspect
import io
import tokenize
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """One field: its type and default as one writes them in YAML, and what it means."""

    name: str
    kind: str
    default: str
    meaning: str
    section: type | None = None  # the dataclass that it holds, if it holds one


def settings(cls: type, *, own: bool = False) -> list[Setting]:
    """Of a dataclass, in its order; ``own``: without those that it inherits."""
    hints, meanings = get_type_hints(cls), dict(_comments(cls))
    chosen = [f for f in fields(cls) if not own or f.name in vars(cls).get("__annotations__", {})]
    return [
        Setting(
            f.name, written(hints[f.name]), _default(f), meanings.get(f.name, ""), _dataclass_or_none(hints[f.name])
        )
        for f in chosen
    ]


def nested(cls: type) -> Iterator[type]:
    """``cls`` and every dataclass below it, each once."""
    seen, waiting = set(), [cls]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            yield one
            waiting += [setting.section for setting in settings(one) if setting.section]


def _comments(cls: type) -> Iterator[tuple[str, str]]:
    """Names of fields and the comments behind them, those of base classes first."""
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        name, depth = "", 0
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(base)).readline):
            if token.type == tokenize.NAME and not name:
                name = token.string
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.string, 0)
            if token.type == tokenize.COMMENT and name in base.__annotations__ and not depth:
                yield name, token.string.lstrip("# ")
            if token.type in (tokenize.NEWLINE, tokenize.NL) and not depth:
                name = ""


def written(kind: Any) -> str:
    """
    >>> written(tuple[int, ...]), written(tuple[float, float]), written(float | None)
    ('list of int', 'list of 2 float', 'float or null')
    """
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        return f"list of {written(first)}" if rest == [Ellipsis] else f"list of {1 + len(rest)} {written(first)}"
    if get_origin(kind) is UnionType:
        return " or ".join(written(part) for part in get_args(kind))
    if is_dataclass(kind):
        return "section"
    names = {type(None): "null", dict: "mapping", bool: "true or false"}
    return names.get(kind) or str(getattr(kind, "__name__", kind))


def _dataclass_or_none(kind: Any) -> type | None:
    return kind if is_dataclass(kind) and isinstance(kind, type) else None


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return yaml(field.default)
    if field.default_factory is MISSING:
        return ""
    return "" if is_dataclass(field.default_factory) else yaml(field.default_factory())


def yaml(value: Any) -> str:
    """
    >>> yaml((1, 2)), yaml(True), yaml("mask"), yaml(""), yaml(None), yaml(1e-5)
    ('[1, 2]', 'true', 'mask', '""', 'null', '1.0e-5')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{', '.join(yaml(item) for item in value)}]"
    if isinstance(value, float) and "e" in repr(value):
        mantissa, exponent = repr(value).split("e")  # YAML takes 1e-5, which has no point, for a text
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent)}"
    return {None: "null", "": '""'}.get(value, str(value)) if not isinstance(value, dict) else "{}"
