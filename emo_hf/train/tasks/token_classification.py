"""A tag for every word of a text: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from emo_hf.cli_errors import UserError
from emo_hf.train.builtin import docstrings, with_code
from emo_hf.train.data import LABELS, Examples
from emo_hf.train.measures import ACCURACY, IGNORED, Measure, most_likely, span_metrics
from emo_hf.train.model import load_tokenizer
from emo_hf.train.options import DataArguments, Job
from emo_hf.train.tasks.task import Batch, Task


class TokenClassification(Task):
    """Lists of words and of tags; a word's first token carries its tag, the others are not learned."""

    name = "token-classification"
    auto = AutoModelForTokenClassification
    builtin = {"python-docstrings": docstrings(with_code)}
    columns = ("tokens",)
    label_columns = ("ner_tags", "tags", "pos_tags", "labels")
    tags = True
    collator = DataCollatorForTokenClassification
    adapter = TaskType.TOKEN_CLS
    heads = ("classifier", "score")
    measures = (
        Measure("f1", "span F1"),
        Measure("precision", "span precision"),
        Measure("recall", "span recall"),
        ACCURACY,
    )

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        for row, words in enumerate(dataset[columns[0]]):
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UserError(f"{side} example {row + 1}: column {columns[0]!r} must hold a list of words")

    def make_processor(self, job: Job) -> Any:
        tokenizer = super().make_processor(job)
        if not tokenizer.is_fast:
            raise UserError("token-classification needs a fast tokenizer: this one cannot say whose token is whose")
        try:
            tokenizer(["word"], is_split_into_words=True)
        except AssertionError:  # those of GPT-2 and RoBERTa want to be made for words
            return load_tokenizer(job.model, add_prefix_space=True)
        return tokenizer

    def make_features(self, dataset: Dataset, columns: list[str], processor: Any, options: DataArguments) -> Dataset:
        for row, (words, tags) in enumerate(zip(dataset[columns[0]], dataset[LABELS], strict=True)):
            if len(words) != len(tags):
                raise UserError(f"example {row + 1} has {len(words)} words and {len(tags)} tags")
        return super().make_features(dataset, columns, processor, options)

    def encode(self, batch: Batch, columns: list[str], tokenizer: Any, options: DataArguments) -> Batch:
        encoded = tokenizer(
            batch[columns[0]], is_split_into_words=True, truncation=True, max_length=options.max_length
        )
        labels = []
        for i, tags in enumerate(batch[LABELS]):
            words = encoded.word_ids(i)  # of each token
            begins = [word is not None and word != before for word, before in zip(words, [None, *words], strict=False)]
            labels.append([tags[word] if first else IGNORED for word, first in zip(words, begins, strict=True)])
        return {**encoded, LABELS: labels}

    def metrics_of(self, examples: Examples) -> Mapping[str, Any]:
        return {
            "compute_metrics": span_metrics(examples.label_names),
            "preprocess_logits_for_metrics": most_likely,
        }


TASK = TokenClassification()
