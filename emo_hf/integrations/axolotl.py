"""Axolotl: a plugin with which a job's YAML may say `optimizer: emonavi`.

    plugins:
      - emo_hf.integrations.axolotl.EmoPlugin
    optimizer: emonavi
    optim_args: {emo_law: settle}

or, for an emotion beside any other optimizer, `emo_emotion: v3.1`.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found]
from pydantic import BaseModel, Field


class EmoArgs(BaseModel):
    """What the plugin adds to Axolotl's configuration.

    That there is something to add also has Axolotl build its schema anew, in which `optimizer` then takes the names of
    the family.
    """

    emo_emotion: str | None = Field(
        default=None,
        json_schema_extra={"description": "law of the emotion that an optimizer which has none is given"},
    )


class EmoPlugin(BasePlugin):
    """Registers the emo optimizers in every process that Axolotl trains in."""

    def register(self, cfg: Any) -> None:
        """Called before the configuration is checked.

        Args:
            cfg: the configuration as it was read, a dict.

        Raises:
            ValueError: if `emo_emotion` is none of the laws.
        """
        from emo_hf.trainer.registry import register

        emotion = cfg.get("emo_emotion")
        register(**({"emotion": emotion} if emotion else {}))

    def get_input_args(self) -> str:
        """Where Axolotl finds what is added to its configuration."""
        return f"{EmoArgs.__module__}.{EmoArgs.__qualname__}"
