"""A package called transformers that loads at once, for what comes before anything of the real one."""

from __future__ import annotations

from pathlib import Path

NAMES = """
from enum import Enum

class OptimizerNames(str, Enum):
    ADAMW_TORCH = "adamw_torch"
"""


def light_transformers(tmp_path: Path) -> Path:
    """A package of that name that loads at once: what is looked at here comes before anything of the real one."""
    package = tmp_path / "light" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "training_args.py").write_text(NAMES)
    return package.parent
