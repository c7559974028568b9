"""A law that takes the place of a tuned learning rate, a schedule and a number of steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from emo_hf.laws.decision import Decision, EmotionView
from emo_hf.laws.law import Law, Zone
from emo_hf.laws.settle_average import share_of_weights
from emo_hf.laws.settle_exponent import ANNEAL, FLAT, MIDDLE, Exponent
from emo_hf.laws.settle_guard import Guard
from emo_hf.laws.settle_history import HUGE, History, Trend
from emo_hf.laws.settle_start import FIRST_LOOK, LOWER, LOWEST, SURE, Start
from emo_hf.laws.settle_state import read_state, saved_state
from emo_hf.reading import Option, boolean

FEWEST, SHORTEST = 8, 0.16  # blocks, and log-time: 15 % of the age
LONG_SHARE = 0.5
WINDOWS = ((0.3, 0.07), (LONG_SHARE, 0.14))  # shares of the age, and what exponent they must be able to rule out
AT_PEAK = 0.9
JUMP = 4.0  # standard deviations, of two blocks in a row

EASED = 0.03  # of the peak: as good as no steps
FLAT_AGE = 1.35  # grown so much all flat: done
MISS = 0.4
MISSES = 3
COOLDOWN = 0.4  # of a known horizon

DECISIONS = 32  # that are kept


class Settle(Law):
    """Finds a rate that moves the loss, anneals when it stops falling, says when it is done, leaves out spikes.

    All is judged by the losses alone, in units that they bring along: the noise s of one loss, the level |L|, what has
    been gained since the beginning D, and the age t of the run in log-time. With a line through the last half of the
    run, of log-length λ, that falls by F ± e, the exponent of the loss is

        p = F / (λ·S)        S = max( min(|L|, D), D/10, s )        ε = e / (λ·S)        L ~ t⁻ᵖ where L is far above 0

        ease:   c ← c·(t′/t)^q  at each block, from age t′ to t
                flat,   p ≤ max(ε, 0.02) and max(p, 0) + 2ε ≤ 0.14     q = 6
                clear,  p − 2ε > 0.2                           q = 0
                steady, p − 2ε > 0.02                          q = 0.35
                steep,  p − ε > 0.8 and D ≥ |L|                q = 0.45 (what falls so late so fast is learnt by heart)
                        else (nobody can tell)                 q = 0.45
                two blocks 4 scatters, and D/20, above the line: other data; c ← its peak, and everything begins anew
        start:  nothing moves (D and the fall of the line within 1.5 errors): c ← 3c after 128 steps, 256 more, 512 …
                moves (either beyond 3 errors, from step 64 on): the start is over, and nothing is raised any more
                risen above the beginning by 4 errors: c ← c/3, again where nothing moves then; no raise after that
        stop:   flat at c ≤ 0.03·peak, or flat while the age has grown by 35 %; not while evaluations improve
        guard:  `Guard` calls the loss a spike, or it or a gradient is not finite: the step is skipped

    An evaluation that is no better than the best makes c ← 0.4·c, the third in a row means done. With a known horizon
    N the coefficient is c·min(1, (N − t)/(0.4·N)). It lies in [0, 1000]; the weight decay is scaled alike.

        average_weights: see `settle_average.py`; in place of annealing towards a horizon; begins anew where c is
                lowered or comes back

    Attributes:
        decisions: the last 32 of (step, what was decided, in words).
    """

    name = "settle"
    decides_to_stop = True
    numbers: ClassVar[Mapping[str, float]] = {"peak": 1.0, "exponent": 0.0, "noise": 0.0}
    options: ClassVar[Mapping[str, Option]] = {
        "start": Option(True, boolean, "find a rate that moves the loss"),
        "ease": Option(True, boolean, "anneal when the loss has stopped falling"),
        "stop": Option(True, boolean, "say when easing buys nothing any more"),
        "guard": Option(True, boolean, "leave out the step of a spike, or with gradients that are not finite"),
        "evaluations": Option(True, boolean, "ease where an evaluation is no better, stop at the third"),
        "horizon": Option(True, boolean, "anneal by the end of the run, where its length is known"),
        "average_weights": Option(False, boolean, "evaluate and save an average of the weights, in place of that"),
    }
    zones = (
        Zone(FLAT, 1.0, "falling: go on", "boost"),
        Zone(-FLAT, FLAT, "flat: anneal", "quiet"),
        Zone(-1.0, -FLAT, "rising: anneal", "slow"),
    )
    peak: float
    exponent: float
    noise: float
    start: bool
    ease: bool
    stop: bool
    guard: bool
    evaluations: bool
    horizon: bool
    average_weights: bool

    def __init__(self, **options: Any) -> None:
        self.rate = 1.0  # c, but for a known horizon
        self.spikes = 0
        self.length = 0  # of the run; 0: nobody knows
        self.history = History()
        self.watch = Guard()
        self.beginning = Start()
        self.starting = True
        self.flat = self.done = self.exhausted = False
        self.gained = 0.0
        self.origin = self.mark = 0  # losses heard when the age and the window began
        self.averaged_from = 0  # losses heard when the average of the weights began
        self.drifted = self.flat_from = 0.0  # ages
        self.best_evaluation = 0.0
        self.evaluated = self.misses = self.best_at = 0
        self._log: deque[tuple[int, str]] = deque(maxlen=DECISIONS)
        super().__init__(**options)
        self.starting = self.start

    @property
    def decisions(self) -> list[tuple[int, str]]:
        """The last decisions: (step, what was decided and why)."""
        return list(self._log)

    @property
    def kept_decisions(self) -> int:
        """How many decisions are kept."""
        return DECISIONS

    def take_over_decisions(self, log: list[tuple[int, str]]) -> None:
        """Have those that were saved."""
        self._log = deque(log, maxlen=DECISIONS)

    def know_horizon(self, steps: int | None) -> None:
        self.length = steps or 0

    def neutral(self) -> Decision:
        c = self.rate
        if self.length and self.horizon and self.ease and not self.average_weights:
            left = max(self.length - self.steps, 0)
            c *= min(1.0, left / (COOLDOWN * self.length))
        share = share_of_weights(max(self._now - self.averaged_from, 1)) if self.average_weights else None
        return Decision(0.0, c, c, average=share)

    def feel(self, loss: float) -> Decision:
        if not math.isfinite(loss):
            self.skip()
            return self._decided(replace(self.neutral(), skip=self.guard))
        loss = min(max(loss, -HUGE), HUGE)
        if self.guard and self.watch.is_spike(loss):
            self._say(f"skipped: a loss of {loss:.4g} where {self.watch.center:.4g} is usual")
            self.spikes += 1
            return self._decided(replace(self.neutral(), skip=True))
        return super().feel(loss)

    @property
    def guards_gradients(self) -> bool:
        return self.guard

    def refuse_gradients(self) -> Decision:
        self._say("skipped: gradients that are not finite", after=True)  # the loss counts as heard by now
        return super().refuse_gradients()

    def decide(self, loss: float) -> Decision:
        if self.history.add(loss) and self.beginning.know(self.history):
            self.noise = self.history.noise
            if self.starting:
                self._find_rate()
            else:
                self._settle()
        return replace(self.neutral(), scalar=math.tanh(self.exponent))

    def signals_stop(self) -> bool:
        return self.done

    def _remember(self, scalar: float) -> None:
        # What callbacks that know of other laws look at.
        self._quiet = self.flat
        self._flat_steps = self._flat_steps + 1 if self.done else 0

    @property
    def steps(self) -> int:
        """Steps so far, those left out among them."""
        return self.observations + self.skipped + self.spikes

    @property
    def _now(self) -> int:
        return self.observations + 1

    @property
    def _age(self) -> int:
        return self._now - self.origin

    def _say(self, text: str, *, after: bool = False) -> None:
        """Note what is decided in the step that is being felt, or after the last one."""
        self._log.append((self.steps + (not after), text))

    def _find_rate(self) -> None:
        factor, why, over = self.beginning.look(self.history, self._now, self.rate)
        if factor != 1.0:
            self._set_peak(factor, why)
        if over:
            self.exhausted = not self.beginning.moves
            self._end_start(why)

    def _set_peak(self, factor: float, why: str) -> None:
        self.rate = self.peak = self.rate * factor
        if factor < 1.0:
            self.averaged_from = self._now
        self._say(f"{'raised' if factor > 1.0 else 'lowered'}: {why}, ×{factor:.3g} → {self.rate:.3g}")

    def _end_start(self, why: str, *, after: bool = False) -> None:
        self.starting = False
        self.mark, self.drifted = self._now, float(self._age)
        self._say(f"started: {why}, rate ×{self.rate:.3g}", after=after)

    def _settle(self) -> None:
        if (self.ease and self._data_have_changed()) or (self.start and self._is_too_large()):
            return
        power = self._power()
        if self._may_anneal:
            age = float(self._age)
            if self.ease and age > FIRST_LOOK:
                self.rate = max(self.rate * (max(self.drifted, FIRST_LOOK) / age) ** power, EASED * self.peak)
            self.drifted = age
            self._look_for_end(age)

    def _look_for_end(self, age: float) -> None:
        has_eased = self.rate <= EASED * self.peak or age >= FLAT_AGE * self.flat_from
        improving = self.evaluated > 1 and self.misses == 0
        if self.stop and self.flat and has_eased and not improving and not self.done:
            self._finish("the loss is flat, and easing buys nothing any more")

    def _is_too_large(self) -> bool:
        # A rate that has been lower and come back, or was never lowered, can be too large; an eased one cannot.
        if self.rate < AT_PEAK * self.peak or self.rate <= LOWEST:
            return False
        if not self.beginning.has_risen(self.history, self._now):
            return False
        self._set_peak(LOWER, "the loss has risen above its beginning")
        return True

    @property
    def _may_anneal(self) -> bool:
        """Only what has begun can be over; or has been tried at all rates."""
        return self.beginning.moves or self.exhausted

    def _finish(self, why: str, *, after: bool = False) -> None:
        self.done = True
        self._say(f"done: {why}, rate ×{self.rate:.3g}", after=after)

    def _power(self) -> float:
        """q, and whether the loss is flat."""
        power, flat, seen = MIDDLE, False, None
        for share, bound in WINDOWS:
            steps = min(share * self._age, self._now - self.mark)
            length, blocks = -math.log1p(-steps / self._age), self.history.last(steps)
            if blocks < FEWEST or length < SHORTEST:
                continue
            seen = self._exponent_of(self.history.trend(blocks), length)
            power = seen.power()
            if not flat and self._may_anneal and seen.is_flat(bound, self.flat):
                flat = True
                if not self.flat:
                    self.flat, self.flat_from = True, float(self._age)
                    self._say(f"easing: {seen}, rate ×{self.rate:.3g}")
        if self.flat and not flat:
            self.flat = False
            self._say(f"easing no more: {seen or 'a new beginning'}, rate ×{self.rate:.3g}")
        return ANNEAL if flat else power

    def _exponent_of(self, trend: Trend, length: float) -> Exponent:
        gained = self.beginning.level - trend.level
        self.gained = max(self.gained, gained)
        self.beginning.moves |= gained > SURE * self.beginning.error(self.noise, trend.steps)
        seen = Exponent.of(trend, length, self.gained, self.noise)
        self.exponent = seen.p
        return seen

    def _data_have_changed(self) -> bool:
        blocks = min(self.history.last(LONG_SHARE * self._age), len(self.history.means) - 2)
        if blocks < FEWEST or self.rate >= AT_PEAK * self.peak:
            return False
        before = self.history.trend(blocks, before=2)
        # Not by the noise s, which the jump itself has raised.
        limit = before.level + max(JUMP * before.scatter, self.gained / 20.0)
        if min(self.history.means[-2:]) <= limit:
            return False
        self._say(
            f"come back: the loss has jumped from {before.level:.4g} to {self.history.mean(2):.4g}, "
            f"rate ×{self.rate:.3g} → ×{self.peak:.3g}"
        )
        self.rate, self.flat, self.done, self.beginning.known = self.peak, False, False, False
        self.origin = self.mark = self.averaged_from = self._now
        self.drifted = 0.0
        self.history.forget()
        return True

    def hear_evaluation(self, loss: float) -> None:
        if not (self.evaluations and math.isfinite(loss)):
            return
        self.evaluated += 1
        if self.evaluated == 1 or loss < self.best_evaluation:
            self.best_evaluation, self.misses, self.best_at = loss, 0, self.observations
            return
        if self.observations - self.best_at < 0.1 * (self.observations - self.origin):
            return
        self.misses += 1
        if self.ease:
            if self.starting:
                self._end_start("the evaluation is no better", after=True)
            self.rate = max(MISS * self.rate, EASED * self.peak)
            self._say(
                f"eased: an evaluation of {loss:.4g}, {self.best_evaluation:.4g} before, rate ×{self.rate:.3g}",
                after=True,
            )
        if self.stop and self.misses >= MISSES and not self.done:
            self._finish("evaluations are no better", after=True)

    def view(self) -> EmotionView:
        return replace(super().view(), quiet=self.flat)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **saved_state(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = {"averaged_from": 0, **state}  # a state from before there were averages of weights has none
        if state.get("law") == self.label:
            put = read_state(state, DECISIONS)
        super().load_state_dict(state)
        put(self)
        c, average = self._decision.coefficient, self.neutral().average
        self._decision = replace(self._decision, decay_factor=c, average=average)
