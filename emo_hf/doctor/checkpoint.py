"""What the emotion in a checkpoint says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emo_hf.doctor.findings import Finding, Report
from emo_hf.laws import LAWS
from emo_hf.laws.metrics import NOTES
from emo_hf.optim.saving import EMOTION_KEY
from emo_hf.trainer.checkpoints import STATE, what_is_missing

OPTIMIZER = "optimizer.pt"
SHARDED = ("optimizer_*/", "global_step*/")
"""Where FSDP's sharded checkpoints and DeepSpeed keep the optimizer's state, in pieces that are not read here."""
FEW = 0.9
"""Of the steps: with fewer losses than that some have not arrived."""

FROZEN = 0.2
"""A factor below which training is nearly at a standstill, unless it has been eased to its end."""

WORDS = {
    "law": "law", "short": "short average", "long": "long average", "scalar": "scalar σ",
    "coefficient": "coefficient c", "quiet": "quiet", "flat_steps": "flat steps", "should_stop": "stop signal",
    "observations": "losses felt", "skipped": "losses left out",
}  # fmt: skip


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds what a Trainer or an optimizer saved."""
    return (folder / STATE).is_file() or (folder / OPTIMIZER).is_file()


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder itself if it holds an optimizer's state, else the newest checkpoint in it."""
    if (folder / OPTIMIZER).is_file():
        return folder
    inside = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    inside = [path for path in inside if path.is_dir()]
    newest = max(inside, key=lambda path: int(path.name.partition("-")[2]), default=None)
    return newest or (folder if is_checkpoint(folder) else None)


def examine(checkpoint: Path) -> Report:
    """Read a checkpoint, with `weights_only=True`, and judge its emotion."""
    flaw = what_is_missing(checkpoint)
    findings = [
        Finding(name="files", said="whole")
        if flaw is None
        else Finding(
            name="files",
            passed=False,
            said=f"not saved to its end: {flaw}",
            remedy="resume from the checkpoint before it",
        )
    ]
    state = _json(checkpoint / STATE)
    notes = (state.get("stateful_callbacks") or {}).get(NOTES) or {}
    saved, where = _emotion(checkpoint, notes)
    facts: dict[str, Any] = {"folder": str(checkpoint), "step": state.get("global_step")}
    if saved is None:
        return Report(facts={"checkpoint": facts}, findings=[*findings, where])
    facts |= {"optimizer": " ".join(str(saved[key]) for key in ("optimizer", "version") if saved.get(key)) or None}
    emotion = {words: saved[key] for key, words in WORDS.items() if key in saved}
    law = LAWS.get(str(saved.get("law")))
    emotion |= {name: saved[name] for name in (law.numbers if law else ()) if name in saved}
    decisions = [f"step {step:,}: {text}" for step, text in _decisions(saved, notes)]
    told = {"checkpoint": facts, "emotion": emotion, "decisions": {"so far": decisions}}
    findings += [where, _whole(saved), *_judged(saved, state)]
    return Report(facts=told, findings=findings)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _emotion(checkpoint: Path, notes: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Finding]:
    """The emotion from the optimizer's state, else from the Trainer's notes, which have it for attached ones."""
    file, name = checkpoint / OPTIMIZER, "emotion"
    trouble = f"there is no {OPTIMIZER}"
    shards = [folder.name for pattern in SHARDED for folder in sorted(checkpoint.glob(pattern))]
    if file.is_file():
        try:
            packed = torch.load(file, map_location="cpu", weights_only=True)
            groups = packed["param_groups"]
            saved = next((group[EMOTION_KEY] for group in groups if group.get(EMOTION_KEY)), None)
        except Exception as error:  # noqa: BLE001  torch raises nearly anything for a file that is not its own
            trouble = f"{OPTIMIZER} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"
        else:
            if saved is not None:
                return saved, Finding(name=name, said=f"read from {OPTIMIZER}")
            trouble = f"the optimizer's state in {OPTIMIZER} holds none: it is not of an emo optimizer"
    noted = notes.get(EMOTION_KEY)
    if isinstance(noted, dict):
        return noted, Finding(name=name, said=f"read from {STATE}; {trouble}")
    if shards and not file.is_file():
        said = f"not read: the optimizer's state is in pieces, in {', '.join(shards)}"
        return None, Finding(name=name, passed=None, said=said)
    return None, Finding(
        name=name,
        passed=False,
        said=trouble,
        remedy="train with --optim emonavi (or another of the family), or give an optimizer an emotion with "
        "emo-hf run --emotion v3.1; checkpoints of save_only_model have none",
    )


def _decisions(saved: Mapping[str, Any], notes: Mapping[str, Any]) -> list[tuple[int, str]]:
    noted = [(int(step), str(text)) for step, text in notes.get("decisions", ())]
    if noted:
        return noted
    pairs = zip(saved.get("decision_steps", ()), saved.get("decision_texts", ()), strict=False)
    return [(int(step), str(text)) for step, text in pairs if step is not None]


def _whole(saved: Mapping[str, Any]) -> Finding:
    """Whether the law can take its numbers over."""
    law = LAWS.get(str(saved.get("law")))
    if law is None:  # an ablation
        return Finding(name="numbers", passed=None, said=f"not checked: {saved.get('law')!r} is not a law of its own")
    try:
        law().load_state_dict(saved)
    except ValueError as error:
        return Finding(
            name="numbers",
            passed=False,
            said=str(error),
            remedy="resume from the checkpoint before it, or from the weights only",
        )
    return Finding(name="numbers", said=f"complete and sound for the law {saved['law']}")


def _judged(saved: Mapping[str, Any], state: Mapping[str, Any]) -> list[Finding]:
    felt, step = int(saved.get("observations", 0)), state.get("global_step")
    left_out = int(saved.get("skipped", 0))
    found = []
    if isinstance(step, int) and step > 0:
        if felt + left_out < FEW * step:
            found.append(
                Finding(
                    name="losses",
                    passed=False,
                    said=f"{felt:,} were felt in {step:,} steps",
                    remedy="emo-hf doctor train.py -- ARGS … shows which loss of your script does not arrive",
                )
            )
        else:
            more = f", {left_out:,} left out (not finite, or of a step that was thrown away)" if left_out else ""
            found.append(Finding(name="losses", said=f"{felt:,} felt in {step:,} steps{more}"))
    factor, long = saved.get("coefficient"), saved.get("long")
    has_eased = saved.get("law") == "settle" or saved.get("should_stop")
    if isinstance(factor, float) and math.isfinite(factor) and factor < FROZEN and not has_eased:
        said = f"the last step was taken with {factor:.3g} of the learning rate"
        if saved.get("law") in ("v3.1", "robust", "v3.0", "v3.6"):
            said += f" (short average {saved.get('short', math.nan):.4g}, long average {long:.4g})"
            found.append(
                Finding(
                    name="factor",
                    passed=None,
                    said=said + ": it brakes",
                    remedy="a law that goes by the noise of the loss, emo_law=robust, brakes less; see docs/laws.md",
                ),
            )
    return found
