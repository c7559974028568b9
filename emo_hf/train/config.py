"""Reads the YAML file and the command line into dataclasses; whatever is wrong becomes one helpful sentence."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from emo_hf.optim.family import family_names
from emo_hf.train.arguments import (
    TRAINER_DEFAULTS,
    CompareArguments,
    DataArguments,
    EmotionArguments,
    LoraArguments,
    ModelArguments,
)
from emo_hf.train.emotion import emotion_callback
from emo_hf.train.errors import RecipeError, one_line
from emo_hf.train.tasks import TASKS, get_task
from emo_hf.trainer.factory import refuse_early, version_of
from emo_hf.trainer.options import parse_optim_args, read_options
from emo_hf.trainer.param_groups import GroupOptions
from emo_hf.trainer.self_stop import SelfStop

logger = logging.getLogger(__name__)

USAGE = "emo-hf train [CONFIG.yaml] [--key value ...]"
_MAPPINGS = ("task_args", "model_config", "emotion_args")


@dataclass(frozen=True)
class Job:
    """All options of one training job.

    Attributes:
        model, lora, data, emotion, comparison, training: as they were given.
        roles: learning rates and weight decays of roles for an optimizer that is not of the family.
    """

    model: ModelArguments
    lora: LoraArguments
    data: DataArguments
    emotion: EmotionArguments
    comparison: CompareArguments
    training: TrainingArguments
    roles: Mapping[str, GroupOptions] = field(default_factory=dict)


class _Default(float):
    """A number that the user has not given."""


class _Parser(HfArgumentParser):
    """Raises RecipeError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def read_job(argv: Sequence[str]) -> Job:
    """Read `[CONFIG.yaml] [--key value …]`; the command line wins over the file.

    `emo_hf.register()` must have been called: the choices of `optim` are fixed here.

    Raises:
        RecipeError: for anything that cannot be used.
        SystemExit: after `--help`.
    """
    parser = _make_parser()
    arguments = list(argv)
    options = argparse.Namespace()
    if arguments and not arguments[0].startswith("-"):
        path = Path(arguments.pop(0))
        with _saying_where(f"{path}: "):
            options = _parse(parser, _as_arguments(parser, _read_yaml(path)), options)
    options = _parse(parser, arguments, options)
    made = []
    for dtype in parser.dataclass_types:
        names = typing.get_type_hints(dtype).keys() & vars(options).keys()
        try:
            values = {name: getattr(options, name) for name in names}
            made.append(dtype(**{name: float(v) if isinstance(v, _Default) else v for name, v in values.items()}))
        except (ValueError, TypeError, ImportError, NotImplementedError) as error:
            raise RecipeError(one_line(error)) from error
    job = Job(*made)
    task = get_task(job.model.task)
    if job.model.model_name_or_path is None and job.model.model_type is None and not task.from_scratch:
        raise RecipeError(
            "model_name_or_path is missing: a hub id, a folder, or package:NAME/FOLDER (or model_type: untrained)"
        )
    if job.data.dataset is None and job.data.train_file is None:
        ours = " or ".join(["hub id, folder", *task.builtin])
        raise RecipeError(f"there is no data: give dataset ({ours}) or train_file")
    if job.model.is_decoder and not task.takes_decoders:
        able = ", ".join(name for name in TASKS if get_task(name).takes_decoders)
        raise RecipeError(f"is_decoder must be false unless task is {able}, got True")
    task.check(job)
    if options.output_dir is None:
        raise RecipeError("output_dir is missing: the folder for the trained model, its checkpoints and logs")
    _check_optimizer(job.training, rate_left=isinstance(options.learning_rate, _Default))
    emotion_callback(job)  # refuses what is wrong
    return job


def _check_optimizer(training: TrainingArguments, *, rate_left: bool) -> None:
    """Find mistakes in optim_args now, not after data and model have been prepared; take a generation's own rate."""
    if training.optim.value in family_names():
        try:
            options = read_options(parse_optim_args(training.optim_args))
            SelfStop.of(options.callback)
            refuse_early(training.optim.value, options)
            version = version_of(training.optim.value, options)
        except ValueError as error:
            raise RecipeError(f"optim_args: {str(error).removeprefix('optim_args: ')}") from error
        if version.lr_is_a_scale and rate_left:
            training.learning_rate = version.lr
            if training.process_index == 0:
                logger.warning(
                    "%s: learning_rate %g, since none was given: its law makes the rate, and this is its scale.",
                    training.optim.value, version.lr,
                )  # fmt: skip


def _make_parser() -> _Parser:
    parser = _Parser(
        [ModelArguments, LoraArguments, DataArguments, EmotionArguments, CompareArguments, TrainingArguments],
        prog="emo-hf train",
        usage=USAGE,
        description="Fine-tune a model with an emo optimizer. Every option may stand in the YAML file (key: value) "
        "and on the command line (--key value), which wins.",
        allow_abbrev=False,
    )
    rate = typing.cast(float, TRAINER_DEFAULTS["learning_rate"])
    parser.set_defaults(**TRAINER_DEFAULTS | {"learning_rate": _Default(rate)})
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())  # else torch warns at every epoch
    return parser


def _parse(parser: _Parser, arguments: list[str], options: argparse.Namespace) -> argparse.Namespace:
    """Parse arguments over the options that are there already."""
    try:
        options, unknown = parser.parse_known_args(arguments, options)
    except RecipeError as error:
        raise RecipeError(_say_plainly(str(error))) from None
    if unknown:
        name = unknown[0].split("=")[0]
        if not name.startswith("-"):
            raise RecipeError(f"unexpected {name!r}: the YAML file comes first, then --key value ({USAGE})")
        raise RecipeError(_unknown_option(parser, name.lstrip("-").replace("-", "_")))
    return options


def _unknown_option(parser: argparse.ArgumentParser, name: str) -> str:
    close = difflib.get_close_matches(name, [action.dest for action in parser._actions], n=1)
    return f"unknown option {name!r}" + (f": did you mean {close[0]!r}?" if close else " (see emo-hf train --help)")


def _say_plainly(message: str) -> str:
    """argparse's "argument --max_length/--max-length: invalid int value: 'x'" without the second name."""
    head, _, rest = message.partition(": ")
    if head.startswith("argument --") and rest:
        rest = rest.replace("invalid int value: ", "a whole number is wanted, got ")
        rest = rest.replace("invalid float value: ", "a number is wanted, got ")
        return f"{head.removeprefix('argument --').split('/')[0]}: {rest}"
    return message


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read: {one_line(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"is not valid YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError("must hold a mapping, one `key: value` a line")
    return content


def _as_arguments(parser: argparse.ArgumentParser, values: dict[str, Any]) -> list[str]:
    """A YAML mapping as command-line arguments, so that both are read by the same rules."""
    known = {action.dest: action for action in parser._actions}
    arguments: list[str] = []
    for key, value in values.items():
        action = known.get(key)
        if action is None or key == "help":
            raise RecipeError(_unknown_option(parser, key))
        if value is None:  # `key:` and `key: null` leave the default
            continue
        if isinstance(value, list):
            arguments += _list_arguments(parser, action, value)
        else:
            arguments.append(f"--{key}={_as_text(action, value)}")
    return arguments


def _list_arguments(parser: argparse.ArgumentParser, action: argparse.Action, value: list[Any]) -> list[str]:
    if not value or any(isinstance(item, (list, dict)) or item is None for item in value):
        raise RecipeError(f"{action.dest}: a list of plain values is wanted, got {value!r}")
    if action.nargs == "+":
        return [f"--{action.dest}", *map(str, value)]
    if list not in [typing.get_origin(kind) for kind in typing.get_args(_annotation(action.dest))]:
        raise RecipeError(f"{action.dest}: one value is wanted, got the list {value!r}")
    # HfArgumentParser reads `str | list[str]` as str: the list itself becomes the default.
    parser.set_defaults(**{action.dest: [str(item) for item in value]})
    return []


def _annotation(name: str) -> Any:
    return typing.get_type_hints(TrainingArguments).get(name)


def _as_text(action: argparse.Action, value: Any) -> str:
    if isinstance(value, dict):
        if action.dest == "optim_args":  # a mapping reads better than its one-line form
            items = {key: "/".join(map(str, v)) if isinstance(v, list) else v for key, v in value.items()}
            return ",".join(f"{key}={_as_text(action, item)}" for key, item in items.items())
        if action.dest in _MAPPINGS:
            return json.dumps(value)
        if dict not in [typing.get_origin(kind) or kind for kind in typing.get_args(_annotation(action.dest))]:
            raise RecipeError(f"{action.dest}: one value is wanted, got the mapping {value!r}")
        return json.dumps(value)
    if isinstance(value, bool):
        if action.choices is not None and "no" in action.choices:  # YAML reads `no` as false
            return "yes" if value else "no"
        return str(value).lower()
    return str(value)


class _saying_where:
    """Puts the file's name in front of the sentence of a RecipeError."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RecipeError):
            raise RecipeError(self.where + str(error)) from error
