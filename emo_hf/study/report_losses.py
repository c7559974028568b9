"""What a report says of losses: differences, learning rates, steps, profiles."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from emo_hf.study.analysis import TARGET, TAUS, Analysis
from emo_hf.study.differences import BETTER, NO_DIFFERENCE, WORSE, Difference
from emo_hf.study.document import Block, Heading, Picture, Table, Text
from emo_hf.study.figures import Figures
from emo_hf.study.specification import ALL
from emo_hf.study.wording import NOTHING, amount, interval_text, mean_sd, p_text, rate_text, width_text

SHOWN_TAUS = (1.0, 1.5, 2.0, 4.0)


def what_was_found(analysis: Analysis, figures: Figures) -> list[Block]:
    study = analysis.study
    by_task = {task: analysis.differences(task) for task in study.tasks}
    others = [arm for arm in study.arms if arm != study.reference]
    if not any(by_task.values()):
        return [Heading("What was found"), Text("Nothing yet: no two arms have been run on the same fresh seeds.")]
    blocks: list[Block] = [Heading("What was found"), Text(_in_a_sentence(analysis, by_task))]
    rows = []
    for arm in others:
        verdicts = Counter(differences[arm].verdict for differences in by_task.values() if arm in differences)
        counts = [str(verdicts.get(v, 0)) for v in (BETTER, NO_DIFFERENCE, WORSE)]
        rows.append([arm, *counts, interval_text(analysis.over_all_tasks(arm))])
    header = ["arm", "tasks: better", "no difference shown", "worse", f"mean over tasks against {study.reference}"]
    blocks.append(Table(header, rows))
    if figures.means("means.png"):
        shows = f"Mean difference over the tasks from {study.reference}, with 95 % intervals; left is better"
        blocks += [Picture("means.png", shows), Text("Grey: the interval holds 0.")]
    if figures.differences("differences.png"):
        shows = f"Differences of the loss at the end from {study.reference}, with 95 % intervals; left is better"
        blocks += [
            Picture("differences.png", shows),
            Text("Left of the line is better. Grey and hollow: no difference shown."),
        ]
    for task, differences in by_task.items():
        blocks += [Heading(task, 3), _difference_table(analysis, task, differences)]
    return blocks


def _in_a_sentence(analysis: Analysis, by_task: Mapping[str, Mapping[str, Difference]]) -> str:
    every = [difference for differences in by_task.values() for difference in differences.values()]
    count = Counter(difference.verdict for difference in every)
    none = count.get(NO_DIFFERENCE, 0)
    return (
        f"Of {amount(len(every), 'comparison')} with {analysis.study.reference}, {count.get(BETTER, 0)} came out "
        f"better, {count.get(WORSE, 0)} worse, and in {none} no difference was shown. Lower losses are better; a "
        "difference is a share of the reference's loss."
    )


def _difference_table(analysis: Analysis, task: str, differences: Mapping[str, Difference]) -> Table:
    rows = []
    for arm in analysis.study.arms:
        ends = [end for end in analysis.ends(task, arm) if math.isfinite(end)]
        rate = analysis.rate(task, arm)
        shown = [arm, NOTHING if rate is None else rate_text(rate), mean_sd(ends)]
        difference = differences.get(arm)
        if arm == analysis.study.reference:
            rows.append([*shown, "reference", "", ""])
        elif difference is None:
            rows.append([*shown, NOTHING, NOTHING, _without(analysis, task, arm)])
        else:
            p = NOTHING if difference.adjusted is None else p_text(difference.adjusted)
            rows.append([*shown, interval_text(difference.interval), p, _verdict(difference)])
    return Table(["arm", "tuned rate", "loss at the end", "difference, 95 % interval", "p, Holm", "verdict"], rows)


def _without(analysis: Analysis, task: str, arm: str) -> str:
    lost = analysis.rate(task, arm) is None and analysis.is_tuned(task, arm)
    return "diverged at every rate" if lost else "not run"


def pairs(analysis: Analysis, figures: Figures) -> list[Block]:
    """Arms against each other, such as a law against its ablations."""
    tasks = [task for task in analysis.study.clean_tasks if analysis.pair_differences(task)]
    if not tasks:
        return []
    found = {task: analysis.pair_differences(task) for task in tasks}
    rows = [
        [
            f"{pair[0]} − {pair[1]}",
            *(_in_short(found[task].get(pair)) for task in tasks),
            interval_text(analysis.over_all_tasks(*pair)),
        ]
        for pair in analysis.study.pairs
    ]
    text = (
        "Differences of the loss at the end, as shares of the second arm's; below 0 the first is better. In **bold** "
        "where a difference is shown, by interval and by p after Holm over the pairs of the task."
    )
    return [Heading("Pairs"), Text(text), Table(["", *tasks, "mean over tasks"], rows)]


def _in_short(difference: Difference | None) -> str:
    if difference is None:
        return NOTHING
    said = interval_text(difference.interval) if difference.interval is not None else _verdict(difference)
    return f"**{said}**" if difference.verdict in (BETTER, WORSE) else said


def _verdict(difference: Difference) -> str:
    if difference.diverged or difference.reference_diverged:
        theirs = f" (reference {difference.reference_diverged})"
        return f"{difference.verdict}: diverged in {difference.diverged} of {difference.seeds}{theirs}"
    return difference.verdict


def against_rates(analysis: Analysis, figures: Figures) -> list[Block]:
    study = analysis.study
    blocks: list[Block] = [Heading("Loss against learning rate")]
    if not figures.learning_rates("learning_rates.png"):
        return []
    seeds = study.seeds.report if study.report_rates == ALL else study.seeds.tune
    blocks += [
        Picture("learning_rates.png", "Loss at the end against the learning rate, for each task and arm"),
        Text(
            f"Mean over {amount(seeds, 'seed')}. The green band is within 5 % of the best loss of all arms; hollow "
            "triangles lie above the panel, or diverged. The width of the good range says how well one must know the "
            "rate: in decades, with ≥ where it goes on beyond the rates that were tried."
        ),
    ]
    for task in analysis.rated_tasks():
        widths = analysis.widths(task)
        kinds = list(next(iter(widths.values())))
        rows = [
            [
                arm,
                NOTHING if (rate := analysis.rate(task, arm)) is None else rate_text(rate),
                *(width_text(of_arm[kind]) for kind in kinds),
            ]
            for arm, of_arm in widths.items()
        ]
        blocks += [Heading(task, 3), Table(["arm", "best rate", *kinds], rows)]
    edges = _tuned_at_an_edge(analysis)
    if edges:
        blocks.append(
            Text(f"**Tuned rate at the edge of those tried**, so that a better one may lie beyond: {edges}.")
        )
    return blocks


def _tuned_at_an_edge(analysis: Analysis) -> str:
    found = []
    for (task, arm), rate in analysis.best.items():
        rates = analysis.study.rates_of(analysis.study.arms[arm])
        if len(rates) > 1 and rate in (rates[0], rates[-1]):
            found.append(f"{arm} on {task} ({rate_text(rate)})")
    return ", ".join(found)


def against_steps(analysis: Analysis, figures: Figures) -> list[Block]:
    if not figures.steps("steps.png"):
        return []
    return [
        Heading("Loss against steps"),
        Picture("steps.png", "Evaluation loss against steps at the tuned rates, for each task and arm"),
        Text("At the tuned rates: the mean over the fresh seeds, and their range."),
    ]


def profile_section(analysis: Analysis, figures: Figures) -> list[Block]:
    if not figures.profiles("profile.png"):
        return []
    profiles = analysis.profiles()
    indices = [round((tau - TAUS[0]) / (TAUS[1] - TAUS[0])) for tau in SHOWN_TAUS]
    rows = [[arm, *(f"{100 * shares[i]:.0f} %" for i in indices)] for arm, shares in profiles.items()]
    return [
        Heading("Performance profile"),
        Picture("profile.png", "Share of tasks and seeds solved within τ times the steps of the fastest arm"),
        Text(
            f"A task is solved when the evaluation loss is within {100 * TARGET:g} % of where "
            f"{analysis.study.reference} ends on average. Shown is the share of tasks and seeds in which an arm gets "
            "there with at most τ times the steps of the fastest arm. Steps are read off the evaluations, linearly "
            "between them."
        ),
        Table(["arm", *(f"τ = {tau:g}" for tau in SHOWN_TAUS)], rows),
    ]
