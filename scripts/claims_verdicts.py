"""From what examine_claims.py measured to verdicts, each by a rule that is fixed here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage, stats

from emo_hf.study.statistics import holm, mean_of_means_interval, paired_p

CONFIRMED, REFUTED, NOT_SHOWN = "confirmed", "refuted", "not shown"
SIGNIFICANT = 0.05
STRONG, WEAK = 0.5, 0.2  # |ρ| from which c may be called an approximation, and below which it is none
RUNNING = 51  # steps of the running median
BACK, WINDOW = 1.05, 16  # recovered: the mean of 16 losses is at most 1.05 times what it was
ALIKE = math.log(1.05)  # differences below 5 % are none

Differences = Mapping[str, Sequence[float]]
"""Task → one difference a seed, the mean over the optimizers."""


@dataclass(frozen=True)
class Compared:
    """Mean difference, its bootstrap interval (seeds drawn anew within each task), p of the paired t-test."""

    mean: float
    low: float
    high: float
    p: float

    @property
    def side(self) -> int:
        """−1 or 1 where both the interval and the test leave out 0, else 0."""
        return 0 if self.low <= 0.0 <= self.high or self.p >= SIGNIFICANT else int(math.copysign(1, self.mean))


def compare(questions: Mapping[str, Differences]) -> dict[str, Compared]:
    """Compare; p-values are adjusted by Holm over the questions that are asked together."""
    values = {name: [v for seeds in by_task.values() for v in seeds] for name, by_task in questions.items()}
    p = {name: 1.0 if (found := paired_p(drawn)) is None else found for name, drawn in values.items()}
    adjusted = holm(p)
    made = {}
    for name, by_task in questions.items():
        interval = mean_of_means_interval(list(by_task.values()))
        made[name] = Compared(interval.mean, interval.low, interval.high, adjusted[name])
    return made


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ of two series; p: the share of circular shifts (a tenth to nine tenths) with a |ρ| as large."""

    rho: float
    p: float


def correlate(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Rank correlation with a null that keeps the autocorrelation of both; None where a series is constant.

    A trend in both is found significant too often: of two random walks in a fifth of the cases.
    """
    a, b = (stats.rankdata(values) for values in (x, y))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    a, b = ((ranks - ranks.mean()) / ranks.std() / math.sqrt(len(ranks)) for ranks in (a, b))
    shifted = np.fft.irfft(np.fft.rfft(a) * np.fft.rfft(b).conj(), len(a))  # ρ at every circular shift
    edge = max(len(a) // 10, 1)
    null = np.abs(shifted[edge : len(a) - edge + 1])
    rho = float(stats.spearmanr(x, y).statistic)
    return Correlation(rho, float((1 + (null >= abs(rho) - 1e-12).sum()) / (1 + len(null))))


def detrended(series: Sequence[float]) -> list[float]:
    values = np.asarray(series, dtype=float)
    return list(values - ndimage.median_filter(values, RUNNING, mode="nearest"))


def moments_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Claim 8, on the rows (task, moment) of what v3.1 did.

    Confirmed: for one moment, on every task, the median |ρ| with c is at least 0.5, of one sign, significant in most
    runs, and all of that with and without the trend. Refuted: the median |ρ| without the trend is below 0.2 for every
    moment and task, with c and with σ.
    """
    moments = {row["moment"] for row in rows}
    for moment in moments:
        rhos = [row[kind]["rho"] for row in rows if row["moment"] == moment for kind in ("raw", "detrended")]
        often = all(
            row[kind]["significant"] > row[kind]["runs"] / 2
            for row in rows
            if row["moment"] == moment
            for kind in ("raw", "detrended")
        )
        if often and (min(rhos) >= STRONG or max(rhos) <= -STRONG):
            return CONFIRMED
    weak = all(abs(row[kind]["rho"]) < WEAK for row in rows for kind in ("detrended", "detrended σ"))
    return REFUTED if weak else NOT_SHOWN


def adapter_verdict(with_none: Compared, with_mean: Compared, ratios: Sequence[float], acts: float) -> str:
    """Claim 9, one measure of ΔW.

    Confirmed: it differs from `none` and from the constant mean of the same c. Refuted: no run differs from its
    constant mean by 5 %, though on one task c ≠ 1 in most steps.

    Args:
        with_none, with_mean: v3.1 against c = 1, and against c = its own mean.
        ratios: log(v3.1 / constant mean) of each task, optimizer and seed.
        acts: the largest share of steps with c ≠ 1 that a task has.
    """
    if with_none.side and with_mean.side:
        return CONFIRMED
    return REFUTED if acts > 0.5 and all(abs(ratio) < ALIKE for ratio in ratios) else NOT_SHOWN


def recovery(before: Sequence[float], after: Sequence[float]) -> int:
    """Steps until the mean of the last 16 losses is back within 5 % of before; one more than there are if never.

    Args:
        before, after: losses before and after the damage.
    """
    bound = BACK * statistics.mean(before[-WINDOW:])
    for step in range(WINDOW, len(after) + 1):
        if statistics.mean(after[step - WINDOW : step]) <= bound:
            return step
    return len(after) + 1


def repair_verdict(compared: Mapping[str, Compared], damages: Sequence[str]) -> str:
    """Claim 11: v3.1 against `none`; names of `compared` begin with that of the damage, lower is better.

    Confirmed: better by some measure for the damage to the weights and for one to the state, worse by none. Refuted:
    worse by some measure and better by none.
    """
    better = {damage for damage in damages for name, c in compared.items() if name.startswith(damage) and c.side < 0}
    worse = any(c.side > 0 for c in compared.values())
    if damages[0] in better and better & set(damages[1:]) and not worse:
        return CONFIRMED
    return REFUTED if worse and not better else NOT_SHOWN


def bound_verdict(shares: Sequence[float]) -> str:
    """Claim 12: confirmed if no step, after a loss of 1,000 times its size neither, is above the rule's own bound."""
    return CONFIRMED if max(shares) <= 1.001 else REFUTED  # rounding of the weights


def by_law_verdict(difference: Compared) -> str:
    """Claim 12, whether it is the emotion that bounds: confirmed if log(v3.1 / none) is below 0, refuted if above."""
    return {-1: CONFIRMED, 0: NOT_SHOWN, 1: REFUTED}[difference.side]


def plain(value: Any) -> Any:
    """A value as JSON takes it: no NaN, nothing infinite."""
    if isinstance(value, (Compared, Correlation)):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
