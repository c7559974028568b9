"""sentence-transformers: its own Trainer takes `optim="emonavi"`, groups parameters its way, and the loss is felt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss, SoftmaxLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny
from tests.train.tiny import save_bert

WORDS = ["cat", "dog", "horse", "bird", "red", "green", "blue", "white"]


@pytest.mark.parametrize(
    ("loss_class", "optim_args"), [(MultipleNegativesRankingLoss, "use_shadow=true"), (SoftmaxLoss, None)]
)
def test_its_trainer_trains_and_feels_the_loss_that_it_logs(
    loss_class: type[torch.nn.Module], optim_args: str | None, registered: None, tmp_path: Path
) -> None:
    encoder = Transformer(save_bert(tmp_path / "bert"))
    model = SentenceTransformer(modules=[encoder, Pooling(16)], device="cpu")
    columns = {"anchor": [f"the {word}" for word in WORDS], "positive": [f"a {word}" for word in WORDS]}
    if loss_class is SoftmaxLoss:
        columns["label"] = [index % 2 for index in range(len(WORDS))]
        loss = SoftmaxLoss(model, 16, 2)
    else:
        loss = loss_class(model)
    felt = tiny.Felt()
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), optim="emonavi", optim_args=optim_args, learning_rate=1e-3, num_train_epochs=2,
        per_device_train_batch_size=4, logging_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
        save_strategy="no",
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[felt]
    )
    before = [param.detach().clone() for param in loss.parameters()]
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert felt.losses == [pytest.approx(line["loss"], abs=1e-4) for line in lines]
    assert len(lines) == 4
    assert lines[-1]["emo/observations"] == 4
    emo = unwrap(trainer.optimizer)
    assert isinstance(emo, emo_hf.EmoNavi)
    trained = {id(param) for group in emo.param_groups for param in group["params"]}
    assert {id(param) for param in loss.parameters()} == trained, "weights of the loss are trained too"
    moved = [not torch.equal(old, new) for old, new in zip(before, loss.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
