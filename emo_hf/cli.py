"""`emo-hf`: train, run, compare, plot, doctor."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from emo_hf.cli_errors import INTERRUPTED, complain, one_sentence

HELP = ("-h", "--help")
SHELLS = ("bash", "zsh", "tcsh")
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
        "emo_hf.cli", "print what makes a shell complete these commands, their options and values",
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
    from emo_hf.doctor.versions import version_of

    found = {"emo_hf": emo_hf.__version__, "python": platform.python_version()}
    found |= {package: version_of(package) or "not installed" for package in ("torch", "transformers", "accelerate")}
    return "\n".join(f"{name} {version}" for name, version in found.items())


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
        run = complete if name == "completion" else importlib.import_module(COMMANDS[name].module).main
    except ModuleNotFoundError as error:
        return complain(f"emo-hf {name}", error)
    code = int(run(rest))
    if code == 0 and rest[:1] and rest[0] in HELP:
        print("\nexamples:", *COMMANDS[name].examples, sep="\n  ")
    return code


@one_sentence("emo-hf completion")
def complete(argv: Sequence[str] | None = None) -> int:
    """Print what makes a shell complete all commands, by shtab."""
    shell = completion_parser().parse_args(argv).shell
    import shtab

    print(shtab.complete(all_parsers(), shell=shell))
    return 0


def completion_parser() -> argparse.ArgumentParser:
    """What `emo-hf completion` takes."""
    about = "Print a script that makes a shell complete commands, options and values; make it anew after an update."
    made = argparse.ArgumentParser(prog="emo-hf completion", description=about)
    made.add_argument("shell", choices=SHELLS, help="the shell")
    return made


def all_parsers() -> argparse.ArgumentParser:
    """One parser of all commands, in which files and the values of options that have few are known."""
    import shtab

    from emo_hf.laws import law_names
    from emo_hf.optim.family import family_names

    root = argparse.ArgumentParser(prog="emo-hf")
    root.add_argument("--version", action="store_true", help="print versions")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        own = completion_parser() if name == "completion" else importlib.import_module(command.module).parser()
        if name == "run":  # its script's
            own.add_argument("--optim", choices=family_names(), help="the optimizer of a Trainer's script")
        actions: list[Any] = own._actions
        for action in actions:
            if "--emotion" in action.option_strings:  # it takes more names than can be listed
                action.choices = law_names()
            elif action.nargs != 0 and action.choices is None:
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[own], add_help=False, description=command.summary, help=command.summary)
    return root


if __name__ == "__main__":
    sys.exit(main())
