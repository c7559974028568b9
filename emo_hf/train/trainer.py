"""What `emo-hf train` asks of a Trainer beyond transformers': whole resumes, and two evaluations of one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from emo_hf.integrations.accelerate import unwrap
from emo_hf.trainer.param_groups import build_param_groups

WEIGHTS = "eval_weights"
"""What the names of the weights' figures begin with, where the average is evaluated as `eval_…`."""


class JobTrainer:
    """In front of a Trainer: resumes models of every naming, and can evaluate the weights beside their average.

    transformers renames the weights of some architectures, ViT among them, when a model is saved, and renames them
    back in `from_pretrained`. The Trainer reads a checkpoint without that: what it does not find by name keeps its
    value, so a run would go on from untrained weights, with a warning that names them.
    """

    head_lr_ratio = 1.0
    evaluates_weights_too = False

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the head gets groups of its own where it has a learning rate of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if self.head_lr_ratio == 1:
            return optimizer
        roles = build_param_groups(self.model, lr=1.0, weight_decay=0.0)
        heads = {id(p) for role in roles if role["name"].startswith("head") for p in role["params"]}
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in heads]
            if mine:
                group["params"] = [p for p in group["params"] if id(p) not in heads]
                optimizer.add_param_group({**group, "params": mine, "lr": self.head_lr_ratio * group["lr"]})
        return optimizer

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; before it the weights, where they have an average that is evaluated then."""
        emo = unwrap(self.optimizer)
        if self.evaluates_weights_too and self.is_in_train and emo is not None and emo.keeps_average:
            optimizer, self.optimizer = self.optimizer, None  # whose average would be shown
            try:
                loader = self.get_eval_dataloader()
                self.log(self.evaluation_loop(loader, "The weights", metric_key_prefix=WEIGHTS).metrics)
            finally:
                self.optimizer = optimizer
        found: dict[str, float] = super().evaluate(*args, **kwargs)  # type: ignore[misc]
        return found

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
    with safe_open(single, "pt") if single.is_file() else nullcontext() as file:
        return set(file.keys()) if file else set()


class PlainTrainer(JobTrainer, Trainer):
    """The Trainer, with an order of the examples that depends on seed and epoch only.

    Under `group_by_length` the Trainer draws that order from torch's global generator, whose state at the beginning of
    an epoch is not that at a checkpoint in its middle: the resumed run would go through the rest of another order.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return SeededByEpoch(sampler, lambda: seed + int(self.state.epoch or 0))
        return sampler


class SeededByEpoch(Sampler[int]):
    """A sampler whose generator is seeded anew, with what `seed()` gives, each time that it is iterated over."""

    def __init__(self, sampler: Any, seed: Callable[[], int]) -> None:
        self._sampler, self._seed = sampler, seed

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed())
        return iter(self._sampler)
