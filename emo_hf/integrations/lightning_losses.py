"""Which loss of a Lightning run belongs to which optimizer, and what it is without the trainer's scaling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch

from emo_hf.integrations.accelerate import unwrap
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.facts import Facts
from emo_hf.optim.optimizer import EmoOptimizer

Gradients: TypeAlias = "list[tuple[torch.Tensor | None, int]]"
"""Each parameter's gradient and how often it has been changed."""


class LossesOfBackward:
    """Shows the loss of each backward pass to the optimizers that it belongs to.

    With n = `accumulate_grad_batches` and S the gradient scaler's scale, the loss L of a micro-batch comes here as
    S·L/n in automatic optimization and as S·L in manual optimization.

    The rule for several optimizers (manual optimization): a loss is shown to every optimizer that has a parameter
    which requires a gradient, so not to those that `toggle_optimizer` has switched off; and it is taken back, when the
    backward pass is done, from those whose parameters got no gradient from it. A loss whose gradients are reset before
    a step is dropped with them.
    """

    def __init__(self) -> None:
        self._ours = False  # whether what the optimizer was shown for its next step came from here
        self._waiting: list[tuple[EmoOptimizer | Attachment, Gradients]] = []

    def begin(self, trainer: Any, module: Any, loss: Any) -> None:
        """Show a loss before its backward pass, without waiting for the device that it is on.

        Args:
            trainer: Lightning's trainer.
            module: the LightningModule.
            loss: what is sent to backward; anything but a real tensor of one element is left to backward to judge.
        """
        self._waiting = []
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or loss.is_complex():
            return
        plain = _without_scale(trainer, loss.detach())
        steps_in_parts = trainer.strategy.handles_gradient_accumulation  # DeepSpeed alone: no closure, many step()
        if module.automatic_optimization and not steps_in_parts:
            self._show(trainer, plain)
            return
        several = len(trainer.optimizers) > 1
        candidates = [emo for emo in emotional(trainer.optimizers) if _wants_gradients(emo)]
        for emo in candidates:
            if several:
                self._waiting.append((emo, _gradients(emo)))
            emo.tap_loss(plain, together=not several and _ranks_meet(trainer), in_parts=steps_in_parts)

    def _show(self, trainer: Any, loss: torch.Tensor) -> None:
        # Not by the tap: Lightning's closure returns the last micro-batch's loss, which would take precedence.
        for emo in emotional(trainer.optimizers):
            engine = emo._engine
            if engine.losses.shown and not self._ours:  # the module shows the losses by itself
                continue
            n = trainer.accumulate_grad_batches
            emo.observe(loss * n, weight=1.0) if n > 1 else emo.observe(loss)
            self._ours = True
            if _ranks_meet(trainer):
                engine.rank_mean.start(
                    engine.losses.of_next_step, Facts(trainer.optimizers[0].param_groups, {}).device
                )

    def end(self) -> None:
        """The backward pass is done: take the loss back from optimizers that it gave no gradients to."""
        waiting, self._waiting = self._waiting, []
        got_none = [emo for emo, before in waiting if not _have_changed(before, _gradients(emo))]
        if len(got_none) == len(waiting):  # the strategy keeps gradients elsewhere, and nothing can be said
            return
        for emo in got_none:
            emo._engine.losses.take_back()

    def step_comes(self) -> None:
        """What was shown belongs to the step that comes now."""
        self._ours = False


def emotional(optimizers: Iterable[Any]) -> Iterator[EmoOptimizer | Attachment]:
    """Those of a trainer's optimizers that have an emotion."""
    for optimizer in optimizers:
        emo = unwrap(optimizer)
        if emo is not None:
            yield emo


def _ranks_meet(trainer: Any) -> bool:
    """Whether all ranks go through the backward pass that comes now: DDP does, in the last micro-batch of a step."""
    return bool(getattr(trainer.model, "require_backward_grad_sync", False))


def _without_scale(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """L from S·L; S is a power of two unless the user has made it another, so that nothing is rounded."""
    loss = loss if loss.dtype == torch.float64 else loss.float()
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return loss
    scale: torch.Tensor = scaler.scale(torch.ones((), device=loss.device))  # get_scale() would wait for the device
    return loss / scale


def _parameters(emo: EmoOptimizer | Attachment) -> list[torch.Tensor]:
    return [param for group in emo.param_groups for param in group["params"]]


def _wants_gradients(emo: EmoOptimizer | Attachment) -> bool:
    return any(param.requires_grad for group in emo.param_groups for param in group["params"])


def _gradients(emo: EmoOptimizer | Attachment) -> Gradients:
    grads = (param.grad for param in _parameters(emo))
    return [(grad, -1 if grad is None else grad._version) for grad in grads]


def _have_changed(before: Gradients, now: Gradients) -> bool:
    pairs = zip(before, now, strict=True)
    return any(new is not old or new_version != version for (old, version), (new, new_version) in pairs)
