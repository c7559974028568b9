"""A label for an image."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from emo_hf.cli_errors import UserError
from emo_hf.train.builtin import drawn_digits
from emo_hf.train.data import LABELS, TABLES
from emo_hf.train.measures import ACCURACY, CLASSIFICATION, MACRO_F1
from emo_hf.train.model import load
from emo_hf.train.options import DataArguments, Job, read_mapping
from emo_hf.train.tasks.task import Task


class ImageClassification(Task):
    """Images are decoded and resized when their batch is made, so that only the files' bytes are kept."""

    name = "image-classification"
    auto = AutoModelForImageClassification
    formats = {".parquet": TABLES[".parquet"]}
    builtin = {"drawn-digits": drawn_digits}
    columns = ("image",)
    label_columns = ("label", "labels")
    heads = ("classifier",)
    measures = (ACCURACY, MACRO_F1)
    metrics = CLASSIFICATION

    def check(self, job: Job) -> None:
        self.check_columns(job.data.text_columns)

    def check_rows(self, dataset: Dataset, columns: list[str], side: str) -> None:
        if not isinstance(dataset.features[columns[0]], Image):
            raise UserError(f"the column {columns[0]!r} of the {side} examples holds no images")

    def make_processor(self, job: Job) -> Any:
        name = job.model.model_name_or_path
        if name is not None:
            return load(AutoImageProcessor, "image processor", name, job.model, backend="pil")
        side = job.model.image_size or read_mapping("model_config", job.model.model_config).get("image_size", 224)
        height, width = side if isinstance(side, list) else (side, side)
        return ViTImageProcessorPil(size={"height": height, "width": width})

    def make_features(self, dataset: Dataset, columns: list[str], processor: Any, options: DataArguments) -> Dataset:
        # Under the name of the model's argument, else the Trainer takes it for a column that nobody reads.
        return dataset.rename_column(columns[0], "pixel_values")

    def make_collator(self, processor: Any) -> Any:
        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            images = [row["pixel_values"].convert("RGB") for row in rows]
            pixels = processor(images, return_tensors="pt")["pixel_values"]
            return {"pixel_values": pixels, LABELS: torch.tensor([row[LABELS] for row in rows])}

        return collate


TASK = ImageClassification()
