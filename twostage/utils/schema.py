"""Builds dataclasses from plain values of YAML, JSON and the command line, and checks them."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from reprlib import Repr
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from twostage.utils.errors import ConfigError
from twostage.utils.renamed import new_name

T = TypeVar("T")
UNSET = "???"  # omegaconf's mark of a missing mandatory value
SHORT = Repr()  # shortens values in messages, because those of a file can be arbitrarily large
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother = 2, 100, 100


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError with a one-line message for any text that Python's parser rejects."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{error.msg}, {where}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def build(cls: type[T], values: object, name: str = "") -> T:
    """An instance of the dataclass ``cls`` from a mapping; lists become tuples, nested mappings nested dataclasses.

    ``name`` is the position of the mapping and prefixes the fields in messages. Raises ConfigError for a field that is
    unknown, missing or of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name or 'settings'}: {SHORT.repr(values)} is not a mapping of fields to values")
    hints, known = get_type_hints(cls), {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    _check_names(cls, values, name)
    for key, f in known.items():
        if key not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{_join(name, key)}: missing")
    return cls(**{key: _convert(hints[key], value, _join(name, key)) for key, value in values.items()})


def complete(cls: type, values: object, name: str = "") -> dict[str, Any]:
    """``values`` with the defaults of the dataclass ``cls``; missing values without a default are UNSET.

    Names and types are checked as in ``build``, but not the rules of the dataclass itself.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name or 'settings'}: {SHORT.repr(values)} is not a mapping of fields to values")
    hints = get_type_hints(cls)
    _check_names(cls, values, name)
    return {f.name: _completed(f, hints[f.name], values, _join(name, f.name)) for f in fields(cls)}


def _completed(field: Any, kind: Any, values: Mapping[str, Any], name: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        default = asdict(field.default_factory()) if field.default_factory not in (MISSING, kind) else {}
        section = values.get(field.name, {})
        return complete(kind, default | section if isinstance(section, dict) else section, name)
    if field.name in values:
        return _convert(kind, values[field.name], name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return UNSET if field.default is MISSING else field.default


def _check_names(cls: type, values: Mapping[str, Any], name: str) -> None:
    known = [f.name for f in fields(cls)]
    for key in values:
        if renamed := new_name(cls, key):
            raise ConfigError(f"{_join(name, key)} is called {_join(name, renamed)} now")
        if key not in known:
            raise ConfigError(f"{_join(name, str(key)[:100])}: no such setting; there are {', '.join(known)}")


def _convert(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind):
        return value if isinstance(value, kind) else build(kind, value, name)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, name)
    if get_origin(kind) is UnionType:
        kinds = get_args(kind)
        return value if type(value) in kinds else _convert(next(k for k in kinds if k is not type(None)), value, name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {SHORT.repr(value)}, must be of type {kind.__name__}")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {SHORT.repr(value)}, must be a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ConfigError(f"{name} is {SHORT.repr(value)}, must have {len(kinds)} entries")
    return tuple(_convert(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
