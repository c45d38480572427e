"""Settings that had another name before: by dataclass, the old name of a field and its name now.

A settings file with an old name is refused with the new one (``schema.build``); what was stored under old names,
weights and states of trainings, is read with ``translated``.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

RENAMED = {
    "PairConfig": {
        "samples": "segment_length",
        "real_share": "real_fraction",
        "eq_chance": "eq_prob",
        "ambient_chance": "ambient_prob",
    },
    "DataConfig": {"batch": "batch_size", "ahead": "prefetch"},
    "RunConfig": {"run": "run_dir", "init": "init_from", "report": "log_every", "save": "save_every"},
    "AdversaryRules": {"init": "init_from"},
    "OptimizerConfig": {"clip": "grad_clip", "ema": "ema_decay"},
    "VocoderConfig": {"hears_sensor": "sensor_input", "heard_below": "input_phase_below"},
    "EbenConfig": {"heard": "input_bands"},
}


def new_name(cls: type, name: object) -> str:
    """The present name of the field that the dataclass ``cls`` once called ``name``; empty if there was none."""
    known = (RENAMED.get(base.__name__, {}) for base in cls.__mro__)
    return next((names[name] for names in known if isinstance(name, str) and name in names), "")


def translated(cls: type, values: Any) -> Any:
    """``values`` of the dataclass ``cls``, including nested ones, with every old name replaced by the present one."""
    if not isinstance(values, Mapping):
        return values
    hints = get_type_hints(cls)
    sections = {f.name: hints[f.name] for f in fields(cls) if is_dataclass(hints[f.name])}
    renamed = {new_name(cls, name) or name: value for name, value in values.items()}
    return {name: translated(sections[name], value) if name in sections else value for name, value in renamed.items()}
