"""`emo-hf train`: fine-tune a LoRA adapter, or a whole model, from a YAML file. A recipe over the Trainer and PEFT."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, enable_full_determinism, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import ProgressCallback

from emo_hf.cli_errors import UserError
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws.metrics import NOTES
from emo_hf.plot.main import PICTURE, draw
from emo_hf.plot.run import Run
from emo_hf.train.comparison import show_both
from emo_hf.train.config import Job, _make_parser, read_job
from emo_hf.train.data import Examples
from emo_hf.train.emotion import emotion_callback
from emo_hf.train.errors import RecipeError, one_line
from emo_hf.train.model import add_adapter, save_merged
from emo_hf.train.output import checkpoint_to_resume, remove_previous_run
from emo_hf.train.progress import FinishOnInterrupt, ShortProgressCallback
from emo_hf.train.second_job import give_roles, second_job
from emo_hf.train.summary import Summary, table
from emo_hf.train.tasks import get_task
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.registry import register

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run `[CONFIG.yaml] [--key value …]`, and with `--compare` once more the usual way.

    Args:
        argv: the arguments after `emo-hf train`; the process's own if None.

    Returns:
        0 when training came to its end, 2 when something in the arguments, the data or the model cannot be used
        (stderr says what), 130 when the user interrupted it.
    """
    register()
    try:
        arguments = sys.argv[1:] if argv is None else list(argv)
        job = read_job(arguments)
        if job.comparison.compare is not None:
            second_job(arguments, job, 1)  # refuses what is wrong before anything is trained
        summary = run(job)
        if job.comparison.compare is not None and not summary.interrupted:
            second = second_job(arguments, job, summary.steps)
            others = run(second)
            if not others.interrupted and second.training.process_index == 0:
                show_both((job, second), (summary, others))
            return INTERRUPTED if others.interrupted else 0
    except RecipeError as error:
        rank = os.environ.get("RANK", "0")
        print(f"emo-hf train: {error}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr)
        return 2
    except SystemExit as error:  # --help
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("emo-hf train: interrupted; the checkpoints saved so far are kept", file=sys.stderr)
        return INTERRUPTED
    return INTERRUPTED if summary.interrupted else 0


def parser() -> Any:
    """What the command takes, for shells to complete from."""
    register()
    return _make_parser()


def run(job: Job) -> Summary:
    """Train, evaluate and save; print the summary and draw the picture on the main process.

    Args:
        job: what `read_job` made of the arguments.

    Returns:
        The facts of the run, the same on every rank but for `saved`, which is complete on the main process.

    Raises:
        RecipeError: for what the user can put right.
    """
    started = time.monotonic()
    training = job.training
    checkpoint = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint, job.model.overwrite)
    _check_reporters(training.report_to)
    PartialState().wait_for_everyone()  # no rank may write before every rank has looked at the folder

    trainer, examples = prepare(job)
    if job.model.overwrite and training.process_index == 0:
        remove_previous_run(training.output_dir)
    PartialState().wait_for_everyone()

    interrupt = FinishOnInterrupt()
    trainer.add_callback(interrupt)
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        interrupt.restore()
    if not interrupt.interrupted:
        _evaluate_if_due(trainer)
    saved = _save(trainer, job, examples)
    trainer.save_metrics("train", result.metrics)
    parameters = _count(trainer.model)
    emo = unwrap(trainer.optimizer)
    summary = Summary(
        task=job.model.task,
        model=_name_of_model(job),
        optimizer=training.optim.value,
        trainable=parameters[0],
        parameters=parameters[1],
        train_examples=len(trainer.train_dataset),
        validation_examples=0 if trainer.eval_dataset is None else len(trainer.eval_dataset),
        steps=trainer.state.global_step,
        planned_steps=trainer.state.max_steps,
        resumed_from=checkpoint,
        interrupted=interrupt.interrupted,
        history=trainer.state.log_history,
        measures=get_task(job.model.task).measures,
        law=None if emo is None else emo.emotion.law,
        decisions=(trainer.state.stateful_callbacks.get(NOTES) or {}).get("decisions", ()),
        majority_baseline=examples.majority_baseline,
        seconds=time.monotonic() - started,
        saved=saved,
        run_folder=training.output_dir if "tensorboard" in training.report_to else None,
    )
    if trainer.is_world_process_zero():
        _report(summary, training.output_dir, saved)
    return summary


def _check_reporters(reporters: list[str]) -> None:
    if "tensorboard" in reporters and not any(map(importlib.util.find_spec, ("tensorboard", "tensorboardX"))):
        raise RecipeError('report_to tensorboard needs it installed: pip install "emo_hf[hf]" (or --report_to none)')


def prepare(job: Job) -> tuple[Trainer, Examples]:
    """Seed everything, load data and model, and make the Trainer, which has done nothing yet.

    Raises:
        RecipeError: for what the user can put right.
    """
    training, task = job.training, get_task(job.model.task)
    (enable_full_determinism if training.full_determinism else set_seed)(training.seed)
    with training.main_process_first(local=False, desc="loading the data"):
        examples = task.load(job.data)
    processor = task.make_processor(job)
    model = task.make_model(job, processor, examples)
    with training.main_process_first(local=False, desc="preparing the data"):
        train, validation = task.make_features(examples, processor, job.data, task.options(job))
    if validation is None and training.eval_strategy.value != "no":
        raise RecipeError("eval_strategy needs validation data: give some, or a validation_fraction above 0")
    if not task.divides_loss:
        # Many models take the count of items and ignore it; the Trainer would believe that they have divided the
        # loss, which then comes out multiplied by the number of ranks and of accumulation steps.
        model.accepts_loss_kwargs = False
    if job.lora.use_lora:
        model = add_adapter(model, job.lora, task.adapter, task.heads)
    try:
        trainer = task.make_trainer(job, model, processor, examples, train, validation)
    except (ValueError, ImportError) as error:
        raise RecipeError(one_line(error)) from error
    emotion = emotion_callback(job)
    if emotion is not None:
        trainer.remove_callback(EmoCallback)
        trainer.add_callback(emotion)
    if job.roles:
        give_roles(trainer, job.roles)
    if not training.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ShortProgressCallback(task.measures))
    return trainer, examples


def _evaluate_if_due(trainer: Trainer) -> None:
    """Evaluate what will be saved, unless that was done at the last step already."""
    if trainer.eval_dataset is None:
        return
    steps = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
    if trainer.args.load_best_model_at_end or steps[-1:] != [trainer.state.global_step]:
        trainer.evaluate()


def _save(trainer: Trainer, job: Job, examples: Examples) -> dict[str, str]:
    folder, task = job.training.output_dir, get_task(job.model.task)
    trainer.save_model()
    trainer.save_state()
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    if evaluations:
        metrics = {name: value for name, value in evaluations[-1].items() if name != "step"}
        found = {f"eval_{measure.key}": measure.of(metrics) for measure in task.measures if measure.of_loss}
        metrics |= {name: value for name, value in found.items() if value is not None}
        trainer.save_metrics("eval", metrics)
    saved = {"adapter" if job.lora.use_lora else "model": folder}
    if not trainer.is_world_process_zero():
        return saved
    if examples.label_names and job.lora.use_lora:  # a full model has them in its config.json
        names = json.dumps(dict(enumerate(examples.label_names)), indent=2, ensure_ascii=False)
        Path(folder, "labels.json").write_text(names + "\n", encoding="utf-8")
    if job.model.merge_on_save and job.lora.use_lora:
        merged = os.path.join(folder, "merged")
        unset_hf_deepspeed_config()  # else loading would wait for the other ranks
        processor = trainer.processing_class
        save_merged(folder, merged, task.make_model(job, processor, examples), processor)
        saved["merged model"] = merged
    return saved


def _name_of_model(job: Job) -> str:
    name = job.model.model_name_or_path
    return (
        f"{job.model.model_type or job.model.task}, untrained"
        if name is None
        else (f"{name} with LoRA" if job.lora.use_lora else name)
    )


def _count(model: Any) -> tuple[int, int]:
    """Trainable parameters and all parameters; shards of DeepSpeed ZeRO-3 know their full size."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes)


def _report(summary: Summary, folder: str, saved: dict[str, str]) -> None:
    Path(folder, "summary.json").write_text(json.dumps(summary.facts(), indent=2) + "\n", encoding="utf-8")
    picture = os.path.join(folder, PICTURE)
    try:
        name = os.path.basename(os.path.abspath(folder))
        draw(Run(name=name, history=summary.history, law=summary.law, decisions=summary.decisions), picture)
        saved["picture"] = picture
    except (UserError, ModuleNotFoundError) as error:  # a run is worth more than its picture
        logger.warning("No picture: %s", error)
    print("\n" + table(summary.rows()))


if __name__ == "__main__":
    sys.exit(main())
