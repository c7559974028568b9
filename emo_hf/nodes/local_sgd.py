"""Autonomous ranks in the Trainer: each trains by itself and feels its own loss; weights are averaged now and then.

For one's own loop accelerate's `LocalSGD` does much the same, with an optimizer that was made with
`emo_sync="local"`.
"""

from __future__ import annotations

import logging
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.losses.same_options import LOCAL
from emo_hf.nodes.period import check_period

logger = logging.getLogger(__name__)


class LocalSGDCallback(TrainerCallback):
    """Averages the weights of all ranks every few steps, and no gradients, in a Trainer run under DDP.

    Needs `optim_args="emo_sync=local"` and `average_tokens_across_devices=False`, which would make the ranks wait for
    each other at every step. Weights are averaged before an evaluation, a checkpoint and the end as well. A checkpoint
    holds the optimizer state of rank 0 only: after a resume all ranks go on with it.

    A rank whose weights are not finite is left out of an average, and has the others' afterwards.

    It does not matter which callback asks for an evaluation or a checkpoint, as long as it does so by `control`. DDP
    averages gradients again as soon as training ends, be it by an exception.

    Do not use it where the interconnect is fast (DDP is better at equal samples) or the model is sharded.

    Args:
        every: steps between two averages.

    Raises:
        ValueError: if `every` is not a whole number of at least 1; when training begins, if the settings do not fit.
    """

    def __init__(self, every: int) -> None:
        check_period(every)
        self.every = every
        self._accelerator: Any = None
        self._model: Any = None
        self._steps = 0
        self._hooks: list[RemovableHandle] = []
        self._apart = False  # whether a rank has taken a step since the last average

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._end()  # of a training that was broken off
        if args.world_size == 1:
            return
        emo = unwrap(optimizer)
        if emo is not None and emo.emo_sync != LOCAL:
            raise ValueError(f'LocalSGDCallback needs optim_args="emo_sync=local", got emo_sync={emo.emo_sync}')
        if emo is not None:
            emo.give_way("LocalSGDCallback, which averages the weights over nodes by itself,")
        if args.average_tokens_across_devices:
            raise ValueError("LocalSGDCallback needs average_tokens_across_devices=False")
        trainer = _trainer_at_work(self)
        wrapped = getattr(trainer, "model_wrapped", None)
        if not hasattr(wrapped, "require_backward_grad_sync"):
            raise ValueError("LocalSGDCallback works under DDP only: the model is not wrapped in it")
        handler = trainer.callback_handler  # which walks through its list just now: the new one is for later events
        handler.callbacks = [*(one for one in handler.callbacks if not isinstance(one, _LastLook)), _LastLook(self)]
        self._accelerator, self._model, self._steps = trainer.accelerator, wrapped, 0
        self._hooks = _without_gradient_sync(wrapped, weakref.WeakMethod(self._is_at_work))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._model is None:
            return
        self._steps, self._apart = self._steps + 1, True
        if self._steps % self.every == 0:
            self._meet()
        self.meet_if_asked(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.meet_if_asked(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._apart and self._is_at_work() and state.is_world_process_zero:
            logger.warning(
                "The evaluation at step %d was of weights that differ between ranks: callbacks have to ask for one by "
                "control.should_evaluate.", state.global_step,
            )  # fmt: skip
        self._meet()  # for a checkpoint that may follow

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._meet()
        self._end()

    def meet_if_asked(self, control: TrainerControl) -> None:
        """Average the weights if an evaluation or a checkpoint comes next."""
        if control.should_save or control.should_evaluate:
            self._meet()

    def _meet(self) -> None:
        if self._model is not None and self._apart and self._is_at_work():
            _average(self._accelerator, self._model)
            self._apart = False

    def _end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._accelerator, self._model, self._apart = [], None, None, False

    def _is_at_work(self) -> bool:
        return _trainer_at_work(self) is not None


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


class _LastLook(TrainerCallback):
    """Sees, after all other callbacks, what those behind `LocalSGDCallback` in the list have asked for."""

    def __init__(self, callback: LocalSGDCallback) -> None:
        self._callback = callback

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._callback.meet_if_asked(control)

    on_epoch_end = on_step_end


def _without_gradient_sync(wrapped: Any, applies: weakref.WeakMethod[Callable[[], bool]]) -> list[Any]:
    """Have the forward passes of a DDP model, which decide it, tell backward to leave gradients where they are.

    Args:
        wrapped: the model.
        applies: whether the pass that begins is one of those; never, when what it belongs to is gone.

    Returns:
        Handles of the two hooks.
    """
    before: list[bool] = []

    def begin(module: Any, _: Any) -> None:
        before.append(module.require_backward_grad_sync)
        asked = applies()
        if asked is not None and asked():
            module.require_backward_grad_sync = False

    def end(module: Any, *_: Any) -> None:
        if before:
            module.require_backward_grad_sync = before.pop()

    return [wrapped.register_forward_pre_hook(begin), wrapped.register_forward_hook(end, always_call=True)]


def _trainer_at_work(callback: TrainerCallback) -> Any:
    """The Trainer with this callback whose `train()` is running now, or None.

    Callbacks are not told when an exception ends training, nor to which Trainer they belong: only the stack knows.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "train":
            trainer = frame.f_locals.get("self")
            if callback in getattr(getattr(trainer, "callback_handler", None), "callbacks", ()):
                return trainer
        frame = frame.f_back
    return None
