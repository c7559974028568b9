"""`emo-hf run SCRIPT.py ARGS…`: register the emo optimizers, then run any script as Python itself would.

Registration reaches the Python processes that the script starts, too: a folder first on their PYTHONPATH holds a
`sitecustomize` (see `startup/`). Below a launcher: `accelerate launch -m emo_hf.run SCRIPT.py ARGS…`, `torchrun -m
emo_hf.run SCRIPT.py ARGS…`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from emo_hf.cli_errors import UserError, complain, saying
from emo_hf.laws import law_names, make_law, read_law
from emo_hf.optim.family import family_names
from emo_hf.startup import sitecustomize as startup

BESIDE_THE_LAW = ("self_stop", "self_stop_patience", "self_stop_min_steps", "sync", "average_weights", "console")
"""What `--emotion_args` takes beside the options of the law."""

DESCRIPTION = """\
Run a training script or module unchanged, with the emo optimizers known to the Trainer: --optim \
{names}. The same goes for the Python processes that it starts, as `trl sft` does: emo-hf run \
$(which trl) sft [ARGS ...]. Below a launcher: accelerate launch -m emo_hf.run SCRIPT.py [ARGS ...]
"""

script_globals: dict[str, Any] = {}
"""What a script has made lives as long as the process, as it does below Python itself. Taken down at the script's last
line, with the interpreter still at work, a DDP model can wait for its gloo threads forever."""


class Job(NamedTuple):
    """What is to be run: `argv` as it shall see it, and the arguments of `register()`."""

    module: str | None
    argv: list[str]
    registered: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """What the command takes before the script."""
    made = argparse.ArgumentParser(
        prog="emo-hf run", description=DESCRIPTION.format(names=", ".join(family_names())), allow_abbrev=False,
        usage="emo-hf run [OPTIONS] SCRIPT.py [ARGS ...]\n       emo-hf run [OPTIONS] -m MODULE [ARGS ...]",
    )  # fmt: skip
    law = f"give any other optimizer of its Trainers an emotion of this law: {', '.join(law_names())}"
    options = f"options of the law, {', '.join(BESIDE_THE_LAW)}"
    average = "evaluate and save an average of the weights, of any optimizer; no emotion is needed (=rounded: kept in "
    average += "the dtype of the weights, =cpu: in main memory)"
    made.add_argument("--emotion", metavar="LAW", help=law)
    made.add_argument("--emotion_args", metavar="KEY=VALUE,...", help=options)
    made.add_argument("--average_weights", nargs="?", const="true", choices=("true", "rounded", "cpu"), help=average)
    made.add_argument("-m", dest="module", metavar="MODULE", help="run a module instead of a script")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Register, then become the script.

    Args:
        argv: `[OPTIONS] SCRIPT.py ARGS…` or `[OPTIONS] -m MODULE ARGS…`; the process's own arguments if None.

    Returns:
        0 if the script came to its end, 2 if there is nothing to run. A script's own `sys.exit` and its exceptions
        pass through as they are.
    """
    try:
        job = read_job(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        return complain("emo-hf run", error)
    except SystemExit as error:  # argparse has said why
        return int(error.code or 0)
    startup.reach_children(job.registered)
    startup.install(strict=True)
    sys.argv = job.argv
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11 and later
        # What Python puts there itself: the folder of the script, or the working folder for -m.
        sys.path[0] = os.getcwd() if job.module else os.path.dirname(os.path.realpath(job.argv[0]))
    global script_globals
    if job.module:
        script_globals = runpy.run_module(job.module, run_name="__main__", alter_sys=True)
    else:
        script_globals = runpy.run_path(job.argv[0], run_name="__main__")
    return 0


def read_job(arguments: list[str]) -> Job:
    """Read the options of the command itself, up to the script or with `-m MODULE`, and look at what is to be run.

    Raises:
        UserError: for what cannot be run or registered.
        SystemExit: for `--help`, and for options that there are not.
    """
    at = 0
    while arguments[at : at + 1] and arguments[at].startswith("-"):
        option = arguments[at]
        at += 2 if option in ("--emotion", "--emotion_args", "-m") else 1
        if option == "-m":
            break
    options, rest = parser().parse_args(arguments[:at]), arguments[at:]
    registered = _read_emotion(options.emotion, options.emotion_args)
    if options.average_weights is not None:
        registered["average_weights"] = options.average_weights == "true" or options.average_weights
    if options.module is not None:
        _check_module(options.module)
        return Job(options.module, [options.module, *rest], registered)
    if not rest:
        raise UserError("name a script, or -m MODULE; emo-hf run --help tells more")
    _check_script(rest[0])
    return Job(None, rest, registered)


def _read_emotion(law: str | None, given: str | None) -> dict[str, Any]:
    """The law and its options as `register` takes them, checked before the script begins."""
    if law is None:
        if given is not None:
            raise UserError("--emotion_args comes with --emotion, the law that these are options of")
        return {}
    try:
        read_law(law)
    except ValueError:
        raise UserError(f"--emotion takes one of {', '.join(law_names())}, got {law!r}") from None
    pairs = [part.partition("=") for part in given.split(",")] if given else []
    if not all(key.strip() and value.strip() for key, _, value in pairs):
        raise UserError(f"--emotion_args takes key=value,key=value, got {given!r}")
    options = {key.strip(): value.strip() for key, _, value in pairs}
    with saying("--emotion_args: ", TypeError, ValueError):
        make_law(law, "v3.1", {key: value for key, value in options.items() if key not in BESIDE_THE_LAW})
    return {"emotion": law, **options}


def _check_script(script: str) -> None:
    """Refuse what is not there to be run; a mistake in it is told by Python itself."""
    if not os.path.exists(script):
        raise UserError(f"there is no script {script!r} (to run a module: emo-hf run -m MODULE)")
    if os.path.isdir(script) and not os.path.isfile(os.path.join(script, "__main__.py")):
        raise UserError(f"{script!r} is a folder without __main__.py: name a script in it")


def _check_module(module: str) -> None:
    sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except (ImportError, ValueError):  # a package that it lies in is not there, or its name is none
        spec = None
    finally:
        del sys.path[0]
    if spec is None:
        raise UserError(f"there is no module {module!r} that can be run")


if __name__ == "__main__":
    sys.exit(main())
