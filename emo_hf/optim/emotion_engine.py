"""From the losses that come in to one decision per step: what every optimizer with an emotion has inside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer
from torch.utils.weak import WeakIdRef

from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from emo_hf.laws.metrics import PREFIX, CoefficientWindow, metrics
from emo_hf.losses.accumulation import Loss
from emo_hf.losses.rank_mean import RankMean
from emo_hf.losses.step_loss import Mark, StepLoss
from emo_hf.optim import weight_average
from emo_hf.optim.finite import SeenNorm, count_not_finite, gradients_are_finite
from emo_hf.optim.left_out import LEAVE_OUT, PROPAGATE, SKIP_STEP, LeftOut, not_finite
from emo_hf.optim.loss_warnings import missing_loss, warn_at_the_caller
from emo_hf.optim.sharding import own_elements

on_construction: list[Callable[[], None]] = []
"""Called whenever an engine begins its work: how the loss tap wires itself without being known here."""


class EmotionEngine:
    """Takes losses in, averages them over micro-batches and ranks, and asks the law once per step.

    Args:
        law: the law.
        sync: `global`, one emotion for all ranks; `local`, each rank its own.
        owner: the optimizer's class, for messages.
    """

    def __init__(self, law: Law, sync: str, owner: str) -> None:
        self.law = law
        self.owner = owner
        self.losses = StepLoss()
        self.rank_mean = RankMean(sync)
        self.coefficients = CoefficientWindow()
        self.left_out = LeftOut()
        self.applied_lr: list[Any] = []  # numbers, or tensors where the learning rates are such
        self.in_parts = False
        self.is_new_step = True  # and not another part of the one before
        self._decision_for_parts: Decision | None = None
        self._has_warned_of_missing_loss = False
        self._has_passed_on_complaint = False
        self._has_warned_of_left_out = False
        self._norm: SeenNorm | None = None
        self._gradients_are_finite = False  # known of the step that is being taken
        self.shows_average = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_norm": None}  # it belongs to the gradients, which are not copied

    def begin(self) -> None:
        """Have the losses wired to wherever they come from."""
        for hook in on_construction:
            hook()

    def observe(self, loss: Loss, weight: float | None, optimizer: Optimizer) -> None:
        """Take in a loss that the user shows; see `EmoOptimizer.observe`."""
        if weight is not None and not (math.isfinite(weight) and weight > 0.0):
            raise ValueError(f"weight must be a positive number, got {weight!r}")
        if self.losses.show(loss, weight, lambda: gradient_mark(optimizer)):
            self.law.skip()

    def tap(
        self, loss: Loss, weight: float | None, optimizer: Optimizer, *, last: bool, together: bool, in_parts: bool
    ) -> None:
        """Take in a loss that a framework is about to send to backward; see `EmoOptimizer.tap_loss`."""
        self.in_parts, self._decision_for_parts = in_parts, None
        self.rank_mean.cancel()  # what is under way lacks this loss
        if self.losses.tap(loss, weight, last, lambda: gradient_mark(optimizer)):
            self.law.skip()
        if last and together and not self.losses.shown:
            self.rank_mean.start(self.losses.of_next_step, device_of(optimizer))

    def saw_gradient_norm(self, norm: Any, params: Iterable[torch.Tensor]) -> None:
        """Take note of a norm that clipping has taken: it says for nothing whether gradients are finite.

        It holds for the gradients as they are now: the next backward pass, and the next step, end that.

        Args:
            norm: a number or a tensor of one element, of a norm of order 1 or more.
            params: the parameters whose gradients it is of.
        """
        self._norm = SeenNorm(norm, params)

    def left_out_by(self, group: Mapping[str, Any]) -> LeftOut | None:
        """What counts the elements that a step leaves out of a group; None if it need not look for any."""
        return self.left_out if group["nonfinite"] == LEAVE_OUT and not self._gradients_are_finite else None

    def gradients_go(self, optimizer: Optimizer) -> None:
        """The gradients are about to be reset: a loss that came with them and saw no step goes with them."""
        if self.losses.gradients_go(lambda: gradient_mark(optimizer)):
            self.rank_mean.cancel()
            self.law.skip()

    def creates_state_only(self, optimizer: Optimizer) -> bool:
        """Whether the step that is being taken is there for the state alone; see `creates_state`."""
        return not self.losses.of_next_step and creates_state(optimizer)

    def decide(self, optimizer: Optimizer) -> Decision:
        """The decision of the step that is being taken."""
        norm, self._norm = self._norm, None
        self._gradients_are_finite = norm is not None and norm.is_at_hand and norm.says_finite(optimizer.param_groups)
        self.is_new_step = self._decision_for_parts is None or bool(self.losses.of_next_step)
        if self._decision_for_parts is not None and not self.is_new_step:
            return self._decision_for_parts
        only_creates_state = self.creates_state_only(optimizer)
        loss = self.rank_mean.take(self.losses.of_next_step, device_of(optimizer), alone=only_creates_state)
        self.losses.clear()
        if loss is None:
            # Checkpointing code steps at learning rate 0 to create the state: that needs no loss and no warning.
            if not self._has_warned_of_missing_loss and not steps_at_rate_0(optimizer):
                self._has_warned_of_missing_loss = True
                warn_at_the_caller(missing_loss(self.owner))
            return (
                self.law.neutral() if only_creates_state else self._guarded(self.law.neutral_step(), optimizer, norm)
            )
        decision = self._guarded(self.law.feel(loss), optimizer, norm)
        self._pass_on_complaint()
        self.coefficients.add(decision.coefficient)
        self._decision_for_parts = decision if self.in_parts else None
        return decision

    def _guarded(self, decision: Decision, optimizer: Optimizer, norm: SeenNorm | None) -> Decision:
        """The decision, or another if a gradient on any rank is not finite and such steps are to be left out."""
        skips = any(group.get("nonfinite") == SKIP_STEP for group in optimizer.param_groups)
        if not (skips or self.law.guards_gradients) or decision.skip:  # the same on all ranks, as the loss is
            return decision
        spoilt = not (
            self._gradients_are_finite
            or (norm is not None and norm.says_finite(optimizer.param_groups))
            or gradients_are_finite(optimizer)
        )
        self._gradients_are_finite = not spoilt
        if not self.rank_mean.on_any(spoilt, device_of(optimizer)):
            return decision
        if spoilt:
            self.left_out.add(sum(count_not_finite(optimizer).values()))
            self.warn_of_left_out(optimizer)
        return self.law.refuse_gradients()

    def follow_weights(self, optimizer: Optimizer, decision: Decision) -> None:
        """After a step: have the weights enter their average, where the law keeps one."""
        if decision.average is None or decision.skip:
            return
        if self.in_parts:
            raise RuntimeError(
                f"{self.owner}: average_weights=true is not for DeepSpeed, whose optimizer has copies of the weights, "
                "a part at a time: leave it out, or train with FSDP2 or DDP"
            )
        if decision.average > 0.0:
            weight_average.follow(optimizer, decision.average)

    def show_average(self, optimizer: Optimizer) -> None:
        """Have the parameters hold the average of the weights, where there is one."""
        if not self.shows_average:
            self.shows_average = weight_average.exchange(optimizer)

    def show_weights(self, optimizer: Optimizer) -> None:
        """Have the parameters hold the weights again."""
        if self.shows_average:
            weight_average.exchange(optimizer)
            self.shows_average = False

    def forget_average(self, optimizer: Optimizer) -> None:
        """Leave in the parameters what has been loaded into them, and begin the average anew."""
        weight_average.forget(optimizer)
        self.shows_average = False

    def refuse_step_of_average(self) -> None:
        """Refuse a step while the parameters hold the average: its gradients would be of other weights.

        Raises:
            RuntimeError: in that case.
        """
        if self.shows_average:
            raise RuntimeError(
                f"{self.owner}: the parameters hold the average of the weights, since optimizer.eval() was called: "
                "call optimizer.train() before the forward pass of a training step"
            )

    def warn_of_left_out(self, optimizer: Optimizer) -> None:
        """Say once that gradients were not finite, as far as it is known without waiting for a device."""
        if self.left_out.count_in_main_memory:
            self._warn_once_of_left_out(lambda: count_not_finite(optimizer))

    def _warn_once_of_left_out(self, find: Callable[[], dict[str, int]]) -> None:
        if not self._has_warned_of_left_out:
            self._has_warned_of_left_out = True
            found = ", ".join(f"{name} ({count} elements)" for name, count in find().items())
            warn_at_the_caller(not_finite(self.owner, self.law.observations, found))

    def _pass_on_complaint(self) -> None:
        if self._has_passed_on_complaint:
            return
        complaint = self.law.complaint()
        if complaint is not None:
            self._has_passed_on_complaint = True
            warn_at_the_caller(f"{self.owner}: {complaint}")

    def effective_lr(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        """The learning rate of the last step for each group, by its name (`group_0`, … where it has none)."""
        applied = self.applied_lr
        if len(applied) != len(groups):  # no step yet, or a group was added since
            applied = [self.law.decision.step_size(float(group["lr"])) for group in groups]
        return dict(zip(group_names(groups), map(float, applied), strict=True))

    def metrics(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        """What to log now; begins a new window for the coefficient's mean, minimum and maximum."""
        named = [group["name"] for group in groups if "name" in group]
        values = metrics(self.law.view(), self.effective_lr(groups), named, self.coefficients)
        self.coefficients.clear()
        return values | self._gradient_metrics(groups)

    def current_metrics(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        """What this step was like, without ending the window."""
        named = [group["name"] for group in groups if "name" in group]
        values = metrics(self.law.view(), self.effective_lr(groups), named, CoefficientWindow())
        return values if self.left_out.is_on_devices else values | self._gradient_metrics(groups)

    def _gradient_metrics(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        if all(group.get("nonfinite", PROPAGATE) == PROPAGATE for group in groups):
            return {}
        count = (
            self.left_out.count
        )  # it may lie on a device, for which one waits where something is logged, not before
        if count:
            self._warn_once_of_left_out(dict)
        return {f"{PREFIX}nonfinite_gradients": float(count)}

    def state_dict(self) -> dict[str, Any]:
        """The emotion and the window for the logs, as plain numbers, strings and lists."""
        emotion = self.law.state_dict()
        return {**emotion, "coefficients": self.coefficients.state(), "shows_average": self.shows_average}

    def check(self, saved: Mapping[str, Any]) -> CoefficientWindow:
        """Refuse what `load_state_dict` could not take; changes nothing.

        Raises:
            ValueError: if it is of another law, or damaged.
        """
        copy.deepcopy(self.law).load_state_dict(saved)
        coefficients = CoefficientWindow()
        try:
            coefficients.load(saved.get("coefficients", coefficients.state()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's emotion is damaged: {error}") from error
        return coefficients

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, and forget everything that was under way.

        Raises:
            ValueError: if it is of another law, or damaged; nothing is changed then.
        """
        coefficients = self.check(saved)
        self.law.load_state_dict(saved)
        self.shows_average = bool(saved.get("shows_average", False))
        self.rank_mean.cancel()
        self.losses = StepLoss()
        self.coefficients = coefficients
        self.applied_lr = []
        self._decision_for_parts = None


def gradient_mark(optimizer: Optimizer) -> Mark:
    """Stands for the gradients as they are now: another mark after each backward pass, None while there are none."""
    gradients = (param.grad for group in optimizer.param_groups for param in group["params"])
    # Not by its address: the next gradient often lies at the place of one that is gone, as old as that was.
    return next(((WeakIdRef(gradient), gradient._version) for gradient in gradients if gradient is not None), None)


def device_of(optimizer: Optimizer) -> torch.device | None:
    """Where the parameters are; None while DeepSpeed, which hands them over for the moment of a step, has them."""
    return next((param.device for group in optimizer.param_groups for param in group["params"]), None)


def steps_at_rate_0(optimizer: Optimizer) -> bool:
    """Whether the learning rates are 0 now, as they are where a step is there to create the state."""
    return all(group.get("lr") is not None and not float(group["lr"]) for group in optimizer.param_groups)


def creates_state(optimizer: Optimizer) -> bool:
    """Whether this step is one of torch's checkpointing code, taken perhaps by one rank alone, to create the state.

    The other ranks must not be waited for then. A rank whose loss lies on another one may also step at rate 0, in
    warm-up, but its gradients are not all 0.
    """
    gradients = (param.grad for group in optimizer.param_groups for param in group["params"] if param.grad is not None)
    return (
        steps_at_rate_0(optimizer)
        and not any(optimizer.state.values())
        and not any(own_elements(gradient).any() for gradient in gradients)
    )


def group_names(groups: Iterable[Mapping[str, Any]]) -> list[str]:
    """A name for each parameter group: its own, or `group_0`, … as long as no other group is called so."""
    groups = list(groups)
    taken = {group["name"] for group in groups if "name" in group}
    names = []
    for index, group in enumerate(groups):
        name = group.get("name", f"group_{index}")
        while "name" not in group and name in taken:
            name += "_"
        names.append(name)
    return names
