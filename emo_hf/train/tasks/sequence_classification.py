"""A label for a text, or for a pair of texts."""

from __future__ import annotations

from typing import Any

from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from emo_hf.cli_errors import UserError
from emo_hf.train.builtin import by_package, docstrings
from emo_hf.train.measures import ACCURACY, CLASSIFICATION, MACRO_F1
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks.task import Batch, Task


class SequenceClassification(Task):
    """The text's tokens, padded to the longest of a batch; cross-entropy over the labels."""

    name = "sequence-classification"
    auto = AutoModelForSequenceClassification
    builtin = {"python-docstrings": docstrings(by_package, mask_names=True)}
    label_columns = ("label",)
    collator = DataCollatorWithPadding
    adapter = TaskType.SEQ_CLS
    measures = (ACCURACY, MACRO_F1)
    metrics = CLASSIFICATION

    def check_columns(self, given: list[str] | None) -> None:
        if given is not None and len(given) > 2:
            raise UserError(f"text_columns must be one or two columns, got {given!r}")

    def encode(self, batch: Batch, columns: list[str], tokenizer: Any, options: DataArguments) -> Batch:
        texts = [list(map(str, batch[column])) for column in columns]
        return dict(tokenizer(*texts, truncation=True, max_length=options.max_length))


TASK = SequenceClassification()
