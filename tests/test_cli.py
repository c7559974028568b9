"""The command line's own words; each command has tests of its own."""

from __future__ import annotations

import pytest

from emo_hf.cli import COMMANDS, main


def test_without_arguments_it_lists_every_command_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().out
    assert all(name in said for name in COMMANDS)


def test_help_is_not_an_error() -> None:
    assert main(["--help"]) == 0
    assert main(["run", "--help"]) == 0
    assert main(["doctor", "--help"]) == 0


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err


def test_doctor_finds_this_installation_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    import emo_hf

    try:
        assert main(["doctor"]) == 0
    finally:
        emo_hf.unregister()
    said = capsys.readouterr().out
    assert said.count("ok  ") == 3
    assert "FAILED" not in said
    assert "--optim " + "|".join(emo_hf.FAMILY) in said


def test_run_lists_every_optimizer_and_law(capsys: pytest.CaptureFixture[str]) -> None:
    from emo_hf import FAMILY
    from emo_hf.emotion.laws import LAWS

    assert main(["run", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--optim {name}" in said for name in FAMILY)
    assert all(law in said for law in LAWS)


def test_doctor_says_what_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import emo_hf
    from emo_hf import EmoOptimizer

    monkeypatch.setattr(EmoOptimizer, "tap_loss", lambda *args, **options: None)  # as if no loss ever arrived
    try:
        with pytest.warns(RuntimeWarning, match="without a loss"):
            assert main(["doctor"]) == 1
    finally:
        emo_hf.unregister()
    assert "FAILED  trainer" in capsys.readouterr().out
