"""`emo-hf`: train, run, compare, plot, doctor."""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

from emo_hf.cli_errors import INTERRUPTED, complain

HELP = ("-h", "--help")
BROKEN_PIPE = 141

FIRST_STEPS = """\
emo-hf: optimizers that feel the loss, for the Hugging Face Trainer. What people do first:

  emo-hf run train.py --optim emonavi …        run your own Trainer script, unchanged, with an emo optimizer
  emo-hf train configs/train/quickstart.yaml   fine-tune a model with LoRA, from one YAML file
  emo-hf plot outputs/quickstart               draw what a run has done

emo-hf --help lists all commands; emo-hf doctor says whether everything works here.
"""


class Command(NamedTuple):
    """A command: a module with `main(argv)` and, for shells to complete from, `parser()`; examples for `--help`."""

    module: str
    summary: str
    examples: tuple[str, str]


COMMANDS = {
    "train": Command(
        "emo_hf.train.train", "fine-tune a model (LoRA or full) from a YAML file and --options",
        ("emo-hf train configs/train/quickstart.yaml   # data and model come with the packages",
         "emo-hf train --task causal-lm --model_name_or_path gpt2 --train_file my.txt --output_dir outputs/a"),
    ),
    "run": Command(
        "emo_hf.run", "run any training script with the emo optimizers known to the Trainer",
        ("emo-hf run run_glue.py --optim emonavi --output_dir out …   # somebody's Trainer script, unchanged",
         "emo-hf run --average_weights train.py …   # with its own optimizer, and an average of the weights"),
    ),
    "compare": Command(
        "emo_hf.study.main", "compare optimizers, laws, schedules: a study, from a YAML file to a report",
        ("emo-hf compare configs/studies/quick.yaml --output_dir outputs/quick --dry-run   # how long it takes",
         "emo-hf compare configs/studies/quick.yaml --output_dir outputs/quick   # again, it goes on where it was"),
    ),
    "plot": Command(
        "emo_hf.plot.main", "draw runs: losses, effective learning rate, σ, factor, decisions",
        ("emo-hf plot outputs/a --output a.html   # a page that zooms and shows values",
         "emo-hf plot outputs/a outputs/b --output both.svg   # two runs in one picture"),
    ),
    "doctor": Command(
        "emo_hf.doctor.main", "whether the loss is felt here, or in a script; what a checkpoint's emotion says",
        ("emo-hf doctor outputs/a/checkpoint-400   # averages, factor and decisions",
         "emo-hf doctor train.py -- --optim emonavi …   # 20 steps of a script: would its loss be felt?"),
    ),
    "completion": Command(
        "emo_hf.completion", "print what makes a shell complete these commands, their options and values",
        ("emo-hf completion bash > ~/.local/share/bash-completion/completions/emo-hf",
         "emo-hf completion zsh > ~/.zfunc/_emo-hf   # with ~/.zfunc in fpath before compinit"),
    ),
}  # fmt: skip


def usage() -> str:
    """All that there is."""
    lines = ["usage: emo-hf COMMAND [ARGS ...]", "       emo-hf --version", ""]
    lines += [f"  {name:10}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "emo-hf COMMAND --help tells more, with examples.", ""]
    return "\n".join([*lines, "exit code: 0 done, 1 something is wrong or has failed, 2 it was called wrongly"])


def versions() -> str:
    """This package, and what it works with, one a line."""
    import emo_hf

    found = {"emo_hf": emo_hf.__version__, "python": platform.python_version()}
    found |= {package: version_of(package) or "not installed" for package in ("torch", "transformers", "accelerate")}
    return "\n".join(f"{name} {version}" for name, version in found.items())


def version_of(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `emo-hf`; the process's own if None.

    Returns:
        The exit code: what the command says, 2 for arguments that cannot be used, 130 after Ctrl-C.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `emo-hf … | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain once more at its end
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(FIRST_STEPS, end="")
        return 0
    name, *rest = arguments
    if name in HELP:
        print(usage())
    elif name in ("-V", "--version"):
        print(versions())
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        perhaps = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(COMMANDS)}"
        return complain("emo-hf", f"unknown command {name!r}: {perhaps}")
    else:
        return _command(name, rest)
    return 0


def _command(name: str, rest: list[str]) -> int:
    try:
        module = importlib.import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        return complain(f"emo-hf {name}", error)
    code = int(module.main(rest))
    if code == 0 and rest[:1] and rest[0] in HELP:
        print("\nexamples:", *COMMANDS[name].examples, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main())
