"""What of an emotion is printed: a few values of each log line, where reporters and the log history get all.

The functions stand around methods of transformers' printing callbacks; see `patches.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES, PREFIX
from emo_hf.reading import Option, one_of

SHORT, ALL = "short", "all"
CONSOLE: dict[str, Option] = {
    "console": Option(SHORT, one_of(SHORT, ALL), "print the most telling metrics of the emotion, or all")
}

ALWAYS = tuple(PREFIX + name for name in ("effective_lr", "coefficient", "scalar"))
IF_ANY = tuple(PREFIX + name for name in ("skipped", "nonfinite_gradients"))
"""Counts of what has been left out."""


def for_console(logs: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """The values of a log line that are printed: all that are not of an emotion, and its most telling."""
    if (state.stateful_callbacks.get(NOTES) or {}).get("console") == ALL:
        return dict(logs)
    return {
        key: value
        for key, value in logs.items()
        if not key.startswith(PREFIX) or key in ALWAYS or (key in IF_ANY and value)
    }


def prints_less(original: Callable[..., Any]) -> Callable[..., Any]:
    """Around `on_log` of a callback that prints what it is given."""

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
        if any(key.startswith(PREFIX) for key in logs or ()):
            logs = for_console(logs, state)
        return original(self, args, state, control, logs=logs, **kwargs)

    return on_log


def adds_columns(original: Callable[..., Any]) -> Callable[..., Any]:
    """Around `on_log` and `on_evaluate` of the progress table in notebooks: the effective rate, and the factor."""

    def method(self: Any, args: Any, *given: Any, optimizer: Any = None, **kwargs: Any) -> Any:
        result = original(self, args, *given, optimizer=optimizer, **kwargs)
        emo, table = unwrap(optimizer), self.training_tracker
        wrote = "metrics" in kwargs or (args.eval_strategy == "no" and "loss" in (kwargs.get("logs") or {}))
        if emo is not None and table is not None and wrote and table.inner_table:
            rate = next(iter(emo.effective_lr.values()), None)  # Adafactor may have none
            shown = {} if rate is None else {"Effective LR": f"{rate:.4g}"}
            place = {table.inner_table[0][0]: table.inner_table[-1][0]}
            table.write_line({**place, **shown, "Factor": f"{emo.emotion.coefficient:.4g}"})
        return result

    return method
