"""The tasks of the published studies, on made-up data in the formats of the real ones."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from emo_hf.compare.task import Task
from emo_hf.compare.tasks import adapted, data, images, language, pretrained, words

WORDS = ["the", "of", "a", "what", "who", "where", "film", "good", "bad", "long", "river", "king", "city", "year"]


def _sentence(drawn: np.random.Generator, length: int = 9) -> str:
    return " ".join(drawn.choice(WORDS, length))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, drawn = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("mnist_t10k", "rt_polarity", "trec", "tinyshakespeare", "squad_xquad_en", "ner_wnut17"):
        (root / name).mkdir()
    for name in ("instruct_self_instruct", "pref_dpo_en_demo/standard"):
        (root / name).mkdir(parents=True)
    pixels = drawn.integers(0, 2, (10000, 28, 28), dtype=np.uint8) * 255
    labels = drawn.integers(0, 10, 10000, dtype=np.uint8)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        packed = gzip.compress(header + array.tobytes(), compresslevel=1)
        (root / "mnist_t10k" / f"t10k-{kind}-ubyte.gz").write_bytes(packed)
    for place, classes in (("rt_polarity/{}.csv", 2), ("trec/{}_int.csv", 6)):
        for split in ("train", "validation" if classes == 2 else "test"):
            with (root / place.format(split)).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["sentence", "label"])
                writer.writerows([_sentence(drawn), int(drawn.integers(classes))] for _ in range(70))
    (root / "tinyshakespeare/input.txt").write_text("\n".join(_sentence(drawn) for _ in range(200)))
    contexts = [{"context": _sentence(drawn, 60)} for _ in range(40)]
    (root / "squad_xquad_en/train.json").write_text(json.dumps({"data": contexts}))
    for split in ("train", "validation"):
        tagged = [{"tokens": _sentence(drawn).split(), "ner_tags": ["O"] * 7 + ["B-x", "I-x"]} for _ in range(50)]
        (root / f"ner_wnut17/{split}.json").write_text("\n".join(map(json.dumps, tagged)))
    answers = [{"prompt": _sentence(drawn), "completion": _sentence(drawn)} for _ in range(100)]
    (root / "instruct_self_instruct/prompt_completion.jsonl").write_text("\n".join(map(json.dumps, answers)))
    for split in ("train", "test"):
        pairs = [{"prompt": "say", "chosen": _sentence(drawn), "rejected": _sentence(drawn)} for _ in range(60)]
        (root / f"pref_dpo_en_demo/standard/{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return root


@pytest.fixture(autouse=True)
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.PLACE, str(folder))
    monkeypatch.setattr(adapted, "PRETRAINING", 2)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))


FUNCTIONS = [
    images.digits,
    images.digits_conv,
    words.reviews,
    words.questions,
    words.names,
    language.plays,
    language.wikipedia,
    adapted.instructions,
    adapted.preferences,
    pretrained.questions_lora,
    pretrained.reviews_full,
]


def _made(function: Callable[..., Task], seed: int = 3, **options: Any) -> Task:
    torch.manual_seed(seed)
    return function(seed, **options)


def _tensors(batch: Any) -> list[torch.Tensor]:
    return list(batch.values() if isinstance(batch, dict) else batch)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_task_trains_and_is_the_same_for_the_same_seed(function: Callable[..., Task]) -> None:
    losses = []
    for _ in range(2):
        task = _made(function)
        chosen = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(chosen, lr=1e-3)
        task.model.train()
        torch.manual_seed(0)  # of dropout
        for batch in islice(task.train_batches(5), 3):
            loss = task.loss(task.model, batch)
            loss.backward()
            assert all(parameter.grad is not None for parameter in chosen)
            optimizer.step()
            optimizer.zero_grad()
        task.model.eval()
        with torch.no_grad():
            losses.append(task.evaluate(task.model))
    assert losses[0] == losses[1]
    assert 0 < losses[0]["loss"] < 20
    first, again, other = (_tensors(next(iter(task.train_batches(seed)))) for seed in (5, 5, 6))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_noise_draws_that_share_of_the_labels_anew_and_leaves_the_judge_alone() -> None:
    labels = torch.arange(10).repeat(1000)
    changed = (data.with_noise(labels, 0.2, 10) != labels).float().mean().item()
    assert 0.16 < changed < 0.20  # a tenth of those drawn come out as they were
    assert torch.equal(data.with_noise(labels, 0.0, 10), labels)
    clean, noisy = (_made(images.digits, noise=noise) for noise in (0.0, 0.5))
    assert clean.evaluate(clean.model) == noisy.evaluate(noisy.model)


def test_after_a_shift_the_same_images_mean_other_digits() -> None:
    shifted, plain = _made(images.digits, shift_at=2), _made(images.digits)
    pairs = (zip(*batch, strict=True) for batch in plain.train_batches(1))
    known = {image.numpy().tobytes(): int(label) for batch in pairs for image, label in batch}
    seen = list(islice(shifted.train_batches(1), 4))
    for number, (pixels, labels) in enumerate(seen):
        meant = [known.get(image.numpy().tobytes()) for image in pixels]
        moved = [(int(label) - old) % 10 for label, old in zip(labels, meant, strict=True) if old is not None]
        assert moved
        assert set(moved) == {0 if number < 2 else 1}


def test_the_loss_of_instructions_is_that_of_the_answers_alone() -> None:
    task = _made(adapted.instructions)
    ids, answers = next(iter(task.train_batches(1)))
    model = nn.Sequential(nn.Embedding(128, 128))
    before = task.loss(model, (ids, answers)).item()
    asked = ids.clone()
    asked[:, 1] = 7  # a byte of the prompts
    assert not answers[:, :3].any()
    assert task.loss(model, (asked, answers)).item() == pytest.approx(before, rel=1e-6)


def test_before_its_first_step_a_preference_model_prefers_nothing() -> None:
    task = _made(adapted.preferences)
    task.model.eval()
    with torch.no_grad():
        assert task.evaluate(task.model)["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_data_that_are_not_there_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.PLACE, "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere/tinyshakespeare/input\.txt.*EMO_HF_DATA"):
        language.plays(1)
