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


def panels_of(lines: Any = None, **given: Any) -> dict[str, Panel]:
    """The panels of one run."""
    return {panel.what: panel for panel in picture_of([Run(history=lines or history(), **given)]).panels}


def test_a_run_with_an_emotion_has_four_panels_of_the_logged_values_and_another_two() -> None:
    picture = picture_of([Run(history=history(), name="my run", law="v3.1")])
    loss, rate, scalar, factor = picture.panels
    assert picture.title == "my run"
    assert names(loss) == ["training loss", "fast average", "slow average", "evaluation"]
    assert names(rate) == ["effective", "the schedule's"]
    lines = [line for line in history() if "loss" in line]
    curves = [*loss.curves[:3], *rate.curves, *scalar.curves, *factor.curves]
    keys = ("loss", "emo/loss_short", "emo/loss_long", "emo/effective_lr", "learning_rate", "emo/scalar")
    for curve, key in zip(curves, [*keys, "emo/coefficient_mean"], strict=True):
        assert curve.series == ([10, 20, 30, 40], [line[key] for line in lines])
    assert loss.curves[3].series == ([20, 40], [0.125, 0.0625])
    assert factor.band[1:] == tuple([line[f"emo/coefficient_{end}"] for line in lines] for end in ("min", "max"))
    assert factor.quiet == [(10, 20), (20, 30)]
    assert (scalar.low, scalar.high, rate.low, factor.low) == (-1.0, 1.0, 0.0, 0.0)
    assert scalar.zones == LAWS["v3.1"].zones != panels_of(law="none")["scalar σ"].zones == ()
    assert list(panels_of(history(emo=False))) == ["loss", "learning rate"]


def test_rates_share_a_curve_where_they_are_alike_and_an_axis_that_shows_them_all() -> None:
    panel = panels_of(history(groups={"lora_a": 1, "head": 1, "lora_b": 16}))["learning rate"]
    assert names(panel) == ["effective: lora_a, head", "effective: lora_b", "the schedule's"]
    assert panel.log
    assert not panels_of(history(groups={"a": 1, "b": 2}))["learning rate"].log
    scaled = [line | {"learning_rate": line["learning_rate"] * 1e3} if "loss" in line else line for line in history()]
    effective, plain = panels_of(scaled)["learning rate"].curves
    assert plain.name == "the schedule's × 0.001", "a scale is drawn at the size of the rates that are made of it"
    assert plain.series[1] == pytest.approx([line["learning_rate"] / 1e3 for line in scaled if "loss" in line])
    assert max(effective.series[1]) > max(plain.series[1]) / 3
    lines = [line | {"loss": 65504.0} if line.get("loss") == 0.1 else line for line in history()]
    assert panels_of(lines)["loss"].log
    assert not panels_of()["loss"].log
    lines[0]["loss"] = -1.0
    assert not panels_of(lines)["loss"].log


def test_decisions_are_marks_on_the_curve_with_their_words_below_and_steps_left_out_are_ticks() -> None:
    picture = picture_of([Run(history=history(), law="settle", decisions=DECISIONS)])
    loss = picture.panels[0]
    assert [mark.step for mark in loss.marks] == [12, 35]
    assert [mark.value for mark in loss.marks] == pytest.approx([0.18, (2 / 30 + 2 / 40) / 2])
    assert loss.left_out == [17, 31]
    first, second = picture.notes
    assert first == "1  step 12: rate lowered to 0.3333 of the learning rate: the loss is far above where it began"
    assert second.startswith("2  step 35: ")
    assert second.endswith("3 evaluations were no better")


def test_the_stop_signal_begins_where_it_was_logged_or_decided_first() -> None:
    calm = [line | {"emo/should_stop": 0} if "loss" in line else line for line in history()]
    for lines, decisions, begins in ((history(), [], [30]), (calm, [], []), (calm, DECISIONS, [35])):
        stops = picture_of([Run(history=lines, decisions=decisions)]).stops
        words = [(step, f"stop signal from step {step}") for step in begins]
        assert [(stop.step, stop.words) for stop in stops] == words


def test_each_quantity_has_a_panel_in_which_each_run_that_has_it_has_a_curve() -> None:
    runs = [Run(name=name, history=history(emo=name != "adamw"), decisions=DECISIONS) for name in ("a", "b", "adamw")]
    picture = picture_of(runs, "three")
    evaluation, training, rate, scalar, factor = picture.panels
    assert [picture.title, *(panel.what for panel in picture.panels)] == [
        "three", "evaluation loss", "training loss, smoothed", "learning rate", "scalar σ", "factor c",
    ]  # fmt: skip
    assert names(evaluation) == names(rate) == ["a", "b", "adamw"]
    assert names(scalar) == names(factor) == ["a", "b"]
    lines = [line for line in history() if "loss" in line]
    faint, curve = training.curves[:2]
    assert (faint.name, curve.name) == ("", "a")
    assert faint.series[1] == [line["loss"] for line in lines]
    assert curve.series[1] == pytest.approx(smoothed(faint.series[1]))
    for i, key in ((0, "emo/effective_lr"), (2, "learning_rate")):
        assert rate.curves[i].series[1] == [line[key] for line in lines]
    whose = [note.partition(":")[0] for note in picture.notes]
    assert whose[:3] == ["1  a, step 12", "2  a, step 35", "3  b, step 12"]
    assert [(stop.words, stop.color) for stop in picture.stops] == [
        (f"{name}: stop signal from step {step}", style(i)[0])
        for i, (name, step) in enumerate((("a", 30), ("b", 30), ("adamw", 35)))
    ]
    assert len({style(i) for i in range(35)}) == 35, "no two runs look alike"
    assert len({style(i)[1] for i in range(5)}) == 5, "in print without colours"


def test_weights_and_their_average_of_one_run_are_two_curves_beside_those_of_others() -> None:
    both = [line | {"eval_weights_loss": 3.0} if "eval_loss" in line else line for line in history(emo=False)]
    runs = [Run(name="constant", history=both), Run(name="linear", history=history(emo=False))]
    average, weights, linear = picture_of(runs).panels[0].curves
    assert [average.name, weights.name, linear.name] == ["constant, average", "constant, weights", "linear"]
    assert weights.series == ([20, 40], [3.0, 3.0])
    assert average.color == weights.color != linear.color
    assert average.dash != weights.dash
    assert names(panels_of(both)["loss"]) == ["training loss", "evaluation: average", "evaluation: weights"]
    sets = [{"step": 10, "eval_dev_loss": 1.0, "eval_test_loss": 2.0, "eval_test_accuracy": 0.5}]
    assert names(panels_of(sets)["loss"]) == ["evaluation: dev", "evaluation: test"]


def test_what_is_not_a_number_or_was_not_logged_leaves_a_gap_and_a_run_without_a_loss_is_named() -> None:
    values = smoothed([2.0, math.nan, 2.0, 2.0])
    assert math.isnan(values[1])
    assert [values[0], *values[2:]] == pytest.approx([2.0] * 3)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.7 * 0.3 * 1 + 0.3 * 2) / (0.7 * 0.3 + 0.3)])
    lines: list[dict[str, Any]] = [{"step": 10 * i, "loss": 1.0, "emo/coefficient_mean": 1.0} for i in range(1, 5)]
    lines[0] |= {"emo/coefficient_min": 0.5, "emo/quiet": 1, "learning_rate": None}
    lines[1] |= {"emo/coefficient_min": 0.5, "emo/coefficient_max": 1.5}
    lines[2] |= {"emo/coefficient_max": 1.5, "loss": math.nan}
    panels = panels_of(lines)
    assert list(panels) == ["loss", "factor c"]
    assert (panels["factor c"].band, panels["factor c"].quiet) == (([20], [0.5], [1.5]), [(0, 10)])
    with pytest.raises(UserError, match="no loss was logged in the run 'silent'"):
        picture_of([Run(name="a", history=history()), Run(name="silent")])
