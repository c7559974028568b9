"""What is seen and heard while training runs: one short line per log, and Ctrl-C as a request to finish."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from emo_hf.laws.metrics import PREFIX
from emo_hf.train.measures import Measure

logger = logging.getLogger(__name__)


def log_line(logs: dict[str, Any], step: int, measures: Sequence[Measure] = ()) -> str | None:
    """A log entry in one line of at most 100 characters; None for entries that need none.

    Args:
        logs: what the Trainer logs.
        step: the optimizer step.
        measures: what is shown of an evaluation beside its loss.
    """
    if "loss" in logs:
        parts = [f"step {step:>5}", f"loss {logs['loss']:.4f}"]
        if PREFIX + "coefficient" in logs:
            c, effective = logs[PREFIX + "coefficient"], logs[PREFIX + "effective_lr"]
            parts.append(f"lr {logs['learning_rate']:.2e} × {c:.3f} → {effective:.2e}")
            parts.append(f"scalar {logs[PREFIX + 'scalar']:+.3f}")
            parts += ["quiet"] if logs[PREFIX + "quiet"] else []
        else:
            parts.append(f"lr {logs['learning_rate']:.2e}")
        return "  ".join(parts)
    if "eval_loss" in logs:
        found = ((measure, measure.of(logs)) for measure in measures)
        shown = [f"{measure.key} {value:.4f}" for measure, value in found if value is not None]
        return "  ".join([f"step {step:>5}", f"eval loss {logs['eval_loss']:.4f}", *shown])
    return None


class ShortProgressCallback(ProgressCallback):
    """The Trainer's progress bar with short lines: an emo optimizer logs more than fits on one.

    Args:
        measures: what is shown of an evaluation beside its loss.
    """

    def __init__(self, measures: Sequence[Measure] = ()) -> None:
        super().__init__()
        self._measures = measures

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        line = log_line(logs or {}, state.global_step, self._measures)
        if line is not None and state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line)


class FinishOnInterrupt(TrainerCallback):
    """While training, Ctrl-C lets the step end, saves a checkpoint and stops; a second one quits at once.

    With several ranks it stays out of the way: each would stop at a step of its own.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: Any = None
        self._installed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)
            self._installed = True

    def _note(self, signal_number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self.restore()
        logger.warning("Finishing this step, then saving a checkpoint. Press Ctrl-C again to quit at once.")

    def restore(self) -> None:
        """Give Ctrl-C its usual meaning again."""
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.interrupted:  # to the Trainer the epoch is over; the user wants out, and the step has been saved
            control.should_evaluate = False
            control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
