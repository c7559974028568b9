"""EmoOptimizer: what the three optimizers share. An update rule adds only its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from emo_hf.emotion.laws import law_named
from emo_hf.emotion.metrics import CoefficientWindow, metrics
from emo_hf.emotion.v3_1 import NEUTRAL, Decision, Emotion, EmotionView
from emo_hf.loss.accumulation import Loss
from emo_hf.loss.rank_mean import GLOBAL, RankMean, steps_at_rate_0, warn_about_flat_matrices
from emo_hf.loss.step_loss import LossIntake, Mark
from emo_hf.optim.checkpoint import EMOTION_KEY, check_fits, check_is_state, pack_emotion, read_emotion
from emo_hf.optim.loss_warnings import warn_about_missing_loss, warn_about_saturation
from emo_hf.optim.rule_optimizer import RuleOptimizer
from emo_hf.optim.rules.rule import StepSize
from emo_hf.optim.tensors.low_precision import restore_float32
from emo_hf.optim.validation import IMPLEMENTATION_OPTIONS, check_options, without_empty_groups

on_construction: list[Callable[[], None]] = []
"""Called whenever an optimizer is made or restored: how the loss tap wires itself without being known here."""


class EmoOptimizer(RuleOptimizer):
    """Base of the emo optimizers: feeds one emotion, asks it once per step, hands its decision to the update rule."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        use_shadow: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool | None = None,
        compensate: bool = False,
        emo_sync: str = GLOBAL,
        emo_law: str = Emotion.law,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_shadow": use_shadow,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "compile": compile,
            "compensate": compensate,
        }
        self._check_options(defaults)
        self._rank_mean = RankMean(emo_sync)
        self._law = law_named(emo_law)
        self._reset_emotion()
        super().__init__(without_empty_groups(params), defaults)
        self._wire()

    def _reset_emotion(self) -> None:
        self._rank_mean.cancel()
        self._emotion = self._law()
        self._losses = LossIntake()
        self._coefficients = CoefficientWindow()
        self._applied_lr: list[float] = []
        self._in_parts = False
        self._decision_for_parts: Decision | None = None
        self._warned_about_missing_loss = False
        self._warned_about_saturation = False

    def _wire(self) -> None:
        if pack_emotion not in self._optimizer_state_dict_post_hooks.values():
            self.register_state_dict_post_hook(pack_emotion, prepend=True)
        for hook in on_construction:
            hook()

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
        if weight is not None and not (math.isfinite(weight) and weight > 0.0):
            raise ValueError(f"weight must be a positive number, got {weight!r}")
        self._losses.show(loss, weight, self._gradient_mark)

    def tap_loss(
        self,
        loss: torch.Tensor,
        weight: float | None = None,
        *,
        last: bool = True,
        together: bool = False,
        in_parts: bool = False,
    ) -> None:
        """Take in a loss that a framework is about to send to backward; for `emo_hf.integrations.accelerate`.

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
        if in_parts and not self._in_parts and type(self).sharded is not None:
            warn_about_flat_matrices(type(self).__name__)
        self._in_parts, self._decision_for_parts = in_parts, None
        self._rank_mean.cancel()  # what is under way lacks this loss
        if self._losses.tap(loss, weight, last, self._gradient_mark):
            self._emotion.skip()
        if last and together and not self._losses.shown:
            self._rank_mean.start(self._losses.pending, self)

    def _gradient_mark(self) -> Mark:
        gradients = (param.grad for group in self.param_groups for param in group["params"])
        return next(((id(gradient), gradient._version) for gradient in gradients if gradient is not None), None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients; a loss that came with them and was not followed by a step is dropped with them."""
        if self._losses.gradients_go(self._gradient_mark):
            self._rank_mean.cancel()
            self._emotion.skip()
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step, scaled by what the losses since the last step make the emotion feel.

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
            if loss is not None and not self._losses.shown:
                self._losses.show(loss, None, self._gradient_mark)
        decision = self._decide()
        self._applied_lr = []
        for group in self.param_groups:
            size = StepSize.of(group, decision)
            self._applied_lr.append(size.step)
            self._update_group(group, size, decision.shadow)
        return loss

    def _decide(self) -> Decision:
        if self._decision_for_parts is not None and not self._losses.pending:
            return self._decision_for_parts
        loss = self._rank_mean.take(self._losses.pending, self)
        self._losses.clear()
        if loss is None:
            # Checkpointing code steps at learning rate 0 to create the state: that needs no loss and no warning.
            if not self._warned_about_missing_loss and not steps_at_rate_0(self):
                self._warned_about_missing_loss = True
                warn_about_missing_loss(type(self).__name__)
            return NEUTRAL
        decision = self._emotion.feel(loss)
        if not self._warned_about_saturation and self._emotion.saturated:
            self._warned_about_saturation = True
            warn_about_saturation(type(self).__name__, self.emotion)
        self._coefficients.add(decision.coefficient)
        self._decision_for_parts = decision if self._in_parts else None
        return decision

    @property
    def emo_sync(self) -> str:
        """`global`, one emotion for all ranks, or `local`, each rank its own."""
        return self._rank_mean.mode

    @property
    def emotion(self) -> EmotionView:
        """A read-only snapshot of the emotion."""
        return self._emotion.view()

    @property
    def effective_lr(self) -> dict[str, float]:
        """lr·c as the last step applied it, for each parameter group by its name (`group_0`, … where it has none)."""
        applied = self._applied_lr
        if len(applied) != len(self.param_groups):  # no step yet, or a group was added since
            applied = [float(group["lr"]) * self.emotion.coefficient for group in self.param_groups]
        return dict(zip(self._group_names(), applied, strict=True))

    def _group_names(self) -> list[str]:
        taken = {group["name"] for group in self.param_groups if "name" in group}
        names = []
        for index, group in enumerate(self.param_groups):
            name = group.get("name", f"group_{index}")
            while "name" not in group and name in taken:
                name += "_"
            names.append(name)
        return names

    def metrics(self) -> dict[str, float]:
        """What to log now: plain numbers under `emo/…`, for any logger.

        The coefficient's mean, minimum and maximum cover all steps since the last call.
        """
        named = [group["name"] for group in self.param_groups if "name" in group]
        return metrics(self.emotion, self.effective_lr, named, self._coefficients)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked as the constructor's are, and its name must be new.

        Raises:
            ValueError: if an option or the name is not acceptable.
        """
        name = param_group.get("name")
        if name is not None and any(group.get("name") == name for group in self.param_groups):
            raise ValueError(f"there is a parameter group named {name!r} already: names must be different")
        self._check_options(self.defaults | {key: value for key, value in param_group.items() if key != "params"})
        # A place in the live groups, so that torch's flattened state dicts carry the emotion too.
        param_group.setdefault(EMOTION_KEY, None)
        super().add_param_group(param_group)

    def _check_options(self, options: dict[str, Any]) -> None:
        check_options(options)
        for name in IMPLEMENTATION_OPTIONS:
            if options[name] and name not in self.implementations:
                raise ValueError(f"{type(self).__name__} has no {name} implementation: leave {name}=None")

    def state_dict(self) -> dict[str, Any]:
        """The state as any torch optimizer's, with the emotion in every parameter group.

        It holds tensors, plain numbers, strings, lists and dicts only: `torch.load(weights_only=True)` reads it. The
        emotion is one, but it lies in each group: a group may be left behind, the emotion may not.
        """
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict()` gave, emotion included.

        Raises:
            ValueError: if the state is not of an optimizer of this class, or does not fit the parameters.
        """
        loaded: dict[str, Any] = {}  # what the user's hooks make of it

        def look(_: Optimizer, given: dict[str, Any]) -> None:
            check_is_state(given, type(self).__name__)
            read_emotion(given, type(self).__name__, self._law)
            check_fits(self.param_groups, given, self._first_state)
            loaded.update(given)

        if not isinstance(state_dict, Mapping):  # hooks may make a state of any mapping
            check_is_state(state_dict, type(self).__name__)
        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(state_dict)  # which ends in __setstate__
        finally:
            handle.remove()
        restore_float32(self.state, self.param_groups, loaded)

    def __getstate__(self) -> dict[str, Any]:
        own = (
            "_rank_mean",
            "_in_parts",
            "_decision_for_parts",
            "_emotion",
            "_losses",
            "_coefficients",
            "_applied_lr",
            "_warned_about_missing_loss",
            "_warned_about_saturation",
            "_law",
        )
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_emotion" in state:  # a pickle or a copy
            super().__setstate__(state)
        else:  # from load_state_dict, after its hooks and checks
            emotion, coefficients = read_emotion(state, type(self).__name__, self._law)  # before anything is changed
            newest = {name: self.defaults[name] for name in self.param_groups[0] if name in self.defaults}
            super().__setstate__(state)
            for group in self.param_groups:
                group.update({**newest, **group, EMOTION_KEY: None})  # an older state lacks newer options
            self._reset_emotion()
            self._emotion, self._coefficients = emotion, coefficients
        self._wire()
