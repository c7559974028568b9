"""Rules of stopping against cases that were worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from emo_hf.study.stopping import Stop, early_stopping, ended_by_itself, judge, raw, verdict

CURVE = [[0, 2.0], [10, 1.0], [20, 0.9], [30, 0.9], [40, 1.0], [50, 1.1], [60, 1.2]]


def run(curve: list[list[float]] = CURVE, **changes: Any) -> dict[str, Any]:
    """A run of 60 steps of a second each, whose 7 evaluations take a second each."""
    losses = [loss for _, loss in curve]
    return {
        "steps": int(curve[-1][0]),
        "planned_steps": 60,
        "step_seconds": 1.0,
        "evaluation_seconds": float(len(curve)),
        "curve": {"evaluations": curve},
        "start": losses[0],
        "end": losses[-1],
        "best": min(losses),
        "stops": {"raw": None, "believed": None, "ended": None},
        **changes,
    }


def test_a_stop_at_the_best_loss_saves_the_rest_and_loses_nothing() -> None:
    stop = judge(run(), 30)
    assert stop.saved == pytest.approx(0.5)
    assert stop.lost == pytest.approx((0.9 - 1.2) / 1.2)
    assert stop.lost_to_best == 0.0
    assert not stop.false_alarm


def test_a_stop_before_half_of_the_improvement_is_a_false_alarm() -> None:
    falls = [[0, 2.0], [30, 1.5], [60, 1.0]]
    assert judge(run(falls), 15).false_alarm
    assert judge(run(falls), 15).lost == pytest.approx(0.75)


def test_a_stop_although_more_than_one_percent_was_to_come_is_a_false_alarm() -> None:
    assert judge(run([[0, 2.0], [30, 1.0], [60, 0.98]]), 30).false_alarm
    assert not judge(run([[0, 2.0], [30, 1.0], [60, 0.995]]), 30).false_alarm


def test_early_stopping_waits_for_three_bad_evaluations_and_pays_for_all_of_them() -> None:
    # Best at step 20; not better at 30, 40 and 50, the sixth evaluation.
    stop = early_stopping(run())
    assert stop.step == 50
    assert stop.saved == pytest.approx(1 - (50 + 6) / 60)
    assert early_stopping(run([[0, 2.0], [30, 1.0], [60, 0.9]])) == Stop(None)


def test_a_rule_that_never_fires_saves_nothing_and_is_averaged_in() -> None:
    fired, silent = run(stops={"raw": 30, "believed": None, "ended": None}), run()
    found = verdict([raw(fired), raw(silent)])
    assert (found.runs, found.stopped, found.false_alarms) == (2, 1, 0)
    assert found.saved == pytest.approx(0.25)
    assert found.lost_to_best == 0.0
    assert verdict([raw(silent)]).lost is None


def test_an_arm_that_ends_itself_is_judged_by_the_references_full_run() -> None:
    short = run([[0, 2.0], [15, 1.0]], stops={"raw": None, "believed": None, "ended": 15})
    stop = ended_by_itself(short, run([[0, 2.0], [60, 0.8]]))
    assert stop.saved == pytest.approx(0.75)
    assert stop.lost == pytest.approx(0.25)
    assert stop.false_alarm
    assert ended_by_itself(run(), run()) == Stop(None)
