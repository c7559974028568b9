"""What a user can put right is said in one sentence, by every command in the same way. Standard library only."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

WRONGLY_CALLED = 2
INTERRUPTED = 130

INSTALL = {"plotly": '"emo_hf[plot]"', "shtab": "shtab"}
"""What pip is to install for a package; for all others `"emo_hf[hf]"`."""

Main = TypeVar("Main", bound=Callable[..., int])


class UserError(Exception):
    """What the user can put right; its text is one sentence: what was given, what is accepted, what to do."""


def complain(command: str, error: BaseException | str) -> int:
    """Say on stderr, in one line, what is wrong.

    Args:
        command: which command says it, as the user typed it.
        error: what is wrong.

    Returns:
        The exit code, 2.

    Raises:
        ModuleNotFoundError: the one that was given, if it is a module of this package that is missing.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "emo_hf").startswith("emo_hf"):
        raise error
    rank = os.environ.get("RANK", "0")
    where = f" (rank {rank})" if rank != "0" else ""
    print(f"{command}: {' '.join(_said(error).split())}{where}", file=sys.stderr, flush=True)
    return WRONGLY_CALLED


def one_sentence(command: str) -> Callable[[Main], Main]:
    """A decorator for a command's `main(argv)`: what it raises becomes one sentence and an exit code.

    `UserError`, files that cannot be read or written, and packages that are not installed: 2. Ctrl-C: 130. What
    argparse has said already: its own code. Anything else is a fault of the program and keeps its traceback.

    Args:
        command: which command says it, such as `emo-hf plot`.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except BrokenPipeError:  # somebody has read enough; `emo-hf` itself sees to that
                raise
            except (UserError, OSError, ModuleNotFoundError) as error:
                return complain(command, error)
            except KeyboardInterrupt:
                return INTERRUPTED
            except SystemExit as error:
                if error.code is None or isinstance(error.code, int):
                    return error.code or 0
                raise

        return cast(Main, wrapped)

    return decorate


def _said(error: BaseException | str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        return f"{package} is needed and not installed: pip install " + INSTALL.get(package, '"emo_hf[hf]"')
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{str(error.filename)!r}: {error.strerror}"
    return str(error)
