"""The figures that a task is judged by beside its loss, as the log line, the table and `summary.json` show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emo_hf.train.metrics import perplexity


def _three_digits(value: float) -> str:
    return f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _one_digit(value: float) -> str:
    return f"{value:,.1f}"


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        key: its name in `summary.json`.
        title: its name in the table.
        logged: the name under which evaluation logs it, without `eval_`; `key` if empty.
        form: writes it.
        of_loss: computes it from the evaluation loss, where evaluation does not log it.
        with_first: show that of the first evaluation beside it.
        majority: show beside it what always giving the most frequent label would reach.
    """

    key: str
    title: str
    logged: str = ""
    form: Callable[[float], str] = _three_digits
    of_loss: Callable[[float], float] | None = None
    with_first: bool = False
    majority: bool = False

    def of(self, evaluation: Mapping[str, Any]) -> float | None:
        """The figure in a log entry of an evaluation."""
        if self.of_loss is not None:
            return self.of_loss(evaluation["eval_loss"]) if "eval_loss" in evaluation else None
        return evaluation.get(f"eval_{self.logged or self.key}")


ACCURACY = Measure("accuracy", "accuracy", form=_percent, majority=True)
MACRO_F1 = Measure("macro_f1", "macro-F1")
PERPLEXITY = Measure("perplexity", "perplexity", form=_one_digit, of_loss=perplexity, with_first=True)
