"""How the law `settle` is saved: plain numbers and lists, always of one structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from emo_hf.laws.settle_guard import Guard
from emo_hf.laws.settle_history import BLOCKS, History
from emo_hf.laws.settle_start import Start

if TYPE_CHECKING:
    from emo_hf.laws.settle import Settle

NUMBERS = ("rate", "gained", "drifted", "flat_from", "best_evaluation")
COUNTS = ("spikes", "length", "origin", "mark", "averaged_from", "evaluated", "misses", "best_at")
FLAGS = ("starting", "flat", "done", "exhausted")
PARTS: dict[str, type[Any]] = {"history": History, "watch": Guard, "beginning": Start}
"""Attributes of a law whose fields are saved one by one, as `history_block`."""


def saved_state(law: Settle) -> dict[str, Any]:
    """All that `settle` keeps beside what every law does."""
    log, size = law.decisions, law.kept_decisions
    parts: dict[str, Any] = {}
    for part in PARTS:
        parts |= {f"{part}_{name}": value for name, value in asdict(getattr(law, part)).items()}
    means = parts["history_means"]
    return {
        **{name: getattr(law, name) for name in (*NUMBERS, *COUNTS, *FLAGS)},
        **parts,
        "history_means": [*means, *[None] * (BLOCKS - len(means))],
        "decision_steps": [*(step for step, _ in log), *[None] * (size - len(log))],
        "decision_texts": [*(text for _, text in log), *[""] * (size - len(log))],
    }


def read_state(state: Mapping[str, Any], size: int) -> Callable[[Settle], None]:
    """Check what `saved_state` gave, and change nothing; what is returned puts it into a law.

    Raises:
        ValueError: if it is incomplete or damaged.
    """
    try:
        own = {
            **{name: _finite(state[name]) for name in NUMBERS},
            **{name: _whole(state[name]) for name in COUNTS},
            **{name: _flag(state[name]) for name in FLAGS},
        }
        parts = {
            part: {field.name: _read_field(state[f"{part}_{field.name}"], field.type) for field in fields(kind)}
            for part, kind in PARTS.items()
        }
        history = parts["history"]
        steps, texts = _of_length(state["decision_steps"], size), _of_length(state["decision_texts"], size)
        log = [(_whole(step), str(text)) for step, text in zip(steps, texts, strict=True) if step is not None]
        if history["block"] < 1 or history["variance"] < 0.0:
            raise ValueError("its history has no block or a negative variance")
    except KeyError as error:
        raise ValueError(f"the checkpoint's emotion lacks {error.args[0]}: it is damaged or was cut short") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the checkpoint's emotion is damaged: {error}") from error

    def put(law: Settle) -> None:
        law.__dict__.update(own)
        for part, kind in PARTS.items():
            setattr(law, part, kind(**parts[part]))
        law.take_over_decisions(log)

    return put


def _read_field(value: Any, kind: str | type) -> Any:
    if kind == "list[float]":
        return [_finite(mean) for mean in _of_length(value, BLOCKS) if mean is not None]
    return {"float": _finite, "int": lambda count: _whole(count, low=-1), "bool": _flag}[str(kind)](value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _whole(value: Any, low: int = 0) -> int:
    number = int(value)
    if number != value or number < low:
        raise ValueError(f"{value!r} is not a count")
    return number


def _flag(value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def _of_length(saved: Any, length: int) -> list[Any]:
    if len(saved) != length:
        raise ValueError(f"a list of its has {len(saved)} places, not {length}")
    return list(saved)
