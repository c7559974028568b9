"""Log histories as the Trainer writes them."""

from __future__ import annotations

import math
from typing import Any


def history(steps: int = 40, *, emo: bool = True, groups: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """A log history as the Trainer writes it, a line every 10 steps and an evaluation every 20."""
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        lr = 1e-3 * (1 - step / (steps + 10))
        line: dict[str, Any] = {"step": step, "loss": 2 / step, "learning_rate": lr, "epoch": step / 20}
        if emo:
            c = 1 + 0.3 * math.sin(step)
            line |= {
                "emo/effective_lr": lr * c,
                "emo/coefficient": c,
                "emo/coefficient_mean": c,
                "emo/coefficient_min": c - 0.1,
                "emo/coefficient_max": c + 0.1,
                "emo/scalar": 0.3 * math.sin(step),
                "emo/loss_short": 2 / step,
                "emo/loss_long": 2.1 / step,
                "emo/quiet": int(step in (20, 30)),
                "emo/should_stop": int(step >= 30),
            }
            line |= {f"emo/effective_lr/{name}": lr * c * ratio for name, ratio in (groups or {}).items()}
        lines.append(line)
        if step % 20 == 0:
            lines.append({"step": step, "eval_loss": 2.5 / step, "epoch": step / 20})
    return [*lines, {"step": steps, "train_loss": 0.1, "train_runtime": 1.0}]
