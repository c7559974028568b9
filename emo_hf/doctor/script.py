"""Whether the loss of a script would be felt: runs it, in this process, and compares felt and logged losses.

The process ends with the script, since this looks where nothing of the package looks unasked: at every optimizer. What
a Trainer writes goes to a scratch folder, and it reports to nobody.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from emo_hf import run
from emo_hf.doctor.report import Finding, Report
from emo_hf.integrations.accelerate import unwrap
from emo_hf.losses.rank_mean import RankMean

FOLDERS = ("--output_dir", "--output-dir", "--logging_dir", "--logging-dir", "--project_dir", "--project-dir")
"""Options by which scripts of all kinds are told where to write; under the doctor that is a scratch folder."""
TOLERANCE = 1e-3
"""Of a loss: logs are rounded, and averages are taken in another order."""

NO_EMOTION = (
    "pass --optim emonavi to a Trainer's script, or keep its optimizer and give it an emotion: emo-hf run --emotion "
    "v3.1 SCRIPT; in a loop of your own make the optimizer with emo_hf.create_optimizer"
)
SHOW_IT = (
    "send the loss through accelerator.backward(loss), or call optimizer.observe(loss) before loss.backward(), or "
    "have emo_hf.feel_backward(optimizer) around the loop; outside of accelerate nothing is felt unasked; unset "
    "EMO_HF_TAP if it is 0"
)


class Watch:
    """What goes on in a script.

    Attributes:
        steps: how many each optimizer has taken.
        felt: the losses that were heard, each with what has taken its mean over the ranks.
        logged: the losses that a Trainer has logged, one for each step.
        scratch: the folder that takes what a script writes.
    """

    def __init__(self, wanted: int, end: Callable[[Report], NoReturn]) -> None:
        self.wanted, self.end = wanted, end
        self.steps: Counter[Optimizer] = Counter()
        self.felt: list[tuple[RankMean, float]] = []
        self.logged: list[float] = []
        self.scratch = tempfile.mkdtemp(prefix="emo-hf-doctor-")
        self._has_ended = threading.Lock()
        register_optimizer_step_pre_hook(self._before_step)
        self._look_at_losses()
        if importlib.util.find_spec("transformers"):
            self._look_at_trainer()

    def finish(self, error: str | None) -> NoReturn:
        """End the process with the report; `error` is what has gone wrong."""
        self._has_ended.acquire()  # for good: who comes first has the last word
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.end(self._report(error))

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self.steps[optimizer] >= self.wanted:
            self.finish(None)
        self.steps[optimizer] += 1

    def _look_at_losses(self) -> None:
        take = RankMean.take

        def noted(mean: RankMean, *args: Any, **kwargs: Any) -> float | None:
            loss = take(mean, *args, **kwargs)
            if loss is not None:
                self.felt.append((mean, loss))
            return loss

        RankMean.take = noted  # type: ignore[assignment, method-assign]

    def _look_at_trainer(self) -> None:
        """Have Trainers write into the scratch folder, report to nobody, and log each step."""
        from transformers import TrainerCallback, TrainingArguments
        from transformers.trainer import DEFAULT_CALLBACKS

        watch, original = self, TrainingArguments.__post_init__

        @functools.wraps(original)
        def quiet(arguments: Any) -> None:
            arguments.output_dir, arguments.report_to, arguments.push_to_hub = watch.scratch, "none", False
            arguments.logging_strategy, arguments.logging_steps = "steps", 1
            original(arguments)

        class Note(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if logs and "loss" in logs:
                    watch.logged.append(float(logs["loss"]))

        TrainingArguments.__post_init__ = quiet
        DEFAULT_CALLBACKS.append(Note)

    def _report(self, error: str | None) -> Report:
        facts, findings = {}, [Finding("script", False, error)] if error else []
        for i, (optimizer, steps) in enumerate(self.steps.most_common(), start=1):
            emo, name = unwrap(optimizer), type(optimizer).__name__
            engine = None if emo is None else emo._engine
            law = "no emotion" if engine is None else f"law {engine.law.label}"
            facts[f"optimizer {i}"] = f"{name}, {steps} steps, {law}"
            if engine is not None:
                losses = [loss for mean, loss in self.felt if mean is engine.rank_mean]
                findings.append(judge(f"felt ({name})", steps, losses, self.logged))
        if not self.steps and not findings:
            remedy = "check its arguments; of a launcher, whose steps are in other processes, name the script"
            findings.append(Finding("script", False, "it took no optimizer step", remedy))
        elif not findings:
            findings.append(Finding("felt", False, "not felt: no optimizer has an emotion", NO_EMOTION))
        return Report(facts, findings)


def examine(arguments: Sequence[str], steps: int, timeout: float, end: Callable[[Report], NoReturn]) -> NoReturn:
    """Run a script and judge what was seen.

    Args:
        arguments: those of `emo-hf run`.
        steps: optimizer steps after which it is ended.
        timeout: seconds after which it is ended in any case.
        end: is given the report, and ends the process.
    """
    watch = Watch(steps, end)
    late = f"not {steps} steps in {timeout:g} seconds: give more with --timeout, or fewer --steps"
    timer = threading.Timer(timeout, watch.finish, [late])
    timer.daemon = True
    timer.start()
    try:
        code: Any = run.main(redirected(arguments, watch.scratch))
    except SystemExit as stop:
        code = stop.code
    except BaseException as failure:  # noqa: BLE001  whatever it is: it is the script's, and is reported
        traceback.print_exc()
        watch.finish(f"{type(failure).__name__}: {failure}")
    watch.finish(f"it ended with exit code {code}" if code else None)


def redirected(arguments: Sequence[str], scratch: str) -> list[str]:
    """The arguments with a scratch folder wherever they name one to write to."""
    made: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, _ = argument.partition("=")
        named = f"{name}={scratch}" if name in FOLDERS and equals else argument
        made.append(scratch if before in FOLDERS else named)
    return made


def judge(name: str, steps: int, felt: Sequence[float], logged: Sequence[float]) -> Finding:
    """Whether an optimizer with an emotion has felt a loss in each step, and the one that was logged."""
    if len(felt) < steps:
        said = f"felt in part: {len(felt)} losses" if felt else "not felt: no loss has reached it"
        return Finding(name, False, f"{said} in {steps} steps", SHOW_IT)
    for i, (ours, theirs) in enumerate(zip(felt, logged, strict=False), start=1):
        if abs(ours - theirs) > TOLERANCE * max(abs(ours), abs(theirs)) + 1e-6:
            said = f"another loss than was logged: step {i}, felt {ours:.6g}, logged {theirs:.6g}"
            remedy = "show the one that you mean with optimizer.observe(loss), which takes precedence"
            return Finding(name, False, said, remedy)
    return Finding(name, True, f"{steps} steps, {felt[0]:.4f} → {felt[-1]:.4f}" + ", as logged" * bool(logged))
