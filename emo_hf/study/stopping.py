"""Rules of stopping, judged on runs that went on to their end: what they would have saved, and what lost.

raw               the law's own signal, as soon as it stands
believed          the signal once training has been flat for 4 windows after 200 steps (`self_stop=stop`)
early stopping    transformers' EarlyStoppingCallback with patience 3 on the evaluations, which cost time
own end           the arm has ended itself; there is no full run to compare with but the reference's
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from emo_hf.study.plan import Line, end_of
from emo_hf.study.statistics import loss_at

PATIENCE = 3
STILL_IMPROVED = 0.01
"""A stop is a false alarm if the evaluation loss still fell by more than this share of itself afterwards."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What a rule would have done to one run.

    Attributes:
        step: where it would have stopped; None where it would not have.
        saved: share of the time of the full run that it saves; for evaluations that it needs, their time is counted.
        lost: how much higher the loss would be than at the end of the full run, as a share of that; below 0, lower.
        lost_to_best: the same against the lowest loss along the way.
        false_alarm: stopped before half of the improvement, or although more than 1 % was still to come.
    """

    step: int | None
    saved: float = 0.0
    lost: float = 0.0
    lost_to_best: float = 0.0
    false_alarm: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule did over all runs of an arm, means over the runs in which it stopped.

    Attributes:
        runs, stopped, false_alarms: how many.
        saved, lost, lost_to_best: means as in `Stop`, over all runs for `saved`; None where it never stopped.
    """

    runs: int
    stopped: int
    false_alarms: int
    saved: float
    lost: float | None
    lost_to_best: float | None


def judge(line: Line, step: int | None, evaluated: int = 0) -> Stop:
    """What a stop at a step would have meant for a run that went to its end.

    Args:
        line: the run.
        step: where the rule stops it.
        evaluated: how many evaluations the rule itself needs until then.
    """
    if step is None:
        return Stop(None)
    curve = line["curve"]["evaluations"]
    start, end = float(line["start"] if line["start"] is not None else math.inf), end_of(line)
    at, best = loss_at(curve, step), float(line["best"] if line["best"] is not None else math.inf)
    still_to_come = min((loss for when, loss in curve if when > step and loss is not None), default=math.inf)
    half_way = start - at < 0.5 * (start - end)
    return Stop(
        step,
        saved=1.0 - _cost(line, step, evaluated) / _cost(line, line["steps"], 0),
        lost=_share(at, end),
        lost_to_best=_share(at, best),
        false_alarm=half_way or still_to_come < at - STILL_IMPROVED * abs(at),
    )


def _cost(line: Line, steps: int, evaluated: int) -> float:
    """Seconds of so many steps, and of the evaluations that a rule needs."""
    count = max(len(line["curve"]["evaluations"]), 1)
    return steps * float(line["step_seconds"]) + evaluated * float(line["evaluation_seconds"]) / count


def _share(value: float, of: float) -> float:
    return (value - of) / abs(of) if math.isfinite(of) and of else math.inf


def raw(line: Line) -> Stop:
    return judge(line, line["stops"]["raw"])


def believed(line: Line) -> Stop:
    return judge(line, line["stops"]["believed"])


def early_stopping(line: Line) -> Stop:
    """EarlyStoppingCallback: no improvement on the best for so many evaluations on end."""
    best, bad = math.inf, 0
    for number, (step, loss) in enumerate(line["curve"]["evaluations"], 1):
        value = math.inf if loss is None else loss
        bad = 0 if value < best else bad + 1
        best = min(best, value)
        if bad >= PATIENCE:
            return judge(line, step if step < line["steps"] else None, number)
    return Stop(None)


RULES: Mapping[str, Callable[[Line], Stop]] = {
    "raw signal": raw,
    "believed signal": believed,
    f"early stopping, patience {PATIENCE}": early_stopping,
}


def verdict(stops: Sequence[Stop]) -> Verdict:
    """All runs together."""
    fired = [stop for stop in stops if stop.step is not None]
    return Verdict(
        runs=len(stops),
        stopped=len(fired),
        false_alarms=sum(stop.false_alarm for stop in fired),
        saved=sum(stop.saved for stop in stops) / max(len(stops), 1),
        lost=sum(stop.lost for stop in fired) / len(fired) if fired else None,
        lost_to_best=sum(stop.lost_to_best for stop in fired) / len(fired) if fired else None,
    )


def ended_by_itself(line: Line, full: Line | None) -> Stop:
    """An arm that ended before its budget, against the reference's full run of the same seed."""
    if line["stops"]["ended"] is None:
        return Stop(None)
    against = end_of(full) if full is not None else math.inf
    best = float(full["best"]) if full is not None and full["best"] is not None else math.inf
    return Stop(
        line["steps"],
        saved=1.0 - line["steps"] / line["planned_steps"],
        lost=_share(end_of(line), against),
        lost_to_best=_share(end_of(line), best),
        false_alarm=_share(end_of(line), against) > STILL_IMPROVED,
    )
