"""What a report says of runs that had faults."""

from __future__ import annotations

from emo_hf.study.analysis import Analysis
from emo_hf.study.document import Block, Heading, Table, Text
from emo_hf.study.fault_analysis import Harm, harm
from emo_hf.study.fault_spec import AFTERMATH, INF, NAN, POISONED, RATE, FaultSpec
from emo_hf.study.faults import NOISE
from emo_hf.study.figures import Figures
from emo_hf.study.wording import NOTHING, amount, interval_text, mean_sd


def faults_section(analysis: Analysis, figures: Figures) -> list[Block]:
    found = {task: harm(analysis, task) for task in analysis.study.tasks}
    if not any(found.values()):
        return []
    blocks: list[Block] = [
        Heading("Faults"),
        Text(
            "The same arms at the same tuned rates and seeds, once more with faults. Differences are paired by seed, "
            "(with faults − without) / mean without; there is none where a run diverged. A fault is skipped where one "
            "of its steps is. A clean step is braked when it is skipped although its loss is finite and no fault has "
            f"begun at it or in the {AFTERMATH} steps before (with a rate that is too high: in its whole length). "
            "Tasks with faults are in neither the mean over tasks nor the performance profile."
        ),
    ]
    header = ["arm", "diverged", "end, with faults", "end, without", "difference, 95 % interval", "faults skipped",
              "clean steps braked", "braked without faults"]  # fmt: skip
    for task, arms in found.items():
        faults = analysis.study.tasks[task].faults
        if faults is None or not arms:
            continue
        blocks += [
            Heading(task, 3),
            Text(f"{in_words(faults)}, against {faults.clean}."),
            Table(header, [[arm, *_cells(of_arm)] for arm, of_arm in arms.items()]),
        ]
    return blocks


def in_words(faults: FaultSpec) -> str:
    """What goes wrong, and how often."""
    what = {
        POISONED: f"the loss × {faults.factor:g} and {NOISE:g} standard deviations of noise on each gradient",
        NAN: "one NaN in one gradient",
        INF: "one infinite element in one gradient",
        RATE: f"the learning rate × {faults.factor:g} for {amount(faults.length, 'step')}",
    }
    return f"{faults.count} times a run: {what[faults.kind]}"


def _cells(found: Harm) -> list[str]:
    twin = f" (without: {found.clean_diverged})" if found.clean_diverged else ""
    return [
        f"{found.diverged} of {found.runs}{twin}",
        mean_sd(found.with_faults),
        mean_sd(found.without),
        interval_text(found.interval),
        f"{found.skipped} of {found.faults}",
        _share(found.braked, found.clean),
        _share(found.braked_in_twin, found.steps_of_twin),
    ]


def _share(part: int, of: int) -> str:
    return f"{100 * part / of:.2f} %" if of else NOTHING
