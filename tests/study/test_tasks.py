"""The tasks of the published studies, on made-up data in the formats of the real ones."""

from __future__ import annotations

import csv
import gzip
import json
import math
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from emo_hf import EmoLynx
from emo_hf.study.task import Task
from emo_hf.study.tasks import adapted, data, images, language, multimodal, pictures, pretrained, words

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
    monkeypatch.setattr(multimodal, "PAIRS", 256)
    monkeypatch.setattr(multimodal, "HELD_OUT", 128)
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
    multimodal.captions,
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


def _read(caption: str) -> tuple[int, dict[str, set[str]]]:
    """Whether one digit is below the other, and the words of the left or upper one and of the other, read anew."""
    for below, phrases in enumerate(pictures.RELATIONS):
        for turned, choices in enumerate(phrases):
            for phrase in sorted(choices, key=len, reverse=True):
                if f" {phrase} " in caption:
                    nouns = [set(noun.split()) for noun in caption.split(f" {phrase} ")]
                    return below, dict(zip(("first", "second"), reversed(nouns) if turned else nouns, strict=True))
    raise AssertionError(f"no relation in {caption!r}")


def test_a_picture_shows_what_its_caption_says() -> None:
    white = torch.full((40, 28, 28), 255, dtype=torch.uint8)
    pairs = pictures.compose(white, torch.arange(40) % 10, count=200, seed=1)
    said = {"colour": 0, "size": 0}
    for pixels, caption, shown in zip(pairs.pixels, pairs.captions, pairs.shown.tolist(), strict=True):
        below, nouns = _read(caption)
        halves = pixels.chunk(2, dim=1 if below else 2)
        for half, words_of_it, digit in zip(halves, nouns.values(), shown, strict=False):
            assert words_of_it & set(pictures.DIGITS[digit])
            for names, tint in pictures.COLOURS:
                if words_of_it & set(names):
                    said["colour"] += 1
                    assert half.amax((1, 2)).tolist() == [int(255 * share) for share in tint]
            for names, side in pictures.SIZES:
                if words_of_it & set(names):
                    said["size"] += 1
                    assert half.any(0).sum().item() == side**2
    assert all(150 < times < 250 for times in said.values())  # half of 400


def test_what_a_caption_leaves_open_fits_either_way_and_noise_is_of_pictures_that_are_not_there() -> None:
    shown = torch.tensor([[7, 3, 0, 1, 0, 0, 1], [7, 3, 2, 1, 0, 0, 1], [7, 4, 0, 1, 0, 0, 1]])
    said = torch.tensor([[7, 3, -1, 1, -1, 0, 1], [7, 3, 0, -1, -1, -1, 1]])
    assert pictures.fits(said, shown).tolist() == [[True, True], [True, False], [False, False]]
    digits = torch.zeros(1000, 28, 28, dtype=torch.uint8), torch.arange(1000) % 10
    for noise, low, high in ((0.0, 1.0, 1.0), (0.4, 0.55, 0.65)):
        pairs = pictures.compose(*digits, count=1000, seed=1, noise=noise)
        own = ((pairs.said == pairs.shown) | (pairs.said == pictures.UNSAID)).all(1).float().mean().item()
        assert low <= own <= high
    clean, noisy = (_made(multimodal.captions, noise=noise) for noise in (0.0, 0.9))
    assert clean.evaluate(clean.model) == noisy.evaluate(noisy.model)


class Likes(nn.Module):
    """Scores every caption alike, but for its own picture, which it likes the more the darkest one shines."""

    def __init__(self) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.zeros(()))

    def forward(self, pixels: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.sharpness * pixels.amax((1, 2, 3)).min() * torch.eye(len(words))


def test_a_picture_that_a_caption_fits_as_well_does_not_count_against_it() -> None:
    task, model = _made(multimodal.captions), Likes()
    one = [tensor[:1] for tensor in next(iter(task.train_batches(1)))]
    assert task.loss(model, [tensor.repeat_interleave(8, 0) for tensor in one]).item() == 0.0
    *same, said, shown = (tensor.repeat_interleave(8, 0) for tensor in one)
    said[:4, 0] = shown[:4, 0] = (shown[0, 0] + 1) % 10
    assert task.loss(model, [*same, said, shown]).item() == pytest.approx(math.log(5))


def test_the_digits_of_the_held_out_pictures_are_not_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = torch.zeros(10000, 28, 28, dtype=torch.uint8)
    digits[images.TRAINING :] = 255
    monkeypatch.setattr(multimodal, "mnist", lambda: (digits, torch.arange(10000) % 10))
    task, model = _made(multimodal.captions), Likes()
    assert not any(batch[0].any() for batch in task.train_batches(1))
    nn.init.ones_(model.sharpness)
    assert task.evaluate(model) == {"loss": 0.0, "right_caption": 1.0}


def test_one_loss_of_two_encoders_is_one_emotion() -> None:
    task = _made(multimodal.captions, batch=8)
    groups = {
        name: [param for key, param in task.model.named_parameters() if key.startswith("pictures.") == of_pictures]
        for name, of_pictures in (("pictures", True), ("captions", False))
    }
    rates = {"pictures": 0.01, "captions": 0.003}
    optimizer = EmoLynx([{"params": groups[name], "lr": rates[name]} for name in groups], weight_decay=0.0)
    factors = set()
    for number, batch in enumerate(task.train_batches(1)):
        before = {name: [param.detach().clone() for param in params] for name, params in groups.items()}
        optimizer.zero_grad()
        loss = task.loss(task.model, batch) * (1.0 if number < 20 else 3.0)  # something to feel
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        factors.add(factor := optimizer.emotion.coefficient)
        for name, params in groups.items():  # a step of Lynx is the rate times the factor, in each element
            moved = max((param - old).abs().max().item() for param, old in zip(params, before[name], strict=True))
            assert moved / rates[name] == pytest.approx(factor, rel=1e-3)
    assert len(factors) > 1


def test_data_that_are_not_there_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.PLACE, "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere/tinyshakespeare/input\.txt.*EMO_HF_DATA"):
        language.plays(1)
