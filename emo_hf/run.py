"""`emo-hf run SCRIPT.py ARGS…`: register the emo optimizers, then run any script as Python itself would.

Registration reaches the Python processes that the script starts, too: a folder first on their PYTHONPATH holds a
`sitecustomize` (see `startup/`). Below a launcher: `accelerate launch -m emo_hf.run SCRIPT.py ARGS…`, `torchrun -m
emo_hf.run SCRIPT.py ARGS…`.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

from emo_hf.laws import law_names, make_law, read_law
from emo_hf.laws.v3_1 import V3_1
from emo_hf.optim.family import family_names
from emo_hf.startup import _emo_hf_import_hook as import_hook

SWITCH = "EMO_HF_RUN"
"""Environment variable: tells processes that `emo-hf run` has started them."""

STARTUP = os.path.dirname(os.path.abspath(import_hook.__file__))

USAGE = """\
usage: emo-hf run [--emotion LAW [--emotion_args KEY=VALUE,...]] SCRIPT.py [ARGS ...]
       emo-hf run [--emotion LAW [--emotion_args KEY=VALUE,...]] -m MODULE [ARGS ...]

Runs a training script or module unchanged, with the emo optimizers known to the Trainer: {names}.
With --emotion any other optimizer of its Trainers is given an emotion, which scales its learning rate: {laws}.
--emotion_args takes options of the law, self_stop, self_stop_patience, self_stop_min_steps and sync.
The same goes for the Python processes that it starts, as `trl sft` does: emo-hf run $(which trl) sft [ARGS ...]
Below a launcher: accelerate launch -m emo_hf.run SCRIPT.py [ARGS ...]
"""


def usage() -> str:
    """The help text."""
    return USAGE.format(names=", ".join(f"--optim {name}" for name in family_names()), laws=", ".join(law_names()))


script_globals: dict[str, Any] = {}
"""What a script has made lives as long as the process, as it does below Python itself. Taken down at the script's last
line, with the interpreter still at work, a DDP model can wait for its gloo threads forever."""


def main(argv: list[str] | None = None) -> int:
    """Register, then become the script.

    Args:
        argv: `SCRIPT.py ARGS…` or `-m MODULE ARGS…`; the process's own arguments if None.

    Returns:
        0 if the script came to its end, 2 if there is nothing to run. A script's own `sys.exit` and its exceptions
        pass through as they are.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage(), end="")
        return 0
    try:
        emotion, emotion_args = _take(arguments, "--emotion"), _take(arguments, "--emotion_args")
        _check_emotion(emotion, emotion_args)
    except (TypeError, ValueError) as error:
        print(f"emo-hf run: {error}", file=sys.stderr)
        return 2
    as_module = arguments[:1] == ["-m"]
    target = arguments[1:] if as_module else arguments
    if not target:
        print(usage(), end="", file=sys.stderr)
        return 2
    if not as_module and not os.path.exists(target[0]):
        print(f"emo-hf run: there is no script {target[0]!r} (to run a module: emo-hf run -m MODULE)", file=sys.stderr)
        return 2

    _reach_children(emotion or "", emotion_args or "")
    import_hook.install(strict=True)
    sys.argv = target
    if not getattr(sys.flags, "safe_path", False):  # Python 3.11 and later
        # What Python puts there itself: the folder of the script, or the working folder for -m.
        sys.path[0] = os.getcwd() if as_module else os.path.dirname(os.path.realpath(target[0]))
    global script_globals
    if as_module:
        script_globals = runpy.run_module(target[0], run_name="__main__", alter_sys=True)
    else:
        script_globals = runpy.run_path(target[0], run_name="__main__")
    return 0


def _take(arguments: list[str], option: str) -> str | None:
    """The value of an option that comes first, `--option VALUE` or `--option=VALUE`, taken out; None without it."""
    name, equals, value = arguments[0].partition("=") if arguments else ("", "", "")
    if name != option:
        return None
    value = value if equals else "".join(arguments[1:2])
    del arguments[: 1 if equals else 2]
    return value


def _check_emotion(emotion: str | None, emotion_args: str | None) -> None:
    """Refuse a law or options of it that there are not, before the script begins.

    Raises:
        TypeError, ValueError: saying what is wrong.
    """
    if emotion is None:
        if emotion_args is not None:
            raise ValueError("--emotion_args comes after --emotion, the law that these are options of")
        return
    try:
        read_law(emotion)
    except ValueError:
        raise ValueError(f"--emotion takes one of {', '.join(law_names())}, got {emotion!r}") from None
    try:
        given = import_hook.pairs_of(emotion_args or "")
        of_law = {key: value for key, value in given.items() if key != "sync" and not key.startswith("self_stop")}
        make_law(emotion, V3_1.name, of_law)
    except (TypeError, ValueError) as error:
        raise type(error)(f"--emotion_args: {error}") from None


def _reach_children(emotion: str, emotion_args: str) -> None:
    """Have registration reach every Python process that is started from here on, directly or not."""
    os.environ[SWITCH] = "1"
    for name, value in ((import_hook.EMOTION, emotion), (import_hook.EMOTION_ARGS, emotion_args)):
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    present = os.environ.get("PYTHONPATH")
    paths = present.split(os.pathsep) if present else []  # an empty one among several is the working folder
    os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *(path for path in paths if path != STARTUP)])


if __name__ == "__main__":
    sys.exit(main())
