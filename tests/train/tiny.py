"""What the tests of `emo-hf train` start from: tiny random models with a tokenizer, saved to disk, and small files."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from emo_hf.train.train import main

TOPICS = {
    "animals": ["cat", "dog", "horse", "bird"],
    "colours": ["red", "green", "blue", "white"],
    "numbers": ["one", "two", "three", "four"],
}
FILLERS = ["the", "a", "is", "was", "seen", "there", "very", "often"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = {
    word: i for i, word in enumerate([*SPECIAL, *FILLERS, *(word for words in TOPICS.values() for word in words)])
}


def save_tokenizer(folder: Path, **special: str) -> None:
    """A tokenizer of one token a word; `special` are its special tokens beside the unknown one."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if "cls_token" in special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=32, **special
    ).save_pretrained(folder)


def save_bert(folder: Path) -> str:
    """A random BERT encoder; the path to load it from."""
    set_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    save_tokenizer(folder, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return str(folder)


def save_gpt2(folder: Path) -> str:
    """A random GPT-2, whose tokenizer has no token to pad with; the path to load it from."""
    set_seed(0)
    config = GPT2Config(vocab_size=len(VOCABULARY), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(folder, eos_token="[SEP]")
    return str(folder)


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, topic): the topic can be read off one word of the text."""
    chooser = random.Random(seed)
    made = []
    for i in range(count):
        topic = list(TOPICS)[i % len(TOPICS)]
        words = [*chooser.sample(FILLERS, chooser.randint(2, 5)), chooser.choice(TOPICS[topic])]
        chooser.shuffle(words)
        made.append((" ".join(words), topic))
    return made


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as CSV; the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    """Rows as JSON lines; the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def topics_csv(folder: Path, count: int = 48) -> str:
    """A labelled CSV file; its path."""
    return write_csv(folder / "topics.csv", [{"text": text, "label": topic} for text, topic in sentences(count)])


def written(folder: Path, name: str) -> Any:
    """A JSON file that a run has written."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


SETTINGS: dict[str, object] = {
    "use_cpu": True, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
    "per_device_train_batch_size": 8, "max_length": 16, "lora_r": 4, "learning_rate": 3e-3, "num_train_epochs": 1,
}  # fmt: skip


def train(*arguments: object, **options: object) -> int:
    """`emo-hf train ARGUMENTS --key value …` with settings for a small, quiet run on the CPU."""
    flat = [str(argument) for argument in arguments]
    for name, value in (SETTINGS | options).items():
        flat += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return main(flat)
