"""What a user can put right is said in one sentence, by every command in the same way.

Only the standard library is imported; `read_yaml` needs yaml when it is called.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

WRONGLY_CALLED = 2
INTERRUPTED = 130

INSTALL = {"plotly": '"emo_hf[plot]"', "shtab": "shtab"}
"""What pip is to install for a package; for all others `"emo_hf[hf]"`."""

Main = TypeVar("Main", bound=Callable[..., int])


class UserError(Exception):
    """What the user can put right; its text is one sentence: what was given, what is accepted, what to do."""


def one_line(error: BaseException) -> str:
    """The text of another library's error, without its line breaks."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def at_least_one(text: str) -> int:
    """A whole number for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1 is wanted, got {text!r}")
    return int(text)


@contextmanager
def saying(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds (all, if none is given) into a UserError whose sentence begins with `what`."""
    try:
        yield
    except Exception as error:
        if kinds and not isinstance(error, (UserError, *kinds)):
            raise
        cause = error if isinstance(error, UserError) else error.__cause__ or error  # `datasets` wraps what it met
        raise UserError(f"{what}{one_line(cause)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; empty for an empty file.

    Raises:
        UserError: without the file's name, if it holds none or cannot be read.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {one_line(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"is not valid YAML: {one_line(error)}") from error
    except RecursionError as error:
        raise UserError("is nested too deeply: one `key: value` a line is wanted") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError("must hold a mapping, one `key: value` a line")
    return content


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
