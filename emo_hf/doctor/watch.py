"""Runs a script as `emo-hf run` does and looks at its losses, until so many optimizer steps have been taken.

`python -m emo_hf.doctor.watch RESULT.json STEPS SCRATCH ARGS…`, with the arguments of `emo-hf run`. It is a process of
its own because it looks where nothing of this package looks unasked: at `Tensor.backward` and at every optimizer. What
a Trainer writes goes to the scratch folder, and it reports to nobody.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from emo_hf import run
from emo_hf.doctor.felt import noting_felt
from emo_hf.integrations.accelerate import unwrap


class Enough(BaseException):
    """As many steps have been taken as were wanted: nothing that a script's `except Exception` shall catch."""


class Watch:
    """What goes on in a script.

    Attributes:
        steps: of the optimizer that has taken the most of them.
        sent: for each of these steps the losses that went to backward before it.
        logged: (step, loss) of a Trainer's log lines.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.counts: Counter[int] = Counter()
        self.optimizers: dict[int, Optimizer] = {}
        self.sent: list[list[float]] = []
        self.since_step: list[float] = []
        self.logged: list[tuple[int, float]] = []
        self._inside = False

    def before_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Count a step, or end the script before one more."""
        key = id(optimizer)
        if self.counts[key] >= self.wanted:
            raise Enough
        self.optimizers[key] = optimizer
        self.counts[key] += 1
        if self.counts[key] > len(self.sent):
            self.sent.append(self.since_step)
            self.since_step = []

    def note(self, loss: Any) -> None:
        """Note a loss on its way to backward."""
        if isinstance(loss, torch.Tensor) and loss.numel() == 1 and not loss.is_complex():
            self.since_step.append(float(loss.detach()))

    def look_at(self, owner: Any, name: str, where: int) -> None:
        """Note the loss that a method is called with; not those of the calls inside of it."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            outermost, self._inside = not self._inside, True
            try:
                if outermost:
                    self.note(args[where] if len(args) > where else None)
                return original(*args, **kwargs)
            finally:
                if outermost:
                    self._inside = False

        setattr(owner, name, watched)

    def quieten_trainer(self, scratch: str) -> None:
        """Have Trainers write into the scratch folder, report to nobody, and log each step."""
        from transformers import TrainerCallback, TrainingArguments
        from transformers.trainer import DEFAULT_CALLBACKS

        watch, original = self, TrainingArguments.__post_init__

        @functools.wraps(original)
        def quiet(arguments: Any) -> None:
            arguments.output_dir = scratch
            arguments.report_to, arguments.push_to_hub = "none", False
            arguments.logging_strategy, arguments.logging_steps = "steps", 1
            original(arguments)

        class Note(TrainerCallback):
            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
                if logs and "loss" in logs:
                    watch.logged.append((state.global_step, float(logs["loss"])))

        TrainingArguments.__post_init__ = quiet
        DEFAULT_CALLBACKS.append(Note)

    def result(self, felt: list[tuple[Any, float]]) -> dict[str, Any]:
        """All of it as plain values; of the optimizers those without an emotion too."""
        found: list[dict[str, Any]] = []
        for key, optimizer in self.optimizers.items():
            emo = unwrap(optimizer)
            law = None if emo is None else emo._engine.law
            found.append(
                {
                    "optimizer": type(optimizer).__name__,
                    "steps": self.counts[key],
                    "law": None if law is None else law.label,
                    "felt": [loss for of, loss in felt if of is law],
                }
            )
        found.sort(key=lambda each: -each["steps"])
        return {"optimizers": found, "sent": self.sent, "logged": self.logged}


def main(argv: list[str]) -> int:
    """Run the script and write what was seen.

    Args:
        argv: the result's file, the steps, the scratch folder, and the arguments of `emo-hf run`.
    """
    target, wanted, scratch, *arguments = argv
    watch = Watch(int(wanted))
    if importlib.util.find_spec("transformers"):
        watch.quieten_trainer(scratch)
    if importlib.util.find_spec("accelerate"):
        from accelerate import Accelerator

        watch.look_at(Accelerator, "backward", 1)
    watch.look_at(torch.Tensor, "backward", 0)
    register_optimizer_step_pre_hook(watch.before_step)
    ended = "the script came to its end"
    error = None
    with noting_felt() as felt:
        try:
            code = run.main(arguments)
            if code:
                error = f"the script could not be run (exit code {code})"
        except Enough:
            ended = f"ended after {wanted} optimizer steps"
        except SystemExit as stop:
            ended = f"the script exited with {stop.code!r}"
            if stop.code not in (None, 0):
                error = ended
        except BaseException as failure:  # noqa: BLE001  whatever it is: it is the script's, and is reported
            traceback.print_exc()
            ended, error = "the script failed", f"{type(failure).__name__}: {' '.join(str(failure).split())}"
        Path(target).write_text(json.dumps({"ended": ended, "error": error, **watch.result(felt)}), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads and workers of a script that was cut off in the middle shall not hold it up


if __name__ == "__main__":
    main(sys.argv[1:])
