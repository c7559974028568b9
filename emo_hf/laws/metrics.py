"""What an emotion has to say to a logger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from emo_hf.laws.decision import EmotionView

PREFIX = "emo/"

NOTES = "emo_hf"
"""Under which name a run's state says, for pictures of it, which law it has followed."""

AVERAGES = {"medium": "loss_medium"}
"""Numbers of laws that have another name in the logs, beside `loss_short` and `loss_long`."""


class CoefficientWindow:
    """Count, sum and range of the coefficient over the steps since the last log line."""

    count, total, low, high = 0, 0.0, 0.0, 0.0

    def clear(self) -> None:
        self.load([0, 0.0, 0.0, 0.0])

    def load(self, state: Sequence[float]) -> None:
        self.count, self.total, self.low, self.high = int(state[0]), *state[1:]

    def state(self) -> list[float]:
        return [self.count, self.total, self.low, self.high]

    def add(self, c: float) -> None:
        low, high = (min(self.low, c), max(self.high, c)) if self.count else (c, c)
        self.load([self.count + 1, self.total + c, low, high])


def metrics(
    emotion: EmotionView, effective_lr: Mapping[str, float], named: Iterable[str], window: CoefficientWindow
) -> dict[str, float]:
    """The metrics of one log line.

    Args:
        emotion: the emotion as it is now.
        effective_lr: the learning rate of the last step per group, the first of which stands for the whole, as the
            Trainer's `learning_rate` does.
        named: the groups that the user named, which get a line of their own.
        window: the coefficients since the last log line.
    """
    c = emotion.coefficient
    mean, low, high = (window.total / window.count, window.low, window.high) if window.count else (c, c, c)
    values = {
        **({"effective_lr": next(iter(effective_lr.values()))} if effective_lr else {}),
        **{f"effective_lr/{name}": effective_lr[name] for name in named},
        "coefficient": c,
        "coefficient_mean": mean,
        "coefficient_min": low,
        "coefficient_max": high,
        **({} if emotion.scalar is None else {"scalar": emotion.scalar, "quiet": int(emotion.quiet)}),
        "loss_short": emotion.short,
        "loss_long": emotion.long,
        **{AVERAGES.get(name, name): value for name, value in emotion.details.items()},
        "should_stop": int(emotion.should_stop),
        "observations": emotion.observations,
        "skipped": emotion.skipped,
    }
    return {PREFIX + name: value for name, value in values.items()}
