"""`emotion_args`: options of an attached emotion's law, and what is done when it stops, as text or a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emo_hf.reading import read_value
from emo_hf.trainer.options import SELF_STOP_OPTIONS
from emo_hf.trainer.self_stop import SelfStop


def callback_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `EmoCallback` takes beside `emotion`.

    Args:
        given: options of the law, `self_stop`, `self_stop_patience`, `self_stop_min_steps`, `sync`.

    Raises:
        ValueError: for a value of the self-stop that is not acceptable; the callback looks at the others.
    """
    of_law = dict(given)
    if of_law.get("self_stop") is False:  # what YAML makes of `off`
        of_law["self_stop"] = "off"
    stop = {key: read_value(key, of_law.pop(key), read) for key, read in SELF_STOP_OPTIONS.items() if key in of_law}
    named = {key.removeprefix("self_stop_").replace("self_stop", "action"): value for key, value in stop.items()}
    return {**of_law, "self_stop": SelfStop(**named)}
