"""How noise becomes data: flow matching on points in a few dimensions, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray
from transformers import Trainer

from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError
from emo_hf.train.flow import FlowConfig, FlowModel, checkerboard, energy_distance, two_moons
from emo_hf.train.mapping import check_keys, read_mapping
from emo_hf.train.measures import Measure
from emo_hf.train.tasks.task import Rows, Task

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.config import Job

_SIZES = ("hidden_size", "num_hidden_layers", "frequencies", "sampling_steps")


def _sides(draw: Callable[[int, int], NDArray[np.float64]]) -> tuple[Rows, Rows]:
    return _rows(draw(8000, 0)), _rows(draw(1000, 1))


def _rows(points: NDArray[np.float64]) -> Rows:
    return [{"x": x, "y": y} for x, y in points.tolist()]


class FlowMatching(Task):
    """Points, scaled by nothing; in evaluation the noise and the times are the same every time."""

    name = "flow-matching"
    builtin = {"two-moons": partial(_sides, two_moons), "checkerboard": partial(_sides, checkerboard)}
    from_scratch = True
    adapts = False
    measures = (Measure("energy_distance", "energy distance", with_first=True),)

    def check(self, job: Job) -> None:
        super().check(job)
        for option in ("model_name_or_path", "model_type"):
            if getattr(job.model, option) is not None:
                raise RecipeError(f"{option} means nothing to flow-matching, whose network is made by model_config")
        self._config(job, coordinates=2)

    def accepts(self, count: int) -> bool:
        return True

    def find_columns(self, train: Dataset, options: DataArguments) -> list[str]:
        numbers = [
            name
            for name, kind in train.features.items()
            if isinstance(kind, Value) and kind.dtype.startswith(("float", "int"))
        ]
        if not options.text_columns and not numbers:
            raise RecipeError(
                f"flow-matching needs columns with numbers, the columns are {', '.join(train.column_names)}"
            )
        return list(options.text_columns or numbers)

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        for column in columns:
            for row, value in enumerate(dataset[column]):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
                    raise RecipeError(f"{side} example {row + 1} has no number in column {column!r}: {value!r}")

    def make_processor(self, job: Job) -> Any:
        return None

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        return FlowModel(self._config(job, len(examples.columns)))

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        def points(dataset: Dataset) -> NDArray[np.float32]:
            return np.stack([np.asarray(dataset[column], np.float32) for column in examples.columns], axis=1)

        train = Dataset.from_dict({"points": points(examples.train)})
        if examples.validation is None:
            return train, None
        data, numbers = points(examples.validation), np.random.default_rng(0)
        times = numbers.permutation((np.arange(len(data)) + 0.5) / len(data)).astype(np.float32)
        noise = numbers.standard_normal(data.shape, np.float32)
        return train, Dataset.from_dict({"points": data, "noise": noise, "time": times})

    def metrics(self, examples: Examples) -> dict[str, Any]:
        def compute(prediction: Any) -> dict[str, float]:
            return {"energy_distance": energy_distance(prediction.predictions, prediction.label_ids)}

        return {"compute_metrics": compute}

    def make_trainer(
        self, job: Job, model: Any, processor: Any, examples: Examples, train: Dataset, validation: Dataset | None
    ) -> Trainer:
        job.training.label_names = ["points"]
        return super().make_trainer(job, model, processor, examples, train, validation)

    def _config(self, job: Job, coordinates: int) -> FlowConfig:
        sizes = read_mapping("model_config", job.model.model_config)
        check_keys("model_config", sizes, _SIZES, "flow-matching")
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise RecipeError(f"model_config: {name} must be a whole number above 0, got {size!r}")
        return FlowConfig(coordinates=coordinates, **sizes)


TASK = FlowMatching()
