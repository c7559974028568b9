"""Reads YAML files and the command line into dataclasses; whatever is wrong becomes one helpful sentence."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments

from emo_hf.cli_errors import UserError, one_line, read_yaml, saying
from emo_hf.optim.family import family_names
from emo_hf.reading import optional, read_value
from emo_hf.train.options import (
    ACCEPTED,
    REMOVED,
    DataArguments,
    EmotionArguments,
    Job,
    LoraArguments,
    ModelArguments,
    OutputArguments,
    read_mapping,
)
from emo_hf.train.rates import FULL, LORA, SCRATCH, STARTING_RATES, rule_of
from emo_hf.train.tasks import TASKS, get_task
from emo_hf.trainer.callbacks import EmoCallback
from emo_hf.trainer.factory import refuse_early
from emo_hf.trainer.options import EmoOptions, as_text

logger = logging.getLogger(__name__)

USAGE = "emo-hf train [CONFIG.yaml ...] [--key value ...]"

DEFAULTS: dict[str, Any] = {
    "optim": "emonavi",
    "learning_rate": None,  # see rates.py
    "load_best_model_at_end": None,  # where the strategies allow it
    "report_to": "tensorboard",
    "logging_steps": 10,
    "dataloader_pin_memory": torch.cuda.is_available(),  # else torch warns at every epoch
}
"""Where the defaults differ from those of the Trainer; None is filled in when all is known."""

SHOWN = (
    "output_dir", "optim", "optim_args", "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs",
    "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy",
    "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "seed", "bf16", "gradient_checkpointing",
    "eval_strategy", "eval_steps", "eval_on_start", "per_device_eval_batch_size", "save_strategy", "save_steps",
    "save_total_limit", "load_best_model_at_end", "metric_for_best_model", "resume_from_checkpoint", "logging_steps",
    "report_to", "disable_tqdm", "use_cpu",
)  # fmt: skip
"""The Trainer's options that `--help` explains; of the others it gives the names."""

FILLED_IN = {
    "learning_rate": "learning rate (default: one to begin with, by kind of job and optimizer)",
    "load_best_model_at_end": "save the best, not the last (default: where eval_strategy and save_strategy allow it)",
}
"""What `--help` says of options whose default depends on others."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Names no default where none is what it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """Raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument --"))


def read_job(argv: Sequence[str]) -> Job:
    """Read `[CONFIG.yaml …] [--key value …]`; a later file wins over an earlier one, the command line over all.

    `emo_hf.register()` must have been called: the choices of `optim` are fixed here.
    """
    parser = make_parser()
    arguments, options = list(argv), argparse.Namespace()
    while arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        with saying(f"{name}: ", UserError):
            _read_file(parser, Path(name), options)
    _parse(parser, arguments, options)
    if options.output_dir is None:
        raise UserError("output_dir is missing: the folder for the trained model, its checkpoints and logs")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
        # torchrun without a GPU: the Trainer's processes would know nothing of each other, and write the same files
        options.use_cpu, options.ddp_backend = True, options.ddp_backend or "gloo"
    rate_left = options.learning_rate is None
    options.learning_rate = 0.0 if rate_left else options.learning_rate
    if options.load_best_model_at_end is None:
        options.load_best_model_at_end = _can_load_best(options)
    with saying("", ValueError, TypeError, ImportError, NotImplementedError):
        for name, read in ACCEPTED.items():
            read_value(name, getattr(options, name), optional(read))
        job = Job(*(_make(dtype, options) for dtype in parser.dataclass_types))
    _check(job)
    if rate_left:
        _choose_rate(job)
    return job


def make_parser() -> HfArgumentParser:
    """What the command takes, ours first."""
    dataclasses_ = (ModelArguments, LoraArguments, DataArguments, EmotionArguments, OutputArguments, TrainingArguments)
    parser = _Parser(
        dataclasses_,
        prog="emo-hf train",
        usage=USAGE,
        formatter_class=_Help,
        description="Fine-tune a model with an emo optimizer, or another. Every option may stand in a YAML file "
        "(key: value) and on the command line (--key value), which wins.",
        allow_abbrev=False,
    )
    parser.set_defaults(**DEFAULTS)
    _sort_help(parser)
    return parser


def _sort_help(parser: argparse.ArgumentParser) -> None:
    """Ours in their groups, then what the Trainer's users look for; of its other options the names. Each once."""
    trainers = parser._optionals
    trainers.title = "the Trainer's own"
    parser._action_groups.append(parser._action_groups.pop(parser._action_groups.index(trainers)))
    rest = {action.dest for action in trainers._group_actions} - {*SHOWN, "help"}
    for action in parser._actions:
        action.option_strings = action.option_strings[:1]  # and not --max-length beside --max_length
        hidden = action.dest in rest or action.option_strings[0].startswith("--no_")
        action.help = argparse.SUPPRESS if hidden else FILLED_IN.get(action.dest, action.help)
    names = ", ".join(sorted(rest))
    parser.epilog = f"All other options of transformers' TrainingArguments are taken too: {names}."


def _parse(parser: argparse.ArgumentParser, arguments: list[str], options: argparse.Namespace) -> None:
    """Parse arguments over the options that are there already."""
    _, unknown = parser.parse_known_args(arguments, options)
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise UserError(f"unexpected {name!r}: YAML files come first, then --key value ({USAGE})")
        raise UserError(_unknown(parser, name.lstrip("-").replace("-", "_")))


def _read_file(parser: argparse.ArgumentParser, path: Path, options: argparse.Namespace) -> None:
    """Read a YAML file by the rules of the command line."""
    content = read_yaml(path)
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    arguments: list[str] = []
    lists: dict[str, list[str]] = {}
    for key, value in content.items():
        if key not in known:
            raise UserError(_unknown(parser, key))
        if isinstance(value, list):
            lists[key] = _list(known[key], value)
        elif value is not None:  # `key:` and `key: null` leave the default
            arguments.append(f"--{key}={_text(known[key], value)}")
    _parse(parser, arguments, options)
    vars(options).update(lists)


def _list(action: argparse.Action, value: list[Any]) -> list[str]:
    if action.nargs != "+" and action.dest != "report_to":
        raise UserError(f"{action.dest}: one value is wanted, got the list {value!r}")
    if not value or any(isinstance(item, (list, dict)) or item is None for item in value):
        raise UserError(f"{action.dest}: a list of plain values is wanted, got {value!r}")
    return [str(item) for item in value]


def _text(action: argparse.Action, value: Any) -> str:
    if isinstance(value, dict) and action.dest == "optim_args":
        return as_text({key: _text(action, item) if isinstance(item, bool) else item for key, item in value.items()})
    if isinstance(value, dict):
        if action.dest not in (*TrainingArguments._VALID_DICT_FIELDS, "model_config", "emotion_args", "lora_args"):
            raise UserError(f"{action.dest}: one value is wanted, got the mapping {value!r}")
        return json.dumps(value)
    if isinstance(value, bool):
        if action.choices is not None and "no" in action.choices:  # YAML reads `no` as false
            return "yes" if value else "no"
        return str(value).lower()
    return str(value)


def _unknown(parser: argparse.ArgumentParser, name: str) -> str:
    if name in REMOVED:
        return f"the option {name!r} is no more: {REMOVED[name]}"
    close = difflib.get_close_matches(name, [action.dest for action in parser._actions], n=1)
    return f"unknown option {name!r}" + (f": did you mean {close[0]!r}?" if close else " (see emo-hf train --help)")


def _make(dtype: Any, options: argparse.Namespace) -> Any:
    return dtype(**{field.name: getattr(options, field.name) for field in dataclasses.fields(dtype) if field.init})


def _can_load_best(options: argparse.Namespace) -> bool:
    """Whether the Trainer could load the best model at the end: it must have been saved when it was evaluated."""
    strategy = options.eval_strategy
    if strategy == "no" or options.save_strategy != strategy:
        return False
    return bool(strategy == "epoch" or options.save_steps % (options.eval_steps or options.logging_steps) == 0)


def _check(job: Job) -> None:
    """Refuse what does not fit together, before anything is loaded."""
    task = get_task(job.model.task)
    if job.model.model_name_or_path is None and job.model.model_type is None:
        raise UserError(
            "model_name_or_path is missing: a hub id, a folder, or package:NAME/FOLDER (or model_type: untrained)"
        )
    if job.data.dataset is None and job.data.train_file is None:
        ours = " or ".join(["hub id, folder", *task.builtin])
        raise UserError(f"there is no data: give dataset ({ours}) or train_file")
    if job.model.is_decoder and not task.takes_decoders:
        able = ", ".join(name for name in TASKS if get_task(name).takes_decoders)
        raise UserError(f"is_decoder must be false unless task is {able}, got True")
    if job.lora.use_lora and job.model.model_type is not None:
        raise UserError("use_lora must be false with model_type: an adapter needs a pretrained model")
    task.check(job)
    if job.training.optim.value in family_names():  # now, not after data and model have been prepared
        try:
            refuse_early(job.training.optim.value, EmoOptions.of(job.training))
        except ValueError as error:
            raise UserError(f"optim_args: {one_line(error).removeprefix('optim_args: ')}") from error
    emotion_callback(job)


def _choose_rate(job: Job) -> None:
    training = job.training
    kind = SCRATCH if job.model.model_name_or_path is None else LORA if job.lora.use_lora else FULL
    rule = rule_of(training.optim.value, training.optim_args)
    training.learning_rate, source = STARTING_RATES[kind, rule]
    if training.process_index == 0:
        logger.warning(
            "learning_rate %g, since none was given: %s, %s; %s.", training.learning_rate, kind, rule, source
        )


def emotion_callback(job: Job) -> EmoCallback | None:
    """The callback that attaches a law or an average of the weights; None where neither is wanted."""
    law, given = job.emotion.emotion, read_mapping("emotion_args", job.emotion.emotion_args)
    optim, ratio = job.training.optim.value, job.emotion.head_lr_ratio
    if optim in family_names() and (law or given):
        raise UserError(f"emotion and emotion_args are for others: {optim} has them in optim_args")
    if ratio != 1 and job.training.deepspeed:
        raise UserError(f"head_lr_ratio must be 1 with deepspeed, which makes its own optimizer, got {ratio:g}")
    if law is None and not given:
        return None
    with saying("emotion_args: ", ValueError, TypeError):
        return EmoCallback(law, **given)
