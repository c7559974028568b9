"""`emo-hf train`: fine-tune a LoRA adapter, or a whole model, from YAML files and options, over Trainer and PEFT."""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import Trainer, enable_full_determinism, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from emo_hf.cli_errors import INTERRUPTED, UserError, one_sentence, saying
from emo_hf.plot.figure import picture_of
from emo_hf.plot.main import PICTURE, draw, write
from emo_hf.plot.run import Run, read_run
from emo_hf.train.config import emotion_callback, make_parser, read_job
from emo_hf.train.data import Examples, load_examples
from emo_hf.train.measures import PERPLEXITY
from emo_hf.train.model import add_adapter, save_merged
from emo_hf.train.options import Job
from emo_hf.train.output import SUMMARY, checkpoint_to_resume, finished, remove_previous_run
from emo_hf.train.progress import FinishOnInterrupt, hide_bars_if_nobody_watches, show_progress
from emo_hf.train.summary import evaluation_of_saved, facts_of, rows_of, table
from emo_hf.train.tasks import get_task
from emo_hf.trainer.registry import register

logger = logging.getLogger(__name__)

CURVES = "curves.png"
"""How the picture of several runs is called."""


@one_sentence("emo-hf train")
def main(argv: Sequence[str] | None = None) -> int:
    """Run `[CONFIG.yaml …] [--key value …]`.

    Args:
        argv: the arguments after `emo-hf train`; the process's own if None.

    Returns:
        0 when training came to its end, 2 when something in the arguments, the data, the model or the machine cannot
        be used (stderr says what), 130 when the user interrupted it.
    """
    register()
    hide_bars_if_nobody_watches()
    try:
        facts = run(read_job(sys.argv[1:] if argv is None else argv))
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU has too little memory: lower per_device_train_batch_size, or give gradient_checkpointing true"
        ) from error
    except KeyboardInterrupt:
        print("emo-hf train: interrupted; the checkpoints saved so far are kept", file=sys.stderr)
        return INTERRUPTED
    return INTERRUPTED if facts["interrupted"] else 0


def parser() -> argparse.ArgumentParser:
    """What the command takes, for shells to complete from."""
    register()
    made: argparse.ArgumentParser = make_parser()
    return made


def run(job: Job) -> dict[str, Any]:
    """Train, evaluate and save; print the summary and draw the pictures on the main process.

    Args:
        job: what `read_job` made of the arguments.

    Returns:
        The facts of the run; see `facts_of`.
    """
    started = time.monotonic()
    training, task, output = job.training, get_task(job.model.task), job.output
    checkpoint = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint, output.overwrite)
    if checkpoint is not None and (facts := finished(training, checkpoint)) is not None:
        if training.process_index == 0:
            print(
                f"{training.output_dir} has taken all of its {facts['steps']:,} steps, and nothing is left to do. "
                "To go on, ask for more: --max_steps or --num_train_epochs"
            )
        return facts
    with saying("beside: ", OSError, ValueError):
        beside = [read_run(Path(folder)) for folder in output.beside or ()]
    if "tensorboard" in training.report_to and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise UserError('report_to tensorboard needs it installed: pip install "emo_hf[hf]" (or --report_to none)')
    PartialState().wait_for_everyone()  # no rank may write before every rank has looked at the folder

    trainer, examples = prepare(job)
    if output.overwrite and training.process_index == 0:
        remove_previous_run(training.output_dir)
    PartialState().wait_for_everyone()

    show_progress(trainer, task.measures)
    interrupt = FinishOnInterrupt(trainer.accelerator)
    trainer.add_callback(interrupt)
    with interrupt.listening():
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.eval_dataset is not None and not interrupt.interrupted and not evaluation_of_saved(trainer):
        trainer.evaluate()
    saved = _save(trainer, job, examples)
    trainer.save_metrics("train", result.metrics)
    seconds = round(time.monotonic() - started, 1)
    more = {"resumed_from": checkpoint, "interrupted": interrupt.interrupted, "seconds": seconds}
    facts = facts_of(trainer, job, examples, task.measures, **more)
    if trainer.is_world_process_zero():
        Path(training.output_dir, SUMMARY).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        saved |= draw_pictures(training.output_dir, beside)
        if "tensorboard" in training.report_to:
            saved["watch it with"] = f"tensorboard --logdir {training.output_dir}"
        print("\n" + table(rows_of(facts, task.measures, beside, saved)))
    return facts


def prepare(job: Job) -> tuple[Trainer, Examples]:
    """Seed everything, load data and model, and make the Trainer, which has done nothing yet."""
    training, task = job.training, get_task(job.model.task)
    (enable_full_determinism if training.full_determinism else set_seed)(training.seed)
    with training.main_process_first(local=False, desc="loading the data"):
        examples = load_examples(job.data, task)
    if examples.validation is None and training.eval_strategy.value != "no":
        raise UserError("eval_strategy needs validation data: give some, or a validation_fraction above 0")
    processor = task.make_processor(job)
    model = task.make_model(job, processor, examples)
    with training.main_process_first(local=False, desc="preparing the data"):
        train, validation = (
            None if side is None else task.make_features(side, examples.columns, processor, job.data)
            for side in (examples.train, examples.validation)
        )
    if not task.divides_loss:
        # Many models take the count of items and ignore it; the Trainer would believe that they have divided the
        # loss, which then comes out multiplied by the number of ranks and of accumulation steps.
        model.accepts_loss_kwargs = False
    if job.lora.use_lora:
        model = add_adapter(model, job.lora, task.adapter, task.heads)
    with saying("", ValueError, ImportError):
        trainer: Any = task.make_trainer(job, model, processor, examples, train, validation)
    trainer.evaluates_weights_too, trainer.head_lr_ratio = job.output.evaluate_weights_too, job.emotion.head_lr_ratio
    trainer.reports_perplexity = PERPLEXITY in task.measures
    emotion = emotion_callback(job)
    if emotion is not None:
        trainer.add_callback(emotion)
    return trainer, examples


def _save(trainer: Any, job: Job, examples: Examples) -> dict[str, str]:
    """Save what was trained; gives name → path."""
    folder, task, saved = job.training.output_dir, get_task(job.model.task), {}
    trainer.save_model()
    trainer.save_state()
    saved["adapter" if job.lora.use_lora else "model"] = folder
    metrics = {name: value for name, value in evaluation_of_saved(trainer).items() if name != "step"}
    if metrics:
        trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero() and job.lora.use_lora:
        if examples.label_names:  # a full model has them in its config.json
            names = json.dumps(dict(enumerate(examples.label_names)), indent=2, ensure_ascii=False)
            Path(folder, "labels.json").write_text(names + "\n", encoding="utf-8")
        if job.output.merge_on_save:
            saved["merged model"] = os.path.join(folder, "merged")
            unset_hf_deepspeed_config()  # else loading would wait for the other ranks
            processor = trainer.processing_class
            save_merged(folder, saved["merged model"], task.make_model(job, processor, examples), processor)
    return saved


def draw_pictures(folder: str, beside: Sequence[Run]) -> dict[str, str]:
    """Draw a run that has been saved, by itself and with other curves; gives name → path of what was drawn."""
    drawn = {}
    try:
        run, title = read_run(Path(folder)), os.path.basename(os.path.abspath(folder))
        draw(run, os.path.join(folder, PICTURE))
        drawn["picture"] = os.path.join(folder, PICTURE)
        if beside:
            write(picture_of([run, *beside], title), Path(folder, CURVES))
            drawn["curves"] = os.path.join(folder, CURVES)
    except (UserError, ModuleNotFoundError, OSError, ValueError) as error:  # a run is worth more than its picture
        logger.warning("No picture: %s", error)
    return drawn


if __name__ == "__main__":
    sys.exit(main())
