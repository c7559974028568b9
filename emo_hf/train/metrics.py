"""Accuracy, macro-F1 and perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


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


def perplexity(loss: float) -> float:
    """e to the mean loss per token."""
    return math.exp(loss) if loss < 700 else math.inf
