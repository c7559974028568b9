"""The emotion: one loss per step in, one decision per step out.

Plain double arithmetic without tensors. `Emotion` is the v3.1 law; another law is another class with the same methods
and the same `Decision` (`laws.py`), and no update rule has to know.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHORT_GAIN = 0.3
LONG_GAIN = 0.01
DENOMINATOR_FLOOR = 1e-5

ALARM = 0.625  # |σ| above: sudden change, damp hard whichever the direction
CALM = 0.125  # |σ| up to here: quiet, hands off

WINDOW = 32  # scalars that the self-stop looks back on
QUIET_MEAN = 0.05
QUIET_VARIANCE = 0.005

SATURATED_MEAN = 0.75  # |σ| that losses above zero do not keep up for 32 steps while they improve

PROGRESS = 0.005  # a slow average that still falls by this share is slow training, not flat training


@dataclass(frozen=True, slots=True)
class ShadowMix:
    """How a parameter and its shadow meet: p ← keep·p + pull·shadow, then shadow ← shadow + follow·(p − shadow)."""

    keep: float
    pull: float
    follow: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What an update rule is told for one step.

    Attributes:
        scalar: σ in (−1, 1), above 0 while the loss improves.
        coefficient: factor c on the step (not on the weight decay), in [0, 1.625] for v3.1.
        decay_factor: factor on the weight decay, 1 in v3.1.
        shadow: what to do with the shadow, for groups that use one.
    """

    scalar: float
    coefficient: float
    decay_factor: float
    shadow: ShadowMix


@dataclass(frozen=True, slots=True)
class EmotionView:
    """A read-only snapshot of an emotion, for logs.

    Attributes:
        short: fast average of the loss (gain 0.3), 0.0 before the first loss.
        long: slow average of the loss (gain 0.01), 0.0 before the first loss.
        scalar: σ of the last observed step.
        coefficient: c of the last observed step.
        quiet: whether the last 32 scalars are quiet now (mean |σ| < 0.05 and variance < 0.005).
        flat_steps: for how many observed steps on end it has been quiet without the slow average falling by 0.5 %.
            Not a part of v3.1, whose quiet also covers a slow start, with a loss that falls gently for long.
        should_stop: the raw self-stop signal: `quiet` was true once; v3.1 never takes it back.
        observations: losses taken in so far.
        skipped: losses left out so far: NaN or infinite, or of a step that was thrown away.
    """

    short: float
    long: float
    scalar: float
    coefficient: float
    quiet: bool
    flat_steps: int
    should_stop: bool
    observations: int
    skipped: int


def coefficient(scalar: float) -> float:
    """The dynamic learning-rate factor c(σ) of v3.1."""
    if abs(scalar) > ALARM:
        return 1.0 - abs(scalar)
    if abs(scalar) > CALM:
        return 1.0 + scalar
    return 1.0


def shadow_mix(scalar: float, c: float) -> ShadowMix:
    """What v3.1 does with the shadow: ρ = 0.75, −0.1 or 0 by |σ|."""
    if abs(scalar) > 0.75:  # ρ = 0.75: back towards the shadow, whose weight is c
        return ShadowMix(keep=0.25, pull=c, follow=0.0)
    if abs(scalar) > 0.25:  # ρ = −0.1: the shadow catches up
        return ShadowMix(keep=1.0, pull=0.0, follow=0.1)
    return ShadowMix(keep=1.0, pull=0.0, follow=0.1 * c)


def decide(scalar: float) -> Decision:
    """The whole v3.1 decision that follows from σ."""
    c = coefficient(scalar)
    return Decision(scalar=scalar, coefficient=c, decay_factor=1.0, shadow=shadow_mix(scalar, c))


NEUTRAL = decide(0.0)
"""The decision of a step that was shown no usable loss: c = 1."""


def _read_window(saved: list[float | None]) -> deque[float]:
    if len(saved) != WINDOW:
        raise ValueError(f"its window has {len(saved)} places, not {WINDOW}")
    return deque((float(scalar) for scalar in saved if scalar is not None), maxlen=WINDOW)


class Emotion:
    """The v3.1 emotion of one optimizer.

    Feed it with `feel(loss)` once per step. Everything it knows is in `state_dict()`: plain numbers, lists and
    strings, so that it travels in any checkpoint.
    """

    law = "v3.1"

    def __init__(self) -> None:
        self._short = 0.0
        self._long = 0.0
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._decision = NEUTRAL
        self._quiet = False
        self._should_stop = False
        self._flat_steps = 0
        self._flat_since = 0.0  # the slow average when the count of flat steps began
        self._observations = 0
        self._skipped = 0

    def feel(self, loss: float) -> Decision:
        """Take in the loss of one step.

        Args:
            loss: the loss of the step. NaN and infinities are counted in `skipped` and otherwise leave no trace.

        Returns:
            The decision for this step; the neutral one if the loss was skipped.
        """
        if not math.isfinite(loss):
            self._skipped += 1
            return NEUTRAL
        self._average(loss)
        self._observations += 1
        self._decision = decide(math.tanh(self._slope()))
        self._remember(self._decision.scalar)
        return self._decision

    def _average(self, loss: float) -> None:
        if self._observations == 0:
            self._short = self._long = loss
        else:
            self._short = SHORT_GAIN * loss + (1.0 - SHORT_GAIN) * self._short
            self._long = LONG_GAIN * loss + (1.0 - LONG_GAIN) * self._long

    def _slope(self) -> float:
        """How far the fast average lies below the slow one, on the scale of the loss."""
        return (self._long - self._short) / max(self._long, DENOMINATOR_FLOOR)

    def skip(self) -> None:
        """Count a loss that was observed for a step which was then thrown away."""
        self._skipped += 1

    def _remember(self, scalar: float) -> None:
        self._window.append(scalar)
        self._quiet = self._window_is_quiet()
        self._should_stop = self._should_stop or self._quiet
        if self._quiet and self._long > self._flat_since - PROGRESS * abs(self._flat_since):
            self._flat_steps += 1
        else:
            self._flat_steps, self._flat_since = 0, self._long

    def _window_is_quiet(self) -> bool:
        if len(self._window) < WINDOW:
            return False
        if sum(map(abs, self._window)) / WINDOW >= QUIET_MEAN:
            return False
        mean = sum(self._window) / WINDOW
        return sum((scalar - mean) ** 2 for scalar in self._window) / WINDOW < QUIET_VARIANCE

    @property
    def saturated(self) -> bool:
        """Whether the law has lost its scale: losses around or below zero, and steps damped to almost nothing.

        Losses above zero never look so, however fast they change: neither average of theirs falls below the floor.
        """
        return (
            min(self._short, self._long) < DENOMINATOR_FLOOR
            and len(self._window) == WINDOW
            and sum(map(abs, self._window)) / WINDOW > SATURATED_MEAN
        )

    def view(self) -> EmotionView:
        """A frozen snapshot for logs."""
        return EmotionView(
            short=self._short,
            long=self._long,
            scalar=self._decision.scalar,
            coefficient=self._decision.coefficient,
            quiet=self._quiet,
            flat_steps=self._flat_steps,
            should_stop=self._should_stop,
            observations=self._observations,
            skipped=self._skipped,
        )

    def state_dict(self) -> dict[str, Any]:
        """All of the state, as plain numbers, one list of numbers and the name of the law."""
        return {
            "law": self.law,
            "short": self._short,
            "long": self._long,
            "scalar": self._decision.scalar,
            # Always of one length: torch compares the structure of a state with that of a fresh one to broadcast it.
            "window": [*self._window, *[None] * (WINDOW - len(self._window))],
            "quiet": self._quiet,
            "should_stop": self._should_stop,
            "flat_steps": self._flat_steps,
            "flat_since": self._flat_since,
            "observations": self._observations,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: if the state is of another law or incomplete.
        """
        if state.get("law") != self.law:
            raise ValueError(
                f"the checkpoint's emotion follows the law {state.get('law')!r}, this optimizer's {self.law!r}: "
                f"make the optimizer with emo_law={state.get('law')}, or resume from the weights only"
            )
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"the checkpoint's emotion lacks {', '.join(missing)}: it is damaged or was cut short")
        try:
            read = {
                "_short": float(state["short"]),
                "_long": float(state["long"]),
                "_decision": decide(float(state["scalar"])),
                "_window": _read_window(state["window"]),
                "_quiet": bool(state["quiet"]),
                "_should_stop": bool(state["should_stop"]),
                "_flat_steps": int(state["flat_steps"]),
                "_flat_since": float(state["flat_since"]),
                "_observations": int(state["observations"]),
                "_skipped": int(state["skipped"]),
            }
        except (TypeError, ValueError) as error:
            raise ValueError(f"the checkpoint's emotion is damaged: {error}") from error
        self.__dict__.update(read)
