"""What a law is: one loss per step in, one decision per step out, in plain double arithmetic without tensors.

A law is a subclass of `Law` in a file of its own, and a line in `__init__.py`. It gives `decide`, and says which
numbers it keeps; averaging, the window of scalars, counting, snapshots and saving are done here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from emo_hf.laws import saved as codec
from emo_hf.laws.decision import Decision, EmotionView, Note
from emo_hf.reading import Option, read_value

SHORT_GAIN = 0.3
LONG_GAIN = 0.01

WINDOW = 32  # scalars that the stop signal looks back on
QUIET_MEAN = 0.05
QUIET_VARIANCE = 0.005
PROGRESS = 0.005  # a slow average that still falls by this share is slow training, not flat training

NONE = "none"
"""What `emo_law` calls a law that changes nothing: it takes in losses, logs and signals, and its factors are 1."""

SAVED: Mapping[str, codec.Reader] = {
    **dict.fromkeys(("short", "long", "flat_since"), codec.finite),
    **dict.fromkeys(("flat_steps", "observations", "skipped"), codec.count),
    **dict.fromkeys(("quiet", "should_stop"), codec.flag),
    "window": codec.Numbers(WINDOW),
}
"""What every law saves, beside the scalar and the coefficient of the last decision."""

OF_DECISION: Mapping[str, codec.Reader] = {"scalar": codec.finite, "coefficient": codec.at_least_zero}


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

    Args:
        options: values for `options`.

    Raises:
        TypeError: for an option that the law does not have.
        ValueError: for a value that is not acceptable.
    """

    # what a law says of itself
    name: ClassVar[str]  # for `emo_law`
    numbers: ClassVar[Mapping[str, float]] = {}  # name → first value of what it keeps beside the averages, and logs
    saved: ClassVar[Mapping[str, codec.Reader]] = {}  # name → reader of further attributes that are saved
    options: ClassVar[Mapping[str, Option]] = {}  # of its constructor
    zones: ClassVar[tuple[Zone, ...]] = ()
    has_scalar: ClassVar[bool] = True  # whether it makes a σ
    averages_weights: ClassVar[bool] = False  # unless the user says otherwise
    decides_to_stop: ClassVar[bool] = False  # whether its stop signal is to be acted upon at once

    short = long = 0.0  # the fast and the slow average of the loss
    observations = skipped = 0  # losses taken in, and left out
    should_stop = quiet = False
    guard = False  # whether a step is to be left out whose gradients are not finite
    acts = True  # whether its factors are applied; else it is called `none`, and a step without a loss is as good
    flat_steps, flat_since = 0, 0.0  # and the slow average when their count began
    decision: Decision  # of the last step; before the first one, the neutral decision
    decisions: Sequence[Note] = ()  # the last that were noted; a checkpoint has none of them

    def __init__(self, **options: Any) -> None:
        unknown = sorted(options.keys() - self.options.keys())
        if unknown:
            known = ", ".join(self.options) or "none"
            raise TypeError(f"the law {self.name} has no option {', '.join(unknown)}; its options: {known}")
        for key, option in self.options.items():
            setattr(self, key, read_value(key, options.get(key, option.default), option.read))
        for number, first in self.numbers.items():
            setattr(self, number, first)
        self.window: list[float] = []  # scalars of the last steps
        self.neutral_step()

    @property
    def label(self) -> str:
        """What `emo_law` was."""
        return self.name if self.acts else NONE

    @property
    def steps(self) -> int:
        """Steps that had a loss so far, those left out among them."""
        return self.observations + self.skipped

    @abstractmethod
    def decide(self, loss: float) -> Decision:
        """The decision of this step; `short` and `long` have taken in its loss, which is finite."""

    def neutral(self) -> Decision:
        """The decision of a step without a usable loss."""
        return Decision()

    def average(self, old: float, loss: float, gain: float) -> float:
        """An average after one more loss."""
        return gain * loss + (1.0 - gain) * old if self.observations else loss

    def take_in(self, loss: float) -> None:
        """Bring the averages up to date."""
        self.short = self.average(self.short, loss, SHORT_GAIN)
        self.long = self.average(self.long, loss, LONG_GAIN)

    def scalar_for_window(self, decision: Decision) -> float:
        """What the window for the stop signal remembers of a step."""
        return decision.scalar

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
        self.decision = replace(self.decision, skip=True)
        return self.decision

    def hear_evaluation(self, loss: float) -> None:  # noqa: B027 (a law may leave it)
        """Take in the loss of an evaluation, the same on all ranks; most laws hear the training loss only."""

    def begin_run(self) -> None:  # noqa: B027 (a law may leave it)
        """A run begins, perhaps after another one: what counts towards its end counts anew."""

    def complaint(self) -> str | None:
        """What is wrong with the losses for this law, and what to do about it; None if all is well."""
        return None

    def _decided(self, decision: Decision) -> Decision:
        if not self.acts:
            decision = replace(decision, coefficient=1.0, decay_factor=1.0, floor=0.0, skip=False)
        self.decision = decision
        return decision

    def _remember(self, scalar: float) -> None:
        self.window = [*self.window, scalar][-WINDOW:]
        mean = sum(self.window) / WINDOW
        variance = sum((scalar - mean) ** 2 for scalar in self.window) / WINDOW
        self.quiet = self.mean_size() < QUIET_MEAN and variance < QUIET_VARIANCE
        if self.quiet and self.long > self.flat_since - PROGRESS * abs(self.flat_since):
            self.flat_steps += 1
        else:
            self.flat_steps, self.flat_since = 0, self.long

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
            scalar=self.decision.scalar if self.has_scalar else None,
            coefficient=self.decision.coefficient,
            quiet=self.quiet,
            flat_steps=self.flat_steps,
            should_stop=self.should_stop or decided,
            observations=self.observations,
            skipped=self.skipped,
            details={number: getattr(self, number) for number in self.numbers},
            has_decided_to_stop=decided,
        )

    @property
    def _saved_values(self) -> dict[str, codec.Reader]:
        return {**SAVED, **dict.fromkeys(self.numbers, codec.finite), **self.saved}

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as plain numbers, strings and lists."""
        of_decision = codec.saved(self.decision, OF_DECISION)
        return {"law": self.label, **of_decision, **codec.saved(self, self._saved_values)}

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
        return codec.read(saved, {**OF_DECISION, **self._saved_values})

    def put_state(self, values: Mapping[str, Any]) -> None:
        """Take over what `read_state` has read."""
        self.__dict__.update({name: values[name] for name in self._saved_values}, decisions=())
        self._decided(replace(self.neutral(), **{name: values[name] for name in OF_DECISION}))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; what `read_state` refuses changes nothing."""
        self.put_state(self.read_state(saved))
