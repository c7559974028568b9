"""An emotion at work on another optimizer: what happens around its steps, its loads and its saves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from emo_hf.laws.decision import Decision
from emo_hf.losses.accumulation import detached
from emo_hf.optim.average import WeightAverage
from emo_hf.optim.average_tensors import averages_in
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.has_emotion import HasEmotion
from emo_hf.optim.methods import around, put_on
from emo_hf.optim.saving import EMOTION_KEY, FORMAT, emotion_in, find_emotion, kept_average, put_emotion
from emo_hf.optim.state_keys import AVERAGE

ATTRIBUTE = "_emo_attachment"

MODES = ("train", "eval")
"""Methods of optimizers that show an average of the weights in evaluations; the Trainer and accelerate call them."""

WITHIN_BACKWARD = (
    "{name} moves parameters one by one within backward ({sign}), so that there is no step for all of them whose rate "
    "could be scaled: use it without that, or take an emo optimizer and emo_hf.step_in_backward"
)

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
        self._plain_lr: list[tuple[dict[str, Any], Any]] | None = None  # the user's, while a step has others instead
        self._hidden: list[tuple[torch.Tensor, torch.Tensor]] = []  # gradients of a step that is left out
        self._depth = 0  # of calls of step() within each other, as where a subclass calls super().step()
        self._in_closure = False
        self._loading: Mapping[str, Any] = {}
        self._state_id = id(optimizer.state)
        if emotion_in(optimizer.param_groups):
            self._read(find_emotion(optimizer.param_groups, engine.name))
        optimizer.__dict__[ATTRIBUTE] = self
        self._pick_up()
        stepping = [optimizer, *optimizers_within(optimizer)]
        self._hooks = [
            *(each.register_step_pre_hook(self._before_step) for each in stepping),
            *(each.register_step_post_hook(self._after_step) for each in stepping),
            optimizer.register_state_dict_pre_hook(self._put_in_order),
            optimizer.register_state_dict_post_hook(self._pack),
            optimizer.register_load_state_dict_pre_hook(self._before_load),
            optimizer.register_load_state_dict_post_hook(self._after_load),
        ]
        # torch has hooks for neither: a step that raises, and zero_grad.
        self._take_off = [
            put_on(optimizer, "step", around(optimizer.step, self._giving_back)),
            put_on(optimizer, "zero_grad", around(optimizer.zero_grad, self._dropping_losses)),
            *(put_on(optimizer, name, getattr(self, name)) for name in MODES if average.kept),
        ]
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

    def _before_a_loss(self, *, last: bool = True, in_parts: bool = False) -> None:
        self._put_in_order()

    def _between_steps(self) -> None:
        self._pick_up()

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

    def _before_step(self, _: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        self._depth += 1
        if self._depth > 1:
            return None
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(WITHIN_BACKWARD.format(name=self._engine.name, sign="step() was called there"))
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
        facts, has_loss = self._facts, self._engine.losses.of_next_step and not self._engine.in_parts
        if has_loss and facts.device is not None and not facts.have_gradients:  # they were used and freed before
            raise RuntimeError(WITHIN_BACKWARD.format(name=self._engine.name, sign="no gradient was left at step()"))
        return self._engine.decide(facts)

    def _scale(self, decision: Decision) -> None:
        self._plain_lr = [(group, group["lr"]) for group in self._rated_groups]
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
        # torch has brought them to the dtype and the device of their parameters.
        for param, average in averages_in(self._loading, optimizer.param_groups):
            optimizer.state[param].pop(AVERAGE, None)
            if self.keeps_average:
                optimizer.state[param][AVERAGE] = kept_average(average, param, self._average.kept).clone()
        self._loading = {}
        self._pick_up()

    def _before_load(self, _: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        self._put_in_order()
        self._loading = state
        if emotion_in(state["param_groups"]):
            self._read(find_emotion(state["param_groups"], self._engine.name))
            for param, average in averages_in(state, self.param_groups):
                kept_average(average, param, self._average.kept)
            return None
        groups = [dict(group) for group in state["param_groups"]]
        for group in groups:  # an unattached copy has the key, with nothing in it
            group.pop(EMOTION_KEY, None)
        return {**state, "param_groups": groups}

    def _pick_up(self, *_: Any) -> None:
        """Take up what the groups say of the emotion; some optimizers load past the hooks, bitsandbytes' for one."""
        if attached_to(self.optimizer) is not self:
            return
        groups, state_id = self.optimizer.param_groups, id(self.optimizer.state)
        saved = emotion_in(groups)
        if saved is not None:
            self.load_emotion(saved)
        elif state_id != self._state_id and not any(EMOTION_KEY in group for group in groups):
            logger.warning("The loaded state of %s holds no emotion: it starts afresh.", self._engine.name)
            self._engine.put_state(self._engine.read_state(self._fresh))
            self._average.put_state(self._average.read_state(self._fresh))
        self._state_id = state_id
        for group in groups:  # a place in the live groups, so that torch's flattened state dicts carry it too
            group[EMOTION_KEY] = None


def _scaled(lr: Any, decision: Decision) -> Any:
    if not isinstance(lr, torch.Tensor):
        return decision.step_size(lr)
    scaled = lr * decision.coefficient  # a new tensor, without waiting for the device
    return scaled if not decision.floor else torch.where(lr > 0, scaled.clamp(min=decision.floor), scaled)


def optimizers_within(optimizer: Optimizer) -> list[Optimizer]:
    """Optimizers that another one holds and steps, perhaps past its own `step()`, as SAM's `second_step` does.

    Only those with the same parameter groups: what is scaled in the one is scaled in the other.
    """
    groups = {id(group) for group in optimizer.param_groups}
    return [
        held
        for held in vars(optimizer).values()
        if isinstance(held, Optimizer) and held is not optimizer and groups & set(map(id, held.param_groups))
    ]
