"""`emo-hf completion bash|zsh`: tab completion for the command line, made from the parsers themselves.

Options, and the values of those that have few, are written into the script: pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence

from emo_hf.cli import COMMANDS

SHELLS = ("bash", "zsh")

Options = Mapping[str, Sequence[str]]
"""Option → the values that it takes, none where it takes any or needs none. What stands alone is under ""."""


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        prog="emo-hf completion",
        description="Print a script that makes a shell complete the commands of emo-hf, their options and values.",
        allow_abbrev=False,
    )
    made.add_argument("shell", choices=SHELLS, help="the shell")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script.

    Args:
        argv: the arguments after `emo-hf completion`; the process's own if None.

    Returns:
        0, or 2 for a shell that is not known.
    """
    try:
        options = parser().parse_args(argv)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    print({"bash": bash, "zsh": zsh}[options.shell](all_options()), end="")  # noqa: T201
    return 0


def all_options() -> dict[str, Options]:
    """Command → its options, as far as what it needs is installed."""
    from emo_hf.doctor.main import parser as doctor
    from emo_hf.laws import law_names
    from emo_hf.optim.family import family_names
    from emo_hf.plot.main import parser as plot

    found: dict[str, Options] = {name: {"--help": ()} for name in COMMANDS}
    of_the_script = {"--optim": family_names()}
    found["run"] = {"--help": (), "--emotion": law_names(), "--emotion_args": (), "-m": (), **of_the_script}
    found["plot"] = {**options_of(plot()), "--law": law_names()}
    found["doctor"] = {**options_of(doctor()), "--emotion": law_names()}
    found["completion"] = options_of(parser())
    try:
        found["compare"] = options_of(_compare())
        found["train"] = options_of(_train())
    except ModuleNotFoundError as error:
        print(f"emo-hf completion: without {error.name} not all options are known", file=sys.stderr)  # noqa: T201
    return found


def _compare() -> argparse.ArgumentParser:
    from emo_hf.study.main import parser

    return parser()


def _train() -> argparse.ArgumentParser:
    from emo_hf.train.config import make_parser
    from emo_hf.trainer.registry import is_registered, register, unregister

    was_registered = is_registered()
    register()
    try:
        return make_parser()
    finally:
        if not was_registered:
            unregister()


def options_of(parser: argparse.ArgumentParser) -> dict[str, Sequence[str]]:
    """The options of a parser; of one with several spellings the first long one."""
    found: dict[str, Sequence[str]] = {}
    for action in parser._actions:
        choices = tuple(_as_text(choice) for choice in action.choices or ())
        if not action.option_strings:
            if choices:
                found[""] = choices
            continue
        long = [name for name in action.option_strings if name.startswith("--")]
        found[(long or action.option_strings)[0]] = choices
    return found


def _as_text(choice: object) -> str:
    return str(getattr(choice, "value", choice))


def bash(options: Mapping[str, Options]) -> str:
    """The script for bash."""
    return f"""\
# Tab completion of emo-hf for bash; made by `emo-hf completion bash`.
_emo_hf() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}"
    local words=""
    if [ "$before" = "=" ]; then  # bash takes --name=value apart
        before="${{COMP_WORDS[COMP_CWORD-2]}}"
    elif [ "$word" = "=" ]; then
        word=""
    fi
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={_quoted([*options, "--help", "--version"])}
    else
{_cases(options, "words=", "        ")}
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        compopt -o filenames 2>/dev/null
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -F _emo_hf emo-hf
"""


def zsh(options: Mapping[str, Options]) -> str:
    """The script for zsh, to be sourced, or to lie in a folder of `fpath` as `_emo-hf`."""
    summaries = " ".join(shlex.quote(f"{name}:{command.summary}") for name, command in COMMANDS.items())
    return f"""\
#compdef emo-hf
# Tab completion of emo-hf for zsh; made by `emo-hf completion zsh`.
_emo_hf() {{
    local word="$PREFIX" before="${{words[CURRENT-1]}}" command="${{words[2]}}" found=""
    local -a commands
    if (( CURRENT == 2 )); then
        commands=({summaries} --help --version)
        _describe command commands
        return
    fi
    if [[ "$PREFIX" == --*=* ]]; then
        before="${{PREFIX%%=*}}"
        compset -P '*='
        word="$PREFIX"
    fi
{_cases(options, "found=", "    ")}
    if [[ -n "$found" ]]; then
        compadd -- ${{=found}}
    else
        _files
    fi
}}
if [[ "${{funcstack[1]}}" == _emo-hf ]]; then
    _emo_hf "$@"
else
    compdef _emo_hf emo-hf
fi
"""


def _cases(options: Mapping[str, Options], assign: str, indent: str) -> str:
    """Which words can follow, in what both shells understand: values of an option, options, what stands alone."""
    lines = ['case "$command $before" in']
    for command, of_command in options.items():
        for option, values in of_command.items():
            if option and values:
                lines.append(f'    "{command} {option}") {assign}{_quoted(values)} ;;')
    lines += ["    *)", '        case "$command $word" in']
    for command, of_command in options.items():
        lines.append(f'            "{command} -"*) {assign}{_quoted(filter(None, of_command))} ;;')
    for command, of_command in options.items():
        if of_command.get(""):
            lines.append(f'            "{command} "*) {assign}{_quoted(of_command[""])} ;;')
    lines += ["        esac ;;", "esac"]
    return "\n".join(indent + line for line in lines)


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))


if __name__ == "__main__":
    sys.exit(main())
