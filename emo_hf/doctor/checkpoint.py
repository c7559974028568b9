"""What the emotion in a checkpoint says, and whether the checkpoint is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emo_hf.cli_errors import UserError
from emo_hf.doctor.report import Finding, Report
from emo_hf.laws import LAWS, Law
from emo_hf.laws.metrics import NOTES
from emo_hf.laws.words import text_of
from emo_hf.optim.saving import EMOTION_KEY
from emo_hf.plot.run import note_of
from emo_hf.trainer.checkpoints import STATE, what_is_missing

OPTIMIZER = "optimizer.pt"
SHARDED = ("optimizer_*/", "global_step*/")
"""Where FSDP's sharded checkpoints and DeepSpeed keep the optimizer's state, in pieces that are not read here."""
FEW = 0.9
"""Of the steps: with fewer losses than that some have not arrived."""

NO_EMOTION = (
    "train with --optim emonavi (or another of the family), or give an optimizer an emotion with "
    "emo-hf run --emotion v3.1; checkpoints of save_only_model have none"
)
WORDS = {
    "law": "law", "short": "fast average", "long": "slow average", "scalar": "scalar σ", "coefficient": "factor c",
    "quiet": "quiet", "should_stop": "stop signal", "observations": "losses felt", "skipped": "losses left out",
}  # fmt: skip


def newest_checkpoint(folder: Path) -> Path:
    """The folder itself if it holds an optimizer's state, else the newest checkpoint in it.

    Raises:
        UserError: if there is none.
    """
    if not folder.is_dir():
        raise UserError(f"there is no checkpoint and no script {str(folder)!r}")
    inside = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    if inside and not (folder / OPTIMIZER).is_file():
        return max(inside, key=lambda path: int(path.name.partition("-")[2]))
    if (folder / OPTIMIZER).is_file() or (folder / STATE).is_file():
        return folder
    raise UserError(f"{str(folder)!r} holds neither {OPTIMIZER}, nor {STATE}, nor a checkpoint")


def examine(checkpoint: Path) -> Report:
    """Read a checkpoint, with `weights_only=True`, and judge its emotion."""
    flaw = what_is_missing(checkpoint)
    report = Report(
        {"checkpoint": str(checkpoint)},
        [Finding("files", False, f"not saved to its end: {flaw}", "resume from the checkpoint before it")
         if flaw else Finding("files", True, "whole")],
    )  # fmt: skip
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        notes = (state.get("stateful_callbacks") or {}).get(NOTES) or {}
    except (OSError, ValueError, AttributeError):  # is said above
        state, notes = {}, {}
    report.facts["step"] = state.get("global_step")
    saved, where = _emotion(checkpoint, notes)
    report.findings.append(where)
    if saved is not None:
        law = LAWS.get(str(saved.get("law")))
        names = [str(saved[key]) for key in ("optimizer", "version") if saved.get(key)]
        report.facts["optimizer"] = " ".join(names) or None
        report.facts |= {words: saved[key] for key, words in WORDS.items() if key in saved}
        report.facts |= {name: saved[name] for name in (law.numbers if law else ()) if name in saved}
        decisions = map(note_of, notes.get("decisions", ()))
        report.facts["decisions"] = [f"step {note.step:,}: {text_of(note)}" for note in decisions]
        report.findings += [_sound(law, saved), _losses(saved, state.get("global_step"))]
    return report


def _emotion(checkpoint: Path, notes: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Finding]:
    """The emotion from the optimizer's state, else from the Trainer's notes, which have it for attached ones."""
    trouble, saved = f"there is no {OPTIMIZER}", None
    if (checkpoint / OPTIMIZER).is_file():
        try:
            groups = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)["param_groups"]
            saved = next((group[EMOTION_KEY] for group in groups if group.get(EMOTION_KEY)), None)
            trouble = f"the optimizer's state in {OPTIMIZER} holds none: it is not of an emo optimizer"
        except Exception as error:  # noqa: BLE001  torch raises nearly anything for a file that is not its own
            trouble = f"{OPTIMIZER} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]})"
    elif shards := [folder.name for pattern in SHARDED for folder in sorted(checkpoint.glob(pattern))]:
        trouble = f"not read: the optimizer's state is in pieces, in {', '.join(shards)}"
    if saved is not None:
        return saved, Finding("emotion", True, f"read from {OPTIMIZER}")
    if isinstance(notes.get(EMOTION_KEY), dict):
        return notes[EMOTION_KEY], Finding("emotion", True, f"read from {STATE}; {trouble}")
    if trouble.startswith("not read"):
        return None, Finding("emotion", None, trouble)
    return None, Finding("emotion", False, trouble, NO_EMOTION)


def _sound(law: type[Law] | None, saved: Mapping[str, Any]) -> Finding:
    """Whether the law can take its numbers over."""
    if law is None:  # an ablation
        return Finding("numbers", None, f"not checked: {saved.get('law')!r} is not a law of its own")
    try:
        law().load_state_dict(saved)
    except ValueError as error:
        return Finding("numbers", False, str(error), "resume from the checkpoint before it, or from the weights only")
    return Finding("numbers", True, f"complete and sound for the law {saved['law']}")


def _losses(saved: Mapping[str, Any], step: Any) -> Finding:
    """Whether as many losses were felt as steps were taken."""
    felt, left_out = int(saved.get("observations", 0)), int(saved.get("skipped", 0))
    said = f"{felt:,} felt, {left_out:,} left out in {step} steps"
    if isinstance(step, int) and felt + left_out < FEW * step:
        return Finding("losses", False, said, "emo-hf doctor SCRIPT -- ARGS … shows which loss does not arrive")
    return Finding("losses", True, said)
