"""Span F1: how many entities were found whole, with their kind, and how many of those found are there.

A tag is `O` or has a prefix and a kind: `B-person` begins a span and `I-person` goes on with it (IOB); `E-`, `L-` end
one, `S-`, `U-` stand alone. Tags of another form, such as parts of speech, are spans of one word each, and F1 is then
that of the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emo_hf.train.measures import IGNORED

Span = tuple[int, int, str]


def spans(tags: Sequence[str]) -> set[Span]:
    """(first, last, kind) of every span; one that goes on with nothing of its kind begins there."""
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
