"""EmoOptimizer: an update rule, a law, and the emotion between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, overload

import torch
from torch.optim.optimizer import ParamsT

from emo_hf.emotion.ablation import read_ablation
from emo_hf.emotion.decision import Decision
from emo_hf.emotion.laws import make_law
from emo_hf.loss.accumulation import Loss
from emo_hf.loss.rank_mean import GLOBAL
from emo_hf.optim.backward_steps import BackwardSteps, arm
from emo_hf.optim.checkpoint import EMOTION_KEY
from emo_hf.optim.display import optimizer_html, optimizer_text
from emo_hf.optim.emotion_engine import EmotionEngine, HasEmotion
from emo_hf.optim.loss_warnings import warn_about_flat_parameters
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.saving import SavingOptimizer
from emo_hf.optim.tensors.left_out import LEAVE_OUT
from emo_hf.optim.update import Hyperparameters
from emo_hf.optim.validation import without_empty_groups
from emo_hf.optim.version import Version, describe
from emo_hf.reading import read_value


class EmoOptimizer(HasEmotion, SavingOptimizer):
    """Base of the emo optimizers: feeds one emotion, asks it once per step, hands its decision to the update rule.

    A class statement makes an optimizer of the family, and its name known everywhere (see `family.py`):

        class EmoNavi(EmoOptimizer, versions=(Version("v3.1", rule=Navi, law="v3.1"),)): ...
    """

    versions: ClassVar[Mapping[str, Version]] = {}
    """The generations that there are of this optimizer, the default one first."""

    _backward: BackwardSteps | None = None
    """Steps that are taken in backward, see `step_in_backward`."""

    def __init_subclass__(cls, versions: tuple[Version, ...] = (), **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if versions:
            cls.versions = {version.name: version for version in versions}
            describe(cls)
            FAMILY[cls.__name__.lower()] = cls

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        version: str | None = None,
        use_shadow: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        native: bool | None = None,
        state: str | None = None,
        compensate: bool | str = False,
        nonfinite: str = LEAVE_OUT,
        emo_sync: str = GLOBAL,
        emo_law: str | None = None,
        writer: Any = None,
        step_in_backward: bool = False,
        clip_value: float | None = None,
        **own: Any,
    ) -> None:
        if "compile" in own:
            warnings.warn("compile is called native now: it chooses kernels in C, not torch.compile", FutureWarning, 2)
            native = own.pop("compile") if native is None else native
        self._version = chosen = self.version_named(version)
        rule_options, law_options = self._sort_options(own, emo_law or chosen.law)
        if chosen.rule.reads_scalar and emo_law not in (None, chosen.law) and read_ablation(emo_law) is None:
            raise ValueError(
                f"emo_law={emo_law!r}: the rule of {type(self).__name__} {chosen.name} reads the scalar of the law "
                f"{chosen.law}, so that no other law can drive it; leave emo_law out, or take emo_law='none'"
            )
        defaults = {
            "lr": chosen.lr if lr is None else lr,
            "betas": chosen.betas if betas is None else betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "use_shadow": use_shadow,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "native": native,
            "state": state,
            "compensate": compensate,
            "nonfinite": nonfinite,
            **rule_options,
        }
        self._check_options(defaults)
        law = make_law(emo_law or chosen.law, chosen.law, law_options)
        self._engine = EmotionEngine(law, emo_sync, type(self).__name__)
        self._rule = chosen.rule(defaults)
        self._writer = writer
        self._steps_written = 0
        super().__init__(without_empty_groups(params), defaults)
        self._wire()
        if step_in_backward:
            arm(self, clip_value)
        elif clip_value is not None:
            raise ValueError(f"clip_value={clip_value!r} is for step_in_backward=True: elsewhere clip before step()")

    @classmethod
    def version_named(cls, name: str | None) -> Version:
        """A generation by its name; None for the default one.

        Raises:
            ValueError: if there is none of this name.
        """
        if not cls.versions:
            raise TypeError(f"{cls.__name__} has no versions: it is made by `class …(EmoOptimizer, versions=(…,))`")
        if name is None:
            return next(iter(cls.versions.values()))
        if name not in cls.versions:
            raise ValueError(f"version of {cls.__name__} must be one of {', '.join(cls.versions)}, got {name!r}")
        return cls.versions[name]

    def _sort_options(self, own: dict[str, Any], law: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rule's own options, with their defaults, and the law's that were given or that the version sets."""
        version, of_rule = self._version, self._version.rule.options
        known = version.own_options(law)
        unknown = sorted(own.keys() - known.keys())
        if unknown:
            hint = " (give betas=(beta1, beta2))" if {"beta1", "beta2"} & set(unknown) else ""
            if any(name.startswith("self_stop") for name in unknown):
                hint = " (an optimizer cannot stop a loop: use EmoEarlyStoppingCallback, or the Trainer's optim_args)"
            raise TypeError(
                f"{type(self).__name__} {version.name} has no option {', '.join(unknown)}{hint}; beside those of all "
                f"emo optimizers it has: {', '.join(known) or 'none'}"
            )
        rule = {name: read_value(name, own.get(name, option.default), option.read) for name, option in of_rule.items()}
        of_law = {**version.law_options, **own}
        return rule, {name: value for name, value in of_law.items() if name in known and name not in of_rule}

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

    def _has_begun(self) -> bool:
        return self._backward is not None and self._backward.is_under_way

    def _begin_step(self) -> Decision:
        """The decision of the step, with all that comes before the first parameter moves."""
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
            left_out=self._engine.left_out if group["nonfinite"] == LEAVE_OUT else None,
        )

    def _end_step(self, decision: Decision) -> None:
        """What comes after the last parameter has moved."""
        if self._engine.is_new_step and not decision.skip:
            self._rule.after_step(decision)
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

    @property
    def effective_lr(self) -> dict[str, float]:
        """The learning rate that the last step was taken with, for each parameter group by its name.

        Groups without a name are called `group_0`, …
        """
        return self._engine.effective_lr(self.param_groups)

    def metrics(self) -> dict[str, float]:
        """What to log now: plain numbers under `emo/…`, for any logger.

        The coefficient's mean, minimum and maximum cover all steps since the last call.
        """
        return self._engine.metrics(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked as the constructor's are, and its name must be new.

        Raises:
            ValueError: if it is empty, or an option or the name is not acceptable.
        """
        name = param_group.get("name")
        if name is not None and any(group.get("name") == name for group in self.param_groups):
            raise ValueError(f"there is a parameter group named {name!r} already: names must be different")
        params = param_group.get("params")
        if params is not None and not isinstance(params, torch.Tensor):
            param_group["params"] = params if isinstance(params, (set, frozenset)) else list(params)
            if not param_group["params"]:
                raise ValueError("the parameter group is empty: distributed checkpoints cannot be loaded with such")
        self._check_options(self.defaults | {key: value for key, value in param_group.items() if key != "params"})
        # A place in the live groups, so that torch's flattened state dicts carry the emotion too.
        param_group.setdefault(EMOTION_KEY, None)
        super().add_param_group(param_group)

    __repr__, _repr_html_ = optimizer_text, optimizer_html


FAMILY: dict[str, type[EmoOptimizer]] = {}
"""Every optimizer of the family by the name that `--optim` takes. Everything that lists optimizers reads it."""
