"""What the tasks on text have in common: a tokenizer, and a model that has so many positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError
from emo_hf.train.features import check_max_length
from emo_hf.train.model import load_base_model, load_tokenizer
from emo_hf.train.tasks.task import Task

if TYPE_CHECKING:
    from emo_hf.train.config import Job


class TextTask(Task):
    """A task on text.

    Attributes:
        auto: the class of transformers that puts the right head on a model.
    """

    auto: ClassVar[Any]

    def check(self, job: Job) -> None:
        super().check(job)
        if job.model.model_type is not None and job.model.tokenizer_name is None:
            raise RecipeError("tokenizer_name is missing: an untrained model has no tokenizer; bytes needs no file")

    def make_processor(self, job: Job) -> Any:
        return load_tokenizer(job.model)

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        model = load_base_model(self.auto, job.model, processor, examples.label_names)
        check_max_length(job.data.max_length, processor, model.config)
        return model
