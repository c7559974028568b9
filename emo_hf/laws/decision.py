"""What a law decides for a step, what it notes of that, and what it shows to logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emo_hf.laws.words import emotion_html, emotion_text


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a law has decided, as data; `words.text_of` puts it into words."""

    step: int  # that it belongs to, counted by the law from 1
    kind: str  # `skipped`, `lowered`, `done` or `complaint`
    factor: float  # on the learning rate from then on
    reason: str  # for people to read


@dataclass(frozen=True, slots=True)
class ShadowMix:
    """How a parameter and its shadow meet: p ← keep·p + pull·shadow, then shadow ← shadow + follow·(p − shadow)."""

    keep: float
    pull: float
    follow: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What one step is told. The defaults are the neutral step: the learning rate as the user gave it."""

    scalar: float = 0.0  # σ in (−1, 1), the change of the loss as the law sees it; 0 without a usable loss
    coefficient: float = 1.0  # factor on the learning rate of the step
    decay_factor: float = 1.0  # factor on the learning rate of the weight decay
    floor: float = 0.0  # the lowest rate that either may come to, where the learning rate is above 0
    shadow: ShadowMix | None = None  # for groups that use one; None leaves it alone, or unmade
    stop_begins: bool = False  # whether the stop signal is given now and was not before
    skip: bool = False  # whether the step is left out whole: nothing moves, no gradient enters an average
    note: Note | None = None  # what has been decided in this step, if anything has

    def step_size(self, lr: float) -> float:
        """The learning rate that a step is taken with: max(lr·coefficient, floor), and 0 where lr is 0."""
        return max(lr * self.coefficient, self.floor) if lr else 0.0

    def decay_size(self, lr: float) -> float:
        """The learning rate that weights decay with: max(lr·decay_factor, floor), and 0 where lr is 0."""
        return max(lr * self.decay_factor, self.floor) if lr else 0.0


@dataclass(frozen=True, slots=True)
class EmotionView:
    """A read-only snapshot of an emotion, for logs.

    Attributes:
        law: the law that it follows.
        short: fast average of the loss (gain 0.3), 0.0 before the first loss.
        long: slow average of the loss (gain 0.01), 0.0 before the first loss.
        scalar: σ of the last step; 0 if that had no usable loss, None if the law has none.
        coefficient: factor on the learning rate of the last step.
        quiet: whether the last 32 scalars are quiet now (mean |σ| < 0.05 and variance < 0.005).
        flat_steps: for how many observed steps on end it has been quiet without the slow average falling by 0.5 %.
            Of no published law, whose quiet also covers a slow start, with a loss that falls gently for long.
        should_stop: the law's own stop signal.
        has_decided_to_stop: whether that signal stands and is a decision, to be acted upon at once.
        observations: losses taken in so far.
        skipped: losses left out so far: NaN or infinite, spikes, or of a step that was thrown away.
        details: further numbers that this law keeps, by name.
    """

    law: str
    short: float
    long: float
    scalar: float | None
    coefficient: float
    quiet: bool
    flat_steps: int
    should_stop: bool
    observations: int
    skipped: int
    details: Mapping[str, float] = field(default_factory=dict)
    has_decided_to_stop: bool = False

    __repr__, _repr_html_ = emotion_text, emotion_html
