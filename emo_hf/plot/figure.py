"""From runs to a picture: which quantity has a panel, and which curves are in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emo_hf.cli_errors import UserError
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import PREFIX
from emo_hf.laws.words import DONE, SKIPPED, text_of
from emo_hf.plot.panels import COLORS, DASHES, Color, Mark, Panel, Picture, Stop, style
from emo_hf.plot.run import Run, Series, evaluations_in

SMOOTHING = 0.7
"""Weight of what was before, from log line to log line, in the training losses of several runs."""
FAR_APART = 100.0  # a largest loss of as many times the smallest gets a logarithmic scale
ROWS = 10  # names that a panel of several runs has room for
EFFECTIVE = PREFIX + "effective_lr"


def picture_of(runs: Sequence[Run], title: str | None = None) -> Picture:
    """The picture of one run, or of several in one; its title is the name of the only run, or `runs`, if None.

    Raises:
        UserError: for a run of which no loss was logged.
    """
    for run in runs:
        if not loss_of(run)[0] and not evaluations(run):
            raise UserError(f"no loss was logged in the run {run.name!r}: there is nothing to draw")
    alone = len(runs) == 1
    panels = _of_one(runs[0]) if alone else _of_several(runs)
    return Picture(
        title=title or (runs[0].name if alone else "runs"),
        panels=[panel for panel in panels if panel.curves],
        stops=[stop for i, run in enumerate(runs) for stop in _stop(run, alone, i)],
    )


def loss_of(run: Run) -> Series:
    """The training loss, or what an emotion that was logged alone has heard of it."""
    series = run.series("loss")
    return series if series[0] else run.series(PREFIX + "loss_short")


def evaluations(run: Run) -> list[tuple[str, Series]]:
    """Name and series of each evaluation loss; that of `eval_loss` alone is empty.

    `eval_loss` beside `eval_weights_loss` is that of an average of the weights, evaluated along the same run.
    """
    names = dict.fromkeys(name for line in run.history for name in evaluations_in(line))
    found = {}
    for name in names:
        own = name.removeprefix("eval_").removesuffix("loss").removesuffix("_")
        is_average = name.removesuffix("loss") + "weights_loss" in names
        found[f"{own} average".strip() if is_average else own] = run.series(name)
    return [(own, series) for own, series in found.items() if series[0]]


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Exponential average without a bias towards its beginning; what is not a number leaves a gap."""
    average, total, made = 0.0, 0.0, []
    for value in values:
        if not math.isfinite(value):
            made.append(math.nan)
            continue
        average, total = weight * average + (1 - weight) * value, weight * total + (1 - weight)
        made.append(average / total)
    return made


def _stop(run: Run, alone: bool, index: int) -> list[Stop]:
    """The first step at which the stop signal is known to have stood."""
    done = [note.step for note in run.decisions if note.kind == DONE]
    logged = [step for step, stands in zip(*run.series(PREFIX + "should_stop"), strict=True) if stands]
    step, (color, dash) = min([*done, *logged], default=None), (Color.BLACK, "dot") if alone else style(index)
    words = f"{'' if alone else run.name + ': '}stop signal from step {step}"
    return [] if step is None else [Stop(step=step, color=color, dash=dash, words=words)]


def _of_one(run: Run) -> list[Panel]:
    loss = Panel(what="loss", height=3.0)
    loss.add("training loss", run.series("loss"), Color.GREY, width=1.1)
    loss.add("fast average", run.series(PREFIX + "loss_short"), Color.VERMILLION, "dash")
    loss.add("slow average", run.series(PREFIX + "loss_long"), Color.BLUE, width=1.9)
    looks = ((Color.GREEN, "dashdot"), (Color.PURPLE, "dot"), (Color.BLACK, "dash"), (Color.ORANGE, "longdash"))
    for i, (name, series) in enumerate(evaluations(run)):
        loss.add(f"evaluation{': ' if name else ''}{name}", series, *looks[i % len(looks)], dots=True)
    loss.log = _far_apart(loss)
    loss.left_out = [note.step for note in run.decisions if note.kind == SKIPPED]
    averages = run.series(PREFIX + "loss_short")
    mark(loss, run.decisions, averages if averages[0] else loss.curves[0].series, Color.VERMILLION)

    scalar = Panel(what="scalar σ", height=2.0, low=-1.0, high=1.0)
    scalar.add("scalar σ", run.series(PREFIX + "scalar"), Color.BLUE)
    scalar.zones = LAWS[run.law].zones if run.law in LAWS else ()

    factor = Panel(what="factor c", height=1.6, low=0.0)
    factor.add("mean between log lines", run.series(PREFIX + "coefficient_mean"), Color.VERMILLION)
    low, high = (dict(zip(*run.series(PREFIX + "coefficient" + end), strict=True)) for end in ("_min", "_max"))
    both = sorted(low.keys() & high.keys())
    factor.band = both, [low[step] for step in both], [high[step] for step in both]
    steps, quiet = run.series(PREFIX + "quiet")
    factor.quiet = [(start, end) for start, end, flag in zip([0, *steps], steps, quiet, strict=False) if flag]
    return [loss, _rates_of_one(run), scalar, factor]


def _rates_of_one(run: Run) -> Panel:
    """The schedule's rate, and the effective one of each group; groups that went the same way share a curve."""
    panel = Panel(what="learning rate", height=2.0, low=0.0)
    names = dict.fromkeys(name for line in run.history for name in line if name.startswith(EFFECTIVE + "/"))
    labels: dict[str, list[str]] = {}
    for name in names or [EFFECTIVE]:
        labels.setdefault(str(run.series(name)), []).append(name)
    for i, alike in enumerate(labels.values()):
        color, dash = COLORS[1:][i % 6], DASHES[(0, 2, 3, 4)[i % 4]]
        of = ": " + ", ".join(name.removeprefix(EFFECTIVE + "/") for name in alike) if names else ""
        panel.add(f"effective{of}", run.series(alike[0]), color, dash)
    peaks = [peak for curve in panel.curves if (peak := max(curve.series[1])) > 0]
    if peaks and max(peaks) > 5 * min(peaks):  # as in LoRA+; not by the lowest rates, since schedules end at 0
        panel.log, panel.low = True, None
    steps, plain = run.series("learning_rate")
    unit, name = 1.0, "the schedule's"
    if peaks and max(plain, default=0.0) > 100 * max(peaks):  # as in v3.9, of whose rates it is the scale
        unit = 10.0 ** round(math.log10(max(peaks) / max(plain)))
        name += f" × {unit:g}"
    panel.add(name, (steps, [unit * value for value in plain]), Color.BLUE, "dash", width=1.3)
    return panel


def _of_several(runs: Sequence[Run]) -> list[Panel]:
    stretch = max(1.0, sum(max(1, len(evaluations(run))) for run in runs) / ROWS)
    evaluation = Panel(what="evaluation loss", height=2.6 * stretch)
    training = Panel(what="training loss, smoothed", height=2.6 * stretch)
    rate = Panel(what="learning rate", height=2.0 * stretch, low=0.0)
    scalar = Panel(what="scalar σ", height=2.0 * stretch, low=-1.0, high=1.0)
    factor = Panel(what="factor c", height=2.0 * stretch, low=0.0)
    for i, run in enumerate(runs):
        color, dash = style(i)
        for j, (name, series) in enumerate(evaluations(run)):
            other = DASHES[(DASHES.index(dash) + 3 * j) % len(DASHES)]
            evaluation.add(f"{run.name}{', ' if name else ''}{name}", series, color, other, dots=True)
        steps, losses = loss_of(run)
        training.add("", (steps, losses), color, width=0.8)
        training.add(run.name, (steps, smoothed(losses)), color, dash)
        mark(training, run.decisions, (steps, smoothed(losses)), color, run.name)
        effective = run.series(EFFECTIVE)
        rate.add(run.name, effective if effective[0] else run.series("learning_rate"), color, dash)
        scalar.add(run.name, run.series(PREFIX + "scalar"), color, dash)
        factor.add(run.name, run.series(PREFIX + "coefficient_mean"), color, dash)
    training.log, evaluation.log = _far_apart(training), _far_apart(evaluation)
    return [evaluation, training, rate, scalar, factor]


def _far_apart(panel: Panel) -> bool:
    values = [value for curve in panel.curves for value in curve.series[1] if math.isfinite(value)]
    return bool(values) and 0 < FAR_APART * min(values) < max(values)


def mark(panel: Panel, decisions: Sequence[Note], series: Series, color: str, name: str = "") -> None:
    """Mark what was decided, but for steps that were left out, on a curve; `name` is that of one run of several."""
    for note in decisions:
        value = value_at(series, note.step)
        if note.kind != SKIPPED and value is not None:
            words = f"{name}{', ' if name else ''}step {note.step:,}: {text_of(note)}"
            panel.marks.append(Mark(step=note.step, value=value, color=color, words=words))


def value_at(series: Series, step: float) -> float | None:
    """The curve's value at a step, on the line between its neighbours; None where there is no curve."""
    points = [(x, y) for x, y in zip(*series, strict=True) if math.isfinite(y)]
    if not points:
        return None
    before = max((point for point in points if point[0] <= step), default=points[0])
    after = min((point for point in points if point[0] >= step), default=points[-1])
    share = (step - before[0]) / (after[0] - before[0]) if after[0] != before[0] else 0.0
    return before[1] + (after[1] - before[1]) * share
