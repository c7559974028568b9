"""The picture of a run, read back from the figure and from the file."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import emo_hf
from emo_hf.laws import LAWS
from emo_hf.plot.errors import PlotError
from emo_hf.plot.figure import figure
from emo_hf.plot.labels import spread
from emo_hf.plot.main import main
from emo_hf.plot.output import draw
from emo_hf.plot.run import Run, read_run
from tests import tiny
from tests.plot.histories import history


def labels(panel: Any) -> list[str]:
    return panel.get_legend_handles_labels()[1]


def test_an_emo_run_has_five_panels_over_one_step_axis() -> None:
    panels = figure(Run(history=history(), name="my run", law="v3.1")).axes
    assert [panel.get_ylabel() for panel in panels] == ["loss", "learning rate", "scalar σ", "coefficient c", ""]
    assert labels(panels[0]) == ["training loss", "short average", "long average", "evaluation loss"]
    assert labels(panels[1]) == ["effective", "plain learning rate"]
    assert panels[-1].get_xlabel() == "optimizer step"
    assert len({panel.get_xlim() for panel in panels}) == 1
    assert panels[2].get_ylim() == (-1, 1)
    assert [round(tick, 3) for tick in panels[2].get_yticks()] == [-1, -0.625, -0.125, 0.125, 0.625, 1]


@pytest.mark.parametrize("law", [*LAWS, "none", None])
def test_the_ranges_of_the_scalar_are_those_of_the_runs_law(law: str | None) -> None:
    scalar = figure(Run(history=history(), name="run", law=law)).axes[2]
    zones = LAWS[law].zones if law in LAWS else ()
    assert [text.get_text() for text in scalar.texts] == [zone.what for zone in zones]
    assert len(scalar.patches) == len(zones)
    edges = sorted({-1.0, 1.0, *(edge for zone in zones for edge in (zone.low, zone.high))})
    if law == "settle":  # whose narrow zone has one label
        edges = [-1.0, 0.0, 1.0]
    assert list(scalar.get_yticks()) == (edges if zones else [-1, -0.5, 0, 0.5, 1])
    assert scalar.get_ylim() == (-1, 1)


def test_a_learning_rate_that_is_a_scale_is_drawn_at_the_size_of_the_rates_that_are_made_of_it() -> None:
    lines = [line | {"learning_rate": line["learning_rate"] * 1e3} if "loss" in line else line for line in history()]
    panels = figure(Run(history=lines, name="run", law="v3.9")).axes
    assert labels(panels[1]) == ["effective", "plain learning rate × 0.001"]
    effective, plain, *_ = panels[1].lines
    assert list(plain.get_ydata()) == pytest.approx([line["learning_rate"] / 1e3 for line in lines if "loss" in line])
    assert max(effective.get_ydata()) > panels[1].get_ylim()[1] / 3
    assert labels(figure(Run(history=history(), name="run")).axes[1])[1] == "plain learning rate"


@pytest.mark.parametrize(
    ("changes", "law"),
    [
        ({"optim": "emonavi"}, "v3.1"),
        ({"optim": "emonavi", "optim_args": "version=v3.0"}, "v3.0"),
        ({"optim": "emosens", "learning_rate": 5e-5}, "v3.9"),
        ({"optim": "emolynx", "optim_args": "emo_law=robust"}, "robust"),
        ({"optim": "emofact", "optim_args": "emo_law=none"}, "none"),
        ({"optim": "adamw_torch"}, None),
    ],
)
def test_the_law_of_a_real_run_is_found_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], law: str | None
) -> None:
    emo_hf.register()
    try:
        trainer = tiny.trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2, **changes)
        trainer.train()
        if law == "v3.1":  # the law is in what is written after a resume too, and needs no checkpoint
            trainer = tiny.trainer(tmp_path, max_steps=6, save_strategy="no", **changes)
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
            trainer.save_state()
    finally:
        emo_hf.unregister()
    read = read_run(tmp_path)
    assert read.law == law
    assert read.history == trainer.state.log_history[: len(read.history)]
    assert read_run(tmp_path / "checkpoint-2").law == law
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run.png")


def test_a_run_of_an_older_version_is_drawn_without_the_ranges_of_a_law(tmp_path: Path) -> None:
    state = {"log_history": history(), "stateful_callbacks": {"TrainerControl": {"args": {}, "attributes": {}}}}
    for content in (state, {"log_history": history()}, state | {"stateful_callbacks": None}):
        (tmp_path / "trainer_state.json").write_text(json.dumps(content), encoding="utf-8")
        assert read_run(tmp_path) == Run(name=tmp_path.name, history=history())


def test_the_curves_are_the_logged_values() -> None:
    lines = [line for line in history() if "loss" in line]
    loss, rate, scalar, *_ = figure(Run(history=history(), name="run")).axes
    assert list(loss.lines[0].get_ydata()) == [line["loss"] for line in lines]
    assert list(loss.lines[0].get_xdata()) == [10, 20, 30, 40]
    assert list(loss.lines[3].get_xdata()) == [20, 40]
    assert list(rate.lines[0].get_ydata()) == [line["emo/effective_lr"] for line in lines]
    assert list(scalar.lines[0].get_ydata()) == [line["emo/scalar"] for line in lines]


def names_beside(panel: Any) -> list[Any]:
    """The texts that name curves."""
    known = labels(panel)
    return [text for text in panel.texts if text.get_text() in known]


def test_every_curve_is_named_beside_its_panel_and_no_name_covers_another_or_the_data() -> None:
    groups = {"lora_a": 1, "lora_b": 1.05, "head": 1.1, "embeddings": 1.15}
    decisions = [(step, f"eased: no better, rate ×0.{step}") for step in range(10, 40, 2)]
    made = figure(Run(history=history(groups=groups), name="my run", law="v3.1", decisions=decisions))
    made.canvas.draw()
    assert made.get_suptitle() == "my run"
    for panel in made.axes:
        named = names_beside(panel)
        assert sorted(text.get_text() for text in named) == sorted(labels(panel) * (panel is not made.axes[2]))
        boxes = [text.get_window_extent() for text in named]
        assert all(box.x0 >= panel.get_window_extent().x1 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(box.y0 >= 0 and box.x1 <= made.bbox.x1 for box in boxes), "a name is cut off"


@pytest.mark.parametrize(
    ("wanted", "gap", "made"),
    [
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        ([0.5, 0.5, 0.52], 0.1, [0.5, 0.6, 0.7]),
        ([0.0, 1.0], 0.2, [0.1, 0.9]),
        ([0.9, 0.95, 1.0], 0.2, [0.5, 0.7, 0.9]),
        ([], 0.1, []),
    ],
)
def test_labels_are_spread_as_near_as_can_be_to_where_their_curves_end(
    wanted: list[float], gap: float, made: list[float]
) -> None:
    assert spread(wanted, gap) == pytest.approx(made)


def test_quiet_and_the_stop_signal_are_drawn_where_they_stood() -> None:
    panel = figure(Run(history=history(), name="run")).axes[4]
    stop, quiet = ([path.get_extents() for path in bars.get_paths()] for bars in panel.collections)
    assert [(box.x0, box.x1) for box in quiet] == [(10, 20), (20, 30)]
    assert [(box.x0, box.x1) for box in stop] == [(20, 30), (30, 40)]
    assert "stop signal: from step 30" in [text.get_text() for text in panel.texts]
    calm = [line | {"emo/should_stop": 0} if "loss" in line else line for line in history()]
    assert "stop signal: never" in [text.get_text() for text in figure(Run(history=calm, name="run")).axes[4].texts]


def test_groups_that_went_the_same_way_share_a_curve_and_those_far_apart_get_a_log_scale() -> None:
    lines = history(groups={"lora_a": 1, "head": 1, "lora_b": 16})
    panel = figure(Run(history=lines, name="run")).axes[1]
    assert labels(panel) == ["effective: lora_a, head", "effective: lora_b", "plain learning rate"]
    assert panel.get_yscale() == "log"


def test_a_run_of_another_optimizer_has_two_panels() -> None:
    panels = figure(Run(history=history(emo=False), name="adamw")).axes
    assert [panel.get_ylabel() for panel in panels] == ["loss", "learning rate"]
    assert labels(panels[1]) == ["plain learning rate"]


@pytest.mark.parametrize("steps", [10, 20])
def test_a_run_of_one_or_two_log_lines_is_drawn(tmp_path: Path, steps: int) -> None:
    draw(Run(history=history(steps), name="short"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_values_that_are_not_numbers_leave_gaps(tmp_path: Path) -> None:
    lines = [line | {"loss": math.nan} if line.get("loss") and line["step"] == 20 else line for line in history()]
    draw(Run(history=lines, name="gaps"), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_a_history_without_training_lines_is_refused() -> None:
    with pytest.raises(PlotError, match="no training loss was logged"):
        figure(Run(history=[{"step": 1, "eval_loss": 1.0}], name="run"))


def test_the_command_draws_a_run_folder_or_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("checkpoint-9", "checkpoint-40"):
        (tmp_path / "run" / name).mkdir(parents=True)
        state = {"log_history": history() if name == "checkpoint-40" else []}
        (tmp_path / "run" / name / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    assert main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "run.png")
    with Image.open(tmp_path / "run" / "run.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert main([str(tmp_path / "run" / "checkpoint-40"), "--output", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "b.png").is_file()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda folder: None, "there is no file or folder"),
        (lambda folder: folder.mkdir(), "holds neither trainer_state.json, nor a checkpoint"),
        (
            lambda folder: (folder.mkdir(), (folder / "trainer_state.json").write_text("[]")),
            "is not a Trainer's state",
        ),
        (
            lambda folder: (folder.mkdir(), (folder / "trainer_state.json").write_text('{"log_history": []}')),
            "no training loss was logged",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Any, said: str
) -> None:
    prepare(tmp_path / "run")
    assert main([str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("emo-hf plot: ")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match=r'a picture needs matplotlib: pip install "emo_hf\[hf\]"'):
        figure(Run(history=history(), name="run"))
