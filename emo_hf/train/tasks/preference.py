"""Which of two answers is better: direct preference optimization, by TRL's `DPOTrainer`."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, Trainer

from emo_hf.cli_errors import UserError, saying
from emo_hf.train.builtin import docstrings, preferred
from emo_hf.train.data import Examples
from emo_hf.train.measures import Measure
from emo_hf.train.options import DataArguments, Job
from emo_hf.train.tasks.task import Task
from emo_hf.train.trainer import JobTrainer


class Preference(Task):
    """Prompt, chosen and rejected answer; the reference is the model without its adapter, or a copy of it."""

    name = "preference"
    auto = AutoModelForCausalLM
    builtin = {"python-docstrings": docstrings(preferred)}
    columns = ("prompt", "chosen", "rejected")
    adapter = TaskType.CAUSAL_LM
    divides_loss = True  # TRL's Trainer sees to it
    measures = (
        Measure("preferred", "chosen preferred", form=".1%", logged="rewards/accuracies"),
        Measure("reward_margin", "reward margin", logged="rewards/margins"),
    )

    def check(self, job: Job) -> None:
        if importlib.util.find_spec("trl") is None:
            raise UserError('task preference needs TRL: pip install "trl>=0.25"')
        super().check(job)
        if job.training.train_sampling_strategy == "group_by_length":
            raise UserError("train_sampling_strategy group_by_length does not work with preference: pairs have two")

    def make_processor(self, job: Job) -> Any:
        tokenizer = super().make_processor(job)
        if tokenizer.eos_token is None:  # TRL ends each answer with it
            tokenizer.eos_token = tokenizer.sep_token or tokenizer.pad_token
        return tokenizer

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        model = super().make_model(job, processor, examples)
        if model.get_output_embeddings() not in list(model.children()):
            kind = type(model).__name__
            raise UserError(f"preference needs a real decoder: TRL leaves out a part of the output head of {kind}")
        return model

    def make_features(self, dataset: Dataset, columns: list[str], processor: Any, options: DataArguments) -> Dataset:
        return dataset.rename_columns(dict(zip(columns, self.columns, strict=True)))  # TRL's Trainer tokenizes

    def make_trainer(
        self, job: Job, model: Any, processor: Any, examples: Examples, train: Dataset, validation: Dataset | None
    ) -> Trainer:
        from trl import DPOConfig, DPOTrainer

        class PreferenceTrainer(JobTrainer, DPOTrainer):  # here, since TRL is optional
            pass

        training, given = job.training, job.model
        args = DPOConfig(
            **{field.name: getattr(training, field.name) for field in dataclasses.fields(training) if field.init},
            max_length=job.data.max_length,
            beta=given.dpo_beta,
            loss_type=given.dpo_loss_type,
            label_smoothing=given.dpo_label_smoothing,
        )
        with saying("TRL cannot train this: ", KeyError, TypeError, AttributeError, ValueError, ImportError):
            return PreferenceTrainer(
                model=model,
                ref_model=None if job.lora.use_lora else copy.deepcopy(model),
                args=args,
                train_dataset=train,
                eval_dataset=validation,
                processing_class=processor,
            )


TASK = Preference()
