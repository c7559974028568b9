"""The law `settle`: keeps a run from harm and says when it is over; the learning rate stays the user's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from emo_hf.laws import saved as codec
from emo_hf.laws.decision import Decision, Note
from emo_hf.laws.law import Law
from emo_hf.laws.words import COMPLAINT, DONE, LOWERED, SKIPPED
from emo_hf.reading import Option, boolean, whole_number

# spikes
USUAL = 16  # losses before any is called a spike
REACH = 3.0  # times the greatest height that is remembered
SPREADS = 6.0  # mean deviations; 4.8 standard deviations of a Gaussian
MEMORY = 1.0 - 1.0 / 512.0
IN_A_ROW = 3.0
REGAIN = 0.1  # of a skip, for each step taken
HEIGHTS = 8  # of spikes, that are remembered
LIKE = 2.0  # heights within this factor of each other are alike

# a rate that is too high
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

    guard: A step is left out whose loss is a spike, or whose loss or gradients are NaN or infinite. With the center m
        of the losses (gain 0.1), their mean deviation d (gain 0.05), and the greatest height e above the center,
        slowly forgotten, a loss L is a spike where

            L − m > max(3·e, 6·d), and none of the last 8 spikes was of a like height (half to twice)

        6·d alone would call a tenth of a heavy-tailed loss's high values spikes; 3·e asks for three times what has
        been seen. What comes a second time at a like height is data, rare and hard perhaps, and from then on it is e.
        A spike enters none of the averages. At most three in a row are called so, and one in ten in the long run: then
        the level of the loss has changed, and is learned anew.

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
    options = {
        "guard": Option(True, boolean, "leave out steps with a spike of the loss, a NaN or an infinity"),
        "lower": Option(True, boolean, "lower the rate to a third where the loss is far above its beginning"),
        "end": Option(True, boolean, "say that training may end when evaluations are no better"),
        "evaluation_patience": Option(3, whole_number(1), "evaluations in a row that are no better, for end"),
    }
    saved = {
        **dict.fromkeys(("rate", "variance", "deviation", "height", "credit"), codec.at_least_zero),
        **dict.fromkeys(("center", "beginning", "best_evaluation"), codec.finite),
        **dict.fromkeys(("seen", "positive", "negative", "evaluations", "misses"), codec.count),
        "spikes": codec.Numbers(HEIGHTS),
        "recent": codec.Numbers(2 * RECENT),
    }
    lower: bool
    end: bool
    evaluation_patience: int

    center = deviation = height = 0.0  # m, d and e
    seen = 0  # losses since the level was learned anew
    credit = IN_A_ROW  # spikes that may be left out now
    spikes: Sequence[float] = ()  # heights of the last ones
    rate = 1.0  # c
    beginning = variance = 0.0  # b and s²
    recent: Sequence[float] = ()  # losses since the rate was set
    positive = negative = 0  # losses of either sign
    best_evaluation = 0.0
    evaluations = misses = 0

    def neutral(self) -> Decision:
        return Decision(0.0, self.rate, self.rate)

    def feel(self, loss: float) -> Decision:
        if not math.isfinite(loss):
            return self._skip(f"a loss of {loss}") if self.guard else self.leave_out(self.neutral())
        loss = min(max(loss, -HUGE), HUGE)
        if self.guard and self._is_spike(loss):
            return self._skip(f"a loss of {loss:.6g} where {self.center:.6g} is usual")
        return super().feel(loss)

    def decide(self, loss: float) -> Decision:
        self._learn(loss)
        note = None
        if self.lower and self._is_above_its_beginning():
            self.rate *= LOWER
            level = sum(self.recent[-RECENT:]) / RECENT
            self.recent = ()
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
        self.decision = replace(self.decision, skip=True, note=note)
        return self.decision

    def _is_spike(self, loss: float) -> bool:
        """Take in what the losses of this run do anyway, unless this one is a spike."""
        above = loss - self.center
        limit = max(REACH * self.height, SPREADS * self.deviation) + 1e-9 * abs(self.center)
        is_known = any(above / LIKE <= height <= above * LIKE for height in self.spikes)
        if self.seen >= USUAL and above > limit and not is_known:
            self.spikes = [*self.spikes, above][-HEIGHTS:]
            if self.credit >= 1.0:
                self.credit -= 1.0
                return True
            self.seen = 0
        if self.seen == 0:
            self.center, self.deviation, self.height, above = loss, 0.0, 0.0, 0.0
        self.seen += 1
        self.height = max(above, MEMORY * self.height)
        self.deviation += max(0.05, 1.0 / self.seen) * (abs(above) - self.deviation)
        self.center += max(0.1, 1.0 / self.seen) * above
        self.credit = min(IN_A_ROW, self.credit + REGAIN)
        return False

    def _learn(self, loss: float) -> None:
        seen = self.positive + self.negative
        if self.recent:
            gain = max(1.0 / seen, NOISE_GAIN)
            self.variance += gain * ((loss - self.recent[-1]) ** 2 / 2.0 - self.variance)
        self.recent = [*self.recent, loss][-2 * RECENT :]
        self.positive += loss > 0.0
        self.negative += loss <= 0.0
        if seen + 1 == FIRST:
            self.beginning = min(sum(self.recent) / FIRST, self.recent[0])

    def _is_above_its_beginning(self) -> bool:
        """Whether it is so beyond doubt, and not on its way down after the rate was lowered."""
        losses = self.recent
        needed = RECENT if self.rate == 1.0 else 2 * RECENT
        is_comparable = min(self.positive, self.negative) == 0 and self.rate * LOWER >= LOWEST
        if not is_comparable or len(losses) < needed or self.positive + self.negative < FIRST + RECENT:
            return False
        level = sum(losses[-RECENT:]) / RECENT
        doubt = DOUBT * math.sqrt(self.variance * (1.0 / FIRST + 1.0 / RECENT)) + 1e-9 * abs(self.beginning)
        is_above = level > self.beginning + doubt
        return is_above and (self.rate == 1.0 or level >= sum(losses[:RECENT]) / RECENT)

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
        note = Note(self.steps + 1 if step is None else step, kind, self.rate, reason)
        self.decisions = [*self.decisions, note][-NOTES:]
        return note
