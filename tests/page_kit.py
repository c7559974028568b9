"""Runs what can be copied from the pages, in processes that are forked from one which has imported all of it.

The pages speak of things that are the reader's (`model`, `train_data`, `train.py`, `my.txt`); here they are tiny.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything of Hugging Face is imported

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import emo_hf
from emo_hf import cli
from tests import tiny
from tests.train.tiny import save_bert

ROOT = Path(__file__).parent.parent

TRAIN_SCRIPT = """
from transformers import HfArgumentParser, Trainer, TrainingArguments
from tests.tiny import classifier, examples

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
args.max_steps = 2
Trainer(classifier(), args, train_dataset=examples(16), eval_dataset=examples(8)).train()
"""

QUICK = {
    "model_name_or_path": "base",
    "max_length": 16,
    "max_steps": 2,
    "max_train_samples": 12,
    "max_eval_samples": 8,
    "eval_steps": 1,
    "save_steps": 1,
    "per_device_train_batch_size": 4,
    "warmup_steps": 0,
}
"""What is put after a job of configs/train, so that it is one of seconds on a tiny model."""


@dataclass(frozen=True)
class Block:
    """Something that can be copied.

    Attributes:
        page: where it stands, and in which line.
        language: `python`, `bash`, `yaml`, or what is said there.
        text: what it is.
        not_run: why it is not run; empty if it is.
    """

    page: str
    language: str
    text: str
    not_run: str = ""


def commands(block: Block) -> list[list[str]]:
    """The commands of a shell block, one a line, those after `&&` apart."""
    lines = re.split(r"\n| && ", block.text.replace("\\\n", " "))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def installs(command: Sequence[str]) -> bool:
    """Whether a command makes an environment, or runs all tests in one."""
    name, *rest = command
    return name.endswith("pip") or rest[:2] == ["-m", "venv"] or (rest[:2] == ["-m", "pytest"] and len(rest) == 2)


def prepare(folder: Path) -> None:
    """What the reader has: a script, a text, a base model, and two runs."""
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "train.py").write_text(TRAIN_SCRIPT, encoding="utf-8")
    text = "\n\n".join(f"Paragraph {number} says that all is well." for number in range(60))
    (folder / "my.txt").write_text(text, encoding="utf-8")


def clear(folder: Path) -> None:
    """Before another page: take away what its predecessors have made, but for the runs that pages speak of."""
    for made in (folder / "outputs").iterdir():
        if made.name not in ("a", "b", "quickstart") and made.is_dir():
            shutil.rmtree(made)


def _prepare_runs() -> None:
    save_bert(Path("base"))
    for name in ("outputs/a", "outputs/b"):
        callback = emo_hf.EmoCallback("settle")
        again = {"save_strategy": "steps", "save_steps": 5, "optim": "adamw_torch"}
        tiny.trainer(Path(name), callbacks=[callback], **again).train()


def run(folder: Path, blocks: Sequence[Block], output: Path) -> int:
    """Run blocks one after the other, in a process of their own; Python of one page shares its names.

    Returns:
        The exit code; what was printed is in `output`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.page_server"])
    process = context.Process(target=_in_child, args=(folder, tuple(blocks), output))
    process.start()
    process.join()
    return int(process.exitcode or 0)


def _in_child(folder: Path, blocks: Sequence[Block], output: Path) -> None:
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(ROOT)
    with output.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.path[:] = [str(ROOT), *(path for path in sys.path if path != str(ROOT))]
    names: dict[str, Any] = {"__name__": "page"}
    code = 0
    try:
        if not blocks:
            _prepare_runs()
        for block in blocks:
            if block.language == "python":
                names.update(of_the_reader())
                exec(compile(block.text, block.page, "exec"), names)
            else:
                for command in commands(block):
                    _run_command(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except Exception:  # noqa: BLE001  the parent says what it was
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def of_the_reader() -> dict[str, Any]:
    """What the pages call the reader's, made anew for each block."""
    model, data = tiny.classifier(), tiny.examples(12)
    optimizer = emo_hf.EmoNavi(model.parameters(), lr=1e-3, emo_law="settle")
    optimizer.observe(float("nan"))
    optimizer.step()
    return {
        "Trainer": Trainer,
        "TrainingArguments": TrainingArguments,
        "args": tiny.arguments(Path("outputs/args"), optim="adamw_torch", max_steps=2),
        "eval_data": tiny.examples(8, seed=1),
        "loader": DataLoader(data, batch_size=4),
        "model": model,
        "optimizer": optimizer,
        "train_data": data,
    }


def _run_command(command: Sequence[str]) -> None:
    name, *rest = command
    sys.argv = list(command)
    if installs(command):
        return
    if os.path.basename(name) == "emo-hf":
        quick = [word for key, value in QUICK.items() for word in (f"--{key}", str(value))]
        is_quick = rest[:2] == ["train", "configs/train/quickstart.yaml"]
        code = cli.main([*rest, *(quick if is_quick else ["--max_steps", "2"] if rest[0] == "train" else [])])
        if code:
            raise SystemExit(code)
    elif name == "python" and rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    elif name.endswith(".sh"):
        subprocess.run(command, check=True)
    else:
        raise RuntimeError(f"nobody knows how to run {name}: say <!-- not run: why --> before the block")
