"""The law `settle`: keeps a run from harm and says when it is over; the learning rate stays the user's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from emo_hf.laws import saved as codec
from emo_hf.laws.decision import Decision, Note
from emo_hf.laws.guard import Guard
from emo_hf.laws.law import Law
from emo_hf.laws.words import COMPLAINT, DONE, LOWERED, SKIPPED
from emo_hf.reading import Option, boolean, whole_number

FIRST = 4  # losses that are the beginning of a run
RECENT = 16  # losses whose mean is compared with it
DOUBT = 5.0  # standard errors
NOISE_GAIN = 0.02
LOWER, LOWEST = 1.0 / 3.0, 1e-3
SCATTER = 128  # losses of both signs, before it is said that they say nothing
HUGE = 1e100  # squares of it are finite
NOTES = 8  # that are kept


class Settle(Law):
    """Leaves out harmful steps, lowers a rate that is far too high, and says when evaluations improve no more.

    guard: A step is left out whose loss is a spike (see `Guard`), or whose loss or gradients are NaN or infinite.

    lower: c ← c/3 where the loss is above its beginning beyond doubt. With the level b of the first 4 losses (their
        mean, or the first one if that is lower), the mean r of the last 16, and the noise s of one loss, from the
        differences between neighbours:

            r > b + 5·s·√(1/4 + 1/16)

        A rate that was lowered is lowered again after 32 steps at the earliest, if the loss is still up there and no
        longer falls. Losses of both signs have no beginning that could be compared: they are left alone.

    end: Training may end when `evaluation_patience` evaluations in a row were no better than the best one, as in
        transformers' `early_stopping_patience`. A better one takes that back. Without evaluations it never ends.

    The coefficient c is 1 unless it was lowered; weight decay is scaled alike. An average of the weights goes with
    this law by default (`average_weights`), and begins anew where the rate is lowered.
    """

    name = "settle"
    has_scalar = False
    averages_weights = True
    decides_to_stop = True
    options: ClassVar[Mapping[str, Option]] = {
        "guard": Option(True, boolean, "leave out the step of a spike, or with gradients that are not finite"),
        "lower": Option(True, boolean, "lower the rate to a third where the loss is far above its beginning"),
        "end": Option(True, boolean, "say that training may end when evaluations are no better"),
        "evaluation_patience": Option(3, whole_number(1), "evaluations in a row that are no better, before it does"),
    }
    instead: ClassVar[Mapping[str, str]] = {
        "start": "It raises no rate: begin at one that is known for your kind of job",
        "ease": "It lowers no rate towards the end: average_weights takes the place of that",
        "horizon": "It lowers no rate towards the end: average_weights takes the place of that, or a schedule",
        "stop": "end=false keeps it from saying that training may end",
        "evaluations": "end=false keeps it from hearing evaluations",
    }
    guard: bool
    lower: bool
    end: bool
    evaluation_patience: int

    def __init__(self, **options: Any) -> None:
        self.rate = 1.0  # c
        self.beginning = 0.0  # b
        self.variance = 0.0  # s²
        self.recent: deque[float] = deque(maxlen=2 * RECENT)  # since the rate was set
        self.positive = self.negative = 0
        self.best_evaluation = 0.0
        self.evaluations = self.misses = 0
        self.watch = Guard()
        self.log: deque[Note] = deque(maxlen=NOTES)
        super().__init__(**options)

    @property
    def decisions(self) -> list[Note]:
        """The last decisions."""
        return list(self.log)

    @property
    def guards_gradients(self) -> bool:
        return self.guard

    def neutral(self) -> Decision:
        return Decision(0.0, self.rate, self.rate)

    def feel(self, loss: float) -> Decision:
        if not math.isfinite(loss):
            if not self.guard:
                return self.leave_out(self.neutral())
            return self._skip(f"a loss of {loss}")
        loss = min(max(loss, -HUGE), HUGE)
        if self.guard and self.watch.is_spike(loss):
            return self._skip(f"a loss of {loss:.6g} where {self.watch.center:.6g} is usual")
        return super().feel(loss)

    def decide(self, loss: float) -> Decision:
        self._learn(loss)
        note = None
        if self.lower and self._is_above_its_beginning():
            self.rate *= LOWER
            level = sum(list(self.recent)[-RECENT:]) / RECENT
            self.recent.clear()
            note = self._note(LOWERED, f"the loss is at {level:.6g}, far above the {self.beginning:.6g} of its start")
        elif self.positive + self.negative == SCATTER and min(self.positive, self.negative) > SCATTER // 8:
            why = "the loss scatters around zero, as those of policy gradients do, and says nothing of progress"
            note = self._note(COMPLAINT, why)
        return replace(self.neutral(), note=note)

    def _skip(self, reason: str) -> Decision:
        note = self._note(SKIPPED, reason)
        return self.leave_out(replace(self.neutral(), skip=True, note=note))

    def refuse_gradients(self) -> Decision:
        note = self._note(SKIPPED, "gradients that are not finite", step=self.steps)
        self._decision = replace(self._decision, skip=True, note=note)
        return self._decision

    def _learn(self, loss: float) -> None:
        seen = self.positive + self.negative
        if self.recent:
            gain = max(1.0 / seen, NOISE_GAIN)
            self.variance += gain * ((loss - self.recent[-1]) ** 2 / 2.0 - self.variance)
        self.recent.append(loss)
        self.positive += loss > 0.0
        self.negative += loss <= 0.0
        if seen + 1 == FIRST:
            self.beginning = min(sum(self.recent) / FIRST, self.recent[0])

    def _is_above_its_beginning(self) -> bool:
        """Whether it is so beyond doubt, and not on its way down after the rate was lowered."""
        losses = list(self.recent)
        needed = RECENT if self.rate == 1.0 else 2 * RECENT
        is_comparable = min(self.positive, self.negative) == 0 and self.rate * LOWER >= LOWEST
        if not is_comparable or len(losses) < needed or self.positive + self.negative < FIRST + RECENT:
            return False
        level = sum(losses[-RECENT:]) / RECENT
        doubt = DOUBT * math.sqrt(self.variance * (1.0 / FIRST + 1.0 / RECENT)) + 1e-9 * abs(self.beginning)
        if level <= self.beginning + doubt:
            return False
        return self.rate == 1.0 or level >= sum(losses[:RECENT]) / RECENT

    def hear_evaluation(self, loss: float) -> None:
        if not (self.end and math.isfinite(loss)):
            return
        self.evaluations += 1
        if self.evaluations == 1 or loss < self.best_evaluation:
            self.best_evaluation, self.misses = loss, 0
            return
        self.misses += 1
        if self.misses == self.evaluation_patience:
            why = f"{self.misses} evaluations in a row were no better than {self.best_evaluation:.6g}"
            self._note(DONE, why, step=self.steps)

    def begin_run(self) -> None:
        self.evaluations = self.misses = 0

    def signals_stop(self) -> bool:
        return self.end and self.misses >= self.evaluation_patience

    def _note(self, kind: str, reason: str, step: int | None = None) -> Note:
        self.log.append(Note(self.steps + 1 if step is None else step, kind, self.rate, reason))
        return self.log[-1]

    @property
    def saved_values(self) -> dict[str, codec.Reader]:
        return {
            **super().saved_values,
            "rate": codec.at_least_zero,
            "beginning": codec.finite,
            "variance": codec.at_least_zero,
            "recent": codec.numbers(2 * RECENT),
            "positive": codec.count,
            "negative": codec.count,
            "best_evaluation": codec.finite,
            "evaluations": codec.count,
            "misses": codec.count,
            "watch": codec.nested(Guard.saved_values),
            "log": codec.notes(NOTES),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "recent": codec.filled(list(self.recent), 2 * RECENT),
            "watch": self.watch.state_dict(),
            "log": codec.saved_notes(list(self.log), NOTES),
        }

    def put_state(self, values: dict[str, Any]) -> None:
        rest = dict(values)
        self.watch.__dict__.update(rest.pop("watch"))
        self.recent = deque(rest.pop("recent"), maxlen=2 * RECENT)
        self.log = deque(rest.pop("log"), maxlen=NOTES)
        super().put_state(rest)
        self._decision = replace(self._decision, decay_factor=self._decision.coefficient)
