"""EmoOptimizer: an update rule, a law, and the emotion between them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, overload

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from emo_hf.laws import LAWS, make_law
from emo_hf.laws.decision import Decision
from emo_hf.losses.accumulation import detached
from emo_hf.losses.same_options import GLOBAL
from emo_hf.optim import saving
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.backward import StepInBackward
from emo_hf.optim.buckets import Buckets
from emo_hf.optim.display import optimizer_html, optimizer_text
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.has_emotion import HasEmotion
from emo_hf.optim.loss_warnings import warn_about_flat_parameters
from emo_hf.optim.options import as_list, without_empty_groups
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.update import Hyperparameters
from emo_hf.optim.version import Version, describe

logger = logging.getLogger(__name__)


class EmoOptimizer(HasEmotion, Optimizer):
    """Base of the emo optimizers: feeds one emotion, asks it once per step, hands its decision to the update rule.

    A class statement makes an optimizer of the family, and its name known everywhere (see `family.py`):

        class EmoNavi(EmoOptimizer, versions=(Version("v3.1", rule=Navi, law="v3.1"),)): ...
    """

    versions: ClassVar[Mapping[str, Version]] = {}
    """The generations that there are of this optimizer, the default one first."""

    _rule: Rule
    _backward: StepInBackward | None = None  # steps that are taken in backward, see `step_in_backward`

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
        writer: Any = None,
        **options: Any,
    ) -> None:
        self._version = version = self.version_named(options.pop("version", None))
        given = version.read_options(type(self).__name__, options)
        law, average = given.pop("emo_law", None) or version.law, given.pop("average_weights", None)
        of_law = LAWS[law if law in LAWS else version.law].options.keys()
        law_options = {key: value for key, value in version.law_options.items() if key in of_law}
        law_options |= {key: given.pop(key) for key in list(given) if key in of_law}
        others = {key: given.pop(key, None) for key in ("emo_sync", "step_in_backward", "clip_value")}
        if version.rule.reads_scalar and law in LAWS and law != version.law:
            raise ValueError(
                f"emo_law={law!r}: the rule of {type(self).__name__} {version.name} reads the scalar of the law "
                f"{version.law}, so that no other law can drive it; leave emo_law out, or take emo_law='none'"
            )
        defaults = version.read_group(
            type(self).__name__,
            {
                "lr": version.lr if lr is None else lr,
                "betas": version.betas if betas is None else betas,
                "eps": eps,
                "weight_decay": weight_decay,
                **given,
            },
        )
        self._engine = EmotionEngine(
            make_law(law, version.law, law_options), others["emo_sync"] or GLOBAL, type(self).__name__
        )
        kept = self._engine.law.averages_weights if average is None else average
        self._average = WeightAverage(kept, is_default=average is None)
        self._rule = version.rule(defaults)
        self._buckets = Buckets(self._rule, type(self).__name__)
        self._writer = writer
        self._steps_written = 0
        super().__init__(without_empty_groups(params), defaults)
        self._begin()
        if others["step_in_backward"]:
            StepInBackward(self).arm(others["clip_value"])
        elif others["clip_value"] is not None:
            raise ValueError(
                f"clip_value={others['clip_value']!r} is for step_in_backward=True: elsewhere clip before step()"
            )

    def _begin(self) -> None:
        self.register_state_dict_post_hook(saving.pack, prepend=True)  # before those of users
        self._engine.begin()

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
        if not isinstance(name, str) or name not in cls.versions:
            raise ValueError(f"version of {cls.__name__} must be one of {', '.join(cls.versions)}, got {name!r}")
        return cls.versions[name]

    @property
    def rule(self) -> Rule:
        """The update rule at work."""
        return self._rule

    @property
    def version(self) -> str:
        """The generation of this optimizer."""
        return self._version.name

    @property
    def _identity(self) -> dict[str, Any]:
        return {**super()._identity, "version": self.version}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked as the constructor's are, and its name must be new.

        Raises:
            ValueError: if it is empty, or an option or the name is not acceptable.
        """
        name = param_group.get("name")
        if name is not None and any(group.get("name") == name for group in self.param_groups):
            raise ValueError(f"there is a parameter group named {name!r} already: names must be different")
        if "params" not in param_group:
            raise ValueError(f"a parameter group needs 'params', and this has {sorted(map(str, param_group))}")
        param_group["params"] = as_list(param_group["params"])
        if not param_group["params"]:
            raise ValueError("the parameter group is empty: distributed checkpoints cannot be loaded with such")
        options = self.defaults | {key: value for key, value in param_group.items() if key != "params"}
        read = self._version.read_group(type(self).__name__, options)
        param_group.update((key, read[key]) for key in param_group.keys() & read.keys())
        # A place in the live groups, so that torch's flattened state dicts carry the emotion too.
        param_group.setdefault(saving.EMOTION_KEY, None)
        super().add_param_group(param_group)

    def _before_a_loss(self, *, last: bool = True, in_parts: bool = False) -> None:
        if self._backward is not None:
            self._backward.expect_loss(last=last, in_parts=in_parts)
        if in_parts and not self._engine.in_parts and not self._version.rule.takes_parts():
            warn_about_flat_parameters(type(self).__name__)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients; a loss that came with them and was not followed by a step is dropped with them."""
        if self._backward is not None:
            self._backward.gradients_are_reset()
        self._engine.gradients_are_reset(self._facts)
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
            has_begun = self._backward is not None and self._backward.is_under_way
            if loss is not None and not self._engine.losses.of_next_step and not has_begun:
                self._engine.observe(detached(loss), None, self._facts)
        if self._backward is not None and self._backward.has_taken_the_step():
            return loss
        if self._engine.creates_state_only(self._facts):
            self._buckets.create_states(self.state, self.param_groups)
            self._average.begin_state(self.param_groups, self.state)
            return loss
        decision = self._begin_step()
        if not decision.skip:
            for group in self.param_groups:
                self._buckets.move(self.state, group, self._numbers(group, decision), decision.shadow)
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
            self._backward = StepInBackward(self)
        self._backward.move(param)

    def _begin_step(self) -> Decision:
        """The decision of the step, with all that comes before the first parameter moves."""
        self._refuse_step_of_average()
        decision = self._engine.decide(self._facts)
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
        self._follow_average(decision)
        self._engine.warn_of_left_out(self._facts)
        self._write()

    def _write(self) -> None:
        """Give the writer this step's metrics; what it cannot write is no reason to end training."""
        if self._writer is None:
            return
        try:
            for name, value in self.current_metrics().items():
                self._writer.add_scalar(name, value, self._steps_written)
        except Exception as error:  # noqa: BLE001  a full disk, a closed file: whatever a writer may raise
            logger.warning("the writer is let go, since it failed: %s: %s", type(error).__name__, error)
            self._writer = None
        self._steps_written += 1

    def emotion_state(self) -> dict[str, Any]:
        """The emotion as it is saved, with what it belongs to and what the rule keeps once per optimizer."""
        return {
            "optimizer": type(self).__name__,
            "version": self._version.name,
            **self._engine.state_dict(),
            **self._average.state_dict(),
            "rule": self._rule.memory(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` gave, emotion included: all of it, or nothing if anything is wrong with it.

        A state holds tensors, plain numbers, strings, lists and dicts only: `torch.load(weights_only=True)` reads it.

        Raises:
            ValueError: if the state is not of an optimizer of this class and version, or does not fit the parameters.
        """
        given: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, given)
            given = given if changed is None else changed
        self._put(saving.read(given, self))
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _put(self, saved: saving.Saved) -> None:
        """Assign what was read."""
        for group, new in zip(self.param_groups, saved.groups, strict=True):
            group.clear()
            group.update(new)
        self.state: Any = defaultdict(dict, saved.states)
        self._engine.put_state(saved.engine)
        self._average.put_state(saved.average)
        self._rule.load_memory(saved.rule)
        self._steps_written = self._engine.law.observations  # a writer's curves go on where they were
        self._engine.begin()  # accelerate loads the state of what it prepares

    def __getstate__(self) -> dict[str, Any]:
        own = ("_engine", "_average", "_rule", "_version", "_steps_written")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}, "_writer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._buckets = Buckets(self._rule, type(self).__name__)
        self._begin()

    __repr__, _repr_html_ = optimizer_text, optimizer_html


FAMILY: dict[str, type[EmoOptimizer]] = {}
"""Every optimizer of the family by the name that `--optim` takes. Everything that lists optimizers reads it."""
