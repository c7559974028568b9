"""Autonomous ranks in the Trainer: each trains by itself and feels its own loss; weights are averaged now and then.

For one's own loop accelerate's `LocalSGD` does much the same, with an optimizer that was made with
`emo_sync="local"`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.losses.same_options import LOCAL
from emo_hf.reading import read_value, whole_number

logger = logging.getLogger(__name__)


class LocalSGDCallback(TrainerCallback):
    """Averages the weights of all ranks every few steps, and no gradients, in a Trainer run under DDP.

    Needs `optim_args="emo_sync=local"` and `average_tokens_across_devices=False`, which would make the ranks wait for
    each other at every step. Weights are averaged before an evaluation, a checkpoint and the end as well. A checkpoint
    holds the optimizer state of rank 0 only: after a resume all ranks go on with it.

    A rank whose weights are not finite is left out of an average, and has the others' afterwards.

    It does not matter which callback asks for an evaluation or a checkpoint, as long as it does so by `control`: this
    one has the last word in each event. DDP averages gradients again when training has ended.

    Do not use it where the interconnect is fast (DDP is better at equal samples) or the model is sharded.

    Args:
        every: steps between two averages.

    Raises:
        ValueError: if `every` is not a whole number of at least 1; when training begins, if the settings do not fit.
    """

    def __init__(self, every: int) -> None:
        self.every: int = read_value("every", every, whole_number(1))
        self._accelerator: Any = None
        self._model: Any = None  # as DDP wraps it, while training
        self._steps = 0
        self._apart = False  # whether a rank has taken a step since the last average

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self._end()  # of a training that was broken off
        if args.world_size == 1:
            return
        emo = unwrap(optimizer)
        if emo is not None:
            if emo.emo_sync != LOCAL:
                raise ValueError(f'LocalSGDCallback needs optim_args="emo_sync=local", got emo_sync={emo.emo_sync}')
            emo.give_way("LocalSGDCallback, which averages the weights over nodes by itself,")
        if args.average_tokens_across_devices:
            raise ValueError("LocalSGDCallback needs average_tokens_across_devices=False")
        trainer = _trainer_of(self)
        if not hasattr(trainer.model_wrapped, "require_backward_grad_sync"):
            raise ValueError("LocalSGDCallback works under DDP only: the model is not wrapped in it")
        handler = trainer.callback_handler  # which walks through its list just now: the new one is for later events
        handler.callbacks = [*(one for one in handler.callbacks if one is not self), self]
        self._accelerator, self._model, self._steps = trainer.accelerator, trainer.model_wrapped, 0
        self._model.require_backward_grad_sync = False

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        self._steps, self._apart = self._steps + 1, True
        if self._steps % self.every == 0:
            self._meet()
        self.on_epoch_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_save or control.should_evaluate:  # which come next
            self._meet()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._meet()
        self._end()

    def _meet(self) -> None:
        if self._model is not None and self._apart:
            _average(self._accelerator, self._model)
            self._apart = False

    def _end(self) -> None:
        if self._model is not None:
            self._model.require_backward_grad_sync = True
        self._accelerator, self._model, self._apart = None, None, False


@torch.no_grad()
def _average(accelerator: Any, model: Any) -> None:
    """θ ← mean of θ over the ranks whose weights are finite; θ stays where none are."""
    params = [param for param in model.parameters() if param.requires_grad]
    is_finite = all(bool(param.isfinite().all()) for param in params)
    ranks = float(accelerator.reduce(torch.tensor(float(is_finite), device=accelerator.device), reduction="sum"))
    if not is_finite:
        logger.warning("Rank %d has weights that are not finite: %s.", accelerator.process_index,
                       "it takes those of the others" if ranks else "so have all others")  # fmt: skip
    for param in params if ranks else ():
        mine = param.detach() if is_finite else torch.zeros_like(param)
        param.copy_(accelerator.reduce(mine, reduction="sum") / ranks)


def _trainer_of(callback: TrainerCallback) -> Any:
    """The Trainer whose `train()` is running with this callback, which is not told: only the stack knows."""
    frame = sys._getframe(1)
    while callback not in getattr(getattr(frame.f_locals.get("self"), "callback_handler", None), "callbacks", ()):
        if frame.f_back is None:
            raise ValueError("LocalSGDCallback works in a Trainer only")
        frame = frame.f_back
    return frame.f_locals["self"]
