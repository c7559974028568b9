"""What a notebook shows: optimizers, emotions, and the Trainer's progress table."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf import EmoLynx, EmoNavi, EmotionView
from tests import tiny
from tests.emo_cases import OPTIMIZERS


def trained(cls: type[emo_hf.EmoOptimizer] = EmoNavi, steps: int = 40, **options: Any) -> emo_hf.EmoOptimizer:
    """Two groups, one of them named, and a loss that falls."""
    weight, bias = torch.nn.Parameter(torch.ones(300, 20)), torch.nn.Parameter(torch.ones(20))
    optimizer = cls([{"params": [weight], "name": "decoder"}, {"params": [bias], "weight_decay": 0.0}], **options)
    for step in range(steps):
        weight.grad, bias.grad = torch.ones_like(weight), torch.ones_like(bias)
        optimizer.observe(3.0 - step / 40)
        optimizer.step()
    return optimizer


class Parsed(HTMLParser):
    """Refuses tags that are not closed in order; keeps the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_an_optimizer_says_what_it_is_what_it_feels_and_the_rate_of_each_group() -> None:
    optimizer = trained(lr=1e-4)
    title, emotion, *groups = repr(optimizer).splitlines()
    view, rate = optimizer.emotion, optimizer.effective_lr["decoder"]
    assert title == "EmoNavi v3.1 (rule Navi)"
    assert emotion.strip() == (
        f"Emotion, law v3.1: loss {view.short:.4g} (fast average), {view.long:.4g} (slow); taken in 40 losses; "
        f"σ {view.scalar:+.4f}; factor {view.coefficient:.4g}; signal none"
    )
    assert view.coefficient > 1.1, "the loss falls: there is something to see"
    assert [line.strip() for line in groups] == [
        f"decoder: 6,000 in 1 tensor; lr 0.0001, last step at {rate:.4g}; weight_decay 0.01",
        f"group_1: 20 in 1 tensor; lr 0.0001, last step at {rate:.4g}; weight_decay 0.0",
    ]


def test_options_that_somebody_has_chosen_are_said_and_what_there_is_not_is_not_made_up() -> None:
    assert "betas (0.8, 0.9)" in repr(trained(betas=(0.8, 0.9)))
    assert "use_shadow True" in repr(trained(EmoLynx, use_shadow=True))
    text = repr(trained(steps=0))
    assert "loss none yet" in text
    assert not any(word in text for word in ("last step", "betas"))


def test_every_optimizer_of_the_family_can_be_shown_and_names_do_no_harm_to_the_page() -> None:
    for cls in OPTIMIZERS:
        optimizer = trained(cls, steps=2)
        optimizer.param_groups[0]["name"] = "<script>"
        assert len(repr(optimizer).splitlines()) == 4
        assert "<script>" not in optimizer._repr_html_()
        words = Parsed(optimizer._repr_html_()).words
        assert f"{cls.__name__} {optimizer.version} (rule {type(optimizer.rule).__name__})" in words
        assert "<script>" in words
        assert torch.optim.Optimizer.__repr__(optimizer) in words, "torch's account of all options is there too"
        assert repr(copy.deepcopy(optimizer)) == repr(optimizer)


def test_an_emotion_says_when_it_is_quiet_and_that_it_is_done() -> None:
    view = EmotionView("v3.1", 1.0, 1.0, 0.0, 1.0, True, 40, True, 900, 1)
    assert repr(view) == (
        "Emotion, law v3.1: loss 1 (fast average), 1 (slow); taken in 900 losses; σ +0.0000; factor 1; "
        "left out 1 loss; signal stop, quiet, flat for 40 steps"
    )
    done = EmotionView("settle", 1.0, 1.0, 0.0, 1.0, True, 40, True, 900, 0, has_decided_to_stop=True)
    assert "done: training may end" in Parsed(done._repr_html_()).words


def test_showing_an_optimizer_waits_for_no_device() -> None:
    optimizer = trained()
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(1e-4, device="meta")  # reading it is an error
    optimizer._engine.applied_lr = [torch.tensor(1e-4, device="meta")] * 2
    assert "lr a tensor on meta, last step at a tensor on meta" in repr(optimizer)


@pytest.fixture
def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers as it is in a notebook: there it makes this its default when it is imported."""
    pytest.importorskip("IPython", reason="needs IPython")
    from transformers import trainer
    from transformers.utils.notebook import NotebookProgressCallback

    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    before = NotebookProgressCallback.on_log, NotebookProgressCallback.on_evaluate
    emo_hf.register()
    assert before != (NotebookProgressCallback.on_log, NotebookProgressCallback.on_evaluate)
    yield
    emo_hf.unregister()
    assert before == (NotebookProgressCallback.on_log, NotebookProgressCallback.on_evaluate)


def table_of(trainer: Any) -> list[list[Any]]:
    """Trains, and gives the progress table as it was at the end."""
    (progress,) = (found for found in trainer.callback_handler.callbacks if hasattr(found, "training_tracker"))
    end, kept = progress.on_train_end, []

    def keeping(*args: Any, **kwargs: Any) -> None:
        kept.append((progress.training_tracker.inner_table, progress.training_tracker))
        end(*args, **kwargs)

    progress.on_train_end = keeping
    trainer.train()
    ((table, tracker),) = kept
    shown = [cell for cell in table[-1][-2:] if isinstance(cell, str)]
    assert all(f"<td>{cell}</td>" in tracker.html_code for cell in shown), "it is what was displayed"
    return table


RATE = ["Effective LR", "Factor"]


@pytest.mark.parametrize(
    ("optim", "emotion", "strategy", "head", "at"),
    [
        ("adamw_torch", "v3.1", "no", ["Step", "Training Loss", *RATE], range(1, 31)),
        ("emonavi", None, "epoch", ["Epoch", "Training Loss", "Validation Loss", *RATE], (10, 20, 30)),
        ("emonavi", None, "steps", ["Step", "Training Loss", "Validation Loss", *RATE], (10, 20, 30)),
        ("adamw_torch", None, "no", ["Step", "Training Loss"], range(1, 31)),
    ],
)
def test_the_trainers_progress_table_shows_the_dynamic_rate_of_each_line(
    optim: str, emotion: str | None, strategy: str, head: list[str], at: Any, in_a_notebook: None, tmp_path: Path
) -> None:
    trainer = tiny.trainer(
        tmp_path, optim=optim, callbacks=[emo_hf.EmoCallback(emotion)] if emotion else [], disable_tqdm=False,
        learning_rate=1e-2, num_train_epochs=3, eval_dataset=tiny.examples(4), eval_strategy=strategy, eval_steps=10,
    )  # fmt: skip
    found, *lines = table_of(trainer)
    assert found == head
    logged = [line for line in tiny.train_lines(trainer) if line["step"] in at]
    assert [line[0] for line in lines] == ([1, 2, 3] if strategy == "epoch" else list(at))
    if RATE[0] in head:
        shown = [(f"{line['emo/effective_lr']:.4g}", f"{line['emo/coefficient']:.4g}") for line in logged]
        assert [tuple(line[-2:]) for line in lines] == shown
        assert len(set(shown)) > 2
