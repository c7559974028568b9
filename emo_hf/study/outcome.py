"""What came out of a run, from what was recorded of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from emo_hf.study.faults import Faults, braking
from emo_hf.study.recorder import Recorder, finite

CURVE_POINTS = 200


def outcome(recorder: Recorder, faults: Faults | None, steps: int, planned: int) -> dict[str, Any]:
    """The part of a line that says how a run went.

    Args:
        recorder: what watched it.
        faults: what went wrong in it on purpose.
        steps, planned: optimizer steps taken, and of the budget.
    """
    evaluations = recorder.evaluations
    ends = [line["loss"] for line in evaluations]
    usable = [line for line in evaluations if math.isfinite(line["loss"])]
    best = min(usable, key=lambda line: line["loss"]) if usable else None
    return {
        "steps": steps,
        "planned_steps": planned,
        "curve": {
            "train": thinned(recorder.losses, CURVE_POINTS),
            "evaluations": [[int(line["step"]), finite(line["loss"])] for line in evaluations],
        },
        "start": finite(ends[0]),
        "end": finite(ends[-1]),
        "best": None if best is None else best["loss"],
        "best_step": None if best is None else int(best["step"]),
        "diverged": not math.isfinite(ends[-1]),
        "metrics": {key: finite(value) for key, value in evaluations[-1].items() if key != "step"},
        "emotion": _emotion(recorder),
        "stops": {
            "raw": recorder.raw_stop,
            "believed": recorder.believed_stop,
            "ended": steps if steps < planned else None,
        },
        **braking(None if faults is None else faults.outcome(steps), recorder.skipped, recorder.losses),
        "fingerprint": {"weights": recorder.weights, "first_batch": recorder.batches[0], "batches": recorder.batches},
    }


def _emotion(recorder: Recorder) -> dict[str, Any] | None:
    if not recorder.factors:
        return None
    decays = any(factor != 1.0 for factor in recorder.decay_factors)
    return {
        "law": recorder.law,
        "sigma": spread(recorder.scalars),
        "coefficient": spread(recorder.factors),
        "sigma_curve": thinned(recorder.scalars, CURVE_POINTS),
        "factors": recorder.factors,
        "decay_factors": recorder.decay_factors if decays else [],
        "floor": recorder.floor,
        "decisions": [list(decision) for decision in recorder.decisions],
    }


def thinned(values: Sequence[float], points: int) -> list[list[float | None]]:
    """[step, mean of the steps up to it] for at most so many stretches of equal length; steps count from 1."""
    size = max(1, math.ceil(len(values) / points))
    curve: list[list[float | None]] = []
    for start in range(0, len(values), size):
        stretch = values[start : start + size]
        curve.append([start + len(stretch), finite(sum(stretch) / len(stretch))])
    return curve


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation, range and two quantiles."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "mean": statistics.fmean(ordered),
        "sd": statistics.pstdev(ordered),
        "min": ordered[0],
        "p05": ordered[round(0.05 * last)],
        "median": ordered[round(0.5 * last)],
        "p95": ordered[round(0.95 * last)],
        "max": ordered[-1],
    }
