"""A tag for every word of a text: named entities, parts of speech."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset
from peft import TaskType
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from emo_hf.train.builtin import docstrings_with_code
from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError
from emo_hf.train.features import IGNORED
from emo_hf.train.labels import label_key, sorted_names
from emo_hf.train.measures import ACCURACY, Measure
from emo_hf.train.metrics import most_likely
from emo_hf.train.model import load_tokenizer
from emo_hf.train.spans import span_metrics
from emo_hf.train.tasks.text import TextTask

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.config import Job


class TokenClassification(TextTask):
    """Lists of words and of tags; a word's first token carries its tag, the others are not learned."""

    name = "token-classification"
    auto = AutoModelForTokenClassification
    builtin = {"python-docstrings": docstrings_with_code}
    columns = ("tokens",)
    label_columns = ("ner_tags", "tags", "pos_tags", "labels")
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
                raise RecipeError(f"{side} example {row + 1}: column {columns[0]!r} must hold a list of words")

    def label_names(self, train: Dataset, column: str) -> list[str]:
        found = {name for tags in tags_of(train, column, "training") for name in tags}
        if len(found) < 2:
            raise RecipeError(f"all training examples have the tag {next(iter(found), None)!r} only")
        declared = getattr(train.features[column], "feature", None)
        return list(declared.names) if isinstance(declared, ClassLabel) else sorted_names(found)

    def label_ids(self, dataset: Dataset, column: str, names: list[str], side: str) -> list[int]:
        for row, tags in enumerate(tags_of(dataset, column, side)):
            unknown = set(tags) - set(names)
            if unknown:
                raise RecipeError(
                    f"{side} example {row + 1} has the tag {min(unknown)!r}, which no training example has "
                    f"(tags: {', '.join(names[:20])})"
                )
        return []

    def make_processor(self, job: Job) -> Any:
        tokenizer = super().make_processor(job)
        if not tokenizer.is_fast:
            raise RecipeError("token-classification needs a fast tokenizer: this one cannot say whose token is whose")
        try:
            tokenizer(["word"], is_split_into_words=True)
        except AssertionError:  # those of GPT-2 and RoBERTa want to be made for words
            return load_tokenizer(job.model, add_prefix_space=True)
        return tokenizer

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        (column,), ids = examples.columns, {name: i for i, name in enumerate(examples.label_names)}

        def features(dataset: Dataset, side: str) -> Dataset:
            tags = list(tags_of(dataset, str(examples.label_column), side))
            for row, (words, given) in enumerate(zip(dataset[column], tags, strict=True)):
                if len(words) != len(given):
                    raise RecipeError(f"{side} example {row + 1} has {len(words)} words and {len(given)} tags")

            def encode(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, Any]:
                encoded = processor(
                    batch[column], is_split_into_words=True, truncation=True, max_length=options.max_length
                )
                owners = [encoded.word_ids(i) for i in range(len(rows))]
                labels = [
                    [
                        ids[tags[row][word]] if word is not None and word != before else IGNORED
                        for word, before in zip(words, [None, *words], strict=False)
                    ]
                    for row, words in zip(rows, owners, strict=True)
                ]
                return {**encoded, "labels": labels}

            return dataset.map(
                encode, batched=True, with_indices=True, remove_columns=dataset.column_names, desc="Tokenizing"
            )

        train = features(examples.train, "training")
        return train, None if examples.validation is None else features(examples.validation, "validation")

    def make_collator(self, processor: Any) -> Any:
        return DataCollatorForTokenClassification(processor)

    def metrics(self, examples: Examples) -> dict[str, Any]:
        return {
            "compute_metrics": span_metrics(examples.label_names),
            "preprocess_logits_for_metrics": most_likely,
        }


def tags_of(dataset: Dataset, column: str, side: str) -> Iterator[list[str]]:
    """Each example's tags by name.

    Raises:
        RecipeError: if there is no such column, or it holds something else than lists of strings or integers.
    """
    if column not in dataset.column_names:
        columns = ", ".join(dataset.column_names)
        raise RecipeError(f"label_column: the {side} examples have no column {column!r}, the columns are {columns}")
    declared = getattr(dataset.features[column], "feature", None)
    for row, tags in enumerate(dataset[column]):
        if not isinstance(tags, list):
            raise RecipeError(f"{side} example {row + 1}: column {column!r} must hold a list of tags")
        if isinstance(declared, ClassLabel):
            yield [declared.names[tag] for tag in tags]
        else:
            yield [label_key(tag, row, side) for tag in tags]


TASK = TokenClassification()
