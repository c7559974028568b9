"""What a picture shows: panels, curves, marks and stop signals of one run and of several."""

from __future__ import annotations

import math
from typing import Any

import pytest

from emo_hf.cli_errors import UserError
from emo_hf.laws import LAWS
from emo_hf.plot.figure import picture_of, smoothed
from emo_hf.plot.panels import Panel, style
from emo_hf.plot.run import Run
from tests.plot.histories import DECISIONS, history


def names(panel: Panel) -> list[str]:
    return [curve.name for curve in panel.curves]


def panels_of(*runs: Run) -> dict[str, Panel]:
    return {panel.what: panel for panel in picture_of(runs).panels}


def test_a_run_with_an_emotion_has_four_panels_of_the_logged_values() -> None:
    picture = picture_of([Run(history=history(), name="my run", law="v3.1")])
    loss, rate, scalar, factor = picture.panels
    assert picture.title == "my run"
    assert names(loss) == ["training loss", "fast average", "slow average", "evaluation"]
    assert names(rate) == ["effective", "the schedule's"]
    lines = [line for line in history() if "loss" in line]
    for curve, key in (
        (loss.curves[0], "loss"), (loss.curves[1], "emo/loss_short"), (loss.curves[2], "emo/loss_long"),
        (rate.curves[0], "emo/effective_lr"), (rate.curves[1], "learning_rate"), (scalar.curves[0], "emo/scalar"),
        (factor.curves[0], "emo/coefficient_mean"),
    ):  # fmt: skip
        assert curve.series == ([10, 20, 30, 40], [line[key] for line in lines])
    assert loss.curves[3].series == ([20, 40], [0.125, 0.0625])
    assert factor.band[1:] == tuple([line[f"emo/coefficient_{end}"] for line in lines] for end in ("min", "max"))
    assert factor.quiet == [(10, 20), (20, 30)]
    assert (scalar.low, scalar.high, rate.low, factor.low) == (-1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("law", [*LAWS, "none", None])
def test_the_ranges_of_the_scalar_are_those_of_the_runs_law(law: str | None) -> None:
    panel = panels_of(Run(history=history(), law=law))["scalar σ"]
    assert panel.zones == (LAWS[law].zones if law in LAWS else ())


def test_a_run_of_another_optimizer_has_two_panels() -> None:
    assert list(panels_of(Run(history=history(emo=False)))) == ["loss", "learning rate"]


def test_a_learning_rate_that_is_a_scale_is_drawn_at_the_size_of_the_rates_that_are_made_of_it() -> None:
    lines = [line | {"learning_rate": line["learning_rate"] * 1e3} if "loss" in line else line for line in history()]
    effective, plain = panels_of(Run(history=lines))["learning rate"].curves
    assert plain.name == "the schedule's × 0.001"
    assert plain.series[1] == pytest.approx([line["learning_rate"] / 1e3 for line in lines if "loss" in line])
    assert max(effective.series[1]) > max(plain.series[1]) / 3


def test_groups_that_went_the_same_way_share_a_curve_and_those_far_apart_get_a_log_scale() -> None:
    panel = panels_of(Run(history=history(groups={"lora_a": 1, "head": 1, "lora_b": 16})))["learning rate"]
    assert names(panel) == ["effective: lora_a, head", "effective: lora_b", "the schedule's"]
    assert panel.log
    assert not panels_of(Run(history=history(groups={"a": 1, "b": 2})))["learning rate"].log


def test_losses_that_are_far_apart_get_a_log_scale() -> None:
    lines = [line | {"loss": 65504.0} if line.get("loss") == 0.1 else line for line in history()]
    assert panels_of(Run(history=lines))["loss"].log
    assert not panels_of(Run(history=history()))["loss"].log
    lines[0]["loss"] = -1.0
    assert not panels_of(Run(history=lines))["loss"].log


def test_decisions_are_marks_on_the_curve_with_their_words_below_and_steps_left_out_are_ticks() -> None:
    picture = picture_of([Run(history=history(), law="settle", decisions=DECISIONS)])
    loss = picture.panels[0]
    assert [(mark.number, mark.step) for mark in loss.marks] == [(1, 12), (2, 35)]
    assert [mark.value for mark in loss.marks] == pytest.approx([0.18, (2 / 30 + 2 / 40) / 2])
    assert loss.left_out == [17, 31]
    first, second = picture.notes
    assert first.startswith("1  step 12: ")
    assert "0.333" in first
    assert first.endswith("the loss is far above where it began")
    assert second.startswith("2  step 35: ")
    assert second.endswith("3 evaluations were no better")


def test_the_stop_signal_begins_where_it_was_logged_or_decided_first() -> None:
    def stops(lines: list[dict[str, Any]], decisions: Any = ()) -> list[tuple[int, str]]:
        picture = picture_of([Run(history=lines, decisions=decisions)])
        return [(stop.step, stop.words) for stop in picture.stops]

    calm = [line | {"emo/should_stop": 0} if "loss" in line else line for line in history()]
    assert stops(history()) == [(30, "stop signal from step 30")]
    assert stops(calm) == []
    assert stops(calm, DECISIONS) == [(35, "stop signal from step 35")]


def test_each_quantity_has_a_panel_in_which_each_run_that_has_it_has_a_curve() -> None:
    runs = [Run(name=name, history=history(emo=name != "adamw"), decisions=DECISIONS) for name in ("a", "b", "adamw")]
    picture = picture_of(runs, "three")
    panels = {panel.what: panel for panel in picture.panels}
    assert list(panels) == ["evaluation loss", "training loss, smoothed", "learning rate", "scalar σ", "factor c"]
    assert names(panels["evaluation loss"]) == names(panels["learning rate"]) == ["a", "b", "adamw"]
    assert names(panels["scalar σ"]) == names(panels["factor c"]) == ["a", "b"]
    lines = [line for line in history() if "loss" in line]
    faint, curve = panels["training loss, smoothed"].curves[:2]
    assert (faint.name, curve.name) == ("", "a")
    assert faint.series[1] == [line["loss"] for line in lines]
    assert curve.series[1] == pytest.approx(smoothed(faint.series[1]))
    assert panels["learning rate"].curves[0].series[1] == [line["emo/effective_lr"] for line in lines]
    assert panels["learning rate"].curves[2].series[1] == [line["learning_rate"] for line in lines]
    whose = [note.partition(":")[0] for note in picture.notes]
    assert whose[:3] == ["1  a, step 12", "2  a, step 35", "3  b, step 12"]
    assert [(stop.words, stop.color) for stop in picture.stops] == [
        ("a: stop signal from step 30", style(0)[0]), ("b: stop signal from step 30", style(1)[0]),
        ("adamw: stop signal from step 35", style(2)[0]),
    ]  # fmt: skip
    assert picture.title == "three"


def test_weights_and_their_average_of_one_run_are_two_curves_beside_those_of_others() -> None:
    both = [line | {"eval_weights_loss": 3.0} if "eval_loss" in line else line for line in history(emo=False)]
    panel = panels_of(Run(name="constant", history=both), Run(name="linear", history=history(emo=False)))
    average, weights, linear = panel["evaluation loss"].curves
    assert [average.name, weights.name, linear.name] == ["constant, average", "constant, weights", "linear"]
    assert weights.series == ([20, 40], [3.0, 3.0])
    assert average.color == weights.color != linear.color
    assert average.dash != weights.dash
    alone = names(panels_of(Run(history=both))["loss"])
    assert alone == ["training loss", "evaluation: average", "evaluation: weights"]


def test_several_evaluation_sets_are_named_and_a_run_with_nothing_else_is_drawn() -> None:
    lines = [{"step": 10, "eval_dev_loss": 1.0, "eval_test_loss": 2.0, "eval_test_accuracy": 0.5}]
    panels = panels_of(Run(history=lines))
    assert names(panels["loss"]) == ["evaluation: dev", "evaluation: test"]


def test_no_two_runs_look_alike() -> None:
    assert len({style(i) for i in range(35)}) == 35
    assert len({style(i)[1] for i in range(5)}) == 5, "in print without colours"


def test_a_loss_that_is_not_a_number_leaves_a_gap_and_the_rest_of_the_curve() -> None:
    values = smoothed([2.0, math.nan, 2.0, 2.0])
    assert math.isnan(values[1])
    assert [values[0], *values[2:]] == pytest.approx([2.0] * 3)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.7 * 0.3 * 1 + 0.3 * 2) / (0.7 * 0.3 + 0.3)])


def test_a_run_that_has_logged_nothing_is_named() -> None:
    with pytest.raises(UserError, match="no loss was logged in the run 'silent'"):
        picture_of([Run(name="a", history=history()), Run(name="silent")])
