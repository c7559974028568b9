"""`emo-hf completion bash|zsh|tcsh`: what makes a shell complete the command line, by shtab, from the parsers."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from emo_hf.cli import COMMANDS
from emo_hf.cli_errors import one_sentence
from emo_hf.laws import law_names
from emo_hf.optim.family import family_names

SHELLS = ("bash", "zsh", "tcsh")


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="emo-hf completion",
        description="Print a script that makes a shell complete the commands of emo-hf, their options and values. "
        "Pressing Tab starts no Python; make the script anew after an update.",
    )
    made.add_argument("shell", choices=SHELLS, help="the shell")
    return made


@one_sentence("emo-hf completion")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the script.

    Args:
        argv: the arguments after `emo-hf completion`; the process's own if None.

    Returns:
        0, or 2 for a shell that is not known, or where shtab or what the commands need is not installed.
    """
    shell = parser().parse_args(argv).shell
    import shtab

    print(shtab.complete(all_parsers(), shell=shell))
    return 0


def all_parsers() -> argparse.ArgumentParser:
    """One parser of all commands, in which files and the values of options that have few are known."""
    import shtab

    root = argparse.ArgumentParser(prog="emo-hf")
    root.add_argument("--version", action="store_true", help="print versions")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        own = importlib.import_module(command.module).parser()
        if name == "run":  # its script's
            own.add_argument("--optim", choices=family_names(), help="the optimizer of a Trainer's script")
        for action in own._actions:
            if "--emotion" in action.option_strings:  # takes other names too, which are endless
                action.choices = law_names()
            elif action.nargs != 0 and action.choices is None:
                action.complete = shtab.FILE
        commands.add_parser(name, parents=[own], add_help=False, description=command.summary, help=command.summary)
    return root
