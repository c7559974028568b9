"""The report of a study: one page of Markdown and one figure, named after the study."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from emo_hf.study.analysis import SIGNIFICANT, WRONG, Analysis, Result
from emo_hf.study.execute import duration
from emo_hf.study.figures import draw
from emo_hf.study.plan import Line, rate_of
from emo_hf.study.schema import Study
from emo_hf.study.statistics import Interval

NOTHING = "–"
PLAIN = frozenset(" -.,:;+/=%()'")


def write_report(study: Study, lines: Mapping[str, Line], folder: Path) -> list[Path]:
    """Write `STUDY.md` and `STUDY.png` of a folder's runs, key → line, to a folder; gives the two files."""
    analysis = Analysis(study, lines)
    page, picture = folder / f"{study.name}.md", folder / f"{study.name}.png"
    draw(analysis, picture)
    page.write_text("\n\n".join(blocks(analysis, picture.name)) + "\n", encoding="utf-8")
    return [page, picture]


def blocks(analysis: Analysis, picture: str) -> Iterator[str]:
    """The parts of the page."""
    study, reference = analysis.study, data(analysis.study.reference)
    total = sum(line["seconds"] for line in analysis.lines)
    yield f"# Study {data(study.name)}"
    yield (
        f"{amount(len(analysis.lines), 'run')} of {amount(len(study.judged), 'arm')} on "
        f"{amount(len(study.tasks), 'task')}, {duration(total)} of work in all. Every arm is compared with "
        f"**{reference}** by the loss at the end of training, each at its own best rate, on data by which no rate was "
        "chosen and that no arm has heard."
    )
    if analysis.missing:
        failed = f", {len(analysis.failed)} have failed" if analysis.failed else ""
        yield f"**Not complete:** about {analysis.missing} runs are missing{failed}. The same command goes on."
    yield from (f"**Not paired:** {data(problem)}." for problem in analysis.pairing_problems()[:10])
    yield f"![Differences to the reference, losses against rates and steps]({picture.replace(' ', '%20')})"
    for part in (_overall, _by_task, _pairs, _wrong_rates, _faults, _stops, _decisions, _method):
        yield from part(analysis)


def _overall(analysis: Analysis) -> Iterator[str]:
    rows = []
    for name, judged in analysis.judged.items():
        (difference, tasks), (lost, runs) = analysis.difference(judged, analysis.reference), analysis.lost(judged)
        said = "reference" if judged is analysis.reference else interval(difference)
        rows.append([data(name), said, str(tasks), f"{lost} of {runs}"])
    yield "## Mean over tasks"
    yield table(["arm", f"against {data(analysis.reference.name)}, % of its loss", "tasks", "runs lost"], rows)
    yield (
        "Below 0 is better. The 95 % interval carries the spread over tasks: tasks are drawn with replacement, then "
        "paired seeds within each. A run is lost if its loss at the end is not finite, or no better than at the "
        "start or than by chance. Lost runs are counted here and are in no mean: where there are any, an arm is "
        "worse than its figure says."
    )


def _by_task(analysis: Analysis) -> Iterator[str]:
    results = {task: analysis.results(spec) for task, spec in analysis.study.tasks.items()}
    yield "## By task"
    for task, found in results.items():
        if found:
            rows = [[data(name), *_result(result)] for name, result in found.items()]
            yield f"### {data(task)}"
            yield table(["arm", "rate", "loss, mean ± sd", "lost", "difference, %"], rows)
    yield (
        "Differences are paired by seed, with Student's 95 % interval. In bold where the paired t-test, by Holm over "
        f"the arms of the task, has p < {SIGNIFICANT:g}. Beyond a rate with (edge) a better one may lie."
    )


def _result(result: Result) -> list[str]:
    bold = "**" if result.clear else ""
    difference = "" if result.difference is None else f"{bold}{interval(result.difference)}{bold}"
    ends = f"{statistics.fmean(result.ends):.4g}" if result.ends else NOTHING
    spread = f" ± {statistics.stdev(result.ends):.2g}" if len(result.ends) > 1 else ""
    rate = f"{rate_of(result.quarter):g}" + (" (edge)" if result.at_edge else "")
    return [rate, ends + spread, f"{result.lost} of {result.runs}" if result.lost else "", difference]


def _pairs(analysis: Analysis) -> Iterator[str]:
    if not analysis.study.pairs:
        return
    rows = []
    for name, against in analysis.study.pairs:
        difference, tasks = analysis.difference(analysis.judged[name], analysis.judged[against])
        rows.append([data(name), data(against), interval(difference), str(tasks)])
    yield "## Pairs"
    yield table(["arm", "against", "mean over tasks, %", "tasks"], rows, words=2)


def _wrong_rates(analysis: Analysis) -> Iterator[str]:
    rows = []
    for name, judged in analysis.judged.items():
        costs = [analysis.untuned(judged), *(analysis.wrong(judged, by) for by in WRONG.values())]
        rows.append([data(name), *map(cost, costs)])
    yield "## What a wrong rate costs"
    yield table(["arm", "without tuning, %", *(f"rate {by}, %" for by in WRONG)], rows)
    yield (
        f"Means over tasks, from the tuning runs. Without tuning: the mean loss at the best rate of "
        f"{data(analysis.reference.name)} and at half a decade on either side, against its loss at that rate. The "
        "others: against the arm's own best rate; 3 and 10 are half a decade and a decade. In brackets on how many "
        f"tasks the run was lost, which are not in the mean; {NOTHING} where rates are of another kind, or not run."
    )


def _faults(analysis: Analysis) -> Iterator[str]:
    tasks = [task for task in analysis.study.tasks.values() if task.rates_of is not None]
    rows = []
    for task in tasks:
        for name, judged in analysis.judged.items():
            if analysis.ends(task, judged):
                change, lost = analysis.harm(task, judged)
                counts = analysis.extra(task, judged).items()
                said = ", ".join(f"{data(key.replace('_', ' '))} {value:g}" for key, value in counts)
                rows.append([data(task.name), data(name), interval(change), str(lost or ""), said])
    if rows:
        yield "## Against the twin"
        yield table(["task", "arm", "change of the loss, %", "lost", "counted, a run"], rows, words=2)
        yield "The same arm, rate and seed on the task whose rates are taken. These tasks are in no mean over tasks."


def _stops(analysis: Analysis) -> Iterator[str]:
    rows = []
    for task in analysis.tuned_tasks:
        for name, judged in analysis.judged.items():
            found = analysis.stops(task, judged)
            if found is not None:
                ended = f"{found.stopped} of {found.runs}"
                rows.append([data(task.name), data(name), ended, percent(found.saved), str(found.false_alarms)])
    if rows:
        yield "## Runs that an arm has ended"
        yield table(["task", "arm", "ended", "steps saved, %", "false alarms"], rows, words=2)
        yield (
            "The result of such an arm is its best evaluation by the tuning half, which the arm may hear. A false "
            "alarm ended more than 1 % above the reference's full run of the same seed."
        )


def _decisions(analysis: Analysis) -> Iterator[str]:
    counts = {name: analysis.decisions(judged) for name, judged in analysis.judged.items()}
    kinds = sorted({kind for found in counts.values() for kind in found})
    rows = [[data(name), *(str(found[kind] or "") for kind in kinds)] for name, found in counts.items() if found]
    if rows:
        yield "## What laws have decided"
        yield table(["arm", *map(data, kinds)], rows)
        yield "How often, in all runs on fresh seeds."


def _method(analysis: Analysis) -> Iterator[str]:
    study = analysis.study
    yield "## How it was done"
    yield (
        "Rates are half a decade apart over the range, then a quarter of a decade around the best of each arm, with "
        f"{amount(study.tune, 'tuning seed')}; a best rate at the edge widens the range. Then "
        f"{amount(study.report, 'fresh seed')}, or as many as the task says, at the best rate. Held-out data are cut "
        "in two: one half chooses rates and is what a law hears, the other judges. For one seed all arms have the "
        "same initial weights, the same data in the same order and the same number of steps, which is checked by "
        "sums. An arm with an average of its weights is one set of runs, in which both are evaluated. Every run is a "
        "line of `runs.jsonl`."
    )
    found = Counter(
        ", ".join(f"{name} {version}" for name, version in line["versions"].items())
        + f"; {line['device']}, {amount(line['threads'], 'thread')}"
        for line in analysis.lines
    )
    yield "\n".join(f"- {amount(number, 'run')} with {data(what)}" for what, number in found.most_common(5))
    for line in analysis.failed[:10]:
        yield f"- failed: {data(line['task'])}, {data(line['arm'])}: {data(line['error'])}"


def data(name: str) -> str:
    """A name in Markdown, where no character of it means anything."""
    return "".join(c if c.isalnum() or c in PLAIN else f"&#{ord(c)};" for c in name)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table, the first columns of words and the others of numbers."""
    rule = ["---" if i < words else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def amount(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−") if math.isfinite(share) else NOTHING


def interval(found: Interval | None) -> str:
    if found is None or not math.isfinite(found.low):
        return NOTHING if found is None else percent(found.mean)
    return f"{percent(found.mean)} ({percent(found.low)} to {percent(found.high)})"


def cost(found: tuple[float, int]) -> str:
    mean, lost = found
    return percent(mean) + (f" (lost: {lost})" if lost else "")
