"""An emotion at work on another optimizer: what happens around its steps, its loads and its saves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import Decision
from emo_hf.losses.accumulation import Loss, detached
from emo_hf.optim import average_tensors
from emo_hf.optim.attach_limits import (
    optimizers_within,
    refuse_step_within_backward,
    refuse_step_without_gradients,
)
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.facts import Facts
from emo_hf.optim.has_emotion import HasEmotion
from emo_hf.optim.overlay import give, lay_over
from emo_hf.optim.saving import EMOTION_KEY, FORMAT, SO_DO, find_emotion, put_emotion
from emo_hf.optim.state_keys import AVERAGE

ATTRIBUTE = "_emo_attachment"

MODES = ("train", "eval")
"""Methods of optimizers that show an average of the weights in evaluations; the Trainer and accelerate call them."""

SCALE = 1e-3
"""Under a law that takes the learning rate as a scale around 1, a lower one is an oversight."""

logger = logging.getLogger(__name__)


def attached_to(optimizer: Any) -> Attachment | None:
    """The emotion that was attached to an optimizer, or None."""
    found: Attachment | None = getattr(optimizer, "__dict__", {}).get(ATTRIBUTE)
    return found


class Attachment(HasEmotion):
    """An emotion at work on another optimizer; `attach` makes it."""

    def __init__(self, optimizer: Optimizer, engine: EmotionEngine, average: WeightAverage) -> None:
        self.optimizer = optimizer
        self._engine = engine
        self._average = average
        self._fresh = {**engine.state_dict(), **average.state_dict()}
        takes_a_scale = engine.law.decision.floor > 0.0  # and makes the rate itself
        self._plain_lr: list[tuple[dict[str, Any], Any]] | None = None  # the user's, while a step has others instead
        self._hidden: list[tuple[torch.Tensor, torch.Tensor]] = []  # gradients of a step that is left out
        self._depth = 0  # of calls of step() within each other, as where a subclass calls super().step()
        self._in_closure = False
        self._loading: Mapping[str, Any] = {}
        self._state_id = id(optimizer.state)
        if _saved_in(optimizer.param_groups):
            self._read(find_emotion(optimizer.param_groups, engine.name))
        optimizer.__dict__[ATTRIBUTE] = self
        self._pick_up()
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            *(held.register_step_pre_hook(self._before_step) for held in optimizers_within(optimizer)),
            *(held.register_step_post_hook(self._after_step) for held in optimizers_within(optimizer)),
            optimizer.register_state_dict_pre_hook(self._put_in_order),
            optimizer.register_state_dict_post_hook(self._pack),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        # torch has hooks for neither: a step that raises, and zero_grad.
        self._take_off = [
            lay_over(optimizer, "step", self._giving_back),
            lay_over(optimizer, "zero_grad", self._dropping_losses),
        ]
        if average.kept:
            self._take_off += [give(optimizer, name, getattr(self, name)) for name in MODES]
        self._warn_about_rates(takes_a_scale)
        engine.begin()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an attached emotion belongs to its optimizer and cannot be pickled or copied: take "
            "optimizer.state_dict(), which holds it, and attach to the other optimizer before it loads that"
        )

    def detach(self) -> None:
        """Leave the optimizer as it was before `attach`; doing it twice changes nothing.

        An average of the weights goes: where it is shown and is to stay, copy it before.
        """
        if attached_to(self.optimizer) is not self:
            return
        self._put_in_order()
        self._average.hide(self.param_groups, self.state)
        self._average.drop(self.param_groups, self.state)
        for hook in self._hooks:
            hook.remove()
        for take_off in self._take_off:
            take_off()
        for group in self.optimizer.param_groups:
            group.pop(EMOTION_KEY, None)
        del self.optimizer.__dict__[ATTRIBUTE]

    def observe(self, loss: Loss, *, weight: float | None = None) -> None:
        """Show the loss that the next step belongs to; see `EmoOptimizer.observe`."""
        self._put_in_order()
        self._engine.observe(loss, weight, self._facts)

    def tap_loss(
        self,
        loss: torch.Tensor,
        weight: float | None = None,
        *,
        last: bool = True,
        together: bool = False,
        in_parts: bool = False,
        graph: torch.Tensor | None = None,
    ) -> None:
        """Take in a loss that a framework is about to send to backward; see `EmoOptimizer.tap_loss`."""
        self._put_in_order()
        self._engine.tap(loss, weight, self._facts, last=last, together=together, in_parts=in_parts, graph=graph)

    def _between_steps(self) -> None:
        self._pick_up()

    @property
    def effective_lr(self) -> dict[str, float]:
        """The learning rate that the last step was taken with, for each parameter group by its name.

        Groups without a learning rate are left out.
        """
        self._pick_up()
        return self._engine.effective_lr(self._rated_groups())

    def metrics(self) -> dict[str, float]:
        """What to log now: plain numbers under `emo/…`; see `EmoOptimizer.metrics`."""
        self._pick_up()
        return self._engine.metrics(Facts(self._rated_groups(), self.state))

    def current_metrics(self) -> dict[str, float]:
        """What the last step was like, under `emo/…`; `metrics` goes on with its window."""
        self._pick_up()
        return self._engine.current_metrics(Facts(self._rated_groups(), self.state))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups."""
        return self.optimizer.param_groups

    @property
    def defaults(self) -> dict[str, Any]:
        """The optimizer's options."""
        return self.optimizer.defaults

    @property
    def state(self) -> Any:
        """The optimizer's state."""
        return self.optimizer.state

    def emotion_state(self) -> dict[str, Any]:
        """The emotion as it is saved, with what it belongs to."""
        self._pick_up()
        states = {**self._engine.state_dict(), **self._average.state_dict()}
        return {"format": FORMAT, "optimizer": self._engine.name, **states}

    def load_emotion(self, saved: Mapping[str, Any]) -> None:
        """Take over what `emotion_state` gave.

        Raises:
            ValueError: if it is of another law or of an emo optimizer, or damaged; nothing is changed then.
        """
        of_engine, of_average = self._read(find_emotion([{EMOTION_KEY: saved}], self._engine.name))
        self._engine.put_state(of_engine)
        self._average.put_state(of_average)

    def _read(self, saved: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        if "rule" in saved:
            raise ValueError(
                f"this optimizer state was saved by {saved.get('optimizer')}, not by {self._engine.name}: train on "
                f"with {saved.get('optimizer')}, or resume from the weights only"
            )
        theirs, ours = saved.get("law"), self._engine.law.label
        if theirs != ours:
            raise ValueError(
                f"the checkpoint's emotion follows the law {theirs!r}, the one attached here {ours!r}: attach "
                f"law={theirs!r} (in a Trainer emotion={theirs!r}), or resume from the weights only"
            )
        return self._engine.read_state(saved), self._average.read_state(saved)

    def _rated_groups(self) -> list[dict[str, Any]]:
        # Adafactor with a relative step has no learning rate in its groups.
        return [group for group in self.optimizer.param_groups if group.get("lr") is not None]

    def _warn_about_rates(self, takes_a_scale: bool) -> None:
        name, rated = self._engine.name, self._rated_groups()
        if len(rated) < len(self.optimizer.param_groups):
            logger.warning(
                "%s finds a learning rate by itself (it has none in its groups), so that the emotion feels and logs "
                "but scales nothing there. For Adafactor give lr=… and relative_step=False.",
                name,
            )
        # Where a scheduler has begun with warm-up, the rate itself is 0 now.
        rates = [float(group.get("initial_lr", group["lr"])) for group in rated] if takes_a_scale else []
        if takes_a_scale and rates and max(rates) < SCALE:
            logger.warning(
                "The law %s makes the learning rate, and takes the optimizer's as a scale around 1. With lr=%g the "
                "steps of %s are next to nothing: try 1.0 for adapters, 0.01 to 0.1 for a whole model.",
                self._engine.law.label, max(rates), name,
            )  # fmt: skip

    def _before_step(self, _: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        self._depth += 1
        if self._depth > 1:
            return None
        refuse_step_within_backward(self._engine.name)
        self._give_back()
        self._pick_up()
        self._refuse_step_of_average()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._scale(self._decide())
            return None
        seeing = self._seeing(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": seeing}
        return (args[0], seeing, *args[2:]), kwargs

    def _seeing(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            self._in_closure = True
            try:
                loss = closure()
            finally:
                self._in_closure = False
            if self._plain_lr is not None:  # evaluated once more in the same step: the first loss is the step's
                self._engine.losses.clear()
                self._engine.rank_mean.cancel()
                return loss
            if loss is not None and not self._engine.losses.of_next_step:
                self._engine.observe(detached(loss), None, self._facts)
            self._scale(self._decide())
            return loss

        return run

    def _decide(self) -> Decision:
        if self._engine.losses.of_next_step and not self._engine.in_parts:
            refuse_step_without_gradients(self.optimizer, self._engine.name)
        return self._engine.decide(self._facts)

    def _scale(self, decision: Decision) -> None:
        self._plain_lr = [(group, group["lr"]) for group in self._rated_groups()]
        if decision.skip:  # optimizers leave parameters without a gradient alone, and their averages with them
            params = (param for group in self.optimizer.param_groups for param in group["params"])
            self._hidden = [(param, param.grad) for param in params if param.grad is not None]
            for param, _ in self._hidden:
                param.grad = None
            self._engine.applied_lr = [0.0] * len(self._plain_lr)
            return
        for group, lr in self._plain_lr:
            group["lr"] = _scaled(lr, decision)
        self._engine.applied_lr = [group["lr"] for group, _ in self._plain_lr]

    def _after_step(self, *_: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if not self._depth:
            self._give_back()
            self._follow_average(self._engine.law.decision)

    def _give_back(self) -> None:
        for group, lr in self._plain_lr or ():
            group["lr"] = lr
        for param, gradient in self._hidden:
            param.grad = gradient
        self._plain_lr, self._hidden = None, []

    def _put_in_order(self, *_: Any) -> None:
        """Between two steps: undo what a step that raised has left, take up what was loaded past the hooks."""
        if not self._in_closure:
            self._depth = 0
            self._give_back()
            self._pick_up()

    def _giving_back(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Hooks alone bear the emotion: with a GradScaler, accelerate puts the step() back that it found when it
        # prepared the optimizer. Then rates are given back at the next sign of life after a step that raised.
        try:
            return step(*args, **kwargs)
        finally:
            self._depth = 0
            self._give_back()

    def _dropping_losses(self, zero_grad: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if attached_to(self.optimizer) is self:
            self._put_in_order()
            self._engine.gradients_are_reset(self._facts)
        return zero_grad(*args, **kwargs)

    def _pack(self, _: Optimizer, packed: dict[str, Any]) -> None:
        put_emotion(packed, self.emotion_state())

    def _after_load(self, optimizer: Optimizer) -> None:
        average_tensors.keep_precision(optimizer, self._loading, self._average.kept)
        self._loading = {}
        self._pick_up()

    def _before_load(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        self._put_in_order()
        self._loading = state
        if _saved_in(state["param_groups"]):
            self._read(find_emotion(state["param_groups"], self._engine.name))
            self._check_averages(state)
            return None
        groups = [dict(group) for group in state["param_groups"]]
        for group in groups:  # an unattached copy has the key, with nothing in it
            group.pop(EMOTION_KEY, None)
        return {**state, "param_groups": groups}

    def _check_averages(self, state: Mapping[str, Any]) -> None:
        names = [name for group in state["param_groups"] for name in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        if len(names) == len(params):  # else torch says what is wrong
            for name, param in zip(names, params, strict=True):
                of_param = state.get("state", {}).get(name, {})
                if AVERAGE in of_param:
                    average_tensors.check(of_param[AVERAGE], param, SO_DO)

    def _pick_up(self, *_: Any) -> None:
        """Take up what the groups say of the emotion; some optimizers load past the hooks, bitsandbytes' for one."""
        if attached_to(self.optimizer) is not self:
            return
        groups, state_id = self.optimizer.param_groups, id(self.optimizer.state)
        saved = _saved_in(groups)
        if saved is not None:
            self.load_emotion(saved)
        elif state_id != self._state_id and not any(EMOTION_KEY in group for group in groups):
            logger.warning("The loaded state of %s holds no emotion: it starts afresh.", self._engine.name)
            self._engine.put_state(self._engine.read_state(self._fresh))
            self._average.put_state(self._average.read_state(self._fresh))
        self._state_id = state_id
        for group in groups:  # a place in the live groups, so that torch's flattened state dicts carry it too
            group[EMOTION_KEY] = None


def _saved_in(groups: list[dict[str, Any]]) -> Mapping[str, Any] | None:
    return next((group[EMOTION_KEY] for group in groups if group.get(EMOTION_KEY)), None)


def _scaled(lr: Any, decision: Decision) -> Any:
    if not isinstance(lr, torch.Tensor):
        return decision.step_size(lr)
    scaled = lr * decision.coefficient  # a new tensor, without waiting for the device
    return scaled if not decision.floor else torch.where(lr > 0, scaled.clamp(min=decision.floor), scaled)
