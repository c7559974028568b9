"""The next token of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import TaskType
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from emo_hf.train.builtin import docstrings_as_prose
from emo_hf.train.data import Examples, text_column
from emo_hf.train.features import map_both, pack, with_end
from emo_hf.train.files import TABLES_AND_TEXT
from emo_hf.train.measures import PERPLEXITY
from emo_hf.train.tasks.text import TextTask

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments


class CausalLM(TextTask):
    """Texts joined and cut into blocks of `max_length` tokens, or one example a text; every token is learned."""

    name = "causal-lm"
    auto = AutoModelForCausalLM
    formats = TABLES_AND_TEXT
    builtin = {"python-docstrings": docstrings_as_prose}
    columns = ("text",)
    takes_decoders = True
    adapter = TaskType.CAUSAL_LM
    divides_loss = True
    measures = (PERPLEXITY,)

    def find_columns(self, train: Dataset, options: DataArguments) -> list[str]:
        return options.text_columns or [text_column(train, None)]

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        (column,), length = examples.columns, options.max_length

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            ids = processor(list(map(str, batch[column])), verbose=False)["input_ids"]
            documents = [with_end(document, processor) for document in ids]
            blocks = pack(documents, length) if options.packing else [document[:length] for document in documents]
            return {"input_ids": blocks, "attention_mask": [[1] * len(b) for b in blocks], "labels": blocks}

        return map_both(encode, examples)

    def make_collator(self, processor: Any) -> Any:
        return DataCollatorForSeq2Seq(processor)  # pads labels too


TASK = CausalLM()
