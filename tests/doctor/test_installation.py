"""`emo-hf doctor` without a target: what it says of this installation, and of one in which something is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import emo_hf
from emo_hf.cli import main
from emo_hf.doctor import environment, probe
from emo_hf.doctor.felt import noting_felt
from emo_hf.doctor.findings import Finding, Report, checked
from emo_hf.laws import LAWS
from emo_hf.optim.kernels import build
from emo_hf.trainer.registry import is_registered


@pytest.fixture(autouse=True)
def _nothing_is_registered() -> Iterator[None]:
    emo_hf.unregister()
    yield
    emo_hf.unregister()


def test_it_finds_this_installation_in_order_and_leaves_it_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fine"] is True
    found = {finding["name"]: finding for finding in said["findings"]}
    assert all(found[name]["passed"] for name in ("optimizer", "registration", "trainer", "accelerate", "loss tap"))
    assert found["registration"]["said"] == "--optim " + "|".join(emo_hf.FAMILY)
    assert said["facts"]["versions"]["torch"] == torch.__version__
    assert said["facts"]["versions"]["emo_hf"] == emo_hf.__version__
    assert set(said["facts"]["what moves parameters"]) == set(emo_hf.FAMILY)
    assert not is_registered()


def test_the_probe_says_what_was_felt_and_what_was_logged() -> None:
    assert probe.trainer().startswith("20 steps: felt ")
    felt, _, logged = probe.trainer().removeprefix("20 steps: felt ").partition(", logged ")
    assert felt == logged


def test_a_loss_that_does_not_arrive_is_found_in_trainer_and_loop(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emo_hf.EmoOptimizer, "tap_loss", lambda *args, **options: None)  # as if no loss ever arrived
    with pytest.warns(RuntimeWarning, match="without a loss"):
        assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "FAILED  trainer: RuntimeError: 20 losses were logged, and 0 were felt" in said
    assert "FAILED  accelerate: RuntimeError: 20 losses were sent to backward, and 0 were felt" in said
    assert "ok      optimizer" in said


def test_another_loss_than_was_logged_is_found_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tap_loss = emo_hf.EmoOptimizer.tap_loss

    def half(self: Any, loss: torch.Tensor, *args: Any, **options: Any) -> None:
        tap_loss(self, loss / 2, *args, **options)

    monkeypatch.setattr(emo_hf.EmoOptimizer, "tap_loss", half)
    said = checked("trainer", probe.trainer)
    assert said.passed is False
    assert "step 1: felt 0." in said.said
    assert ", logged 1." in said.said


def test_without_a_compiler_it_says_why_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setattr(build, "kernels", build.kernels.__wrapped__)
    found = environment._native()
    assert found.passed is None
    assert "no C compiler found" in found.said
    assert found.remedy is not None


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'cc: broken on purpose' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("EMO_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "kernels", build.kernels.__wrapped__)
    found = environment._native()
    assert found.passed is None
    assert "broken on purpose" in found.said


def test_a_tap_that_is_switched_off_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMO_HF_TAP", "0")
    found = environment._tap()
    assert found.passed is None
    assert "EMO_HF_TAP=0" in found.said
    assert "unset EMO_HF_TAP" in (found.remedy or "")


def test_a_version_that_is_not_supported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda name: [
        'transformers<6,>=5.2; extra == "hf"', "torch>=2.6", 'optuna>99; extra == "test"',
    ])  # fmt: skip
    assert environment.supported().passed is True
    monkeypatch.setattr(environment, "version", lambda name: "4.9" if name == "transformers" else "99.0")
    found = environment.supported()
    assert found.passed is False
    assert "transformers 4.9 is not" in found.said
    assert "torch" not in found.said


def test_what_moves_parameters_is_what_the_optimizer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.chosen_paths()["emolynx"].startswith("cpu: ")
    monkeypatch.setattr("emo_hf.optim.buckets.kernels_work_for", lambda param: False)  # as if there were no kernels
    assert "native" not in "".join(environment.chosen_paths().values())


@pytest.mark.parametrize("law", list(LAWS))
def test_every_law_is_heard_once_a_step_and_left_as_it_was(law: str) -> None:
    made = LAWS[law]()
    before = type(made).feel
    with noting_felt() as noted:
        for loss in (3.0, 2.0):
            made.feel(loss)
    assert noted == [(made, 3.0), (made, 2.0)]
    assert type(made).feel is before


def test_a_report_is_fine_unless_something_has_failed() -> None:
    absent, good = Finding(name="a", said="not here", passed=None), Finding(name="b", said="here")
    assert Report(findings=[absent, good]).exit_code == 0
    bad = Finding(name="c", said="broken", passed=False, remedy="mend it")
    report = Report(facts={"things": {"list": [1, 2], "none": [], "flag": True, "size": 0.1}}, findings=[bad])
    assert report.exit_code == 1
    assert report.text().splitlines() == [
        "things", "  list  1", "        2", "  none  none", "  flag  yes", "  size  0.1", "",
        "FAILED  c: broken", "        → mend it",
    ]  # fmt: skip
