"""`emo-hf doctor SCRIPT`: real scripts, felt and not felt; what is judged; what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from emo_hf.cli import main
from emo_hf.doctor.script import judge, redirected

pytestmark = pytest.mark.long

TRAINER = """
import sys
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments
given = [*sys.argv[1:], "--output_dir", "out", "--save_steps", "5"]
(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(given)
config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
data = [{"input_ids": [i % 64] * 4, "labels": i % 2} for i in range(256)]
Trainer(BertForSequenceClassification(config), args, train_dataset=data).train()
open("came_to_its_end", "w").close()
"""
LOOP = """
import torch, emo_hf
weight = torch.nn.Parameter(torch.ones(4))
optimizer = emo_hf.EmoNavi([weight], lr=0.1)
while True:
    optimizer.zero_grad()
    loss = weight.square().sum()
    loss.backward()
    try:
        optimizer.step()
    except Exception:
        pass
"""


def doctor(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_trainers_script_with_an_emo_optimizer_is_felt_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("train.py").write_text(TRAINER)
    arguments = ["--optim", "emonavi", "--gradient_accumulation_steps", "2"]
    code, said = doctor("train.py", "--", *arguments, capsys=capsys)
    assert code == 0
    (finding,) = said["findings"]
    assert finding["said"].startswith("20 steps, as logged (")
    assert said["facts"]["script"]["optimizer 1"] == "EmoNavi, 20 steps, law v3.1"
    assert [path.name for path in Path().iterdir()] == ["train.py"], "neither output nor the script's own end"


def test_a_loop_that_does_not_show_its_loss_is_not_felt_even_if_it_catches_everything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("loop.py").write_text(LOOP)
    code, said = doctor("loop.py", "--steps", "5", "--timeout", "60", capsys=capsys)
    assert code == 1
    (finding,) = said["findings"]
    assert finding["said"] == "not felt: no loss has reached it in 5 steps"
    assert "optimizer.observe(loss)" in finding["remedy"]


@pytest.mark.parametrize(
    ("body", "options", "said"),
    [
        ("raise ValueError('no data')", [], "ValueError: no data"),
        ("import time; time.sleep(100)", ["--timeout", "1"], "had not taken 20 steps after 1 seconds"),
    ],
)
def test_a_script_that_takes_no_step_is_told_why(
    body: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("script.py").write_text(body)
    code, found = doctor("script.py", *options, capsys=capsys)
    assert code == 1
    assert said in found["findings"][0]["said"]


def test_an_optimizer_without_an_emotion_or_no_step_at_all_is_told_with_the_remedy() -> None:
    plain = {"optimizer": "AdamW", "steps": 3, "law": None, "felt": []}
    (finding,) = judge({"error": None, "optimizers": [plain], "sent": [], "logged": []})
    assert finding.passed is False
    assert finding.said == "not felt: AdamW (3 steps) has no emotion"
    assert "--optim emonavi" in (finding.remedy or "")
    (finding,) = judge({"error": None, "optimizers": [], "sent": [], "logged": []})
    assert (finding.passed, finding.said) == (False, "it took no optimizer step")


def test_folders_to_write_to_are_redirected_and_nothing_else() -> None:
    arguments = ["train.py", "--output_dir", "a", "--lr", "1", "--logging_dir=b", "--output_directory", "c"]
    made = redirected(arguments, "S")
    assert made == ["train.py", "--output_dir", "S", "--lr", "1", "--logging_dir=S", "--output_directory", "c"]


def seen(felt: list[float], sent: list[list[float]], logged: list[float] | None = None) -> dict[str, Any]:
    optimizer = {"optimizer": "EmoNavi", "steps": len(sent), "law": "v3.1", "felt": felt}
    lines = [(i + 1, loss) for i, loss in enumerate(logged or [])]
    return {"ended": "", "error": None, "optimizers": [optimizer], "sent": sent, "logged": lines}


@pytest.mark.parametrize(
    ("result", "passed", "said"),
    [
        (seen([1.0, 2.0], [[1.0], [2.0]]), True, "what was sent to backward"),
        (seen([1.0, 2.0], [[0.4, 0.6], [1.5, 0.5]]), True, "the sum of what was sent"),
        (seen([1.0, 2.0], [[0.5, 1.5], [3.0, 1.0]]), True, "the mean of what was sent"),
        (seen([1.0, 2.0], [[0.5], [1.0]]), True, "at another scale"),
        (seen([1.0, 5.0], [[1.0], [2.0]]), None, "step 2: felt 5, sent to backward 2"),
        (seen([1.0], [[1.0], [2.0]]), False, "felt in part: 1 losses in 2 steps"),
        (seen([], [[1.0], [2.0]]), False, "not felt: no loss has reached it in 2 steps"),
        (seen([1.0, 2.0], [[1.0], [2.0]], [1.0, 2.0004]), True, "as logged"),
        (seen([1.0, 2.0], [[1.0], [2.0]], [1.0, 4.0]), False, "step 2: felt 2, logged 4"),
        (seen([1.0, 2.0, 3.0], [[1.0], [2.0], [3.0]], [1.0, 2.0]), True, "as logged"),
    ],
)
def test_what_was_felt_is_judged_by_what_was_logged_or_else_sent(
    result: dict[str, Any], passed: bool | None, said: str
) -> None:
    (finding,) = judge(result)
    assert finding.passed is passed
    assert said in finding.said
    assert (finding.remedy is None) == (passed is True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.py"], "there is no checkpoint and no script 'nothing.py'"),
        (["--", "--optim", "emonavi"], "arguments after -- (--optim emonavi) are for a script, got no target"),
        (["--emotion", "v9", "x.py"], "--emotion takes one of"),
        (["-m", "module", "x.py"], "either a target or -m MODULE"),
        (["--steps", "0", "x.py"], "a whole number of at least 1 is wanted, got '0'"),
        (["x.py", "--optim", "emonavi"], "unrecognized arguments: --optim"),
    ],
)
def test_a_wrong_use_is_told_on_stderr_with_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert said in captured.err
    assert "Traceback" not in captured.err
