"""Training that has gone flat is stopped, saved or only said: by options, by a callback, beside any optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import emo_hf
from emo_hf import EmoCallback, EmoEarlyStoppingCallback
from emo_hf.trainer.self_stop import SelfStop
from tests import tiny
from tests.trainer.kit import emo_of, flat_run, said, trained

EAGER = {"patience": 1, "min_steps": 10}
BY_TEXT = "self_stop=stop,self_stop_patience=1,self_stop_min_steps=10"
SOONEST = 10 + 32


@pytest.mark.parametrize(
    ("action", "attached", "stops", "checkpoints", "lines"),
    [
        ("off", False, False, 0, 0), ("log", False, False, 0, 1), ("save", False, False, 1, 1),
        ("stop", False, True, 1, 1), ("log", True, False, 0, 1), ("stop", True, True, 1, 1),
    ],
)  # fmt: skip
def test_each_action_is_taken_once_and_only_stop_stops(
    action: str, attached: bool, stops: bool, checkpoints: int, lines: int, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    changes: dict[str, Any] = {"optim_args": BY_TEXT.replace("=stop", f"={action}")}
    if attached:
        changes = {
            "optim": "adamw_torch",
            "callbacks": [EmoCallback("v3.1", self_stop=SelfStop(action=action, **EAGER))],
        }
    if stops:
        changes |= {"save_strategy": "epoch", "eval_strategy": "epoch", "eval_dataset": tiny.examples(4)}
    trainer = flat_run(tmp_path, **changes, num_train_epochs=2 if stops else 1.5)
    last = trainer.state.global_step
    assert SOONEST <= last < 90 if stops else last == 68
    made = {path.name for path in tmp_path.glob("checkpoint-*")} - {"checkpoint-45"}
    assert len(made) == checkpoints
    assert sum("Training has been flat" in line for line in said(caplog)) == lines
    if stops:
        at_the_end = [line for line in trainer.state.log_history if line["step"] == last]
        assert [key for line in at_the_end for key in ("loss", "eval_loss") if key in line] == ["loss", "eval_loss"]
        assert (tmp_path / f"checkpoint-{last}" / "optimizer.pt").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run that stops by itself, with checkpoints on its way and at its end, and the step of that."""
    emo_hf.register()
    folder = tmp_path_factory.mktemp("whole")
    run = flat_run(folder, optim_args=BY_TEXT, save_strategy="steps", save_steps=30, logging_steps=1)
    stopped = run.state.global_step
    raw = next(line["step"] for line in tiny.train_lines(run) if line["emo/should_stop"])
    assert raw < stopped, "the raw signal is logged before it is believed"
    return folder, stopped


@pytest.mark.parametrize("restores", [False, True])
def test_the_count_of_flat_steps_survives_a_resume_with_the_states_of_callbacks_and_without(
    restores: bool, whole: tuple[Path, int], tmp_path: Path
) -> None:
    folder, stopped = whole
    changes = {"optim_args": BY_TEXT, "restore_callback_states_from_checkpoint": restores}
    resumed = flat_run(tmp_path, **changes, resume=folder / "checkpoint-30")
    assert resumed.state.global_step == stopped < 90
    resumed = flat_run(tmp_path, **changes, resume=folder / f"checkpoint-{stopped}")
    assert resumed.state.global_step <= stopped + 1, "the same arguments stop it at once"


ATTACHED = {"emotion": "v3.1", "self_stop": "off"}


@pytest.mark.parametrize(
    "callbacks",
    [
        [EmoEarlyStoppingCallback(**EAGER)],
        [EmoEarlyStoppingCallback(**EAGER), EmoCallback(**ATTACHED)],
        [EmoCallback(**ATTACHED), EmoEarlyStoppingCallback(**EAGER)],
    ],
    ids=["own", "before the emotion is attached", "after it"],
)
def test_early_stopping_in_python_does_what_options_do_whichever_callback_comes_first(
    callbacks: list[Any], whole: tuple[Path, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"optim_args": "self_stop=off"} if len(callbacks) == 1 else {"optim": "adamw_torch"}
    stopped = flat_run(tmp_path, callbacks=callbacks, **own).state.global_step
    assert stopped == whole[1] if len(callbacks) == 1 else SOONEST <= stopped < 90
    assert not any("nothing to watch" in line for line in said(caplog))


def test_early_stopping_without_an_emotion_says_once_that_there_is_nothing_to_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, optim="adamw_torch", max_steps=3, callbacks=[EmoEarlyStoppingCallback(**EAGER), EmoCallback()])
    nothing = "EmoEarlyStoppingCallback has nothing to watch: the optimizer is AdamW"
    assert [line.partition(",")[0] for line in said(caplog)] == [nothing]


def test_steps_of_warm_up_are_never_counted_and_an_emo_optimizer_keeps_its_own_law_and_options(tmp_path: Path) -> None:
    emo_hf.register(emotion="v3.0")
    trainer = flat_run(tmp_path, optim_args=BY_TEXT, warmup_steps=30, lr_scheduler_type="constant_with_warmup")
    assert 30 + SOONEST <= trainer.state.global_step < 90
    assert emo_of(trainer).emotion.law == "v3.1"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"action": "halt"}, "action='halt' is not acceptable: it takes one of off, log, save, stop"),
        ({"patience": 0}, "patience=0 is not acceptable: it takes a whole number of at least 1"),
        ({"min_steps": -1}, "min_steps=-1 is not acceptable: it takes a whole number of at least 0"),
    ],
)
def test_wrong_arguments_of_the_callback_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EmoEarlyStoppingCallback(**wrong)


def test_arguments_may_be_texts_and_what_yaml_makes_of_off() -> None:
    options = {"self_stop": "stop", "self_stop_patience": "2", "console": "all"}
    assert SelfStop.of(options) == SelfStop(action="stop", patience=2)
    assert SelfStop.of({"self_stop": False}).action == "off"
    EmoCallback("v3.1", **options)
