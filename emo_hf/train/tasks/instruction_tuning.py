"""The completion of a prompt: instruction tuning, with a loss on the completion alone."""

from __future__ import annotations

from typing import Any

from emo_hf.cli_errors import UserError
from emo_hf.train.builtin import begun, docstrings
from emo_hf.train.data import TABLES
from emo_hf.train.measures import IGNORED
from emo_hf.train.model import end_of, with_end
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks.causal_lm import CausalLM
from emo_hf.train.tasks.task import Batch


class InstructionTuning(CausalLM):
    """Prompt and completion as one text, of which the prompt's tokens are read but not learned."""

    name = "instruction-tuning"
    formats = TABLES
    builtin = {"python-docstrings": docstrings(begun)}
    columns = ("prompt", "completion")

    def encode(self, batch: Batch, columns: list[str], tokenizer: Any, options: DataArguments) -> Batch:
        pairs = [
            _cut(*_token_ids(prompt, completion, tokenizer, options.separator), options.max_length)
            for prompt, completion in zip(*(batch[column] for column in columns), strict=True)
        ]
        return {
            "input_ids": [prompt + completion for prompt, completion in pairs],
            "attention_mask": [[1] * len(prompt + completion) for prompt, completion in pairs],
            "labels": [[IGNORED] * len(prompt) + completion for prompt, completion in pairs],
        }


def _token_ids(prompt: Any, completion: Any, tokenizer: Any, separator: str) -> tuple[list[int], list[int]]:
    """Tokens of both, each by itself, so that none lies across the border."""
    messages = isinstance(prompt, list)
    if not tokenizer.chat_template:
        if messages:
            raise UserError("the prompts are lists of messages, but the tokenizer has no chat template")
        before = tokenizer(f"{prompt}{separator}", verbose=False)["input_ids"]
        before = before[:-1] if before[-1:] == [end_of(tokenizer)] else before  # a text that goes on must not end
        return before, with_end(_plain(str(completion), tokenizer), tokenizer)
    asked = prompt if messages else [{"role": "user", "content": str(prompt)}]
    answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": str(completion)}]
    start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*asked, *answer], tokenize=False)
    if not whole.startswith(start):
        raise UserError("the tokenizer's chat template writes a prompt otherwise when an answer follows")
    return _plain(start, tokenizer), _plain(whole[len(start) :], tokenizer)


def _plain(text: str, tokenizer: Any) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _cut(prompt: list[int], completion: list[int], length: int) -> tuple[list[int], list[int]]:
    """At most `length` tokens: the prompt loses its beginning until the completion fits, or has half of them."""
    room = length - min(len(completion), length - length // 2)
    prompt = prompt[-room:] if room else []
    return prompt, completion[: length - len(prompt)]


TASK = InstructionTuning()
