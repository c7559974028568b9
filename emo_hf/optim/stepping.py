"""How an emo optimizer is shown losses and takes steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import Decision
from emo_hf.losses.accumulation import Loss
from emo_hf.optim.backward_steps import BackwardSteps
from emo_hf.optim.has_emotion import ShowsAverage
from emo_hf.optim.loss_warnings import warn_about_flat_parameters
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.saving import SavingOptimizer
from emo_hf.optim.update import Hyperparameters


class SteppingOptimizer(ShowsAverage, SavingOptimizer):
    """Takes losses in, and steps that are scaled by what the law makes of them."""

    _backward: BackwardSteps | None = None
    """Steps that are taken in backward, see `step_in_backward`."""

    def observe(self, loss: Loss, *, weight: float | None = None) -> None:
        """Show the optimizer the loss that the next `step()` belongs to. Call it before `backward()`.

        With gradient accumulation call it once per micro-batch with the loss as you scaled it for `backward()`: the
        sum is the loss of the step. A loss shown here takes precedence over one that reached the optimizer by itself.

        Args:
            loss: a number, or a tensor with one element, of any shape, dtype and device. It is detached and copied.
            weight: share of this micro-batch in the step; the loss of the step is then the weighted mean. Leave it
                out for losses that are already scaled.

        Raises:
            TypeError: if `loss` is not a real number.
            ValueError: if `loss` has several elements, or `weight` is not a positive number.
        """
        if self._backward is not None:
            self._backward.expect_loss()
        self._engine.observe(loss, weight, self)

    def tap_loss(
        self,
        loss: torch.Tensor,
        weight: float | None = None,
        *,
        last: bool = True,
        together: bool = False,
        in_parts: bool = False,
    ) -> None:
        """Take in a loss that a framework is about to send to backward; for `emo_hf.integrations`.

        Losses whose gradients were thrown away without a step (an fp16 overflow, a skipped batch) are dropped.

        Args:
            loss: the loss of a micro-batch, as `observe` takes it.
            weight: as for `observe`.
            last: whether it is the last micro-batch of the step.
            together: whether all ranks go through its backward pass at the same time, so that the exchange of the loss
                can start now.
            in_parts: whether the framework takes one step by calling `step()` for a part of the parameters at a time,
                as DeepSpeed does; the decision then holds until the next loss comes in.
        """
        if self._backward is not None:
            self._backward.expect_loss(last=last, in_parts=in_parts)
        if in_parts and not self._engine.in_parts and not self._version.rule.takes_parts():
            warn_about_flat_parameters(type(self).__name__)
        self._engine.tap(loss, weight, self, last=last, together=together, in_parts=in_parts)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients; a loss that came with them and was not followed by a step is dropped with them."""
        if self._backward is not None:
            self._backward.gradients_go()
        self._engine.gradients_go(self)
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step, scaled by what the law makes of the losses since the last step.

        Args:
            closure: reevaluates the model with gradients enabled and returns the loss, which is observed unless the
                closure observed one itself.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None and not self._engine.losses.shown and not self._has_begun():
                self._engine.observe(loss, None, self)
        if self._backward is not None and self._backward.has_taken_the_step():
            return loss
        if self._engine.creates_state_only(self):
            self._create_state()
            self._engine.follow_weights(self, self._engine.law.decision)
            return loss
        decision = self._begin_step()
        if not decision.skip:
            for group in self.param_groups:
                self._update_group(group, self._numbers(group, decision), decision.shadow)
        self._end_step(decision)
        return loss

    def step_param(self, param: torch.Tensor, group: Mapping[str, Any] | None = None) -> None:
        """Move one parameter now, for scripts whose own hooks call this as soon as its gradient is there.

        The loss must have been shown before backward. The parameters of one backward pass move by one decision; the
        step is over when `step()` is called, the next loss comes in, or a parameter comes a second time. The gradient
        stays where it is: the script frees it.

        Args:
            param: one of the optimizer's parameters; without a gradient it stays as it is.
            group: the parameter's group, which such scripts hand over; it is known.

        Raises:
            ValueError: if the rule, the law or an option needs all gradients before a parameter moves, see
                `step_in_backward`, or the parameter is not the optimizer's.
        """
        if self._backward is None:
            self._backward = BackwardSteps(self)
        self._backward.move(param)

    @property
    def _of_weights(self) -> Optimizer:
        return self

    def _has_begun(self) -> bool:
        return self._backward is not None and self._backward.is_under_way

    def _begin_step(self) -> Decision:
        """The decision of the step, with all that comes before the first parameter moves."""
        self._engine.refuse_step_of_average()
        decision = self._engine.decide(self)
        if decision.skip:
            self._engine.applied_lr = [0.0] * len(self.param_groups)
            return decision
        if self._engine.is_new_step:
            self._rule.before_step(self.param_groups, decision)
        self._engine.applied_lr = [decision.step_size(float(group["lr"])) for group in self.param_groups]
        return decision

    def _numbers(self, group: Mapping[str, Any], decision: Decision) -> Hyperparameters:
        """The numbers of the step for a parameter group."""
        return replace(
            self._rule.hyperparameters(group, decision),
            seed=self._engine.law.observations,
            left_out=self._engine.left_out_by(group),
        )

    def _end_step(self, decision: Decision) -> None:
        """What comes after the last parameter has moved."""
        if self._engine.is_new_step and not decision.skip:
            self._rule.after_step(decision)
        self._engine.follow_weights(self, decision)
        self._engine.warn_of_left_out(self)
        self._write()

    def _write(self) -> None:
        if self._writer is None:
            return
        for name, value in self._engine.current_metrics(self.param_groups).items():
            self._writer.add_scalar(name, value, self._steps_written)
        self._steps_written += 1

    @property
    def rule(self) -> Rule:
        """The update rule at work."""
        return self._rule

    @property
    def version(self) -> str:
        """The generation of this optimizer."""
        return self._version.name
