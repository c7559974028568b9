"""What a law is: one loss per step in, one decision per step out, in plain double arithmetic without tensors.

A law is a subclass of `Law` in a file of its own, and a line in `laws.py`. It gives `decide`, and says which numbers
it keeps; averaging, the window of scalars, counting, snapshots and saving are done here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from emo_hf.laws.ablation import Ablation
from emo_hf.laws.decision import Decision, EmotionView
from emo_hf.reading import Option, read_value

SHORT_GAIN = 0.3
LONG_GAIN = 0.01

WINDOW = 32  # scalars that the stop signal looks back on
QUIET_MEAN = 0.05
QUIET_VARIANCE = 0.005

PROGRESS = 0.005  # a slow average that still falls by this share is slow training, not flat training


@dataclass(frozen=True, slots=True)
class Zone:
    """A range of σ in which a law does one thing, for pictures."""

    low: float
    high: float
    what: str
    kind: Literal["brake", "slow", "quiet", "boost"]


class Law(ABC):
    """The emotion of one optimizer. Feed it with `feel(loss)` once per step.

    Everything that it knows is in `state_dict()`: plain numbers, lists and strings, which travel in any checkpoint.

    Class attributes of a law:
        name: what `emo_law` calls it.
        numbers: name → first value of the numbers it keeps beside the two averages; they become attributes.
        options: name → what its constructor takes beside.
        zones: the ranges of σ that it tells apart, for pictures.
        decides_to_stop: whether its stop signal is a decision, to be acted upon at once, and not a raw signal.

    Args:
        options: values for `options`.

    Raises:
        TypeError: for an option that the law does not have.
        ValueError: for a value that is not acceptable.
    """

    name: ClassVar[str]
    numbers: ClassVar[Mapping[str, float]] = {}
    options: ClassVar[Mapping[str, Option]] = {}
    zones: ClassVar[tuple[Zone, ...]] = ()
    decides_to_stop: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - self.options.keys())
        if unknown:
            known = ", ".join(self.options) or "none"
            raise TypeError(f"the law {self.name} has no option {', '.join(unknown)}; its options: {known}")
        for key, option in self.options.items():
            setattr(self, key, read_value(key, options.get(key, option.default), option.read))
        for number, first in self.numbers.items():
            setattr(self, number, first)
        self.short = 0.0
        self.long = 0.0
        self.should_stop = False
        self.observations = 0
        self.skipped = 0
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._quiet = False
        self._flat_steps = 0
        self._flat_since = 0.0  # the slow average when the count of flat steps began
        self._ablation: Ablation | None = None
        self._decision = self.neutral()

    @property
    def decision(self) -> Decision:
        """What the last step was told; before the first one, the neutral decision."""
        return self._decision

    @property
    def label(self) -> str:
        """What `emo_law` was: the name of the law, or of what has taken its place."""
        return self.name if self._ablation is None else self._ablation.name

    def ablate(self, ablation: Ablation) -> None:
        """Have something else take the place of the factors."""
        self._ablation = ablation
        self._decision = ablation.apply(self._decision)

    @abstractmethod
    def decide(self, loss: float) -> Decision:
        """The decision of this step; `short` and `long` have taken in its loss, which is finite."""

    def neutral(self) -> Decision:
        """The decision of a step without a usable loss."""
        return Decision()

    def first(self, loss: float, gain: float) -> float:
        """What an average of that gain begins with."""
        return loss

    def average(self, old: float, loss: float, gain: float) -> float:
        """An average after one more loss."""
        return self.first(loss, gain) if self.observations == 0 else gain * loss + (1.0 - gain) * old

    def take_in(self, loss: float) -> None:
        """Bring the averages up to date."""
        self.short = self.average(self.short, loss, SHORT_GAIN)
        self.long = self.average(self.long, loss, LONG_GAIN)

    def scalar_for_window(self, decision: Decision) -> float:
        """What the window for the stop signal remembers of a step."""
        return decision.scalar

    def signals_stop(self) -> bool:
        """The stop signal after this step: quiet once, it stands for good."""
        return self.should_stop or self._quiet

    def feel(self, loss: float) -> Decision:
        """Take in the loss of one step.

        Args:
            loss: the loss of the step. NaN and infinities are counted in `skipped` and otherwise leave no trace.

        Returns:
            The decision for this step; the neutral one if the loss was skipped.
        """
        if not math.isfinite(loss):
            self.skip()
            return self.neutral_step()
        self.take_in(loss)
        decision = self.decide(loss)
        self.observations += 1
        self._remember(self.scalar_for_window(decision))
        signal = self.signals_stop()
        if signal and not self.should_stop:
            decision = replace(decision, stop_begins=True)
        self.should_stop = signal
        return self._decided(decision)

    def neutral_step(self) -> Decision:
        """The neutral decision, for a step without a usable loss."""
        return self._decided(self.neutral())

    def _decided(self, decision: Decision) -> Decision:
        self._decision = decision if self._ablation is None else self._ablation.apply(decision)
        return self._decision

    @property
    def guards_gradients(self) -> bool:
        """Whether a step is to be left out whose gradients are not finite; most laws leave that to others."""
        return False

    def refuse_gradients(self) -> Decision:
        """The decision of the step that has just been felt, now that its gradients turn out not to be finite."""
        self._decision = replace(self._decision, skip=True)
        return self._decision

    def skip(self) -> None:
        """Count a loss that was not usable, or was observed for a step which was then thrown away."""
        self.skipped += 1

    def _remember(self, scalar: float) -> None:
        self._window.append(scalar)
        self._quiet = self._window_is_quiet()
        if self._quiet and self.long > self._flat_since - PROGRESS * abs(self._flat_since):
            self._flat_steps += 1
        else:
            self._flat_steps, self._flat_since = 0, self.long

    def _window_is_quiet(self) -> bool:
        if self.mean_size() >= QUIET_MEAN:
            return False
        mean = sum(self._window) / WINDOW
        return sum((scalar - mean) ** 2 for scalar in self._window) / WINDOW < QUIET_VARIANCE

    def mean_size(self) -> float:
        """Mean |σ| of the last 32 steps, infinite before there are as many."""
        return sum(map(abs, self._window)) / WINDOW if len(self._window) == WINDOW else math.inf

    @property
    def decisions(self) -> list[tuple[int, str]]:
        """The last things that the law has decided, in words: (step, what and why); most laws decide nothing so."""
        return []

    def hear_evaluation(self, loss: float) -> None:  # noqa: B027 (a law may leave it)
        """Take in the loss of an evaluation; most laws hear the training loss only.

        Args:
            loss: the same on all ranks.
        """

    def know_horizon(self, steps: int | None) -> None:  # noqa: B027 (a law may leave it)
        """Be told how long the run is; most laws do not ask.

        Args:
            steps: optimizer steps of the whole run, None if nobody knows.
        """

    def complaint(self) -> str | None:
        """What is wrong with the losses for this law, and what to do about it; None if all is well."""
        return None

    def view(self) -> EmotionView:
        """A frozen snapshot for logs."""
        # Not `should_stop` alone, which is that of the last step: an evaluation may have been heard since.
        decided = self.decides_to_stop and self.signals_stop()
        return EmotionView(
            law=self.label,
            short=self.short,
            long=self.long,
            scalar=self._decision.scalar,
            coefficient=self._decision.coefficient,
            quiet=self._quiet,
            flat_steps=self._flat_steps,
            should_stop=self.should_stop or decided,
            observations=self.observations,
            skipped=self.skipped,
            details={number: getattr(self, number) for number in self.numbers},
            has_decided_to_stop=decided,
        )

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as plain numbers, one list of numbers and the name of the law."""
        return {
            "law": self.label,
            "short": self.short,
            "long": self.long,
            **{number: getattr(self, number) for number in self.numbers},
            "scalar": self._decision.scalar,
            "coefficient": self._decision.coefficient,
            # Always of one length: torch compares the structure of a state with that of a fresh one to broadcast it.
            "window": [*self._window, *[None] * (WINDOW - len(self._window))],
            "quiet": self._quiet,
            "should_stop": self.should_stop,
            "flat_steps": self._flat_steps,
            "flat_since": self._flat_since,
            "observations": self.observations,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: if the state is of another law, incomplete or damaged; nothing is changed then.
        """
        if state.get("law") != self.label:
            raise ValueError(
                f"the checkpoint's emotion follows the law {state.get('law')!r}, this optimizer's {self.label!r}: "
                f"make the optimizer with emo_law={state.get('law')}, or resume from the weights only"
            )
        missing = sorted(self.state_dict().keys() - {"coefficient"} - state.keys())
        if missing:
            raise ValueError(f"the checkpoint's emotion lacks {', '.join(missing)}: it is damaged or was cut short")
        try:
            scalar = _finite(state["scalar"])
            read = {
                **{number: _finite(state[number]) for number in ("short", "long", *self.numbers)},
                "should_stop": _flag(state["should_stop"]),
                "observations": _count(state["observations"]),
                "skipped": _count(state["skipped"]),
                "_window": _read_window(state["window"]),
                "_quiet": _flag(state["quiet"]),
                "_flat_steps": _count(state["flat_steps"]),
                "_flat_since": _finite(state["flat_since"]),
            }
            coefficient = state.get("coefficient")  # a state of version 0.1.0 has none
            read["_decision"] = Decision(
                scalar, self.coefficient_of(scalar) if coefficient is None else _finite(coefficient)
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the checkpoint's emotion is damaged: {error}") from error
        self.__dict__.update(read)

    def coefficient_of(self, scalar: float) -> float:
        """The coefficient that goes with a σ, for states that were saved without it."""
        return 1.0


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _count(value: Any) -> int:
    number = int(value)
    if number != value or number < 0:
        raise ValueError(f"{value!r} is not a count")
    return number


def _flag(value: Any) -> bool:
    if value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return bool(value)


def _read_window(saved: list[float | None]) -> deque[float]:
    if len(saved) != WINDOW:
        raise ValueError(f"its window has {len(saved)} places, not {WINDOW}")
    return deque((_finite(scalar) for scalar in saved if scalar is not None), maxlen=WINDOW)
