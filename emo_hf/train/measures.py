"""The figures that a task is judged by beside its loss: how they are computed, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100
"""The label of a position whose token is not learned."""


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        key: its name in `summary.json`.
        title: its name in the table.
        logged: the name under which evaluation logs it, without `eval_`; `key` if empty.
        form: how it is written.
        of_loss: computes it from the evaluation loss, where evaluation does not log it.
        with_first: show that of the first evaluation beside it.
        majority: show beside it what always giving the most frequent label would reach.
    """

    key: str
    title: str
    logged: str = ""
    form: str = ".3f"
    of_loss: Callable[[float], float] | None = None
    with_first: bool = False
    majority: bool = False

    def of(self, evaluation: Mapping[str, Any]) -> float | None:
        """The figure in a log entry of an evaluation."""
        if self.of_loss is not None:
            return self.of_loss(evaluation["eval_loss"]) if "eval_loss" in evaluation else None
        return evaluation.get(f"eval_{self.logged or self.key}")


def perplexity(loss: float) -> float:
    """e to the mean loss per token."""
    return math.exp(loss) if loss < 700 else math.inf


ACCURACY = Measure("accuracy", "accuracy", form=".1%", majority=True)
MACRO_F1 = Measure("macro_f1", "macro-F1")
PERPLEXITY = Measure("perplexity", "perplexity", form=",.1f", of_loss=perplexity, with_first=True)


def classification_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's `compute_metrics`: accuracy and macro-F1 of predicted label ids."""
    predicted, expected = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {"accuracy": float((predicted == expected).mean()), "macro_f1": macro_f1(predicted, expected)}


def macro_f1(predicted: NDArray[np.integer[Any]], expected: NDArray[np.integer[Any]]) -> float:
    """Unweighted mean of the F1 scores of all labels that were expected or predicted."""
    labels = np.union1d(predicted, expected)
    true_positives = np.array([((predicted == label) & (expected == label)).sum() for label in labels])
    either = np.array([(predicted == label).sum() + (expected == label).sum() for label in labels])
    return float((2 * true_positives / either).mean())


def most_likely(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The Trainer's `preprocess_logits_for_metrics`: keeps one id per example instead of all logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


CLASSIFICATION = {"compute_metrics": classification_metrics, "preprocess_logits_for_metrics": most_likely}
