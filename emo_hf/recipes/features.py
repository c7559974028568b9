"""Turns examples into what the model reads: tokens, and for language modelling blocks of equal length."""

from __future__ import annotations

import itertools
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from emo_hf.recipes.arguments import DataArguments
from emo_hf.recipes.data import Examples
from emo_hf.recipes.errors import RecipeError


def make_features(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, options: DataArguments
) -> tuple[Dataset, Dataset | None]:
    """Tokenize training and validation examples for classification (if they have labels) or language modelling."""
    train = _features(examples.train, examples.train_labels, examples, tokenizer, options)
    if examples.validation is None:
        return train, None
    return train, _features(examples.validation, examples.validation_labels, examples, tokenizer, options)


def check_max_length(max_length: int, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuse what the model has no positions for, which would else end in an index error deep inside.

    Raises:
        RecipeError: if max_length is more than the model or the tokenizer takes.
    """
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_length)
    if max_length > longest:
        raise RecipeError(f"max_length must be at most {longest} for this model, got {max_length}")


def _features(
    dataset: Dataset,
    labels: list[int],
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    options: DataArguments,
) -> Dataset:
    columns, length = examples.text_columns, options.max_length

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [list(map(str, batch[column])) for column in columns]
        return dict(tokenizer(*texts, truncation=True, max_length=length))

    def encode_text(batch: dict[str, list[Any]]) -> dict[str, Any]:
        documents = [_with_end(ids, tokenizer) for ids in _token_ids(batch[columns[0]], tokenizer)]
        blocks = pack(documents, length) if options.packing else [ids[:length] for ids in documents]
        return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": blocks}

    if examples.label_names:
        # Not written by the map: `labels` may be one of the columns that it removes, with another type.
        encoded = dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")
        return encoded.add_column("labels", labels)
    return dataset.map(encode_text, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")


def _token_ids(texts: list[Any], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(map(str, texts)), verbose=False)["input_ids"]
    return ids


def _with_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text must be seen to end, both alone and in front of the next one in a block."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def pack(documents: list[list[int]], length: int) -> list[list[int]]:
    """Join documents and cut them into blocks; a shorter rest is dropped unless it is all there is."""
    tokens = list(itertools.chain.from_iterable(documents))
    if len(tokens) <= length:
        return [tokens] if tokens else []
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
