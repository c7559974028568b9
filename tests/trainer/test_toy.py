"""A law is one class and one line, a rule one class and one statement; the Trainer takes them by name."""

# ruff: noqa: RUF012  tables of a class, declared as ClassVar in its base

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

import emo_hf
from emo_hf import FAMILY, EmoOptimizer, run
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
from tests.emo_cases import assert_identical
from tests.trainer.kit import SaveAt, emo_of, outcome, trained, weights


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


def toy(folder: Path, optim: str = "emotoy", args: str | None = "emo_law=toy", **changes: Any) -> Trainer:
    settings = {"max_steps": 6, "max_grad_norm": 0.0, "learning_rate": 0.1, **changes}
    return trained(folder, optim=optim, optim_args=args, **settings)


def test_a_toy_optimizer_trains_by_name_and_follows_the_toy_law(tmp_path: Path) -> None:
    made = toy(tmp_path, args="emo_law=toy,falling=1.0,toy_size=3")
    optimizer = emo_of(made)
    assert (type(optimizer), optimizer.emotion.law, optimizer.version) == (FAMILY["emotoy"], "toy", "v0.1")
    assert optimizer.param_groups[0]["toy_size"] == 3.0
    assert optimizer.emotion.observations == 6
    torch.testing.assert_close(weights(made.model), weights(toy(tmp_path, optim="sgd", args=None).model))


def test_a_toy_law_drives_the_other_optimizers_and_a_toy_rule_obeys_the_other_laws(tmp_path: Path) -> None:
    made = toy(tmp_path, "emonavi", "emo_law=toy,falling=0.25", learning_rate=1e-2, data=tiny.examples(4) * 8)
    assert {line["emo/coefficient"] for line in tiny.train_lines(made)} == {0.25, 1.0}
    for law in ("v3.6", "v3.9", "robust", "none"):
        emotion = emo_of(toy(tmp_path, args=f"emo_law={law}", max_steps=2)).emotion
        assert (emotion.law, emotion.observations) == (law, 2)


def test_a_toy_run_resumes_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole = toy(tmp_path, callbacks=[SaveAt(3)])
    assert {line["emo/coefficient"] for line in tiny.train_lines(whole)} == {0.5, 1.0}
    assert_identical(outcome(toy(tmp_path, resume=tmp_path / "checkpoint-3")), outcome(whole))


def test_everything_that_lists_optimizers_laws_and_options_lists_the_toys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = HfArgumentParser(TrainingArguments)
    parsed = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--optim", "emotoy"])
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
    assert all(word in described for word in ("Gradient descent with an emotion", "p ← p − lr·g", "toy_size"))
    emo_hf.unregister()
    assert "emotoy" not in HfArgumentParser(TrainingArguments)._option_string_actions["--optim"].choices
