"""What `emo-hf train` says when the user can put something right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emo_hf.cli_errors import UserError


def one_line(error: BaseException) -> str:
    """The text of another library's error, without its line breaks."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


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
