"""`emo-hf doctor`, alone and with a script: real trainings that are felt and not felt, and how they are judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emo_hf
from emo_hf.cli import main
from emo_hf.doctor import versions
from emo_hf.doctor.main import show
from emo_hf.doctor.report import Finding, Report
from emo_hf.doctor.script import judge, redirected
from tests.ranks import begin

TRAINER = """
import sys
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, Trainer, TrainingArguments
print("a word of the script")
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
optimizer = {optimizer}([weight], lr=0.1)
print("a word of the script")
while True:
    optimizer.zero_grad()
    loss = weight.square().sum()
    {show}
    loss.backward()
    try:
        optimizer.step()
    except Exception:
        pass
"""


def as_doctor(folder: str, arguments: list[str]) -> None:
    os.chdir(folder)
    sys.argv = ["emo-hf", "doctor"]
    sys.exit(main(["doctor", "--json", *arguments]))


def doctor(*arguments: str, cwd: Path, **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a process that shares its imports with others."""
    output = cwd.parent / f"{cwd.name}.txt"
    process = begin(as_doctor, str(cwd), list(arguments), environment=os.environ | environment, output=output)
    process.join(300)
    process.kill()
    printed = output.read_text(encoding="utf-8")
    return process.exitcode, json.loads(printed[printed.rindex('{\n  "fine"') :])


@pytest.mark.parametrize("tap", ["1", "0"])
def test_alone_it_says_the_versions_and_whether_twenty_steps_of_a_trainer_are_felt(tap: str, tmp_path: Path) -> None:
    code, said = doctor(cwd=tmp_path, EMO_HF_TAP=tap)
    versions, felt = said["findings"]
    assert said["facts"]["emo_hf"] == emo_hf.__version__
    assert said["facts"]["optimizer 1"] == "EmoNavi, 20 steps, law v3.1"
    assert versions["passed"] is True
    assert (code, said["fine"], felt["passed"]) == ((0, True, True) if tap == "1" else (1, False, False))
    assert felt["said"].startswith("20 steps, 1." if tap == "1" else "not felt: no loss has reached it in 20 steps")
    assert ("as logged" in felt["said"]) == (tap == "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_trainers_script_is_felt_and_leaves_nothing_behind_and_the_report_alone_is_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINER)
    arguments = ["--emotion", "settle", "train.py", "--steps", "7", "--", "--gradient_accumulation_steps", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "emo_hf", "doctor", "--json", *arguments], cwd=tmp_path, capture_output=True, text=True,
        timeout=300, env={**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    )  # fmt: skip
    said = json.loads(done.stdout)
    (finding,) = said["findings"]
    assert (done.returncode, finding["name"]) == (0, "felt (AdamW)")
    assert finding["said"].startswith("7 steps, ")
    assert finding["said"].endswith(", as logged")
    assert said["facts"]["optimizer 1"] == "AdamW, 7 steps, law settle"
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"], "neither output nor the script's own end"


@pytest.mark.parametrize(
    ("script", "passed", "said", "remedy"),
    [
        (LOOP.format(optimizer="emo_hf.EmoNavi", show="pass"), False, "not felt: no loss has reached it in 5", "obse"),
        (LOOP.format(optimizer="emo_hf.EmoLynx", show="optimizer.observe(loss)"), True, "5 steps, 4.0000 → ", ""),
        (LOOP.format(optimizer="torch.optim.AdamW", show="pass"), False, "no optimizer has an emotion", "--optim em"),
        ("raise ValueError('no data')", False, "ValueError: no data", ""),
        ("no Python at all", False, "SyntaxError: ", ""),
        ("raise SystemExit(3)", False, "it ended with exit code 3", ""),
        ("import time; time.sleep(100)", False, "not 5 steps in 3 seconds", ""),
        ("pass", False, "it took no optimizer step", "check its arguments"),
    ],
)
def test_what_a_script_does_is_judged_even_if_it_catches_everything(
    script: str, passed: bool, said: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "loop.py").write_text(script)
    code, found = doctor("loop.py", "--steps", "5", "--timeout", "3" if "sleep" in script else "200", cwd=tmp_path)
    (finding,) = found["findings"]
    assert finding["passed"] is passed
    assert said in finding["said"]
    assert remedy in (finding["remedy"] or "")
    assert code == int(not passed)


@pytest.mark.parametrize(
    ("felt", "logged", "passed", "said"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0004], True, "3 steps, 1.0000 → 3.0000, as logged"),
        ([1.0, 2.0], [1.0, 4.0], False, "another loss than was logged: step 2, felt 2, logged 4"),
        ([1.0], [1.0, 2.0], False, "felt in part: 1 losses in 2 steps"),
    ],
)
def test_what_was_felt_is_judged_by_the_steps_and_by_what_was_logged(
    felt: list[float], logged: list[float], passed: bool, said: str
) -> None:
    finding = judge("felt", max(2, len(felt)), felt, logged)
    assert (finding.passed, finding.remedy is None) == (passed, passed)
    assert said in finding.said


def test_folders_to_write_to_are_redirected_and_nothing_else() -> None:
    arguments = ["train.py", "--output_dir", "a", "--lr", "1", "--logging_dir=b", "--output_directory", "c"]
    made = redirected(arguments, "S")
    assert made == ["train.py", "--output_dir", "S", "--lr", "1", "--logging_dir=S", "--output_directory", "c"]


def test_a_version_that_is_not_supported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    required = ['transformers<6,>=5.2; extra == "hf"', "torch>=2.6", 'optuna>99; extra == "test"', "absent>1"]
    monkeypatch.setattr(versions.importlib.metadata, "requires", lambda name: required)
    assert versions.supported().passed is True
    found_here = {"transformers": "4.9", "torch": "2.7.1+cpu", "optuna": "5.0"}
    monkeypatch.setattr(versions, "version_of", found_here.get)
    found = versions.supported()
    assert (found.passed, found.said) == (False, "transformers 4.9 is not <6,>=5.2")


def test_a_report_lists_facts_and_findings_with_their_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [Finding("a", None, "not here"), Finding("c", False, "bad", "mend")]
    assert show(Report({"list": [1, 2], "none": [], "size": 0.1234567891}, findings), as_json=False) == 1
    assert capsys.readouterr().out.splitlines() == [
        "list              1", "                  2", "none              none", "size              0.123457", "",
        "  –     a: not here", "FAILED  c: bad", "        → mend",
    ]  # fmt: skip
    assert show(Report({}, findings[:1]), as_json=False) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.py"], "there is no checkpoint and no script 'nothing.py'"),
        (["."], "'.' holds neither optimizer.pt, nor trainer_state.json, nor a checkpoint"),
        (["--", "--optim", "emonavi"], "arguments after -- (--optim emonavi) are for a script, got no target"),
        (["--emotion", "v3.1"], "--emotion are for a script, got no target"),
        (["--emotion", "v9", "x.py"], "--emotion takes one of"),
        (["-m", "module", "x.py"], "either a target or -m MODULE"),
        (["-m", "no_such_module"], "there is no module 'no_such_module'"),
        (["--steps", "0", "x.py"], "a whole number of at least 1 is wanted, got '0'"),
        (["x.py", "--optim", "emonavi"], "unrecognized arguments: --optim"),
    ],
)
def test_a_wrong_use_is_told_on_stderr_with_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.py").write_text("pass")
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert said in captured.err
    assert "Traceback" not in captured.err
