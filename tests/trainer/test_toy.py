"""A law is one class and one line, a rule one class and one statement; the Trainer takes them by name."""

# ruff: noqa: RUF012  tables of a class, declared as ClassVar in its base

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

import emo_hf
from emo_hf import FAMILY, EmoNavi, EmoOptimizer, run
from emo_hf.integrations.accelerate import unwrap
from emo_hf.laws import LAWS
from emo_hf.laws.decision import Decision
from emo_hf.laws.law import Law
from emo_hf.optim.family import family_names
from emo_hf.optim.family_table import family_table
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.update import Bucket, Hyperparameters
from emo_hf.optim.version import Version
from emo_hf.reading import Option, number
from emo_hf.trainer.options import known_options, read_options
from tests import tiny


class ToyLaw(Law):
    """One factor while the loss falls, none otherwise."""

    name = "toy"
    options = {"falling": Option(0.5, number(0), "factor while the loss falls")}
    falling: float

    def decide(self, loss: float) -> Decision:
        return Decision(self.long - self.short, self.falling if self.short < self.long else 1.0)


def move(bucket: Bucket, h: Hyperparameters) -> None:
    for p, g, _ in bucket:
        p.add_(g, alpha=-h.lr)


class Descent(Rule):
    """p ← p − lr·g"""

    implementations = {"single": move}
    options = {"toy_size": Option(1.0, number(0), "nothing that matters")}


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    LAWS[ToyLaw.name] = ToyLaw

    class EmoToy(EmoOptimizer, versions=(Version(name="v0.1", rule=Descent, law="v3.1", lr=0.1),)):
        """Gradient descent with an emotion."""

    emo_hf.register()
    yield
    del FAMILY["emotoy"], LAWS["toy"]
    emo_hf.unregister()


def weights(
    folder: Path, lr: float = 0.1, **changes: object
) -> tuple[list[torch.Tensor], EmoOptimizer, list[dict[str, float]]]:
    trainer = tiny.trainer(folder, max_steps=8, max_grad_norm=0.0, learning_rate=lr, **changes)
    trainer.train()
    return list(trainer.model.state_dict().values()), unwrap(trainer.optimizer), tiny.train_lines(trainer)


def test_a_toy_optimizer_trains_by_name_and_follows_the_toy_law(tmp_path: Path) -> None:
    moved, optimizer, lines = weights(tmp_path, optim="emotoy", optim_args="emo_law=toy,falling=1.0,toy_size=3")
    assert (type(optimizer), optimizer.emotion.law, optimizer.version) == (FAMILY["emotoy"], "toy", "v0.1")
    assert optimizer.param_groups[0]["toy_size"] == 3.0
    assert optimizer.emotion.observations == 8
    descended, _, _ = weights(tmp_path, optim="sgd")
    for one, other in zip(moved, descended, strict=True):
        torch.testing.assert_close(one, other)
    _, _, lines = weights(tmp_path, optim="emotoy", optim_args="emo_law=toy")
    assert {line["emo/coefficient"] for line in lines} == {0.5, 1.0}
    assert all(line["emo/effective_lr"] == line["learning_rate"] * line["emo/coefficient"] for line in lines)


def test_a_toy_law_drives_the_other_optimizers_and_a_toy_rule_obeys_the_other_laws(tmp_path: Path) -> None:
    _, optimizer, lines = weights(
        tmp_path, 1e-2, optim="emonavi", optim_args="emo_law=toy,falling=0.25", data=tiny.examples(4) * 8
    )
    assert (type(optimizer), optimizer.emotion.law) == (EmoNavi, "toy")
    assert {line["emo/coefficient"] for line in lines} == {0.25, 1.0}
    for law in ("v3.0", "v3.6", "v3.9", "robust", "none"):
        _, optimizer, _ = weights(tmp_path, optim="emotoy", optim_args=f"emo_law={law}")
        assert (optimizer.emotion.law, optimizer.emotion.observations) == (law, 8)


def test_a_toy_run_resumes_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    def final(**resume: str) -> tuple[list[torch.Tensor], object]:
        trainer = tiny.trainer(
            tmp_path, optim="emotoy", optim_args="emo_law=toy", max_steps=4, save_strategy="steps", save_steps=2
        )
        trainer.train(**resume)
        return list(trainer.model.state_dict().values()), unwrap(trainer.optimizer).emotion

    whole, emotion = final()
    resumed, emotion_again = final(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True))
    assert emotion_again == emotion


def test_everything_that_lists_optimizers_laws_and_options_lists_the_toys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", "emotoy"]
    )
    assert parsed[0].optim.value == "emotoy"
    assert run.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "emotoy" in said
    assert "toy" in said.partition("this law:")[2].partition("--emotion_args")[0]
    assert "emotoy" in " ".join(family_names())
    assert "| `emotoy` | EmoToy | v0.1 | Descent | v3.1 | 0.1 |" in family_table()
    assert {"falling", "toy_size"} <= known_options().keys()
    assert read_options({"emo_law": "toy", "version": "v0.1"}).optimizer == {"emo_law": "toy", "version": "v0.1"}
    described = FAMILY["emotoy"].__doc__ or ""
    assert all(word in described for word in ("Gradient descent with an emotion", "p ← p − lr·g", "toy_size", "`toy`"))


def test_what_was_added_goes_again_without_a_trace() -> None:
    names = HfArgumentParser(TrainingArguments)._option_string_actions["--optim"].choices
    assert "emotoy" in names
    emo_hf.unregister()
    names = HfArgumentParser(TrainingArguments)._option_string_actions["--optim"].choices
    assert "emotoy" not in names
    emo_hf.register()
