"""Every task of `emo-hf train`, from end to end with a tiny model: it learns, its loss is felt, figures come out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForTokenClassification,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from emo_hf.train.measures import classification_metrics, span_metrics, spans
from tests.train.test_data import features_of
from tests.train.tiny import TOPICS, sentences, train, write_jsonl, written

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
       "image_size": 8, "patch_size": 4}  # fmt: skip


def losses_felt(folder: Path) -> list[float]:
    """The logged losses, once it is clear that the emotion heard each of them."""
    lines = [line for line in written(folder, "trainer_state.json")["log_history"] if "loss" in line]
    assert [line["emo/observations"] for line in lines] == [line["step"] for line in lines]
    assert lines[0]["emo/loss_short"] == pytest.approx(lines[0]["loss"], abs=2e-3)
    return [line["loss"] for line in lines]


def tagged(count: int) -> list[dict[str, Any]]:
    """Words of a topic are spans of its name; two in a row are one span."""
    kinds = {word: topic for topic, words in TOPICS.items() for word in words}
    rows = []
    for text, topic in sentences(count):
        words = [w for word in text.split() for w in ([word, TOPICS[topic][0]] if word in kinds else [word])]
        tags = [f"B-{kinds[word]}" if word in kinds else "O" for word in words]
        tags = [f"I-{tag[2:]}" if i and tag != "O" and tags[i - 1] != "O" else tag for i, tag in enumerate(tags)]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def test_token_classification_finds_spans_and_saves_the_names_of_its_tags(tmp_path: Path, bert: str) -> None:
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    job = {"task": "token-classification", "model_name_or_path": bert}
    job |= {"train_file": write_jsonl(tmp_path / "train.jsonl", tagged(72))}
    assert train(**job, output_dir=whole, use_lora=False, num_train_epochs=20) == 0
    assert train(**job, output_dir=adapter, max_steps=2, merge_on_save=True) == 0
    names = ["B-animals", "B-colours", "B-numbers", "I-animals", "I-colours", "I-numbers", "O"]
    for folder in (whole, adapter / "merged"):
        model = AutoModelForTokenClassification.from_pretrained(folder)
        assert list(model.config.id2label.values()) == names
    saved = load_file(adapter / "adapter_model.safetensors")
    head = {name.rpartition("classifier.")[2] for name in saved if "classifier" in name}
    assert head == {"weight", "bias"}, "trained in full, without an adapter"
    assert written(adapter, "labels.json")["6"] == "O"
    losses, summary = losses_felt(whole), written(whole, "summary.json")
    assert losses[-1] < 0.3 * losses[0]
    assert summary["f1"] == written(whole, "all_results.json")["eval_f1"] > 0.8
    assert summary["accuracy"] > 0.9
    assert summary["majority_baseline"] is None


def test_spans_are_read_from_tags_of_every_form() -> None:
    for tags, found in (
        ("B-a B-a I-b I-b O I-a", {(0, 0, "a"), (1, 1, "a"), (2, 3, "b"), (5, 5, "a")}),  # I- of nothing begins there
        ("B-a E-a I-a S-b U-b L-b", {(0, 1, "a"), (2, 2, "a"), (3, 3, "b"), (4, 4, "b"), (5, 5, "b")}),
        ("NN VB O X-y", {(0, 0, "NN"), (1, 1, "VB"), (3, 3, "X-y")}),
    ):
        assert spans(tags.split()) == found


def test_figures_are_those_of_their_definitions() -> None:
    expected = np.array([[0, 1, 2, -100], [0, 2, 2, 2]])
    predicted = np.array([[0, 1, 0, 0], [0, 2, 0, 2]])  # of 2 spans with 1, 3 are found, all within: 1 whole
    prediction = SimpleNamespace(predictions=predicted, label_ids=expected)
    assert span_metrics(["B-a", "I-a", "O"])(prediction) == pytest.approx(
        {"f1": 2 * 2 / (4 + 2), "precision": 2 / 4, "recall": 1.0, "accuracy": 5 / 7}
    )
    prediction = SimpleNamespace(predictions=np.array([0, 0, 1, 1]), label_ids=np.array([0, 1, 1, 1]))
    figures = {"accuracy": 0.75, "macro_f1": (2 / 3 + 4 / 5) / 2}
    assert classification_metrics(prediction) == pytest.approx(figures)


@pytest.mark.parametrize("tags", [[[1, 0, 2], [0, 0]], [["NN", "DT", "VB"], ["DT", "DT"]]])
def test_tags_may_be_integers_or_words_without_spans(tmp_path: Path, bert: str, tags: list[list[Any]]) -> None:
    rows = [{"tokens": ["cat-dog", "the", "is"], "tags": tags[0]}, {"tokens": ["the", "a"], "tags": tags[1]}] * 4
    features, _ = features_of("token-classification", bert, train_file=write_jsonl(tmp_path / "a.jsonl", rows))
    assert features["labels"][:2] == [[-100, 1, -100, -100, 0, 2, -100], [-100, 0, 0, -100]], "a word of three tokens"


def test_instruction_tuning_learns_the_completion_and_not_the_prompt(tmp_path: Path, gpt2: str) -> None:
    out = tmp_path / "out"
    rows = [{"question": text, "answer": "cat dog"} for text, _ in sentences(64)]
    code = train(
        task="instruction-tuning", model_name_or_path=gpt2, output_dir=out, use_lora=False, num_train_epochs=10,
        train_file=write_jsonl(tmp_path / "a.jsonl", rows), text_columns=["question", "answer"], eval_on_start=True,
        eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert summary["first_perplexity"] > 15
    assert summary["perplexity"] < 1.5  # the prompts' words alone have a perplexity of several
    assert losses[-1] < 0.2
    assert AutoModelForCausalLM.from_pretrained(out) is not None


CHAT = (
    "{% for m in messages %}{{ 'red ' if m.role == 'user' else 'blue ' }}{{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}{{ 'blue ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("length", "template", "whole", "learned"),
    [
        (20, None, "the a is was seen there cat dog horse [SEP]", "cat dog horse [SEP]"),
        (7, None, "was seen there cat dog horse [SEP]", "cat dog horse [SEP]"),
        (4, None, "seen there cat dog", "cat dog"),
        (20, CHAT, "red the a is was seen there blue cat dog horse", "cat dog horse"),
    ],
)
def test_a_long_prompt_loses_its_beginning_and_a_chat_template_is_used_where_there_is_one(
    tmp_path: Path, gpt2: str, length: int, template: str | None, whole: str, learned: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    file = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "the a is was seen there", "completion": "cat dog horse"}])
    made, _ = features_of("instruction-tuning", str(tmp_path / "model"), train_file=file, max_length=length)
    ids, labels = made[0]["input_ids"], [token for token in made[0]["labels"] if token != -100]
    assert (tokenizer.decode(ids), tokenizer.decode(labels)) == (whole, learned)
    assert ids[-len(labels) :] == labels


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": text, "chosen": " red red", "rejected": " one two"} for text, _ in sentences(count)]


@pytest.mark.parametrize("use_lora", [True, False])
def test_preference_raises_the_reward_of_the_chosen_answers(tmp_path: Path, gpt2: str, use_lora: bool) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    code = train(
        task="preference", dpo_beta=0.5, model_name_or_path=gpt2, output_dir=out, use_lora=use_lora,
        train_file=write_jsonl(tmp_path / "a.jsonl", pairs(64)), num_train_epochs=6, learning_rate=1e-2,
        max_length=24, eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert losses[0] == pytest.approx(0.693, abs=0.02)  # log 2: model and reference are the same
    assert losses[-1] < 0.5
    assert summary["preferred"] == 1
    assert summary["reward_margin"] > 0.3
    assert (out / ("adapter_model.safetensors" if use_lora else "model.safetensors")).is_file()


def shades(count: int) -> tuple[np.ndarray, np.ndarray]:
    """8 × 8 images that are dark (0) or bright (1), with noise."""
    images = np.random.default_rng(0).integers(0, 60, (count, 8, 8), dtype=np.uint8)
    images[1::2] += 150
    return images, (np.arange(count) % 2).astype(np.uint8)


def write_images(path: Path, count: int) -> str:
    """Images and their labels as one Parquet file; its path."""
    images, labels = shades(count)
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def test_an_untrained_vision_model_learns_from_a_file_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = {
        "task": "image-classification", "model_type": "vit", "model_config": json.dumps(VIT), "use_lora": False,
        "train_file": write_images(tmp_path / "a.parquet", 96), "validation_fraction": 0.25, "save_strategy": "epoch",
        "lr_scheduler_type": "constant", "learning_rate": 3e-3,
    }  # fmt: skip
    assert train(**job, output_dir=whole, num_train_epochs=8) == 0
    assert train(**job, output_dir=parts, num_train_epochs=5) == 0
    assert train(**job, output_dir=parts, num_train_epochs=8, resume_from_checkpoint=True) == 0
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses_felt(whole) == losses_felt(parts)
    summary = written(whole, "summary.json")
    assert summary["accuracy"] > 0.8 > summary["majority_baseline"]
    assert AutoModelForImageClassification.from_pretrained(whole).config.id2label == {0: "0", 1: "1"}
    assert written(whole, "preprocessor_config.json")["size"] == {"height": 8, "width": 8}


def test_a_folder_of_images_trains_an_adapter_and_the_head_of_a_pretrained_vision_model(tmp_path: Path) -> None:
    model, out = tmp_path / "vit", tmp_path / "out"
    set_seed(0)
    ViTForImageClassification(ViTConfig(**VIT)).save_pretrained(model)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(model)
    for i, (image, label) in enumerate(zip(*shades(24), strict=True)):
        folder = tmp_path / "data" / ("dark", "bright")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    job = {"task": "image-classification", "model_name_or_path": model, "dataset": tmp_path / "data"}
    assert train(**job, output_dir=out, merge_on_save=True) == 0
    assert losses_felt(out)
    assert written(out, "labels.json") == {"0": "bright", "1": "dark"}
    saved = load_file(out / "adapter_model.safetensors")
    assert any("lora_A" in name for name in saved)
    assert any(name.endswith("classifier.weight") for name in saved)
    assert AutoModelForImageClassification.from_pretrained(out / "merged").config.id2label[1] == "dark"


def test_a_decoder_from_nothing_reads_bytes_of_a_text_file_and_reports_perplexity(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("\n\n".join(text for text, _ in sentences(60)), encoding="utf-8")
    sizes = "hidden_size=16,intermediate_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2"
    code = train(
        task="causal-lm", model_type="llama", model_config=sizes, tokenizer_name="bytes", train_file=text,
        output_dir=out, use_lora=False, max_length=32, num_train_epochs=3, eval_on_start=True, eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert losses[-1] < losses[0] - 1
    assert written(out, "all_results.json")["eval_perplexity"] == pytest.approx(summary["perplexity"])
    assert summary["first_perplexity"] > 200
    assert summary["perplexity"] < 0.5 * summary["first_perplexity"]
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 259


TAGGED = {"tokens": ["the", "cat"], "ner_tags": ["O", "B-animal"]}
TAGS = {"task": "token-classification"}
VISION = {"task": "image-classification", "use_lora": False, "model_type": "vit"}


@pytest.mark.parametrize(
    ("first", "options", "said"),
    [
        ({**TAGGED, "tokens": "cat"}, TAGS, "training example 1: column 'tokens' must hold a list"),
        ({**TAGGED, "ner_tags": ["O"]}, TAGS, "example 1 has 2 words and 1 tags"),
        (TAGGED, {"task": "image-classification"}, "image-classification reads files that end in .parquet"),
        (pairs(1)[0], {"task": "preference"}, "preference needs a real decoder"),
        (None, {**VISION, "model_type": "vitt"}, "model_type 'vitt': "),
        (None, {**VISION, "model_config": "hiden_size=16"}, "did you mean 'hidden_size'?"),
        (None, {**VISION, "model_config": "{hidden"}, "model_config: '{hidden' cannot be read"),
    ],
)
def test_what_does_not_fit_a_task_is_said_in_one_line(
    tmp_path: Path, bert: str, capsys: Any, first: dict[str, Any] | None, options: dict[str, Any], said: str
) -> None:
    job: dict[str, Any] = {"output_dir": tmp_path / "out", "validation_fraction": 0}
    if first is None:
        job["train_file"] = write_images(tmp_path / "a.parquet", 4)
    else:
        others = [TAGGED] * 3 if "tokens" in first else pairs(3)
        job |= {"model_name_or_path": bert, "train_file": write_jsonl(tmp_path / "a.jsonl", [first, *others])}
    assert train(**job | options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emo-hf train: ")]
    assert len(errors) == 1
    assert said in errors[0]
