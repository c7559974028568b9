"""A label for an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset, Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from emo_hf.train.data import Examples
from emo_hf.train.errors import RecipeError
from emo_hf.train.files import TABLES
from emo_hf.train.images import drawn_digits, read_idx
from emo_hf.train.mapping import read_mapping
from emo_hf.train.measures import ACCURACY, MACRO_F1
from emo_hf.train.metrics import classification_metrics, most_likely
from emo_hf.train.model import load, load_base_model
from emo_hf.train.tasks.task import Task

if TYPE_CHECKING:
    from emo_hf.train.arguments import DataArguments
    from emo_hf.train.config import Job


@dataclass(frozen=True)
class Options:
    """What may stand in `task_args`.

    Attributes:
        image_size: side to which an untrained model's images are resized; 0 for what the model's configuration says.
    """

    image_size: int = 0

    def __post_init__(self) -> None:
        if self.image_size < 0:
            raise ValueError(f"image_size must be at least 0, got {self.image_size!r}")


class ImageClassification(Task):
    """Images are decoded and resized when their batch is made, so that only the files' bytes are kept."""

    name = "image-classification"
    options_class = Options
    formats = {"ubyte": read_idx, ".parquet": TABLES[".parquet"]}
    builtin = {"drawn-digits": drawn_digits}
    columns = ("image",)
    label_columns = ("label", "labels")
    heads = ("classifier",)
    measures = (ACCURACY, MACRO_F1)

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        if not isinstance(dataset.features[columns[0]], Image):
            raise RecipeError(f"the column {columns[0]!r} of the {side} examples holds no images")

    def make_processor(self, job: Job) -> Any:
        if job.model.model_name_or_path is not None:
            name = job.model.model_name_or_path
            return load(AutoImageProcessor, "image processor", name, job.model, backend="pil")
        changes = read_mapping("model_config", job.model.model_config)
        side = self.options(job).image_size or changes.get("image_size", 224)
        height, width = side if isinstance(side, list) else (side, side)
        return ViTImageProcessorPil(size={"height": height, "width": width})

    def make_model(self, job: Job, processor: Any, examples: Examples) -> Any:
        return load_base_model(AutoModelForImageClassification, job.model, None, examples.label_names)

    def make_features(
        self, examples: Examples, processor: Any, options: DataArguments, own: Any
    ) -> tuple[Dataset, Dataset | None]:
        def features(dataset: Dataset, labels: list[int]) -> Dataset:
            # Under the name of the model's argument, else the Trainer takes it for a column that nobody reads.
            images = dataset.select_columns(examples.columns).rename_column(examples.columns[0], "pixel_values")
            return images.add_column("labels", labels)

        train = features(examples.train, examples.train_labels)
        if examples.validation is None:
            return train, None
        return train, features(examples.validation, examples.validation_labels)

    def make_collator(self, processor: Any) -> Any:
        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            images = [row["pixel_values"].convert("RGB") for row in rows]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}

        return collate

    def metrics(self, examples: Examples) -> dict[str, Any]:
        return {"compute_metrics": classification_metrics, "preprocess_logits_for_metrics": most_likely}


TASK = ImageClassification()
