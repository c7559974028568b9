"""The figures that a task is judged by beside its loss: how they are computed, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

IGNORED = -100
"""The label of a position whose token is not learned."""


class Measure(NamedTuple):
    """One figure.

    Attributes:
        key: its name in `summary.json`.
        title: its name in the table.
        form: how it is written.
        logged: the name under which evaluation logs it, without `eval_`; `key` if empty.
    """

    key: str
    title: str
    form: str = ".3f"
    logged: str = ""

    def of(self, evaluation: Mapping[str, Any]) -> float | None:
        """The figure in a log entry of an evaluation."""
        return evaluation.get(f"eval_{self.logged or self.key}")


def perplexity(loss: float) -> float:
    """e to the mean loss per token."""
    return math.exp(loss) if loss < 700 else math.inf


ACCURACY = Measure("accuracy", "accuracy", form=".1%")
MACRO_F1 = Measure("macro_f1", "macro-F1")
PERPLEXITY = Measure("perplexity", "perplexity", form=",.1f")


def classification_metrics(prediction: Any) -> dict[str, float]:
    """The Trainer's `compute_metrics`: accuracy and macro-F1 of predicted label ids."""
    predicted, expected = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    labels = np.union1d(predicted, expected)  # macro-F1: the mean of their F1 = 2·(right)/(predicted + expected)
    right = np.array([((predicted == label) & (expected == label)).sum() for label in labels])
    either = np.array([(predicted == label).sum() + (expected == label).sum() for label in labels])
    return {"accuracy": float((predicted == expected).mean()), "macro_f1": float((2 * right / either).mean())}


def most_likely(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """The Trainer's `preprocess_logits_for_metrics`: keeps one id per example instead of all logits."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


CLASSIFICATION = {"compute_metrics": classification_metrics, "preprocess_logits_for_metrics": most_likely}

Span = tuple[int, int, str]


def spans(tags: Sequence[str]) -> set[Span]:
    """(first, last, kind) of every span; one that goes on with nothing of its kind begins there.

    A tag is `O` or has a prefix and a kind: `B-person` begins a span and `I-person` goes on with it (IOB); `E-`, `L-`
    end one, `S-`, `U-` stand alone. Tags of another form, such as parts of speech, are spans of one word each.
    """
    found: set[Span] = set()
    start, open_kind = 0, ""  # of the span that may go on
    for i, tag in enumerate(tags):
        prefix, dash, kind = tag.partition("-")
        if not dash or prefix not in tuple("BIELSU"):
            if tag != "O":
                found.add((i, i, tag))
            open_kind = ""
            continue
        if prefix in "BSU" or kind != open_kind:
            start = i
        found.discard((start, i - 1, kind))
        found.add((start, i, kind))
        open_kind = "" if prefix in "ELSU" else kind
    return found


def span_metrics(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """The Trainer's `compute_metrics` for predicted tag ids: F1, precision and recall of spans, accuracy of words.

    Args:
        names: the tags in the order of their ids.
    """

    def compute(prediction: Any) -> dict[str, float]:
        predicted, expected = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        there = expected != IGNORED
        right = found = wanted = 0
        for row, kept in enumerate(there):
            guess, truth = (spans([names[i] for i in ids[row][kept]]) for ids in (predicted, expected))
            right, found, wanted = right + len(guess & truth), found + len(guess), wanted + len(truth)
        return {
            "f1": 2 * right / max(found + wanted, 1),
            "precision": right / max(found, 1),
            "recall": right / max(wanted, 1),
            "accuracy": float((predicted == expected)[there].mean()),
        }

    return compute
