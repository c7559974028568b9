"""Lightning: emo optimizers and attached ones feel the loss of each step, whatever the trainer does with it."""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from emo_hf import EmoLynx, EmoNavi, attach
from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.lightning import EmoLightningCallback
from tests import tiny
from tests.ranks import run_job

BATCHES = 8

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*log_every_n_steps.*"),
    pytest.mark.filterwarnings("ignore:.*checkpoint directory.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("error:.*was called without a loss.*:RuntimeWarning"),
]

Optimizers = Callable[[Any], Any]


def navi(module: Any) -> Any:
    return EmoNavi(module.parameters(), lr=1e-2)


def without_emotion(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def attached(module: Any) -> Any:
    optimizer = without_emotion(module)
    attach(optimizer)
    return optimizer


class Regression(pl.LightningModule):
    """A regression that notes the loss of each batch, before anything is done with it."""

    every = 1  # batches to a step of manual optimization

    def __init__(self, optimizer: Optimizers = navi) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self._make_optimizer = optimizer
        self.losses: list[float] = []

    def loss_of(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return (self.net(x).float() - y).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss_of(batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return self._make_optimizer(self)


class ManualRegression(Regression):
    """The same in manual optimization."""

    def __init__(self, optimizer: Optimizers = navi) -> None:
        super().__init__(optimizer)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if (batch_idx + 1) % self.every == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


class Felt(pl.Callback):
    """Notes each loss that the emotion of each optimizer is given."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.losses = [tiny.felt_by(unwrap(optimizer)) for optimizer in trainer.optimizers]


def batches(count: int = BATCHES) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4 * count, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


def trainer(*callbacks: Any, package: Any = pl, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return package.Trainer(callbacks=list(callbacks), **(settings | changes))


def fitted(module: Any, callback: Any = None, *more: Any, data: Any = None, **changes: Any) -> tuple[Any, list[Any]]:
    """A trainer that has fit a module, and the losses that each of its emotions has felt."""
    felt = Felt()
    made = trainer(callback or EmoLightningCallback(), felt, *more, **changes)
    made.fit(module, *(data or [batches()]))
    return made, felt.losses


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.ERROR)


def half_precision(init_scale: float = 2.0**8) -> list[MixedPrecision]:
    """What `precision="16-mixed"` is on a GPU; for a CPU the trainer takes it as a plugin only."""
    return [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))]


# Losses


@pytest.mark.parametrize(
    ("kind", "optimizer", "scaled", "accumulated"),
    [
        (Regression, attached, False, 1), (ManualRegression, navi, True, 1), (Regression, navi, True, 3),
        (Regression, attached, False, 3), (ManualRegression, navi, False, 2),
    ],
)  # fmt: skip
def test_a_step_feels_the_mean_of_its_micro_batches_without_the_scale_of_a_gradient_scaler(
    kind: type[Regression], optimizer: Optimizers, scaled: bool, accumulated: int
) -> None:
    module, changes = kind(optimizer), {"plugins": half_precision()} if scaled else {}
    module.every = accumulated
    if kind is Regression:
        changes["accumulate_grad_batches"] = accumulated
    _, (felt,) = fitted(module, max_epochs=2, **changes)
    epochs = module.losses[:BATCHES], module.losses[BATCHES:]
    # The last step of an epoch may have fewer micro-batches.
    steps = [epoch[at : at + accumulated] for epoch in epochs for at in range(0, BATCHES, accumulated)]
    assert felt == [pytest.approx(sum(step) / len(step), rel=1e-6 if accumulated > 1 else 0) for step in steps]


class Scales(pl.Callback):
    """Notes the scaler's scale after each batch; it is halved when a step is skipped."""

    def __init__(self, first: float) -> None:
        self.seen = [first]

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen.append(trainer.precision_plugin.scaler.get_scale())


@pytest.mark.parametrize(("kind", "optimizer"), [(Regression, attached), (ManualRegression, navi)])
def test_the_loss_of_a_step_that_the_scaler_skips_is_left_out(kind: type[Regression], optimizer: Optimizers) -> None:
    module, scales = kind(optimizer), Scales(2.0**18)
    fit, felt = fitted(module, None, scales, plugins=half_precision(2.0**18), max_epochs=2)
    taken = [after >= before for before, after in pairwise(scales.seen)]
    assert 0 < taken.count(False) < len(taken)
    assert felt == [[loss for loss, step in zip(module.losses, taken, strict=True) if step]]
    assert unwrap(fit.optimizers[0]).emotion.skipped in (taken.count(False), taken[:-1].count(False))


class Adversaries(pl.LightningModule):
    """A generator and a discriminator, each with a loss of its own."""

    def __init__(self, toggles: bool, others: Optimizers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator, self.discriminator = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        self.toggles, self.others = toggles, others
        self.losses: list[list[float]] = [[], []]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        for index, loss_of in enumerate((self.generators_loss, self.discriminators_loss)):
            optimizer = self.optimizers()[index]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            loss = loss_of(x)
            self.losses[index].append(loss.item())
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def generators_loss(self, x: torch.Tensor) -> torch.Tensor:
        return softplus(-self.discriminator(self.generator(x))).mean()

    def discriminators_loss(self, x: torch.Tensor) -> torch.Tensor:
        fake = self.discriminator(self.generator(x).detach())
        return (softplus(fake) + softplus(-self.discriminator(x))).mean()

    def configure_optimizers(self) -> Any:
        return [EmoLynx(self.generator.parameters(), lr=1e-3), self.others(self.discriminator)]


@pytest.mark.parametrize(("optimizer", "toggles", "scaled"), [(navi, False, True), (attached, True, False)])
def test_each_of_several_optimizers_feels_the_losses_that_give_it_gradients_and_gives_its_metrics_its_name(
    optimizer: Optimizers, toggles: bool, scaled: bool, tmp_path: Path
) -> None:
    module = Adversaries(toggles, optimizer)
    changes = {"plugins": half_precision()} if scaled else {}
    fit, felt = fitted(module, logger=CSVLogger(tmp_path), log_every_n_steps=1, **changes)
    assert felt == module.losses
    # Without toggling, the generator's loss gives the discriminator gradients too, which are thrown away.
    thrown_away = [unwrap(made).emotion.skipped for made in fit.optimizers]
    assert thrown_away == [0, 0 if toggles else BATCHES]
    other = "EmoNavi" if optimizer is navi else "AdamW"
    assert {"emo/EmoLynx/scalar", f"emo/{other}/scalar"} <= set(fit.logged_metrics)


# Checkpoints, logs, evaluations

AVERAGING = {"emotion": "settle", "average_weights": True}


@pytest.mark.parametrize(
    ("kind", "optimizer", "given"), [(Regression, navi, {}), (ManualRegression, without_emotion, AVERAGING)]
)
def test_resuming_from_lightnings_checkpoint_is_exact_to_the_last_bit(
    kind: type[Regression], optimizer: Optimizers, given: dict[str, Any], tmp_path: Path
) -> None:
    def fit(**resume: Any) -> tuple[Any, Regression]:
        module = kind(optimizer)
        saving = ModelCheckpoint(tmp_path / str(len(resume)), "{epoch}", save_top_k=-1)  # after each epoch
        made = trainer(EmoLightningCallback(**given), saving, max_epochs=3, enable_checkpointing=True)
        made.fit(module, batches(), **resume)
        return made, module

    whole, expected = fit()
    resumed, found = fit(ckpt_path=str(tmp_path / "0" / "epoch=1.ckpt"), weights_only=True)
    assert len(found.losses) == BATCHES, "it went on and did not begin anew"
    emotion = unwrap(resumed.optimizers[0]).emotion
    assert emotion == unwrap(whole.optimizers[0]).emotion
    assert emotion.law == given.get("emotion", "v3.1")
    assert emotion.observations == 3 * BATCHES
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_metrics_reach_lightnings_loggers_and_its_monitors(tmp_path: Path) -> None:
    log, patient = CSVLogger(tmp_path), EarlyStopping(monitor="emo/loss_long", patience=100)
    callback = EmoLightningCallback(prog_bar=True)
    fit, _ = fitted(Regression(), callback, patient, logger=log, log_every_n_steps=2, max_epochs=3)
    assert patient.best_score < float("inf"), "a monitor has found the metric"
    assert "emo/effective_lr" in fit.progress_bar_metrics
    with open(Path(log.log_dir) / "metrics.csv", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == list(range(1, 3 * BATCHES, 2))
    emotion = unwrap(fit.optimizers[0]).emotion
    assert float(lines[-1]["emo/loss_long"]) == pytest.approx(emotion.long)
    assert float(lines[-1]["emo/observations"]) == 3 * BATCHES
    assert float(lines[-1]["emo/effective_lr"]) == pytest.approx(1e-2 * emotion.coefficient)
    assert any(line["emo/coefficient_min"] != line["emo/coefficient_max"] for line in lines), "two steps a line"


class Validated(Regression):
    """Notes the first weight of each validation, and that training never begins with it."""

    def __init__(self, optimizer: Optimizers) -> None:
        super().__init__(optimizer)
        self.seen: list[torch.Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss_of(batch))
        self.seen.append(self.net[0].weight.detach().clone())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert not self.losses or not torch.equal(self.seen[-1], self.net[0].weight)
        return super().training_step(batch, batch_idx)


def test_a_law_hears_the_validation_loss_of_the_average_that_training_ends_with_and_no_check_before() -> None:
    heard: list[float] = []

    def listening(module: Any) -> Any:
        optimizer = without_emotion(module)
        attach(optimizer, "settle", average_weights=True)._engine.law.hear_evaluation = heard.append
        return optimizer

    module = Validated(listening)
    callback = EmoLightningCallback(validation_loss="val/loss")
    fit, _ = fitted(module, callback, data=[batches(), batches(1)], max_epochs=3, num_sanity_val_steps=1)
    assert (len(heard), len(module.seen)) == (3, 4)
    assert heard[-1] == pytest.approx(float(fit.callback_metrics["val/loss"]))
    assert torch.equal(module.seen[-1], module.net[0].weight)


# The end of training


class Flat(Regression):
    """Its loss stays where it is."""

    def loss_of(self, batch: Any) -> torch.Tensor:
        return 1.0 + 0.0 * super().loss_of(batch)


@pytest.mark.parametrize(("action", "times"), [("log", 1), ("stop", 1)])
def test_training_is_stopped_when_it_has_gone_flat_if_that_is_asked_for(
    action: str, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    callback = EmoLightningCallback(self_stop=action, patience=1, min_steps=20)
    fit, _ = fitted(Flat(), callback, data=[batches(80)])
    assert 20 + 32 <= fit.global_step < 80 if action == "stop" else fit.global_step == 80
    assert sum("Training has been flat" in line for line in caplog.messages) == times


def test_with_several_emotions_training_ends_when_all_of_them_are_done() -> None:
    class OneFlat(Adversaries):
        def generators_loss(self, x: torch.Tensor) -> torch.Tensor:
            return 1.0 + 0.0 * super().generators_loss(x)

        def discriminators_loss(self, x: torch.Tensor) -> torch.Tensor:
            return super().discriminators_loss(x) * (1.0 + self.trainer.global_step % 7)

    callback = EmoLightningCallback(self_stop="stop", patience=1, min_steps=0)
    fit, _ = fitted(OneFlat(True, navi), callback, data=[batches(70)])
    assert unwrap(fit.optimizers[0]).emotion.flat_steps > 32
    assert unwrap(fit.optimizers[1]).emotion.flat_steps < 32
    assert fit.global_step == 2 * 70


# Arguments, ranks, versions


def test_a_trainer_without_an_emotion_is_told_so_and_an_average_of_the_weights_needs_no_law(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer(EmoLightningCallback()).fit(Regression(without_emotion), batches(1))
    assert any("nothing to do: no optimizer of Regression has an emotion" in line for line in caplog.messages)
    averaged, plain = Regression(without_emotion), Regression(without_emotion)
    fit, _ = fitted(averaged, EmoLightningCallback(average_weights=True))
    trainer().fit(plain, batches())
    assert not torch.equal(averaged.net[0].weight, plain.net[0].weight), "training ends with the average"
    assert unwrap(fit.optimizers[0]).emotion.law == "none"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"self_stop": "save"}, ValueError, "self_stop='save' is not acceptable: it takes one of off, log, stop"),
        ({"patience": 0}, ValueError, "patience=0 is not acceptable: it takes a whole number of at least 1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps=-1 is not acceptable: it takes a whole number of at least 0"),
        ({"sync": "local"}, ValueError, "was given sync but no emotion that this is for"),
        ({"emotion": "v9"}, ValueError, "emo_law must be one of"),
        ({"emotion": "v3.1", "nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_wrong_arguments_of_the_callback_are_named(wrong: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        EmoLightningCallback(**wrong)


def test_all_ranks_feel_the_mean_of_their_losses_and_exchange_it_while_backward_computes(tmp_path: Path) -> None:
    ranks = run_job("lightning_ddp", tmp_path)
    for job, accumulated in (("automatic", 1), ("accumulating", 3), ("manual", 1)):
        one, other = (rank[job] for rank in ranks)
        means = [(a + b) / 2 for a, b in zip(one["losses"], other["losses"], strict=True)]
        steps = [means[start : start + accumulated] for start in range(0, len(means), accumulated)]
        assert one["losses"] != other["losses"]
        assert one["felt"] == other["felt"] == [pytest.approx(sum(step) / len(step)) for step in steps]
        assert torch.equal(one["weights"], other["weights"])
        assert sum(one["on_its_way"]) == len(steps) - 1  # in the first step they compare their options before


def test_the_older_package_pytorch_lightning_takes_the_callback_too() -> None:
    older = pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")
    module_class = importlib.import_module("pytorch_lightning").LightningModule

    class Older(module_class):
        training_step, loss_of = Regression.training_step, Regression.loss_of
        configure_optimizers = Regression.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses, self._make_optimizer = torch.nn.Linear(4, 1), [], navi

    fit = trainer(EmoLightningCallback(), package=older, accumulate_grad_batches=2, log_every_n_steps=1)
    fit.fit(Older(), batches())
    assert unwrap(fit.optimizers[0]).emotion.observations == BATCHES // 2
    assert "emo/scalar" in fit.callback_metrics
