"""Which of two answers is better: direct preference optimization, by TRL's `DPOTrainer`."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, Trainer

from emo_hf.train.builtin import docstrings_preferred
from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError, one_line
from emo_hf.train.measures import Measure
from emo_hf.train.renamed_weights import LoadsRenamedWeights
from emo_hf.train.tasks.text import TextTask

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.config import Job


LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
)  # fmt: skip
"""TRL's losses that need nothing but pairs."""


@dataclass(frozen=True)
class Options:
    """What may stand in `task_args`.

    Attributes:
        beta: how dear it is to differ from the reference model.
        loss_type: one of `LOSSES`.
        label_smoothing: the share of pairs that are taken to be the wrong way round, for the losses that know it.
    """

    beta: float = 0.1
    loss_type: str = "sigmoid"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta!r}")
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got {self.loss_type!r}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing!r}")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


class Preference(TextTask):
    """Prompt, chosen and rejected answer; the reference is the model without its adapter, or a copy of it."""

    name = "preference"
    options_class = Options
    auto = AutoModelForCausalLM
    builtin = {"python-docstrings": docstrings_preferred}
    columns = ("prompt", "chosen", "rejected")
    adapter = TaskType.CAUSAL_LM
    divides_loss = True  # TRL's Trainer sees to it
    measures = (
        Measure("preferred", "chosen preferred", logged="rewards/accuracies", form=_percent, with_first=True),
        Measure("reward_margin", "reward margin", logged="rewards/margins"),
    )

    def check(self, job: Job) -> None:
        if importlib.util.find_spec("trl") is None:
            raise RecipeError('task preference needs TRL: pip install "trl>=0.25"')
        super().check(job)
        if job.training.train_sampling_strategy == "group_by_length":
            raise RecipeError("train_sampling_strategy group_by_length does not work with preference: pairs have two")

    def make_processor(self, job: Job) -> Any:
        tokenizer = super().make_processor(job)
        if tokenizer.eos_token is None:  # TRL ends each answer with it
            tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
        return tokenizer

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        model = super().make_model(job, processor, examples)
        if model.get_output_embeddings() not in list(model.children()):
            kind = type(model).__name__
            raise RecipeError(f"preference needs a real decoder: TRL leaves out a part of the output head of {kind}")
        return model

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        def features(dataset: Dataset) -> Dataset:
            chosen = dataset.select_columns(examples.columns)
            return chosen.rename_columns(dict(zip(examples.columns, self.columns, strict=True)))

        return features(examples.train), None if examples.validation is None else features(examples.validation)

    def make_trainer(
        self, job: Job, model: Any, processor: Any, examples: Examples, train: Dataset, validation: Dataset | None
    ) -> Trainer:
        from trl import DPOConfig, DPOTrainer

        class PreferenceTrainer(LoadsRenamedWeights, DPOTrainer):  # here, since TRL is optional
            pass

        own = self.options(job)
        given = {
            field.name: getattr(job.training, field.name) for field in dataclasses.fields(job.training) if field.init
        }
        args = DPOConfig(**given, max_length=job.data.max_length, **dataclasses.asdict(own))
        try:
            return PreferenceTrainer(
                model=model,
                ref_model=None if job.lora.use_lora else copy.deepcopy(model),
                args=args,
                train_dataset=train,
                eval_dataset=validation,
                processing_class=processor,
            )
        except (KeyError, TypeError, AttributeError) as error:  # of TRL, for data or models that it cannot use
            raise RecipeError(f"TRL cannot train this: {one_line(error)}") from error


TASK = Preference()
