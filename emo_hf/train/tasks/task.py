"""What a task is: every difference between one kind of training and another, in one class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset
from peft import TaskType
from transformers import Trainer

from emo_hf.train.data import Examples, check_filled, load_examples
from emo_hf.train.errors import RecipeError
from emo_hf.train.files import TABLES, Reader
from emo_hf.train.labels import label_ids, label_names
from emo_hf.train.mapping import make_options
from emo_hf.train.measures import Measure
from emo_hf.train.sampling import RecipeTrainer

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.config import Job

Rows = list[dict[str, Any]]
Builtin = Callable[[], tuple[Rows, Rows]]


@dataclass(frozen=True)
class NoOptions:
    """The options of a task that has none."""


class Task(ABC):
    """One kind of training. What is said here is the default; a task says what is otherwise.

    Attributes:
        name: as it is given with `task`.
        options_class: a dataclass of the options that may stand in `task_args`, with a default each.
        formats: end of a file's name → what reads it.
        builtin: name of a dataset that needs no file → what makes its training and validation rows.
        columns: the columns that are read unless `text_columns` names others.
        label_columns: the columns that may hold labels, the first that there is; empty without labels.
        from_scratch: whether the model is always made here, so that neither a pretrained one nor its type is named.
        takes_decoders: whether `is_decoder` means something.
        adapter: PEFT's task type of a LoRA adapter.
        adapts: whether LoRA is possible.
        heads: layers that are trained in full beside an adapter, where the model has them and PEFT would adapt them.
        divides_loss: whether the model divides its loss by the Trainer's count of items over all micro-batches.
        measures: what evaluation reports beside the loss.
    """

    name: ClassVar[str]
    options_class: ClassVar[type] = NoOptions
    formats: ClassVar[Mapping[str, Reader]] = TABLES
    builtin: ClassVar[Mapping[str, Builtin]] = {}
    columns: ClassVar[tuple[str, ...]] = ()
    label_columns: ClassVar[tuple[str, ...]] = ()
    from_scratch: ClassVar[bool] = False
    takes_decoders: ClassVar[bool] = False
    adapter: ClassVar[TaskType | None] = None
    adapts: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ()
    divides_loss: ClassVar[bool] = False
    measures: ClassVar[tuple[Measure, ...]] = ()

    def options(self, job: Job) -> Any:
        """The task's own options, of `options_class`.

        Raises:
            RecipeError: for one that it does not have.
        """
        return make_options(self.options_class, "task_args", job.model.task_args, self.name)

    def check(self, job: Job) -> None:
        """Refuse options that do not fit, before anything is loaded.

        Raises:
            RecipeError: with the option and what it would accept.
        """
        self.options(job)
        given = job.data.text_columns
        if given is not None and not self.accepts(len(given)):
            raise RecipeError(f"text_columns must be {self.columns_accepted()}, got {given!r}")
        if job.lora.use_lora and not self.adapts:
            raise RecipeError(f"use_lora must be false: {self.name} trains all weights")
        if job.lora.use_lora and job.model.model_type is not None:
            raise RecipeError("use_lora must be false with model_type: an adapter needs a pretrained model")

    def accepts(self, count: int) -> bool:
        """Whether `text_columns` may name so many columns."""
        return count == len(self.columns)

    def columns_accepted(self) -> str:
        """The same, in words."""
        return f"{len(self.columns)} columns ({', '.join(self.columns)})" if len(self.columns) > 1 else "one column"

    def load(self, options: DataArguments) -> Examples:
        """The examples; see `load_examples`."""
        return load_examples(options, self)

    def find_columns(self, train: Dataset, options: DataArguments) -> list[str]:
        """The columns to read."""
        return list(options.text_columns or self.columns)

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        """Refuse an example that cannot be used, by its number."""
        check_filled(dataset, columns, side)

    def find_label_column(self, train: Dataset, options: DataArguments) -> str | None:
        """The column with labels: the one that was given, or the first of the usual ones that there is."""
        if not self.label_columns:
            return None
        there = [name for name in self.label_columns if name in train.column_names]
        return options.label_column or (there or list(self.label_columns))[0]

    def label_names(self, train: Dataset, column: str) -> list[str]:
        """The names of all labels, in the order of their ids."""
        return label_names(train, column)

    def label_ids(self, dataset: Dataset, column: str, names: list[str], side: str) -> list[int]:
        """The id of each example's label; empty where an example has not exactly one."""
        return label_ids(dataset, column, names, side)

    @abstractmethod
    def make_processor(self, job: Job) -> Any:
        """What prepares the data, is saved with the model and is needed to use it: a tokenizer, or None."""

    @abstractmethod
    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        """The model with the head that the task needs, without adapter."""

    @abstractmethod
    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        """Training and validation examples as the collator takes them; `own` are the task's options."""

    def make_collator(self, processor: Any) -> Any:
        """What makes a batch of features; None for the Trainer's default."""
        return None

    def metrics(self, examples: Examples) -> dict[str, Any]:
        """`compute_metrics` and `preprocess_logits_for_metrics` of the Trainer, where there are any."""
        return {}

    def make_trainer(
        self, job: Job, model: Any, processor: Any, examples: Examples, train: Dataset, validation: Dataset | None
    ) -> Trainer:
        """The Trainer."""
        return RecipeTrainer(
            model=model,
            args=job.training,
            train_dataset=train,
            eval_dataset=validation,
            processing_class=processor,
            data_collator=self.make_collator(processor),
            **self.metrics(examples),
        )
