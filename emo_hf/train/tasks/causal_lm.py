"""The next token of a text."""

from __future__ import annotations

import itertools
from typing import Any

from peft import TaskType
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from emo_hf.train.builtin import as_prose, docstrings
from emo_hf.train.data import TABLES_AND_TEXT
from emo_hf.train.measures import PERPLEXITY
from emo_hf.train.model import with_end
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks.task import Batch, Task


class CausalLM(Task):
    """Texts joined and cut into blocks of `max_length` tokens, or one example a text; every token is learned."""

    name = "causal-lm"
    auto = AutoModelForCausalLM
    formats = TABLES_AND_TEXT
    builtin = {"python-docstrings": docstrings(as_prose)}
    takes_decoders = True
    collator = DataCollatorForSeq2Seq  # pads labels too
    adapter = TaskType.CAUSAL_LM
    divides_loss = True
    measures = (PERPLEXITY,)

    def encode(self, batch: Batch, columns: list[str], tokenizer: Any, options: DataArguments) -> Batch:
        ids = tokenizer(list(map(str, batch[columns[0]])), verbose=False)["input_ids"]
        documents, length = [with_end(document, tokenizer) for document in ids], options.max_length
        blocks = pack(documents, length) if options.packing else [document[:length] for document in documents]
        return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": blocks}


def pack(documents: list[list[int]], length: int) -> list[list[int]]:
    """Join documents and cut them into blocks; a shorter rest is dropped unless it is all there is."""
    tokens = list(itertools.chain.from_iterable(documents))
    if len(tokens) <= length:
        return [tokens] if tokens else []
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


TASK = CausalLM()
