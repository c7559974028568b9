"""Lightning: emo optimizers and attached ones feel the loss of each step, whatever the trainer does with it."""

from __future__ import annotations

import csv
import importlib
import logging
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="needs lightning")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from emo_hf import EmoLynx, EmoNavi, attach
from emo_hf.integrations.accelerate import unwrap
from emo_hf.integrations.lightning import EmoLightningCallback
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


def attached(module: Any) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    attach(optimizer)
    return optimizer


each_kind = pytest.mark.parametrize("optimizer", [navi, attached])


class Regression(pl.LightningModule):
    """A regression that notes the loss of each batch, before anything is done with it."""

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
        optimizer = self.optimizers()
        loss = self.loss_of(batch)
        self.losses.append(loss.item())
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Felt(pl.Callback):
    """Notes each loss that the emotion of each optimizer is given."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            law, felt = unwrap(optimizer)._engine.law, []
            law.feel = _noting(law.feel, felt)
            self.losses.append(felt)


def _noting(feel: Callable[[float], Any], felt: list[float]) -> Callable[[float], Any]:
    def noting(loss: float) -> Any:
        felt.append(loss)
        return feel(loss)

    return noting


each_pair = pytest.mark.parametrize(("kind", "optimizer"), [(Regression, attached), (ManualRegression, navi)])


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


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def half_precision(init_scale: float = 2.0**8) -> MixedPrecision:
    """What `precision="16-mixed"` is on a GPU; for a CPU the trainer takes it as a plugin only."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))


@each_pair
def test_every_step_feels_the_loss_of_its_batch(kind: type[Regression], optimizer: Optimizers) -> None:
    module, felt = kind(optimizer), Felt()
    trainer(EmoLightningCallback(), felt, max_epochs=2).fit(module, batches())
    assert felt.losses == [module.losses]
    assert len(module.losses) == 2 * BATCHES


@each_pair
def test_with_a_gradient_scaler_the_loss_is_felt_without_its_scale(
    kind: type[Regression], optimizer: Optimizers
) -> None:
    module, felt = kind(optimizer), Felt()
    trainer(EmoLightningCallback(), felt, plugins=[half_precision()]).fit(module, batches())
    assert felt.losses == [module.losses]


class Scales(pl.Callback):
    """Notes the scaler's scale after each batch; it is halved when a step is skipped."""

    def __init__(self, first: float) -> None:
        self.seen = [first]

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.seen.append(trainer.precision_plugin.scaler.get_scale())


@each_pair
def test_the_loss_of_a_step_that_the_scaler_skips_is_left_out(kind: type[Regression], optimizer: Optimizers) -> None:
    module, felt, scales = kind(optimizer), Felt(), Scales(2.0**18)
    fit = trainer(EmoLightningCallback(), felt, scales, plugins=[half_precision(init_scale=2.0**18)], max_epochs=2)
    fit.fit(module, batches())
    taken = [after >= before for before, after in pairwise(scales.seen)]
    assert 0 < taken.count(False) < len(taken)
    assert felt.losses == [[loss for loss, step in zip(module.losses, taken, strict=True) if step]]
    dropped_by_now = taken[:-1].count(False)  # a last one is dropped with its gradients, before the next batch
    assert unwrap(fit.optimizers[0]).emotion.skipped == dropped_by_now


@pytest.mark.parametrize(("optimizer", "scaled"), [(navi, True), (attached, False)])
def test_with_accumulation_a_step_feels_the_mean_of_all_its_micro_batches(optimizer: Optimizers, scaled: bool) -> None:
    module, felt = Regression(optimizer), Felt()
    changes = {"plugins": [half_precision()]} if scaled else {}
    trainer(EmoLightningCallback(), felt, accumulate_grad_batches=3, max_epochs=2, **changes).fit(module, batches())
    an_epoch = [(0, 3), (3, 6), (6, 8)]  # the last step of an epoch has two micro-batches only
    steps = [module.losses[first + start : first + end] for first in (0, BATCHES) for start, end in an_epoch]
    assert felt.losses == [[pytest.approx(sum(step) / len(step), rel=1e-6) for step in steps]]


def test_losses_that_a_module_observes_by_itself_are_not_counted_twice() -> None:
    class Observing(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            if batch_idx % 2 == 1:
                self.optimizers().observe(2 * loss)
            return loss

    module, felt = Observing(), Felt()
    trainer(EmoLightningCallback(), felt).fit(module, batches())
    assert felt.losses == [[pytest.approx(loss * (1 + step % 2)) for step, loss in enumerate(module.losses)]]


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
        return torch.nn.functional.softplus(-self.discriminator(self.generator(x))).mean()

    def discriminators_loss(self, x: torch.Tensor) -> torch.Tensor:
        fake = self.discriminator(self.generator(x).detach())
        return (torch.nn.functional.softplus(fake) + torch.nn.functional.softplus(-self.discriminator(x))).mean()

    def configure_optimizers(self) -> Any:
        return [EmoLynx(self.generator.parameters(), lr=1e-3), self.others(self.discriminator)]


@pytest.mark.parametrize(
    ("optimizer", "toggles", "scaled"), [(navi, False, True), (attached, True, True), (attached, False, False)]
)
def test_each_of_several_optimizers_feels_the_losses_that_give_it_gradients(
    optimizer: Optimizers, toggles: bool, scaled: bool
) -> None:
    module, felt = Adversaries(toggles, optimizer), Felt()
    changes = {"plugins": [half_precision()]} if scaled else {}
    fit = trainer(EmoLightningCallback(), felt, **changes)
    fit.fit(module, batches())
    assert felt.losses == module.losses
    # Without toggling, the generator's loss gives the discriminator gradients too, which are thrown away.
    thrown_away = [unwrap(made).emotion.skipped for made in fit.optimizers]
    assert thrown_away == [0, 0 if toggles else BATCHES]


def test_backward_passes_without_a_step_between_are_one_step_in_manual_optimization() -> None:
    class Halves(ManualRegression):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            loss = self.loss_of(batch)
            self.losses.append(loss.item())
            self.manual_backward(loss)
            if batch_idx % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()

    module, felt = Halves(), Felt()
    trainer(EmoLightningCallback(), felt).fit(module, batches())
    pairs = list(pairwise(module.losses))[::2]
    assert felt.losses == [[pytest.approx(sum(pair) / 2) for pair in pairs]]


def test_the_callback_gives_an_emotion_to_optimizers_without_one() -> None:
    module, felt = Regression(lambda module: torch.optim.AdamW(module.parameters(), lr=1e-2)), Felt()
    fit = trainer(EmoLightningCallback(emotion="v3.6"), felt)
    fit.fit(module, batches())
    assert felt.losses == [module.losses]
    assert unwrap(fit.optimizers[0]).emotion.law == "v3.6"


def without_emotion(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


AVERAGING = {"emotion": "settle", "average_weights": True}


@pytest.mark.parametrize(
    ("optimizer", "given"),
    [(navi, {}), (attached, {}), (without_emotion, {"emotion": "v3.1"}), (without_emotion, AVERAGING)],
)
@pytest.mark.parametrize("kind", [Regression, ManualRegression])
def test_resuming_from_lightnings_checkpoint_is_exact_to_the_last_bit(
    kind: type[Regression], optimizer: Optimizers, given: dict[str, Any], tmp_path: Path
) -> None:
    def fit(epochs: int, **resume: Any) -> tuple[Any, Regression]:
        module = kind(optimizer)
        saving = ModelCheckpoint(tmp_path / str(len(resume)), "{epoch}", save_top_k=-1)  # after each epoch
        made = trainer(EmoLightningCallback(**given), saving, max_epochs=epochs, enable_checkpointing=True)
        made.fit(module, batches(), **resume)
        return made, module

    whole, expected = fit(4)
    resumed, found = fit(4, ckpt_path=str(tmp_path / "0" / "epoch=1.ckpt"), weights_only=True)
    assert len(found.losses) == 2 * BATCHES, "it went on and did not begin anew"
    assert unwrap(resumed.optimizers[0]).emotion == unwrap(whole.optimizers[0]).emotion
    for name, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_metrics_reach_lightnings_loggers_and_its_monitors(tmp_path: Path) -> None:
    module, log = Regression(), CSVLogger(tmp_path)
    patient = EarlyStopping(monitor="emo/loss_long", patience=100)
    fit = trainer(EmoLightningCallback(prog_bar=True), patient, logger=log, log_every_n_steps=2, max_epochs=3)
    fit.fit(module, batches())
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


def test_with_several_emotions_metrics_are_named_after_their_optimizers(tmp_path: Path) -> None:
    fit = trainer(EmoLightningCallback(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
    fit.fit(Adversaries(True, attached), batches())
    assert {"emo/EmoLynx/scalar", "emo/AdamW/scalar"} <= set(fit.logged_metrics)


class Flat(Regression):
    """Its loss stays where it is."""

    def loss_of(self, batch: Any) -> torch.Tensor:
        return 1.0 + 0.0 * super().loss_of(batch)


def test_training_is_stopped_when_it_has_gone_flat_if_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    lengths = {}
    for action in ("off", "log", "stop"):
        caplog.clear()
        fit = trainer(EmoLightningCallback(self_stop=action, patience=1, min_steps=20), max_epochs=1)
        fit.fit(Flat(), batches(100))
        said = [record.message for record in caplog.records if "Training has been flat" in record.message]
        lengths[action] = fit.global_step, len(said)
    assert lengths["off"] == (100, 0)
    assert lengths["log"] == (100, 1)
    steps, times = lengths["stop"]
    assert 20 + 32 <= steps < 100
    assert times == 1


def test_with_several_emotions_training_ends_when_all_of_them_are_done() -> None:
    class OneFlat(Adversaries):
        def generators_loss(self, x: torch.Tensor) -> torch.Tensor:
            return 1.0 + 0.0 * super().generators_loss(x)

        def discriminators_loss(self, x: torch.Tensor) -> torch.Tensor:
            return super().discriminators_loss(x) * (1.0 + self.trainer.global_step % 7)

    fit = trainer(EmoLightningCallback(self_stop="stop", patience=1, min_steps=0))
    fit.fit(OneFlat(True, navi), batches(80))
    assert unwrap(fit.optimizers[0]).emotion.flat_steps > 32
    assert unwrap(fit.optimizers[1]).emotion.flat_steps < 32
    assert fit.global_step == 2 * 80


def test_a_law_that_hears_evaluations_hears_the_modules_validation_loss() -> None:
    class Validated(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.loss_of(batch))

    heard: list[float] = []

    def listening(module: Any) -> Any:
        optimizer = navi(module)
        optimizer._engine.law.hear_evaluation = heard.append
        return optimizer

    fit = trainer(EmoLightningCallback(validation_loss="val/loss"), max_epochs=3, num_sanity_val_steps=1)
    fit.fit(Validated(listening), batches(), batches(2))
    assert len(heard) == 3, "one an epoch; the check before training decides nothing"
    assert heard[-1] == pytest.approx(float(fit.callback_metrics["val/loss"]))


def test_validation_sees_the_average_of_the_weights_and_training_ends_with_it() -> None:
    seen: list[torch.Tensor] = []

    class Validated(Regression):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.net[0].weight.detach().clone())

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            assert not seen or not torch.equal(seen[-1], self.net[0].weight)
            return super().training_step(batch, batch_idx)

    module = Validated(without_emotion)
    trainer(EmoLightningCallback(**AVERAGING), max_epochs=2, num_sanity_val_steps=0).fit(module, batches(), batches(1))
    assert len(seen) == 2
    assert torch.equal(seen[-1], module.net[0].weight)


def test_a_trainer_without_an_emotion_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    module = Regression(without_emotion)
    trainer(EmoLightningCallback()).fit(module, batches(1))
    assert any("nothing to do: no optimizer of Regression has an emotion" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"self_stop": "save"}, ValueError, "self_stop must be one of off, log, stop, got 'save'"),
        ({"patience": 0}, ValueError, "patience=0 is not acceptable: it takes a whole number of at least 1"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be a whole number of steps, at least 0, got -1"),
        ({"sync": "local"}, ValueError, "was given sync but no emotion that this is for"),
        ({"emotion": "v9"}, ValueError, "emo_law must be one of"),
        ({"emotion": "v3.1", "nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_wrong_arguments_of_the_callback_are_named(wrong: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        EmoLightningCallback(**wrong)


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_job("lightning_ddp", tmp_path_factory.mktemp("ranks") / "lightning")


@pytest.mark.parametrize(("job", "accumulated"), [("automatic", 1), ("accumulating", 3), ("manual", 1)])
def test_all_ranks_feel_the_mean_of_their_losses_and_exchange_it_while_backward_computes(
    job: str, accumulated: int, on_two_ranks: list[dict[str, Any]]
) -> None:
    one, other = (rank[job] for rank in on_two_ranks)
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

    module = Older()
    fit = trainer(EmoLightningCallback(), package=older, accumulate_grad_batches=2, log_every_n_steps=1)
    fit.fit(module, batches())
    assert unwrap(fit.optimizers[0]).emotion.observations == BATCHES // 2
    assert "emo/scalar" in fit.callback_metrics
