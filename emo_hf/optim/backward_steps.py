"""A step that is taken one parameter at a time, as backward comes to them."""

from __future__ import annotations

import math
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch

from emo_hf.laws.decision import Decision
from emo_hf.optim import backward_limits as limits
from emo_hf.optim.loss_warnings import warn_at_the_caller
from emo_hf.optim.update import Hyperparameters

if TYPE_CHECKING:
    from emo_hf.optim.optimizer import EmoOptimizer


def arm(optimizer: EmoOptimizer, clip_value: float | None = None) -> BackwardSteps:
    """Have whatever parameters an optimizer has move in backward.

    Raises:
        ValueError: as for `step_in_backward`.
    """
    if clip_value is not None and not (math.isfinite(clip_value) and clip_value > 0):
        raise ValueError(f"clip_value must be a positive number or None, got {clip_value!r}")
    steps = BackwardSteps(optimizer) if optimizer._backward is None else optimizer._backward
    steps.arm(clip_value)
    optimizer._backward = steps
    return steps


class BackwardSteps:
    """The steps of an emo optimizer, taken one parameter at a time.

    A step begins with the first gradient of a backward pass: the loss has been shown by then, the law decides, and
    what it decides holds for all parameters until the step ends. Each parameter moves once.

    Args:
        optimizer: the optimizer that is to move so.

    Attributes:
        is_armed: whether its parameters move by themselves in backward.
    """

    def __init__(self, optimizer: EmoOptimizer) -> None:
        self.is_armed = False
        self._optimizer: weakref.ref[EmoOptimizer] = weakref.ref(optimizer)
        self._lock = threading.RLock()  # autograd has a thread for each device
        self._clip_value: float | None = None
        self._hooks: list[Any] = []
        self._decision: Decision | None = None
        self._numbers: dict[int, Hyperparameters] = {}  # id of a group → what its parameters move with
        self._group_of: dict[int, dict[str, Any]] = {}  # id of a parameter → its group
        self._moved: set[int] = set()
        self._has_warned: set[str] = set()

    @property
    def is_under_way(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._decision is not None

    def arm(self, clip_value: float | None = None) -> None:
        """Have every parameter that requires a gradient move as soon as it is there, and the gradient be freed.

        Another optimizer whose parameters these were lets go of all of its own. Doing it again looks at the parameters
        anew.

        Args:
            clip_value: size to which the elements of the gradients are clipped before they are used.
        """
        optimizer = self._present()
        limits.refuse_what_needs_all_gradients(optimizer)
        self.disarm()
        self._clip_value, self.is_armed = clip_value, True
        hook = _Hook(self)
        for param in limits.trained(optimizer.param_groups):
            for other in list((getattr(param, "_post_accumulate_grad_hooks", None) or {}).values()):
                if isinstance(other, _Hook):
                    other.let_go()
            self._hooks.append(param.register_post_accumulate_grad_hook(hook))
        vars(optimizer)["_step_supports_amp_scaling"] = True  # so that a GradScaler calls step(), which refuses it

    def disarm(self) -> None:
        """Let `optimizer.step()` move the parameters again; doing it twice changes nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.is_armed = [], False
        self._forget()
        vars(self._optimizer() or self).pop("_step_supports_amp_scaling", None)

    @torch.no_grad()
    def reach(self, param: torch.Tensor) -> None:
        """The gradient of a parameter is there: move it, and free the gradient."""
        with self._lock:
            optimizer = self._optimizer()
            if optimizer is None or param.grad is None:
                return
            if not self.is_under_way:
                limits.refuse_what_needs_all_gradients(optimizer)  # a state loaded since may have other options
                limits.refuse_ranks(optimizer)
                self._begin(optimizer)
            if id(param) in self._moved:
                raise RuntimeError(limits.SECOND_GRADIENT)
            if id(param) in self._group_of:  # and was not taken out of the optimizer
                self._move(optimizer, param)
                param.grad = None

    @torch.no_grad()
    def move(self, param: torch.Tensor) -> None:
        """Move a parameter by its gradient, which stays where it is; for scripts that have hooks of their own.

        Raises:
            ValueError: if the parameter is not among the optimizer's.
        """
        with self._lock:
            optimizer = self._present()
            if param.grad is None:
                return
            if id(param) in self._moved:  # such scripts do not say where a step ends
                self._finish()
            if not self.is_under_way:
                limits.refuse_what_needs_all_gradients(optimizer)
                self._begin(optimizer)
            if id(param) not in self._group_of:
                raise ValueError(f"step_param: the parameter is not among those of this {type(optimizer).__name__}")
            self._move(optimizer, param)

    def expect_loss(self, *, last: bool = True, in_parts: bool = False) -> None:
        """A loss is about to come in: what it belongs to must be another step than the one that is under way.

        Args:
            last, in_parts: as for `EmoOptimizer.tap_loss`.

        Raises:
            RuntimeError: if it is not, or there are several losses to a step.
        """
        if not self.is_armed:
            self._finish()
            return
        if in_parts:
            raise RuntimeError(limits.DEEPSPEED)
        if self.is_under_way:
            said = limits.accumulating("a loss was shown after backward had begun and before step()")
            raise RuntimeError(f"{said}. A loss belongs before its own backward: observe(loss), then loss.backward()")
        if not last:
            raise RuntimeError(limits.accumulating("there is a micro-batch that is not the last of its step"))

    def gradients_are_reset(self) -> None:
        """The gradients are about to be reset: a step that is under way ends here, without those that are missing."""
        if self.is_under_way and self.is_armed:
            self._warn(limits.RESET)
            self._finish()

    @torch.no_grad()
    def has_taken_the_step(self) -> bool:
        """`optimizer.step()` is called: close the step that backward has taken, if it has; whether it had.

        Parameters that have a gradient still, which no hook has seen, move now, by the same decision.

        Raises:
            RuntimeError: if a GradScaler has scaled the gradients.
        """
        optimizer = self._present()
        if self.is_armed and hasattr(optimizer, "found_inf"):  # given by a GradScaler
            raise RuntimeError(limits.SCALED)
        left = [param for param in limits.trained(optimizer.param_groups) if param.grad is not None]
        if not self.is_under_way:
            if self.is_armed:
                self._clip(left)
                if any(bool(param.grad.any()) for param in left if param.grad is not None):
                    self._warn(limits.WITHOUT_EFFECT)
            return False
        for param in left:
            if id(param) not in self._moved:
                self._move(optimizer, param)
        if (
            self.is_armed
            and "unreached" not in self._has_warned
            and limits.warn_of_unreached(optimizer.param_groups, self._moved)
        ):
            self._has_warned.add("unreached")
        self._finish()
        return True

    def _begin(self, optimizer: EmoOptimizer) -> None:
        self._group_of = {id(param): group for group in optimizer.param_groups for param in group["params"]}
        self._decision = optimizer._begin_step()

    def _move(self, optimizer: EmoOptimizer, param: torch.Tensor) -> None:
        decision, group = self._decision, self._group_of.get(id(param))
        if decision is None or group is None:
            return
        self._moved.add(id(param))
        if decision.skip:
            return
        self._clip([param])
        if id(group) not in self._numbers:
            self._numbers[id(group)] = optimizer._numbers(group, decision)
        optimizer._buckets.move(optimizer.state, group, self._numbers[id(group)], decision.shadow, [param])
        optimizer._engine.warn_of_left_out(optimizer._facts)  # while it can be seen which gradient it was

    def _clip(self, params: list[torch.Tensor]) -> None:
        if self._clip_value is not None:
            torch.nn.utils.clip_grad_value_(params, self._clip_value)

    def _finish(self) -> None:
        decision = self._decision
        self._forget()
        if decision is not None:
            self._present()._end_step(decision)

    def _forget(self) -> None:
        self._decision = None
        self._numbers, self._group_of, self._moved = {}, {}, set()

    def _warn(self, message: str) -> None:
        if message not in self._has_warned:
            self._has_warned.add(message)
            warn_at_the_caller(message)

    def _present(self) -> EmoOptimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"{limits.HOW}: the optimizer is gone")
        return optimizer


class _Hook:
    """What a parameter calls; it keeps neither the steps nor the optimizer alive."""

    def __init__(self, steps: BackwardSteps) -> None:
        self._steps = weakref.ref(steps)

    def __call__(self, param: torch.Tensor) -> None:
        steps = self._steps()
        if steps is not None:
            steps.reach(param)

    def let_go(self) -> None:
        """The parameter is another optimizer's from now on."""
        steps = self._steps()
        if steps is not None:
            steps.disarm()
