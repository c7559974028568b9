"""Steps by the sign of the gradient: the rule of EmoFact v3.6 and EmoAiry."""

from __future__ import annotations

import torch

from emo_hf.optim.rules.rule import Rule, each_way
from emo_hf.optim.update import Bucket, Hyperparameters


def _move(bucket: Bucket, h: Hyperparameters) -> None:
    p = bucket.params
    torch._foreach_add_(p, p, alpha=-h.decay)
    torch._foreach_add_(p, torch._foreach_sign(bucket.grads), alpha=-h.lr)


class Sign(Rule):
    """Steps by the sign of the gradient.

    p ← p − decay·p
    p ← p − lr · sign(g)

    No state. The published optimizers keep factored second moments, divide by their root, which is positive, and take
    the sign: the same step.
    """

    implementations = each_way("sign", [], _move)
