"""What is seen and heard while training runs: one short line per log, and Ctrl-C or SIGTERM as a request to finish."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import datasets
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from emo_hf.laws.metrics import PREFIX
from emo_hf.train.measures import Measure

logger = logging.getLogger(__name__)

PAUSE = 15.0
"""Seconds between two lines of a training that nobody watches; evaluations and the last step have theirs anyway."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGREED = 8
"""Steps between two at which ranks tell each other whether one was told to finish."""


def hide_bars_if_nobody_watches() -> None:
    """Those of loading and tokenizing, which go to stderr: a log file is to hold lines instead."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()


def show_progress(trainer: Trainer, measures: Sequence[Measure]) -> None:
    """Have the Trainer write short lines, and move a bar where somebody sees it.

    Args:
        trainer: which has its own callbacks so far.
        measures: what is shown of an evaluation beside its loss.
    """
    bar = sys.stderr.isatty() and not trainer.args.disable_tqdm
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if bar:
        trainer.add_callback(Bar)
    trainer.add_callback(Lines(measures, 0.0 if bar else PAUSE))


def log_line(logs: dict[str, Any], state: TrainerState, measures: Sequence[Measure] = ()) -> str | None:
    """A log entry in one line of at most 100 characters; None for entries that need none."""
    parts = [f"step {state.global_step:>5} of {state.max_steps}"]
    if "loss" in logs and "learning_rate" in logs:
        parts += [f"loss {logs['loss']:.4f}", f"lr {logs['learning_rate']:.2e}"]
        if PREFIX + "coefficient" in logs and PREFIX + "effective_lr" in logs:
            parts[-1] += f" × {logs[PREFIX + 'coefficient']:.3f} → {logs[PREFIX + 'effective_lr']:.2e}"
        if PREFIX + "scalar" in logs:
            parts.append(f"σ {logs[PREFIX + 'scalar']:+.3f}")
        return "  ".join(parts)
    if "eval_loss" in logs:
        found = ((measure.key, measure.of(logs)) for measure in measures)
        shown = (f"{key} {value:.4f}" for key, value in found if value is not None)
        return "  ".join([*parts, f"eval loss {logs['eval_loss']:.4f}", *shown])
    return None


class Bar(ProgressCallback):
    """The Trainer's progress bar without its logs: an emo optimizer logs more than fits on a line."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class Lines(TrainerCallback):
    """A line for a log entry.

    Args:
        measures: what is shown of an evaluation beside its loss.
        pause: seconds for which there is none after a line, unless something is evaluated or ends.
    """

    def __init__(self, measures: Sequence[Measure], pause: float) -> None:
        self._measures, self._pause, self._next = measures, pause, 0.0

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        line, now = log_line(logs, state, self._measures), time.monotonic()
        if line is None or not state.is_world_process_zero:
            return
        if now >= self._next or "eval_loss" in logs or state.global_step >= state.max_steps:
            self._next = now + self._pause
            tqdm.write(line)
            sys.stdout.flush()


class FinishOnInterrupt(TrainerCallback):
    """While training, Ctrl-C or SIGTERM lets the step end, saves a checkpoint and stops; a second one quits at once.

    With several ranks, each of which may be told at a step of its own or not at all, they agree every `AGREED` steps.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._told = self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals; only a main thread can."""
        signals = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._note) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, signal_number: int, frame: Any) -> None:
        self._told = True
        for number in SIGNALS:
            signal.signal(number, signal.default_int_handler)
        if self._accelerator.is_main_process:
            logger.warning("Finishing this step, then saving a checkpoint. Press Ctrl-C again to quit at once.")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._accelerator.num_processes == 1:
            self.interrupted = self._told
        elif state.global_step % AGREED == 0:
            if self._told:
                self._accelerator.set_trigger()
            self.interrupted = self._accelerator.check_trigger()
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.interrupted:  # to the Trainer the epoch is over; the user wants out, and the step has been saved
            control.should_evaluate = control.should_save = False
