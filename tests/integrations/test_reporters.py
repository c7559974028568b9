"""Reporters of the real Trainer: the same metrics arrive in each, and are read back from what it has written."""

from __future__ import annotations

import contextlib
import importlib
import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import emo_hf
from tests import tiny

Curves = dict[str, list[tuple[int, float]]]
"""Metric → (step, value) in the order of steps."""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    emo_hf.register()
    yield
    emo_hf.unregister()


def tensorboard(folder: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def wandb(folder: Path) -> Curves:
    """From the file of an offline run, of which each record is a protocol buffer."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("run-*.wandb")
    curves: Curves = {}
    for data in leveldb_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        add_line(curves, line)
    return curves


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log: blocks of 32 KiB, in them parts with checksum, length and kind."""
    place, record = 7, b""  # after the header of the file
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # no room for another part in this block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


def add_line(curves: Curves, line: dict[str, Any]) -> None:
    """Add a line of metrics that names its step."""
    for name, value in line.items():
        if isinstance(value, (int, float)) and "train/global_step" in line:
            curves.setdefault(name, []).append((line["train/global_step"], value))


def mlflow(folder: Path) -> Curves:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(point.step, point.value) for point in history] for name, history in histories.items()}


def trackio(folder: Path) -> Curves:
    (file,) = (folder / "trackio").rglob("*.db")
    curves: Curves = {}
    with contextlib.closing(sqlite3.connect(file)) as database:
        for (text,) in database.execute("select metrics from metrics order by id"):
            add_line(curves, json.loads(text))
    return curves


READERS: dict[str, Callable[[Path], Curves]] = {
    "tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio,
}  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    """Where each of them writes: nothing leaves the machine, nothing is written elsewhere."""
    return {
        "WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true", "WANDB_PROJECT": "emo",
        "WANDB_DISABLE_GIT": "true", "WANDB_CONSOLE": "off", "WANDB_CACHE_DIR": str(folder / "cache"),
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip


@pytest.mark.parametrize("reporter", READERS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_metric_arrives_with_its_step_and_value(
    reporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)  # before they are imported: trackio looks at it then
    pytest.importorskip(reporter, reason=f"needs {reporter}")
    monkeypatch.chdir(tmp_path)
    trainer = tiny.trainer(
        tmp_path / "out", report_to=reporter, run_name="run", logging_steps=2, num_train_epochs=1, learning_rate=3e-3
    )
    trainer.train()
    if reporter == "wandb":  # its callback leaves the run open, for what the user may have to add
        importlib.import_module("wandb").finish()
    curves = READERS[reporter](tmp_path)
    lines = tiny.train_lines(trainer)
    names = sorted(name for name in lines[0] if name.startswith("emo/"))
    assert len(names) >= 12
    for name in names:
        curve = curves[name if reporter == "mlflow" else f"train/{name}"]  # MLflow is given names as they are
        assert curve == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
