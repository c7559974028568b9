"""One emotion for torchao's `CPUOffloadOptimizer`, which makes an optimizer for each parameter.

one = emo_hf.sharing_one_emotion(emo_hf.EmoNavi)
optimizer = CPUOffloadOptimizer(model.parameters(), one, lr=1e-3)
...
one.observe(loss)
loss.backward()
optimizer.step()
optimizer.zero_grad()
"""

from __future__ import annotations

import copy
from typing import Any

from torch.optim.optimizer import ParamsT

from emo_hf.laws.decision import Decision
from emo_hf.losses.accumulation import Loss
from emo_hf.optim.backward_limits import refuse_what_needs_all_gradients
from emo_hf.optim.engine import EmotionEngine
from emo_hf.optim.facts import Facts
from emo_hf.optim.has_emotion import HasEmotion
from emo_hf.optim.optimizer import EmoOptimizer

HOW = "sharing_one_emotion"


def sharing_one_emotion(cls: type[EmoOptimizer]) -> OneEmotion:
    """Something to give where a class is asked for of which many optimizers are made: they all have one emotion.

    Every optimizer that it makes has the state of its own parameters, and saves the emotion with it. The law decides
    when the first of them steps after a loss has been shown; the others take over what it decided. So all of them
    belong to one model, and step once each per step of it, as torchao's `CPUOffloadOptimizer` has them do.

    Args:
        cls: an emo optimizer, such as `EmoNavi`.

    Returns:
        What is given in the place of the class; `observe(loss)` shows it the loss, before backward.

    Raises:
        TypeError: if it is not the class of an emo optimizer.
    """
    if not (isinstance(cls, type) and issubclass(cls, EmoOptimizer)):
        raise TypeError(f"{HOW} takes the class of an emo optimizer, such as EmoNavi, got {cls!r}")
    return OneEmotion(cls)


class OneEmotion(HasEmotion):
    """Makes optimizers of a class that share one emotion; `sharing_one_emotion` makes it.

    Attributes:
        cls: the class.
        optimizers: what has been made of it.
    """

    def __init__(self, cls: type[EmoOptimizer]) -> None:
        self.cls = cls
        self.__name__ = cls.__name__
        self.optimizers: list[EmoOptimizer] = []

    def __call__(self, params: ParamsT, **options: Any) -> EmoOptimizer:
        """Make another optimizer, which shares the emotion.

        Args:
            params: as for the class.
            **options: as for the class, the same for all but the learning rate and what else a group may have of its
                own. A `writer` is given each step's metrics once.

        Raises:
            ValueError: as for the class; and if the rule, the law or an option looks at all gradients before a step.
        """
        if options.get("step_in_backward"):
            raise ValueError(f"{HOW}: parameters that are offloaded have no backward pass: leave step_in_backward out")
        if self.optimizers:
            options = {**options, "writer": None}
        made = self.cls(params, **options)
        refuse_what_needs_all_gradients(made, HOW)
        made.give_way(f"{HOW}: what is offloaded are copies of the parameters, which nobody evaluates; it")
        if self.optimizers:
            shared = self._engine
            if made._engine.law.label != shared.law.label:
                raise ValueError(
                    f"{HOW}: one emotion follows one law, and the optimizers before follow {shared.law.label!r}: give "
                    f"all of them the same emo_law and version, not {made._engine.law.label!r}"
                )
        else:
            self._engine = _SharedEngine(made._engine)
        made._engine = self._engine
        self.optimizers.append(made)
        return made

    def observe(self, loss: Loss, *, weight: float | None = None) -> None:
        """Show the loss that the next step belongs to; see `EmoOptimizer.observe`.

        Raises:
            RuntimeError: if no optimizer has been made yet.
        """
        if not self.optimizers:
            raise RuntimeError(f"{HOW}: no optimizer has been made yet: give this to CPUOffloadOptimizer first")
        self.optimizers[0].observe(loss, weight=weight)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def metrics(self) -> dict[str, float]:
        """What to log now, under `emo/…`; see `EmoOptimizer.metrics`."""
        return self._engine.metrics(Facts(self.param_groups, {}))


class _SharedEngine(EmotionEngine):
    """Decides once for all optimizers that share it."""

    def __init__(self, first: EmotionEngine) -> None:
        self.__dict__.update(copy.copy(first).__dict__)
        self._stepped: set[int] = set()
        self._decision = Decision()

    def decide(self, facts: Facts) -> Decision:
        who = id(facts.param_groups)
        others_part = bool(self._stepped) and who not in self._stepped and not self.losses.of_next_step
        if not others_part:
            self._stepped.clear()
            self._decision = super().decide(facts)
        self._stepped.add(who)
        self.is_new_step = True  # for the optimizer's own rule
        return self._decision

    def creates_state_only(self, facts: Facts) -> bool:
        return not self._stepped and super().creates_state_only(facts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stepped": set()}
