"""What a task is: every difference between one kind of training and another, in one class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from datasets import Dataset
from peft import TaskType
from transformers import PreTrainedTokenizerBase, Trainer

from emo_hf.cli_errors import UserError
from emo_hf.train.data import TABLES, Examples, Reader
from emo_hf.train.measures import Measure
from emo_hf.train.model import load_model, load_tokenizer
from emo_hf.train.options import DataArguments, Job
from emo_hf.train.trainer import PlainTrainer

Rows = list[dict[str, Any]]
Batch = dict[str, list[Any]]
"""Some examples, column by column."""


class Task:
    """One kind of training. What is said here is the default, for text; a task says what is otherwise.

    Attributes:
        name: as it is given with `task`.
        auto: the class of transformers that puts the right head on a model.
        formats: end of a file's name → what reads it.
        builtin: name of a dataset that needs no file → what makes its training and validation rows.
        columns: the columns that are read unless `text_columns` names others.
        label_columns: the columns that may hold labels, the first that there is; empty without labels.
        tags: whether an example has a list of labels.
        takes_decoders: whether `is_decoder` means something.
        collator: makes what makes a batch of features, from the tokenizer.
        adapter: PEFT's task type of a LoRA adapter.
        heads: layers that are trained in full beside an adapter, where the model has them and PEFT would adapt them.
        divides_loss: whether the model divides its loss by the Trainer's count of items over all micro-batches.
        measures: what evaluation reports beside the loss.
        metrics: `compute_metrics` and `preprocess_logits_for_metrics` of the Trainer, where there are any.
    """

    name: ClassVar[str]
    auto: ClassVar[Any]
    formats: ClassVar[Mapping[str, Reader]] = TABLES
    builtin: ClassVar[Mapping[str, Callable[[], tuple[Rows, Rows]]]] = {}
    columns: ClassVar[tuple[str, ...]] = ("text",)
    label_columns: ClassVar[tuple[str, ...]] = ()
    tags: ClassVar[bool] = False
    takes_decoders: ClassVar[bool] = False
    collator: ClassVar[Any]
    adapter: ClassVar[TaskType | None] = None
    heads: ClassVar[tuple[str, ...]] = ()
    divides_loss: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = ()
    metrics: ClassVar[Mapping[str, Any]] = {}

    def check(self, job: Job) -> None:
        """Refuse options that do not fit, before anything is loaded."""
        self.check_columns(job.data.text_columns)
        if job.model.model_type is not None and job.model.tokenizer_name is None:
            raise UserError("tokenizer_name is missing: an untrained model has no tokenizer; bytes needs no file")

    def check_columns(self, given: list[str] | None) -> None:
        """Refuse `text_columns` that are too few or too many."""
        if given is not None and len(given) != len(self.columns):
            raise UserError(f"text_columns must be {len(self.columns)} ({', '.join(self.columns)}), got {given!r}")

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        """Refuse an example that cannot be used, by its number."""
        for column in columns:
            for row, value in enumerate(dataset[column]):
                if value is None:
                    raise UserError(f"{side} example {row + 1} has nothing in column {column!r}")

    def make_processor(self, job: Job) -> Any:
        """What prepares the data, is saved with the model and is needed to use it: a tokenizer."""
        return load_tokenizer(job.model)

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        """The model with the head that the task needs, without adapter."""
        tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else None
        return load_model(self.auto, job.model, tokenizer, examples.label_names, job.data.max_length)

    def make_features(self, dataset: Dataset, columns: list[str], processor: Any, options: DataArguments) -> Dataset:
        """Examples as the collator takes them."""
        given = {"columns": columns, "tokenizer": processor, "options": options}
        return dataset.map(self.encode, batched=True, remove_columns=columns, desc="Tokenizing", fn_kwargs=given)

    def encode(self, batch: Batch, columns: list[str], tokenizer: Any, options: DataArguments) -> Batch:
        """The features of some examples, which take the place of `columns`."""
        raise NotImplementedError

    def make_collator(self, processor: Any) -> Any:
        """What makes a batch of features."""
        return self.collator(processor)

    def make_trainer(
        self, job: Job, model: Any, processor: Any, examples: Examples, train: Dataset, validation: Dataset | None
    ) -> Trainer:
        """The Trainer."""
        return PlainTrainer(
            model=model,
            args=job.training,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            data_collator=self.make_collator(processor),
            **self.metrics_of(examples),
        )

    def metrics_of(self, examples: Examples) -> Mapping[str, Any]:
        """`metrics`, where they depend on the names of the labels."""
        return self.metrics
