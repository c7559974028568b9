"""Lightning: losses reach emo optimizers, metrics its loggers, and the self-stop signal its trainer.

Works with `lightning` and with `pytorch_lightning`. Imports whichever of them the process has, so it is imported by
nothing else here.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from typing import Any

import torch

from emo_hf.integrations.accelerate import emotions, is_loss, unwrap
from emo_hf.integrations.backward import LossOfPass
from emo_hf.laws.decision import Note
from emo_hf.laws.metrics import PREFIX
from emo_hf.laws.words import text_of
from emo_hf.optim.attach import attach
from emo_hf.optim.attachment import Attachment
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.reading import one_of, read_value, whole_number
from emo_hf.trainer.self_stop import SelfStop

PACKAGES = ("lightning.pytorch", "pytorch_lightning")

logger = logging.getLogger(__name__)


def _lightnings_callback() -> Any:
    """The base class of callbacks, of the package that is in use already, else of the one that is installed."""
    for package in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        if importlib.util.find_spec(package.partition(".")[0]) is not None:
            return importlib.import_module(package).Callback
    raise ImportError("EmoLightningCallback needs Lightning: pip install lightning")


_Callback: Any = _lightnings_callback()


class EmoLightningCallback(_Callback):
    """Makes emo optimizers, and others with an emotion attached, feel the loss in a Lightning `Trainer`.

    The loss of each backward pass is shown before it begins, without the scale of a gradient scaler. The loss of a
    step is the mean over its micro-batches, also where an epoch ends with fewer of them; in manual optimization, over
    the backward passes since the last step. With several optimizers each is shown the losses of those passes that give
    gradients to its parameters: not what `toggle_optimizer` has switched off. What a module observes by itself takes
    precedence.

    Metrics go through `self.log` to loggers, progress bar and `trainer.callback_metrics`, where Lightning logs
    (`log_every_n_steps`): `emo/coefficient`, …, and with several emotions `emo/<class of optimizer>/coefficient`, …

    Checkpoints of Lightning hold the emotion, since it is part of the optimizer's state. Nothing else is kept here.

    Args:
        emotion: a law's name; optimizers that have no emotion are given one when `fit` begins (see `emo_hf.attach`).
        self_stop: `off`; `log` one line when training has gone flat or the law has decided to stop; `stop` training
            then, by `trainer.should_stop` (Lightning minds `min_epochs` and `min_steps`). With several emotions
            training is over when all of them say so.
        patience: for laws that do not decide by themselves, windows of 32 steps for which training must be flat.
        min_steps: steps after warm-up that are never counted as flat.
        warmup_steps: steps of learning-rate warm-up.
        validation_loss: the name under which your module logs its validation loss, for laws that hear evaluations.
        prog_bar: whether the progress bar shows the effective learning rate.
        **law_options: options of the law that is attached, and `sync`, as `attach` takes them.

    Raises:
        ValueError: if an argument is not acceptable.
        TypeError: if the law has no such option.
    """

    def __init__(
        self, emotion: str | None = None, *, self_stop: str = "log", patience: int = SelfStop.patience,
        min_steps: int = SelfStop.min_steps, warmup_steps: int = 0, validation_loss: str = "val_loss",
        prog_bar: bool = False, **law_options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        read_value("self_stop", self_stop, one_of("off", "log", "stop"))  # Lightning's ModelCheckpoint saves
        self._warmup_steps = read_value("warmup_steps", warmup_steps, whole_number(0))
        if emotion is None and law_options.keys() == {"average_weights"} and law_options["average_weights"]:
            emotion = "none"  # an average needs no law
        if emotion is None and law_options:
            raise ValueError(
                f"EmoLightningCallback was given {', '.join(law_options)} but no emotion that this is for: name a "
                "law, emotion='v3.1'"
            )
        if emotion is not None:  # refuses what is wrong at once
            attach(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), emotion, **law_options)
        self._emotion, self._law_options = emotion, law_options
        self._self_stop = SelfStop(action=self_stop, patience=patience, min_steps=min_steps)
        self._validation_loss, self._prog_bar = validation_loss, prog_bar
        self._emotional: dict[str, EmoOptimizer | Attachment] = {}
        self._pass: LossOfPass | None = None
        self._has_stepped = False
        self._was_done = False
        self._known: list[Note] = []  # decisions that have been said

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        # The optimizers are made, and the state of a checkpoint is not loaded yet.
        if self._emotion is not None:
            for optimizer in trainer.optimizers:
                if unwrap(optimizer) is None:
                    attach(optimizer, self._emotion, **self._law_options)
        self._emotional = _by_name(trainer.optimizers)
        if not self._emotional:
            logger.warning(
                "EmoLightningCallback has nothing to do: no optimizer of %s has an emotion. Use one of the emo "
                "optimizers, or EmoLightningCallback(emotion='v3.1').",
                type(pl_module).__name__,
            )
        for emo in self._emotional.values():
            self._self_stop.refuse_local_emotion(emo, trainer.world_size)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._known = [note for emo in self._emotional.values() for note in emo.decisions]
        self._was_done, self._has_stepped = self._why_done() is not None, False

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """With n = `accumulate_grad_batches` and S the gradient scaler's scale, a loss L comes here as S·L/n.

        In manual optimization, and where DeepSpeed divides, n is 1.
        """
        self._pass = None
        if not is_loss(loss):
            return
        in_parts = trainer.strategy.handles_gradient_accumulation  # DeepSpeed alone: many step() to a step
        n = trainer.accumulate_grad_batches if pl_module.automatic_optimization and not in_parts else 1
        several = len(trainer.optimizers) > 1
        # DDP has all ranks go through the last pass of a step together.
        together = not several and bool(getattr(trainer.model, "require_backward_grad_sync", False))
        self._pass = LossOfPass(filter(_wants_gradients, emotions(trainer.optimizers)))
        self._pass.show(_without_scale(trainer, loss.detach()) * n, graph=loss, together=together, in_parts=in_parts)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if self._pass is not None and len(trainer.optimizers) > 1:
            self._pass.end()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._has_stepped = True

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._has_stepped or not self._emotional:  # in the middle of an accumulation
            return
        self._has_stepped = False
        self._look(trainer)
        if trainer._logger_connector.should_update_logs:  # what Lightning's own LearningRateMonitor asks
            self._log(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for emo in self._emotional.values():
            emo.train()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for emo in self._emotional.values():
            emo.finish_average()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        for emo in self._emotional.values():  # until the next training batch: checkpoints hold what was evaluated
            emo.eval()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get(self._validation_loss)
        if trainer.sanity_checking or loss is None or not self._emotional:
            return
        if trainer.world_size > 1:  # the module may have logged each rank's own
            loss = trainer.strategy.reduce(torch.as_tensor(loss), reduce_op="mean")
        for emo in self._emotional.values():
            emo.hear_evaluation(float(loss))
        self._look(trainer)

    def _look(self, trainer: Any) -> None:
        """Say what has been decided, and stop if that is wanted."""
        decisions = [note for emo in self._emotional.values() for note in emo.decisions]
        for note in decisions if trainer.is_global_zero else ():
            if note not in self._known:
                logger.warning("Step %d: %s", note.step, text_of(note))
        self._known, action = decisions, self._self_stop.action
        why = self._why_done() if action != "off" else None
        if why is not None and not self._was_done and trainer.is_global_zero:
            done = "stopping" if action == "stop" else "it may be done"
            logger.warning("%s (step %d, epoch %d): %s.", why, trainer.global_step, trainer.current_epoch, done)
        self._was_done = why is not None
        if action == "stop" and why is not None:
            trainer.should_stop = True

    def _why_done(self) -> str | None:
        """What there is to say if every emotion is done, else None."""
        why = None
        for emo in self._emotional.values():
            view = emo.emotion
            if view.has_decided_to_stop:
                why = text_of(emo.decisions[-1]) if emo.decisions else "done"
            elif self._self_stop.flat_long_enough(view.flat_steps, view.observations, self._warmup_steps):
                why = f"Training has been flat for {view.flat_steps} steps, loss average {view.long:.4g}"
            else:
                return None
        return why

    def _log(self, pl_module: Any) -> None:
        for name, emo in self._emotional.items():
            prefix = f"{PREFIX}{name}/" if len(self._emotional) > 1 else PREFIX
            for metric, value in emo.metrics().items():
                shown = self._prog_bar and metric == PREFIX + "effective_lr"
                full_name = prefix + metric.removeprefix(PREFIX)
                pl_module.log(full_name, float(value), prog_bar=shown, on_step=True, on_epoch=False)


def _wants_gradients(emo: EmoOptimizer | Attachment) -> bool:
    return any(param.requires_grad for group in emo.param_groups for param in group["params"])


def _without_scale(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """L from S·L; S is a power of two unless the user has made it another, so that nothing is rounded."""
    loss = loss if loss.dtype == torch.float64 else loss.float()
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return loss
    scale: torch.Tensor = scaler.scale(torch.ones((), device=loss.device))  # get_scale() would wait for the device
    return loss / scale


def _by_name(optimizers: list[Any]) -> dict[str, EmoOptimizer | Attachment]:
    """The optimizers with an emotion by their class, with `-1`, … after the name where there are several of one."""
    found: dict[str, EmoOptimizer | Attachment] = {}
    for emo in emotions(optimizers):
        name = type(emo.optimizer if isinstance(emo, Attachment) else emo).__name__
        same = sum(known.partition("-")[0] == name for known in found)
        found[f"{name}-{same}" if same else name] = emo
    return found
