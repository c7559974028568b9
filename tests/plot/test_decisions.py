"""What a law has decided: in a few words, on the picture, in the table at the end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.text import Annotation, Text

from emo_hf.plot.decisions import in_words, moments
from emo_hf.plot.figure import figure
from emo_hf.plot.moments import MOST_ROWS
from emo_hf.plot.run import Run
from tests.plot.histories import history

DECISIONS = [
    (10, "raised: nothing moves in 128 steps, ×3 → 3"),
    (14, "started: the loss falls, rate ×3"),
    (17, "skipped: a loss of 70 where 1.2 is usual"),
    (18, "easing: exponent 0.01 ± 0.04 in the last 320 steps, rate ×0.49"),
    (20, "come back: the loss has jumped from 1 to 2, rate ×0.2 → ×3"),
    (31, "eased: an evaluation of 1.147, 1.125 before, rate ×0.269"),
    (31, "skipped: a loss of 70 where 1.2 is usual"),
    (41, "eased: an evaluation of 1.2, 1.125 before, rate ×0.1"),
    (41, "done: evaluations are no better, rate ×0.1"),
]


def flags(panel: Any) -> list[Annotation]:
    return [text for text in panel.texts if isinstance(text, Annotation)]


def box(flag: Annotation) -> Any:
    return Text.get_window_extent(flag)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (DECISIONS[0][1], "raised ×3"),
        ("lowered: the loss has risen above its beginning, ×0.333 → 0.333", "lowered ×0.333"),
        (DECISIONS[1][1], "started at ×3"),
        (DECISIONS[3][1], "easing"),
        ("easing no more: exponent 0.3 ± 0.04 in the last 320 steps, rate ×0.4", "easing no more"),
        (DECISIONS[4][1], "come back to ×3"),
        (DECISIONS[5][1], "eased to ×0.269"),
        ("done: the loss is flat, and easing buys nothing any more, rate ×0.03", "done"),
        ("left out step 3", "left out step 3"),
        ("a law that has very much to say about each of its steps", "a law that has very much to…"),
    ],
)
def test_a_decision_has_a_short_label(text: str, label: str) -> None:
    assert [moment.label for moment in moments([(5, text)])] == [label]


def test_a_run_is_told_in_one_line() -> None:
    assert in_words(moments(DECISIONS, 40)) == (
        "raised at 10 (×3), started at 14 (×3), easing at 18, come back at 20 (to ×3), eased at 31 and 40 (to ×0.1), "
        "done at 40; 2 spikes left out"
    )
    assert in_words(moments(DECISIONS[2:3])) == "1 spike left out"
    assert in_words([]) == ""
    wavering = [(step, ("easing: a" if step % 2 else "easing no more: b")) for step in range(1, 1001)]
    assert in_words(moments(wavering)) == (
        "easing at 1, easing no more at 2, easing at 3, 994 more, easing no more at 998, easing at 999, "
        "easing no more at 1,000"
    )


def test_each_moment_is_a_flag_whose_pole_stands_on_the_curve() -> None:
    panel = figure(Run(history=history(), law="settle", decisions=DECISIONS)).axes[0]
    assert [flag.get_text() for flag in flags(panel)] == [
        "raised ×3", "started at ×3", "easing", "come back to ×3", "eased to ×0.269", "eased to ×0.1, done",
    ]  # fmt: skip
    assert [flag.xy[0] for flag in flags(panel)] == [10, 14, 18, 20, 31, 40]
    assert [flag.xy[1] for flag in flags(panel)] == pytest.approx([0.2, 0.16, 0.12, 0.1, 0.065, 0.05])
    assert "2 spikes left out (braked)" in panel.get_legend_handles_labels()[1]
    assert not flags(figure(Run(history=history(), law="settle")).axes[0])


@pytest.mark.parametrize("apart", [1, 3, 7])
def test_flags_cover_neither_each_other_nor_a_pole_nor_the_panel(apart: int) -> None:
    decisions = [(step, f"eased: no better, rate ×0.{step}") for step in range(10, 40, apart)]
    made = figure(Run(history=history(), law="settle", decisions=decisions))
    made.canvas.draw()
    panel = made.axes[0]
    found = flags(panel)
    assert len(found) == len(decisions) or len({round(flag.get_position()[1], 3) for flag in found}) == MOST_ROWS
    for one, other in itertools.combinations(found, 2):
        assert not box(one).overlaps(box(other))
    for flag, other in itertools.permutations(found, 2):
        x = panel.transData.transform(other.xy)[0]
        crosses = box(flag).x0 < x < box(flag).x1 and box(other).y0 > box(flag).y1
        assert not crosses, f"the pole of {other.get_text()} goes through {flag.get_text()}"
    assert all(box(flag).y0 >= panel.get_window_extent().y1 for flag in found)


def test_a_stop_that_came_after_the_last_log_line_is_drawn_where_it_came() -> None:
    calm = [line | {"emo/should_stop": 0} if "loss" in line else line for line in history()]
    signals = figure(Run(history=calm, law="settle", decisions=DECISIONS)).axes[4]
    assert "stop signal: from step 40" in [text.get_text() for text in signals.texts]
