"""Several runs in one picture."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from emo_hf.plot.colors import style
from emo_hf.plot.errors import PlotError
from emo_hf.plot.main import main
from emo_hf.plot.run import Run
from emo_hf.plot.several import figure_of_several, smoothed
from tests.plot.histories import history

DECISIONS = [(14, "started: the loss falls, rate ×3"), (31, "eased: no better, rate ×0.3")]


def runs(count: int) -> list[Run]:
    return [Run(name=f"run {i}", history=history(40), decisions=DECISIONS) for i in range(count)]


def named(panel: Any) -> list[str]:
    return panel.get_legend_handles_labels()[1]


def test_each_quantity_has_a_panel_in_which_each_run_that_has_it_has_a_curve() -> None:
    made = figure_of_several([*runs(2), Run(name="adamw", history=history(40, emo=False))], "three")
    assert [" ".join(panel.get_ylabel().split()) for panel in made.axes] == [
        "training loss (smoothed)", "evaluation loss", "learning rate", "scalar σ", "coefficient c",
    ]  # fmt: skip
    assert [named(panel) for panel in made.axes] == [["run 0", "run 1", "adamw"]] * 3 + [["run 0", "run 1"]] * 2
    curve = made.axes[0].lines[0]
    losses = [line["loss"] for line in history(40) if "loss" in line]
    assert list(curve.get_ydata()) == pytest.approx(smoothed(losses))
    rates = [line["emo/effective_lr"] for line in history(40) if "loss" in line]
    assert list(made.axes[2].lines[0].get_ydata()) == rates
    plain = [line["learning_rate"] for line in history(40) if "loss" in line]
    assert list(made.axes[2].lines[2].get_ydata()) == plain
    assert made.get_suptitle() == "three"


def test_runs_of_plain_optimizers_need_no_panels_of_emotions() -> None:
    made = figure_of_several([Run(name=name, history=history(40, emo=False)) for name in "ab"], "plain")
    assert len(made.axes) == 3


def test_no_two_runs_look_alike_in_colour_or_in_black_and_white() -> None:
    looks = [style(i) for i in range(35)]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 35
    assert all(one["linestyle"] != other["linestyle"] for one, other in itertools.combinations(looks[:5], 2))


@pytest.mark.parametrize("count", [2, 14])
def test_names_do_not_cover_each_other_and_are_not_cut_off(count: int) -> None:
    made = figure_of_several(runs(count), "many")
    made.canvas.draw()
    for panel in made.axes:
        boxes = [text.get_window_extent() for text in panel.texts if text.get_text().startswith("run")]
        assert len(boxes) == count
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(box.x1 <= made.bbox.x1 and box.x0 >= panel.get_window_extent().x1 for box in boxes)


def test_what_was_decided_is_marked_on_the_curve_and_explained_below() -> None:
    made = figure_of_several(runs(2), "decided")
    marks = [(line.get_xdata()[0], line.get_marker()) for line in made.axes[0].lines if len(line.get_xdata()) == 1]
    assert [mark for mark in marks if mark[1] in ">v"] == [(14, ">"), (31, "v")] * 2
    (legend,) = made.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "started", "eased", "upright: the stop signal begins",
    ]  # fmt: skip


def test_a_loss_that_is_not_a_number_leaves_a_gap_and_the_rest_of_the_curve() -> None:
    values = smoothed([2.0, math.nan, 2.0, 2.0])
    assert math.isnan(values[1])
    assert [values[0], *values[2:]] == pytest.approx([2.0] * 3)


def test_a_run_that_has_logged_nothing_is_named() -> None:
    with pytest.raises(PlotError, match="no training loss was logged in silent"):
        figure_of_several([*runs(1), Run(name="silent", history=[])], "x")


def test_the_command_draws_several_runs_into_each_file_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        state = {"log_history": history(40)}
        (tmp_path / name / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outputs = [f"both{ending}" for ending in (".svg", ".pdf", ".html")]
    assert main(["a", "b", *(f"--output={output}" for output in outputs)]) == 0
    assert capsys.readouterr().out.split() == outputs
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}
    assert all(Path(output).read_bytes().startswith(starts[Path(output).suffix]) for output in outputs)
    assert main(["a", "b"]) == 0
    assert Path("runs.png").read_bytes().startswith(b"\x89PNG")
    assert main(["a", "--output", "a.gif"]) == 2
    assert "--output must end in one of .png, .svg, .pdf, .html, got 'a.gif'" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "no half-written file is left"
