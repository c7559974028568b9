"""Checkpoints of models whose weights have other names in files than in memory.

transformers renames the weights of some architectures, ViT among them, when a model is saved, and renames them back in
`from_pretrained`. The Trainer reads a checkpoint without that: what it does not find by name keeps its value, so a run
would go on from untrained weights, with a warning that names them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


class LoadsRenamedWeights:
    """In front of a Trainer: after it has read a checkpoint, weights of other names are read too."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self._load_renamed(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._load_renamed(self.state.best_model_checkpoint, None)  # type: ignore[attr-defined]

    def _load_renamed(self: Any, folder: str, model: Any) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # they have formats of their own
        inner = self.accelerator.unwrap_model(self.model if model is None else model)
        if isinstance(inner, PreTrainedModel) and not saved_names(Path(folder)) <= inner.state_dict().keys():
            whole = type(inner).from_pretrained(folder, config=inner.config, dtype=inner.dtype)
            inner.load_state_dict(whole.state_dict())


def saved_names(folder: Path) -> set[str]:
    """The names of the weights in a folder; empty if it holds no whole model."""
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not single.is_file():
        return set()
    with safe_open(single, "pt") as file:
        return set(file.keys())
