"""An optimizer with an emotion in a few legible lines, for the console and for notebooks.

Nothing here reads a device: of a learning rate that is a tensor on one, its place is said. torch's own account of all
options is `torch.optim.Optimizer.__repr__(optimizer)`, and is folded up in the notebook's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from emo_hf.laws.words import emotion_rows, emotion_text, html_table
from emo_hf.optim.facts import group_names

if TYPE_CHECKING:
    from emo_hf.optim.optimizer import EmoOptimizer

HEAD = ("group", "parameters", "learning rate", "rate of the last step", "other options")

SHOWN_ELSEWHERE = {"params", "param_names", "lr", "initial_lr", "name", "emotion"}


def optimizer_text(optimizer: EmoOptimizer) -> str:
    """An optimizer in a few lines: what it is, what it feels, one line for each parameter group."""
    lines = [_title(optimizer), f"  {emotion_text(optimizer.emotion)}"]
    for name, size, lr, applied, options in _group_rows(optimizer):
        taken = f", last step at {applied}" if applied else ""
        lines.append(f"  {name}: {size}; lr {lr}{taken}{options and '; ' + options}")
    return "\n".join(lines)


def optimizer_html(optimizer: EmoOptimizer) -> str:
    """An optimizer as tables for notebooks, with torch's account of all options folded up below."""
    import html  # takes as long to load as a whole room does

    every = html.escape(torch.optim.Optimizer.__repr__(optimizer))
    rows = [("law", optimizer.emotion.law), *emotion_rows(optimizer.emotion)]
    return (
        html_table(_title(optimizer), rows)
        + html_table("Parameter groups", _group_rows(optimizer), HEAD)
        + f"<details><summary>all options</summary><pre>{every}</pre></details>"
    )


def _title(optimizer: EmoOptimizer) -> str:
    return f"{type(optimizer).__name__} {optimizer.version} (rule {type(optimizer.rule).__name__})"


def _group_rows(optimizer: EmoOptimizer) -> list[tuple[str, str, str, str, str]]:
    groups, applied = optimizer.param_groups, optimizer._engine.applied_lr
    defaults = {"use_shadow": False, "maximize": False, "state": None, "compensate": False} | _plain(optimizer)
    rows = []
    for index, (name, group) in enumerate(zip(group_names(groups), groups, strict=True)):
        params = group["params"]
        known = [param for param in params if not is_lazy(param)]
        size = f"{sum(param.numel() for param in known):,} in {len(params)} tensor{'s'[: len(params) != 1]}"
        size += f", {len(params) - len(known)} of them without a shape yet" if len(known) < len(params) else ""
        has_stepped = len(applied) == len(groups)
        options = {key: value for key, value in group.items() if key not in SHOWN_ELSEWHERE}
        said = ", ".join(f"{key} {value}" for key, value in options.items() if value != defaults.get(key))
        rows.append((name, size, _rate(group["lr"]), _rate(applied[index]) if has_stepped else "", said))
    return rows


def _plain(optimizer: EmoOptimizer) -> dict[str, Any]:
    """Options as they are where nobody has chosen anything: not worth a word."""
    version = optimizer.version_named(optimizer.version)
    own = {name: option.default for name, option in version.rule.options.items()}
    return {"betas": version.betas, "eps": 1e-8, "weight_decay": None, "nonfinite": "leave_out", **own}


def _rate(rate: Any) -> str:
    if isinstance(rate, torch.Tensor):
        return f"{float(rate):.4g}" if rate.device.type == "cpu" else f"a tensor on {rate.device}"
    return f"{rate:.4g}"
