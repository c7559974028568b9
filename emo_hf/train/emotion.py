"""`emotion: LAW`: an emotion for an optimizer that has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emo_hf.optim.family import family_names
from emo_hf.train.errors import RecipeError, one_line
from emo_hf.train.mapping import read_mapping
from emo_hf.trainer.callbacks import EmoCallback

if TYPE_CHECKING:
    from emo_hf.train.config import Job


def emotion_callback(job: Job) -> EmoCallback | None:
    """The callback that attaches the emotion; None where none is wanted.

    Raises:
        RecipeError: for a law or an option that there is not, and where the optimizer has an emotion already.
    """
    law, given = job.emotion.emotion, read_mapping("emotion_args", job.emotion.emotion_args)
    if law is None:
        if given:
            raise RecipeError("emotion_args needs emotion beside it: the law that these are options of")
        return None
    optim = job.training.optim.value
    if optim in family_names():
        raise RecipeError(f"emotion is for optimizers that have none; {optim} takes optim_args emo_law={law}")
    try:
        return EmoCallback(law, **given)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"emotion: {one_line(error)}") from error
