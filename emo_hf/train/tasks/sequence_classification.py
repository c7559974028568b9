"""A label for a text, or for a pair of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from emo_hf.train.builtin import docstrings_by_package
from emo_hf.train.data import Examples, text_column
from emo_hf.train.measures import ACCURACY, MACRO_F1
from emo_hf.train.metrics import classification_metrics, most_likely
from emo_hf.train.tasks.text import TextTask

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments


class SequenceClassification(TextTask):
    """The text's tokens, padded to the longest of a batch; cross-entropy over the labels."""

    name = "sequence-classification"
    auto = AutoModelForSequenceClassification
    builtin = {"python-docstrings": docstrings_by_package}
    label_columns = ("label",)
    adapter = TaskType.SEQ_CLS
    measures = (ACCURACY, MACRO_F1)

    def accepts(self, count: int) -> bool:
        return count in (1, 2)

    def columns_accepted(self) -> str:
        return "one column, or two for pairs"

    def find_columns(self, train: Dataset, options: DataArguments) -> list[str]:
        return options.text_columns or [text_column(train, self.find_label_column(train, options))]

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [list(map(str, batch[column])) for column in examples.columns]
            return dict(processor(*texts, truncation=True, max_length=options.max_length))

        def features(dataset: Dataset, labels: list[int]) -> Dataset:
            # Labels are not written by the map: `labels` may be one of the columns that it removes, of another type.
            encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")
            return encoded.add_column("labels", labels)

        train = features(examples.train, examples.train_labels)
        if examples.validation is None:
            return train, None
        return train, features(examples.validation, examples.validation_labels)

    def make_collator(self, processor: Any) -> Any:
        return DataCollatorWithPadding(processor)

    def metrics(self, examples: Examples) -> dict[str, Any]:
        return {"compute_metrics": classification_metrics, "preprocess_logits_for_metrics": most_likely}


TASK = SequenceClassification()
