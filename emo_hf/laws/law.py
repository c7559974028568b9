"""What a law is: one loss per step in, one decision per step out, in plain double arithmetic without tensors.

A law is a subclass of `Law` in a file of its own, and a line in `__init__.py`. It gives `decide`, and says which
numbers it keeps; averaging, the window of scalars, counting, snapshots and saving are done here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from emo_hf.laws import saved as codec
from emo_hf.laws.ablation import Ablation
from emo_hf.laws.decision import Decision, EmotionView, Note
from emo_hf.reading import Option, read_value

SHORT_GAIN = 0.3
LONG_GAIN = 0.01

WINDOW = 32  # scalars that the stop signal looks back on
QUIET_MEAN = 0.05
QUIET_VARIANCE = 0.005

PROGRESS = 0.005  # a slow average that still falls by this share is slow training, not flat training

SAVED: Mapping[str, codec.Reader] = {
    "short": codec.finite,
    "long": codec.finite,
    "scalar": codec.finite,
    "coefficient": codec.at_least_zero,
    "window": codec.numbers(WINDOW),
    "quiet": codec.flag,
    "should_stop": codec.flag,
    "flat_steps": codec.count,
    "flat_since": codec.finite,
    "observations": codec.count,
    "skipped": codec.count,
}
"""What every law saves."""


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
        numbers: name → first value of the numbers that it keeps beside the two averages; they become attributes.
        options: name → what its constructor takes beside.
        instead: name → what to do where somebody looks for an option that there is not.
        zones: the ranges of σ that it tells apart, for pictures.
        has_scalar: whether it makes a σ.
        averages_weights: whether an average of the weights goes with it unless the user says otherwise.
        decides_to_stop: whether its stop signal is a decision, to be acted upon at once, and not a raw signal.

    Attributes:
        short, long: the fast and the slow average of the loss.
        observations: losses taken in.
        skipped: losses left out.
        should_stop: the stop signal.

    Args:
        options: values for `options`.

    Raises:
        TypeError: for an option that the law does not have.
        ValueError: for a value that is not acceptable.
    """

    name: ClassVar[str]
    numbers: ClassVar[Mapping[str, float]] = {}
    options: ClassVar[Mapping[str, Option]] = {}
    instead: ClassVar[Mapping[str, str]] = {}
    zones: ClassVar[tuple[Zone, ...]] = ()
    has_scalar: ClassVar[bool] = True
    averages_weights: ClassVar[bool] = False
    decides_to_stop: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - self.options.keys())
        if unknown:
            known = ", ".join(self.options) or "none"
            instead = "".join(f". {self.instead[name]}" for name in unknown if name in self.instead)
            raise TypeError(f"the law {self.name} has no option {', '.join(unknown)}; its options: {known}{instead}")
        for key, option in self.options.items():
            setattr(self, key, read_value(key, options.get(key, option.default), option.read))
        for number, first in self.numbers.items():
            setattr(self, number, first)
        self.short = self.long = 0.0
        self.observations = self.skipped = 0
        self.should_stop = self.quiet = False
        self.window: deque[float] = deque(maxlen=WINDOW)
        self.flat_steps = 0
        self.flat_since = 0.0  # the slow average when the count of flat steps began
        self._label, self._ablation = self.name, Ablation()
        self._decision = self.neutral()

    @property
    def decision(self) -> Decision:
        """What the last step was told; before the first one, the neutral decision."""
        return self._decision

    @property
    def label(self) -> str:
        """What `emo_law` was: the name of the law, or of what has taken the place of its factors."""
        return self._label

    @property
    def needs_losses(self) -> bool:
        """Whether a step without a loss is worth a warning."""
        return self._ablation.needs_losses

    @property
    def steps(self) -> int:
        """Steps that had a loss so far, those left out among them."""
        return self.observations + self.skipped

    @property
    def decisions(self) -> list[Note]:
        """The last things that the law has decided; most laws decide nothing that is noted."""
        return []

    @property
    def guards_gradients(self) -> bool:
        """Whether a step is to be left out whose gradients are not finite; most laws leave that to others."""
        return False

    def ablated(self, label: str, ablation: Ablation | None) -> Law:
        """This law, with something else in the place of its factors."""
        if ablation is not None:
            self._label, self._ablation = label, ablation
            self._decision = ablation.apply(self._decision, 0)
        return self

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

    def coefficient_of(self, scalar: float) -> float:
        """The coefficient that goes with a σ, where that alone says it; 1 otherwise."""
        return 1.0

    def signals_stop(self) -> bool:
        """The stop signal after this step: quiet once, it stands for good."""
        return self.should_stop or self.quiet

    def feel(self, loss: float) -> Decision:
        """Take in the loss of one step.

        Args:
            loss: the loss of the step. NaN and infinities are counted in `skipped` and otherwise leave no trace.

        Returns:
            The decision for this step; the neutral one if the loss was not usable.
        """
        if not math.isfinite(loss):
            return self.leave_out(self.neutral())
        self.take_in(loss)
        decision = self.decide(loss)
        self.observations += 1
        if self.has_scalar:
            self._remember(self.scalar_for_window(decision))
        signal = self.signals_stop()
        if signal and not self.should_stop:
            decision = replace(decision, stop_begins=True)
        self.should_stop = signal
        return self._decided(decision)

    def leave_out(self, decision: Decision) -> Decision:
        """Count a loss that leaves no trace, and give the step that decision."""
        self.skipped += 1
        return self._decided(decision)

    def drop_loss(self) -> None:
        """Count a loss whose step was never taken."""
        self.skipped += 1

    def neutral_step(self) -> Decision:
        """The neutral decision, for a step without a loss."""
        return self._decided(self.neutral())

    def refuse_gradients(self) -> Decision:
        """The decision of the step that has just been felt, now that its gradients turn out not to be finite."""
        self._decision = replace(self._decision, skip=True)
        return self._decision

    def hear_evaluation(self, loss: float) -> None:  # noqa: B027 (a law may leave it)
        """Take in the loss of an evaluation; most laws hear the training loss only.

        Args:
            loss: lower is better; the same on all ranks.
        """

    def begin_run(self) -> None:  # noqa: B027 (a law may leave it)
        """A run begins, perhaps after another one: what counts towards its end counts anew."""

    def complaint(self) -> str | None:
        """What is wrong with the losses for this law, and what to do about it; None if all is well."""
        return None

    def _decided(self, decision: Decision) -> Decision:
        self._decision = self._ablation.apply(decision, max(self.steps - 1, 0))
        return self._decision

    def _remember(self, scalar: float) -> None:
        self.window.append(scalar)
        self.quiet = self._window_is_quiet()
        if self.quiet and self.long > self.flat_since - PROGRESS * abs(self.flat_since):
            self.flat_steps += 1
        else:
            self.flat_steps, self.flat_since = 0, self.long

    def _window_is_quiet(self) -> bool:
        if self.mean_size() >= QUIET_MEAN:
            return False
        mean = sum(self.window) / WINDOW
        return sum((scalar - mean) ** 2 for scalar in self.window) / WINDOW < QUIET_VARIANCE

    def mean_size(self) -> float:
        """Mean |σ| of the last 32 steps, infinite before there are as many."""
        return sum(map(abs, self.window)) / WINDOW if len(self.window) == WINDOW else math.inf

    def view(self) -> EmotionView:
        """A frozen snapshot for logs."""
        # Not `should_stop` alone, which is that of the last step: an evaluation may have been heard since.
        decided = self.decides_to_stop and self.signals_stop()
        return EmotionView(
            law=self.label,
            short=self.short,
            long=self.long,
            scalar=self._decision.scalar if self.has_scalar else None,
            coefficient=self._decision.coefficient,
            quiet=self.quiet,
            flat_steps=self.flat_steps,
            should_stop=self.should_stop or decided,
            observations=self.observations,
            skipped=self.skipped,
            details={number: getattr(self, number) for number in self.numbers},
            has_decided_to_stop=decided,
        )

    @property
    def saved_values(self) -> dict[str, codec.Reader]:
        """What is saved: attribute → its reader."""
        return {**SAVED, **dict.fromkeys(self.numbers, codec.finite)}

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as plain numbers, strings and lists."""
        values = {name: getattr(self, name) for name in self.saved_values if name not in ("scalar", "coefficient")}
        values |= {"scalar": self._decision.scalar, "coefficient": self._decision.coefficient}
        return {"law": self.label, **values, "window": codec.filled(list(self.window), WINDOW)}

    def read_state(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """What `state_dict` gave, checked; `put_state` takes it, and nothing is changed here.

        Raises:
            ValueError: if the state is of another law, incomplete or damaged.
        """
        if saved.get("law") != self.label:
            raise ValueError(
                f"the checkpoint's emotion follows the law {saved.get('law')!r}, this optimizer's {self.label!r}: "
                f"make the optimizer with emo_law={saved.get('law')}, or resume from the weights only"
            )
        return codec.read(saved, self.saved_values)

    def put_state(self, values: dict[str, Any]) -> None:
        """Take over what `read_state` has read."""
        rest = dict(values)
        self._decision = Decision(rest.pop("scalar"), rest.pop("coefficient"))
        self.window = deque(rest.pop("window"), maxlen=WINDOW)
        self.__dict__.update(rest)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: if the state is of another law, incomplete or damaged; nothing is changed then.
        """
        self.put_state(self.read_state(saved))
