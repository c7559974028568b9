"""What `emo-hf train` asks of a Trainer beyond transformers': whole resumes, and two evaluations of one run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from emo_hf.cli_errors import UserError
from emo_hf.integrations.accelerate import unwrap
from emo_hf.train.measures import perplexity
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
    reports_perplexity = False

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; an evaluation has its perplexity too, where that means something."""
        if self.reports_perplexity and "eval_loss" in logs:
            logs["eval_perplexity"] = perplexity(logs["eval_loss"])
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the head gets groups of its own where it has a learning rate of its own."""
        is_there = self.optimizer is not None  # in a second `train()`
        optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if is_there or self.head_lr_ratio == 1:
            return optimizer
        heads = heads_of(self.model)
        if not heads:
            raise UserError(f"head_lr_ratio must be 1 for a model without a new head, got {self.head_lr_ratio:g}")
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in heads]
            if len(mine) == len(group["params"]):
                group["lr"] *= self.head_lr_ratio
            elif mine:
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

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        self._loaded_from = resume_from_checkpoint
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        self._loaded_from = self.state.best_model_checkpoint
        super()._load_best_model()  # type: ignore[misc]

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        inner = self.accelerator.unwrap_model(self.model)
        if load_result.missing_keys and isinstance(inner, PreTrainedModel):
            whole = type(inner).from_pretrained(self._loaded_from, config=inner.config, dtype=inner.dtype)
            inner.load_state_dict(whole.state_dict())
        else:
            super()._issue_warnings_after_load(load_result)  # type: ignore[misc]


def heads_of(model: nn.Module) -> set[int]:
    """The `id` of each parameter of the head: what learns beside an adapter, or what is not the pretrained body."""
    roles = build_param_groups(model, lr=1.0, weight_decay=0.0)
    found = {id(p) for role in roles if role["name"].startswith("head") for p in role["params"]}
    body = getattr(model, "base_model", model)
    if not found and isinstance(model, PreTrainedModel) and body is not model:
        inner = {id(p) for p in body.parameters()}
        found = {id(p) for p in model.parameters() if p.requires_grad and id(p) not in inner}
    return found


class PlainTrainer(JobTrainer, Trainer):
    """The Trainer, with an order of the examples that depends on seed and epoch only.

    Under `group_by_length` the Trainer draws that order from torch's global generator, whose state at the beginning of
    an epoch is not that at a checkpoint in its middle: the resumed run would go through the rest of another order.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed

            def set_epoch(epoch: int) -> None:
                sampler.generator = torch.Generator().manual_seed(seed + epoch)

            sampler.set_epoch = set_epoch  # accelerate's loader calls it before each epoch
        return sampler
