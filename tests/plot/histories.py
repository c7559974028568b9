"""Log histories as the Trainer writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emo_hf.laws.decision import Note


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


DECISIONS = [
    Note(12, "lowered", 1 / 3, "the loss is far above where it began"),
    Note(17, "skipped", 1 / 3, "a loss of 70 where 1.2 is usual"),
    Note(31, "skipped", 1 / 3, "a gradient is not finite"),
    Note(35, "done", 1 / 3, "3 evaluations were no better"),
]


def save_state(
    folder: Path,
    lines: list[dict[str, Any]],
    law: str | None = None,
    decisions: Sequence[Note] = (),
) -> Path:
    """Write `trainer_state.json` as the Trainer does; gives the folder."""
    state: dict[str, Any] = {"log_history": lines}
    if law is not None:
        state["stateful_callbacks"] = {"emo_hf": {"law": law, "decisions": [asdict(note) for note in decisions]}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder
