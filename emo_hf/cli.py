"""`emo-hf`: train, run, compare, plot, doctor."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import dataclass

HELP = ("-h", "--help")
INTERRUPTED = 130
BROKEN_PIPE = 141


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command.

    Attributes:
        module: has its `main(argv)`, which gives the exit code.
        summary: what it does, in one line.
        examples: (command line, what it does), shown below its `--help`.
    """

    module: str
    summary: str
    examples: tuple[tuple[str, str], ...]


COMMANDS = {
    "train": Command(
        module="emo_hf.train.train",
        summary="fine-tune a model (LoRA or full) from a YAML file and --options",
        examples=(
            ("emo-hf train configs/train/quickstart.yaml", "the quickstart: data and model come with the packages"),
            (
                "emo-hf train --task causal-lm --model_name_or_path gpt2 --train_file my.txt --output_dir outputs/a "
                "--optim emolynx --learning_rate 3e-4",
                "without a file: a LoRA adapter on a language model and a text of yours",
            ),
        ),
    ),
    "run": Command(
        module="emo_hf.run",
        summary="run any training script with the emo optimizers known to the Trainer",
        examples=(
            ("emo-hf run run_glue.py --optim emonavi --output_dir out …", "somebody's Trainer script, unchanged"),
            ("emo-hf run --emotion settle train.py …", "a script that keeps its optimizer, with an emotion for it"),
        ),
    ),
    "compare": Command(
        module="emo_hf.study.main",
        summary="compare optimizers, laws, schedules: a study, from a YAML file to a report",
        examples=(
            (
                "emo-hf compare configs/studies/quick.yaml --output_dir outputs/quick --dry-run",
                "how many runs a study has, and about how long they take",
            ),
            (
                "emo-hf compare configs/studies/quick.yaml --output_dir outputs/quick",
                "run them, or go on where they were cut off, and write the report",
            ),
        ),
    ),
    "plot": Command(
        module="emo_hf.plot.main",
        summary="draw runs: loss, effective learning rate, σ, factor, decisions, evaluations",
        examples=(
            ("emo-hf plot outputs/a --output a.html --follow", "a page that zooms, drawn anew while the run is going"),
            ("emo-hf plot outputs/a outputs/b --output both.svg", "two runs in one picture"),
        ),
    ),
    "doctor": Command(
        module="emo_hf.doctor.main",
        summary="what works here; what a checkpoint's emotion says; whether a script's loss is felt",
        examples=(
            ("emo-hf doctor outputs/a/checkpoint-400", "averages, σ, factor and decisions of a checkpoint"),
            ("emo-hf doctor train.py -- --optim emonavi …", "20 steps of a script: would its loss be felt?"),
        ),
    ),
    "completion": Command(
        module="emo_hf.completion",
        summary="print what makes a shell complete these commands and their options",
        examples=(
            ("emo-hf completion bash > ~/.local/share/bash-completion/completions/emo-hf", "for bash"),
            ("emo-hf completion zsh > ~/.zfunc/_emo-hf", "for zsh, with ~/.zfunc in fpath before compinit"),
        ),
    ),
}


def usage() -> str:
    """What there is."""
    width = max(map(len, COMMANDS))
    lines = ["usage: emo-hf COMMAND [ARGS ...]", "       emo-hf --version", ""]
    lines += [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "emo-hf COMMAND --help tells more, with examples.", ""]
    return "\n".join([*lines, "exit code: 0 done, 1 something is wrong or has failed, 2 it was called wrongly"])


def versions() -> str:
    """This package, and what it works with, one a line."""
    import emo_hf

    found = {"emo_hf": emo_hf.__version__, "python": platform.python_version()}
    found |= {package: _version(package) for package in ("torch", "transformers", "accelerate")}
    return "\n".join(f"{name} {version}" for name, version in found.items())


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after `emo-hf`; the process's own if None.

    Returns:
        The exit code: 0, or 2 for arguments that cannot be used, or what the command says; 130 after Ctrl-C.
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
        print(usage(), file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in HELP:
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(versions())
        return 0
    if name not in COMMANDS:
        print(f"emo-hf: unknown command {name!r}{_perhaps(name)}\n{usage()}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("emo_hf"):
            raise
        print(f'emo-hf {name} needs {error.name}: pip install "emo_hf[hf]"', file=sys.stderr)
        return 2
    code = int(command.main(rest))
    if code == 0 and rest[:1] and rest[0] in HELP:
        print("\nexamples:")
        for line, what in COMMANDS[name].examples:
            print(f"  # {what}\n  {line}")
    return code


def _perhaps(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    return f": did you mean {close[0]!r}?" if close else ""


if __name__ == "__main__":
    sys.exit(main())
