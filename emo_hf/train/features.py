"""Between text and features: lengths, ends, blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError

IGNORED = -100
"""The label of a position whose token is not learned."""


def map_both(
    encode: Callable[[dict[str, list[Any]]], dict[str, Any]], examples: Examples
) -> tuple[Dataset, Dataset | None]:
    """Turn batches of training and of validation rows into features, which replace all columns."""

    def features(dataset: Dataset) -> Dataset:
        return dataset.map(encode, batched=True, remove_columns=dataset.column_names, desc="Tokenizing")

    return features(examples.train), None if examples.validation is None else features(examples.validation)


def check_max_length(max_length: int, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuse what the model has no positions for, which would else end in an index error deep inside.

    Raises:
        RecipeError: if max_length is more than the model or the tokenizer takes.
    """
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_length)
    if max_length > longest:
        raise RecipeError(f"max_length must be at most {longest} for this model, got {max_length}")


def end_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text, where there is one."""
    end: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return end


def with_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text must be seen to end, both alone and in front of the next one in a block."""
    end = end_of(tokenizer)
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def without_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text that goes on must not end."""
    return ids[:-1] if ids[-1:] == [end_of(tokenizer)] else ids


def pack(documents: list[list[int]], length: int) -> list[list[int]]:
    """Join documents and cut them into blocks; a shorter rest is dropped unless it is all there is."""
    tokens = list(itertools.chain.from_iterable(documents))
    if len(tokens) <= length:
        return [tokens] if tokens else []
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
