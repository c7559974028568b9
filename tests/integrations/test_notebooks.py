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
from emo_hf.trainer import patches
from tests import tiny
from tests.emo_cases import each_optimizer


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


def test_options_that_somebody_has_chosen_are_said_and_others_are_not() -> None:
    assert "betas (0.8, 0.9)" in repr(trained(betas=(0.8, 0.9)))
    assert "use_shadow True" in repr(trained(EmoLynx, use_shadow=True))
    assert "betas" not in repr(trained())


def test_before_the_first_step_no_rate_and_no_loss_are_made_up() -> None:
    text = repr(trained(steps=0))
    assert "loss none yet" in text
    assert "last step" not in text


@each_optimizer
def test_every_optimizer_of_the_family_can_be_shown(cls: type[emo_hf.EmoOptimizer]) -> None:
    optimizer = trained(cls)
    assert len(repr(optimizer).splitlines()) == 4
    words = Parsed(optimizer._repr_html_()).words
    assert f"{cls.__name__} {optimizer.version} (rule {type(optimizer.rule).__name__})" in words
    assert torch.optim.Optimizer.__repr__(optimizer) in words, "torch's account of all options is there too"
    assert repr(copy.deepcopy(optimizer)) == repr(optimizer)


def test_names_with_angle_brackets_do_no_harm_to_the_page() -> None:
    optimizer = EmoNavi([{"params": [torch.nn.Parameter(torch.ones(2))], "name": "<script>"}])
    assert "<script>" not in optimizer._repr_html_()
    assert "<script>" in Parsed(optimizer._repr_html_()).words


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
    Parsed(optimizer._repr_html_())


@pytest.fixture
def in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """transformers as it is in a notebook: there it makes this its default when it is imported."""
    pytest.importorskip("IPython", reason="needs IPython")
    from transformers import trainer
    from transformers.utils.notebook import NotebookProgressCallback

    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    emo_hf.register()
    yield NotebookProgressCallback
    emo_hf.unregister()


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


@pytest.mark.parametrize("optim", ["emonavi", "adamw_torch"])
def test_the_trainers_progress_table_shows_the_dynamic_rate_of_each_line(
    optim: str, in_a_notebook: Any, tmp_path: Path
) -> None:
    callbacks = [emo_hf.EmoCallback(emotion="v3.1")] if optim == "adamw_torch" else []
    trainer = tiny.trainer(
        tmp_path, optim=optim, callbacks=callbacks, disable_tqdm=False, learning_rate=3e-3, num_train_epochs=8
    )
    head, *lines = table_of(trainer)
    assert head == ["Step", "Training Loss", "Effective LR", "Factor"]
    logged = tiny.train_lines(trainer)
    assert [line[0] for line in lines] == [line["step"] for line in logged]
    assert [line[2] for line in lines] == [f"{line['emo/effective_lr']:.4g}" for line in logged]
    assert [line[3] for line in lines] == [f"{line['emo/coefficient']:.4g}" for line in logged]
    assert len({line[3] for line in lines}) > 5


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_with_evaluations_each_of_their_lines_has_the_rate_of_the_step_before(
    strategy: str, in_a_notebook: Any, tmp_path: Path
) -> None:
    trainer = tiny.trainer(
        tmp_path, disable_tqdm=False, learning_rate=3e-3, num_train_epochs=3, eval_dataset=tiny.examples(4),
        eval_strategy=strategy, eval_steps=10,
    )  # fmt: skip
    head, *lines = table_of(trainer)
    first = "Epoch" if strategy == "epoch" else "Step"
    assert head == [first, "Training Loss", "Validation Loss", "Effective LR", "Factor"]
    at = [line for line in tiny.train_lines(trainer) if line["step"] in (10, 20, 30)]
    assert [line[3] for line in lines] == [f"{line['emo/effective_lr']:.4g}" for line in at]
    assert [line[0] for line in lines] == ([1, 2, 3] if strategy == "epoch" else [10, 20, 30])


def test_a_run_without_an_emotion_has_the_table_that_it_always_had(in_a_notebook: Any, tmp_path: Path) -> None:
    head, *_ = table_of(tiny.trainer(tmp_path, optim="adamw_torch", disable_tqdm=False))
    assert head == ["Step", "Training Loss"]


def test_transformers_gets_its_own_table_back(in_a_notebook: Any) -> None:
    assert in_a_notebook.on_log.__module__ == "transformers.utils.notebook", "functools.wraps keeps the name"
    ours = in_a_notebook.on_log
    patches.uninstall()
    assert in_a_notebook.on_log is ours.__wrapped__
