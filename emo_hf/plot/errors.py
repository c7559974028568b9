"""What the room says when the user can put something right."""

from __future__ import annotations


class PlotError(Exception):
    """Its text is one sentence that says what is wrong and what to do; the command line prints it and exits with 2."""
