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

from emo_hf.emotion.laws import law_names, read_law
from emo_hf.optim.family import family_names
from emo_hf.startup import _emo_hf_import_hook as import_hook

SWITCH = "EMO_HF_RUN"
"""Environment variable: tells processes that `emo-hf run` has started them."""

STARTUP = os.path.dirname(os.path.abspath(import_hook.__file__))

USAGE = """\
usage: emo-hf run [--emotion LAW] SCRIPT.py [ARGS ...]
       emo-hf run [--emotion LAW] -m MODULE [ARGS ...]

Runs a training script or module unchanged, with the emo optimizers known to the Trainer: {names}.
With --emotion any other optimizer of its Trainers is given an emotion, which scales its learning rate: {laws}.
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
    emotion = ""
    option, equals, given = arguments[0].partition("=") if arguments else ("", "", "")
    if option == "--emotion":
        given = given if equals else "".join(arguments[1:2])
        arguments = arguments[1 if equals else 2 :]
        try:
            read_law(given)
        except ValueError:
            print(f"emo-hf run: --emotion takes one of {', '.join(law_names())}, got {given!r}", file=sys.stderr)
            return 2
        emotion = given
    as_module = arguments[:1] == ["-m"]
    target = arguments[1:] if as_module else arguments
    if not target:
        print(usage(), end="", file=sys.stderr)
        return 2
    if not as_module and not os.path.exists(target[0]):
        print(f"emo-hf run: there is no script {target[0]!r} (to run a module: emo-hf run -m MODULE)", file=sys.stderr)
        return 2

    _reach_children(emotion)
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


def _reach_children(emotion: str) -> None:
    """Have registration reach every Python process that is started from here on, directly or not."""
    os.environ[SWITCH] = "1"
    os.environ.pop(import_hook.EMOTION, None)
    if emotion:
        os.environ[import_hook.EMOTION] = emotion
    present = os.environ.get("PYTHONPATH")
    paths = present.split(os.pathsep) if present else []  # an empty one among several is the working folder
    os.environ["PYTHONPATH"] = os.pathsep.join([STARTUP, *(path for path in paths if path != STARTUP)])


if __name__ == "__main__":
    sys.exit(main())
