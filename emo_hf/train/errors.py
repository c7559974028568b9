"""What the recipe says when the user can put something right."""

from __future__ import annotations


class RecipeError(Exception):
    """Its text is one sentence that says what is wrong and what to do; the command line prints it and exits with 2."""


def one_line(error: BaseException) -> str:
    """The text of another library's error, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
