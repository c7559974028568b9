"""A step that is taken one parameter at a time, as backward comes to them, each gradient freed as it is used."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from emo_hf.laws.decision import Decision
from emo_hf.optim.facts import innermost
from emo_hf.optim.left_out import SKIP_STEP
from emo_hf.optim.loss_warnings import warn_at_the_caller
from emo_hf.optim.options import TABLE
from emo_hf.optim.sharding import is_sharded
from emo_hf.optim.update import Hyperparameters
from emo_hf.reading import read_value

if TYPE_CHECKING:
    from emo_hf.optim.optimizer import EmoOptimizer

HOW = "step_in_backward"
"""What it is called in messages: the function, the constructor's option, the Trainer's."""

AVERAGING_LATER = ("DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Classes of models whose gradients are not those of the step yet when backward comes to a parameter."""

SCALED = (
    f"{HOW} does not go together with a GradScaler (fp16): parameters would move by gradients that are scaled, before "
    f"it is known whether they are finite. Use bfloat16, or leave {HOW} out"
)
WITHOUT_EFFECT = (
    f"{HOW}: no parameter moved in backward, so that optimizer.step() moves them as usual. The model's parameters are "
    f"others than when it began: call {HOW} after whatever replaces them (fully_shard, accelerator.prepare)"
)
RESET = (
    f"{HOW}: the gradients were reset before optimizer.step(): the parameters that backward had reached have moved "
    "all the same, and their step is over"
)
ACCUMULATING = (
    f"{HOW}: {{}}, and parameters have moved or would move without it. Gradient accumulation does not go together "
    "with it: call optimizer.step() after each backward, with a larger batch if it fits, or leave "
    f"{HOW} out"
)
SECOND_GRADIENT = (
    f"{HOW}: a second gradient came for a parameter before step(), and it has moved by the first. Either several "
    "backward passes come before step(): gradients are accumulated, or the loss is computed in cached parts "
    "(GradCache, the Cached… losses of sentence-transformers). Or one pass comes to a parameter more than once: "
    "reentrant gradient checkpointing of a layer that is used twice, where use_reentrant=False helps. Else leave "
    f"{HOW} out"
)
RANKS = (
    f"{HOW}: several ranks share one emotion, and a parameter would move before they have averaged its gradient (DDP "
    "does so later). Shard the model by fully_shard (FSDP2), which averages first; or, for ranks that exchange "
    "weights instead of gradients, take emo_sync=local"
)


def step_in_backward(model: nn.Module, optimizer: Any, *, clip_value: float | None = None) -> StepInBackward:
    """Have an emo optimizer move each parameter as soon as backward has its gradient, and free the gradient.

    The gradients of a model are then never there all at once, which saves their memory. An emo optimizer can do so,
    since what it makes of a step depends on the loss alone, and that is known before backward begins. The results are
    those of ordinary steps to the last bit. Loops stay as they are: show the loss (or let accelerate show it), call
    `loss.backward()`, then `optimizer.step()`, which closes the step, and `zero_grad()`.

    It needs one backward pass a step, and cannot clip by the norm of all gradients. Call it after whatever replaces
    the parameters (`fully_shard`, `accelerator.prepare`). Learning rates are read while backward goes on.

    Args:
        model: the model whose parameters they are.
        optimizer: an emo optimizer, or a wrapper that holds one as `.optimizer`, such as accelerate's.
        clip_value: clip the elements of each gradient to ±clip_value before it is used, as
            `torch.nn.utils.clip_grad_value_` does.

    Returns:
        A handle whose `remove()` takes it back.

    Raises:
        TypeError: if it is not an emo optimizer.
        ValueError: if the optimizer's rule, its law (`guard`) or `nonfinite="skip_step"` needs all gradients before a
            parameter moves; if the model averages gradients after they have come (DDP, FSDP1, DeepSpeed); if the
            optimizer has none of the model's parameters; or for a `clip_value` that is not positive.
        RuntimeError: later, in backward, if gradients are accumulated, or ranks share gradients in another way; in
            `step()`, if a GradScaler has scaled them.
    """
    inner: Any = innermost(optimizer)
    if not hasattr(inner, "_backward"):  # which emo optimizers have
        raise TypeError(
            f"{HOW} takes an emo optimizer, whose step depends on the loss alone, or a wrapper that holds one as "
            f".optimizer; got {type(inner).__name__}"
        )
    for module in model.modules():
        if any(base.__name__ in AVERAGING_LATER for base in type(module).__mro__):
            raise ValueError(
                f"{HOW}: {type(module).__name__} averages the gradients over the ranks when they have come to their "
                "parameters, which would have moved by then. Shard the model by fully_shard (FSDP2), which averages "
                f"first, or leave {HOW} out"
            )
    its = {id(param) for group in inner.param_groups for param in group["params"]}
    if not any(id(param) in its for param in model.parameters()):
        raise ValueError(
            f"{HOW}: the optimizer has none of the model's parameters. Make it for this model, or call {HOW} after "
            "whatever replaces them (fully_shard, accelerator.prepare)"
        )
    steps: StepInBackward = inner._backward or StepInBackward(inner)
    steps.arm(read_value("clip_value", clip_value, TABLE["clip_value"].read))
    return steps


class StepInBackward:
    """The steps of an emo optimizer, taken one parameter at a time; `step_in_backward` makes it.

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

    @property
    def is_under_way(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._decision is not None

    def arm(self, clip_value: float | None = None) -> None:
        """Have every parameter that requires a gradient move as soon as it is there; see `step_in_backward`.

        Another optimizer whose parameters these were lets go of all of its own. Doing it again looks at the parameters
        anew.
        """
        optimizer = self._present()
        refuse_what_needs_all_gradients(optimizer)
        self.remove()
        self._clip_value, self.is_armed = clip_value, True
        for param in _trained(optimizer):
            for other in list((getattr(param, "_post_accumulate_grad_hooks", None) or {}).values()):
                former = other.steps() if isinstance(other, _Hook) else None
                if former is not None:
                    former.remove()
            self._hooks.append(param.register_post_accumulate_grad_hook(_Hook(self)))
        vars(optimizer)["_step_supports_amp_scaling"] = True  # so that a GradScaler calls step(), which refuses it
        optimizer._backward = self

    def remove(self) -> None:
        """Let `optimizer.step()` move the parameters again; doing it twice changes nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.is_armed = [], False
        self._forget()
        vars(self._optimizer() or self).pop("_step_supports_amp_scaling", None)

    @torch.no_grad()
    def move(self, param: torch.Tensor, *, in_hook: bool = False) -> None:
        """Move a parameter by its gradient, if it has one.

        Args:
            param: one of the optimizer's parameters.
            in_hook: whether backward has just come to it: then its gradient is freed, and a second one is an error.
                Scripts that have hooks of their own free it themselves, and do not say where a step ends.
        """
        with self._lock:
            optimizer = self._optimizer()
            if optimizer is None or param.grad is None:
                return
            if id(param) in self._moved:
                if in_hook:
                    raise RuntimeError(SECOND_GRADIENT)
                self._finish()
            if not self.is_under_way:
                refuse_what_needs_all_gradients(optimizer)  # a state loaded since may have other options
                groups = optimizer.param_groups
                self._group_of = {id(param): group for group in groups for param in group["params"]}
                shares_gradients = optimizer._engine.rank_mean.applies
                if in_hook and shares_gradients and not any(is_sharded(p) for g in groups for p in g["params"]):
                    raise RuntimeError(RANKS)
                self._decision = optimizer._begin_step()
            if id(param) in self._group_of:
                self._move(optimizer, param)
                if in_hook:
                    param.grad = None
            elif not in_hook:  # else it was taken out of the optimizer
                raise ValueError(f"step_param: the parameter is not among those of this {type(optimizer).__name__}")

    def expect_loss(self, *, last: bool = True, in_parts: bool = False) -> None:
        """A loss is about to come in, as for `EmoOptimizer.tap_loss`: it must not be of the step that is under way.

        Raises:
            RuntimeError: if it is, or there are several losses to a step.
        """
        if not self.is_armed:
            self._finish()
            return
        if in_parts:
            raise RuntimeError(f"{HOW} does not go together with DeepSpeed, which keeps gradients: leave {HOW} out")
        if self.is_under_way:
            said = ACCUMULATING.format("a loss was shown after backward had begun and before step()")
            raise RuntimeError(f"{said}. A loss belongs before its own backward: observe(loss), then loss.backward()")
        if not last:
            raise RuntimeError(ACCUMULATING.format("there is a micro-batch that is not the last of its step"))

    def gradients_are_reset(self) -> None:
        """The gradients are about to be reset: a step that is under way ends here, without those that are missing."""
        if self.is_under_way and self.is_armed:
            warn_at_the_caller(RESET)
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
            raise RuntimeError(SCALED)
        left = [param for param in _trained(optimizer) if param.grad is not None]
        if not self.is_under_way:
            if self.is_armed:
                self._clip(left)
                if any(bool(param.grad.any()) for param in left if param.grad is not None):
                    warn_at_the_caller(WITHOUT_EFFECT)
            return False
        for param in left:
            if id(param) not in self._moved:
                self._move(optimizer, param)
        self._finish()
        return True

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

    def _present(self) -> EmoOptimizer:
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError(f"{HOW}: the optimizer is gone")
        return optimizer


class _Hook:
    """What a parameter calls; it keeps neither the steps nor the optimizer alive."""

    def __init__(self, steps: StepInBackward) -> None:
        self.steps = weakref.ref(steps)

    def __call__(self, param: torch.Tensor) -> None:
        steps = self.steps()
        if steps is not None:
            steps.move(param, in_hook=True)


def _trained(optimizer: EmoOptimizer) -> list[torch.Tensor]:
    """The parameters that require a gradient."""
    return [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]


def refuse_what_needs_all_gradients(optimizer: EmoOptimizer, how: str = HOW) -> None:
    """Raise a ValueError where a step cannot begin before all gradients are there; `how` is what is done instead."""
    law = optimizer._engine.law
    leaves_out = "leaves out a step whose gradients are not finite, which is not known when the first parameter moves"
    if optimizer.rule.reads_group:
        said = (
            f"the rule of {type(optimizer).__name__} {optimizer.version} looks at a whole parameter group, and may "
            "move it, before a step: take another optimizer of the family"
        )
    elif law.guard:
        said = f"guard=True of emo_law={law.label!r} {leaves_out}: take guard=False"
    elif any(group.get("nonfinite") == SKIP_STEP for group in optimizer.param_groups):
        said = f"nonfinite={SKIP_STEP!r} {leaves_out}: take nonfinite='leave_out'"
    else:
        return
    raise ValueError(f"{how}: {said}, or leave {how} out")
