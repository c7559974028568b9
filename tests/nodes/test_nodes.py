"""Nodes that share weights through a folder: what is mixed, who may come and go, and real processes that do."""

from __future__ import annotations

import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import emo_hf
from emo_hf import LocalSGDCallback, WeightExchange, WeightExchangeCallback
from emo_hf.nodes import weight_exchange
from tests import tiny
from tests.ranks import begin


def node(folder: Path, name: str, value: float, every: int = 2) -> tuple[WeightExchange, nn.Parameter]:
    """A node with one trainable weight, and that weight."""
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    nn.init.constant_(model.weight, value)
    return WeightExchange(model, folder, node=name, every=every), model.weight


def steps(exchange: WeightExchange, count: int) -> None:
    for _ in range(count):
        exchange.step()


def test_two_equal_nodes_mix_half_and_half(tmp_path: Path) -> None:
    (a, weight_a), (b, weight_b) = node(tmp_path, "a", 0.0), node(tmp_path, "b", 8.0)
    steps(a, 2)
    assert weight_a.item() == 0.0  # nobody else is there
    steps(b, 2)
    assert weight_b.item() == 4.0
    weight_a.data.fill_(2.0)
    steps(a, 2)
    assert weight_a.item() == pytest.approx((4 * 2.0 + 2 * 8.0) / 6)  # 4 steps of its own, and what b had published


def test_what_a_node_has_published_counts_once(tmp_path: Path) -> None:
    (a, weight), (b, _) = node(tmp_path, "a", 0.0), node(tmp_path, "b", 8.0)
    steps(b, 2)
    steps(a, 2)
    assert weight.item() == 4.0
    steps(a, 20)  # b is slow, or gone
    assert weight.item() == 4.0


def test_a_node_itself_counts_by_its_steps_since_it_last_mixed_anything_in(tmp_path: Path) -> None:
    (a, weight), (b, other) = node(tmp_path, "a", 0.0), node(tmp_path, "b", 8.0)
    for mine, theirs in ((0.0, 8.0), (2.0, 6.0)):
        weight.data.fill_(mine)
        other.data.fill_(theirs)
        steps(b, 2)
        steps(a, 2)
        assert weight.item() == pytest.approx((mine + theirs) / 2)


def test_a_slow_node_counts_by_its_steps(tmp_path: Path) -> None:
    (a, weight), (b, _) = node(tmp_path, "a", 0.0, every=6), node(tmp_path, "b", 8.0, every=2)
    steps(b, 2)
    steps(a, 6)
    assert weight.item() == pytest.approx(2 / 8 * 8.0)


def test_a_late_node_begins_with_what_was_published_last_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    (gone, _), (a, _) = node(tmp_path, "gone", 100.0), node(tmp_path, "a", 3.0)
    steps(gone, 2)
    a.join()
    a._params["weight"].data.fill_(3.0)
    steps(a, 2)
    late, weight = node(tmp_path, "late", -50.0)
    assert late.join() == "a"
    assert weight.item() == 3.0
    steps(late, 2)
    assert weight.item() == 3.0


def test_the_first_node_joins_nobody(tmp_path: Path) -> None:
    a, weight = node(tmp_path / "not there yet", "a", 3.0)
    assert a.join() is None
    assert weight.item() == 3.0


def test_a_node_that_comes_back_under_its_old_name_is_heard_again(tmp_path: Path) -> None:
    (a, weight), (b, _) = node(tmp_path, "a", 0.0), node(tmp_path, "b", 8.0)
    steps(b, 20)
    steps(a, 2)
    back, weight_back = node(tmp_path, "b", 0.0)
    assert back.join() == "a"
    weight_back.data.fill_(100.0)
    steps(back, 2)  # fewer than in its first life
    steps(a, 2)
    assert weight.item() > 20.0


def test_only_what_is_trained_is_exchanged_and_the_emotion_stays_at_home(tmp_path: Path) -> None:
    a, _ = node(tmp_path, "a", 0.0)
    steps(a, 2)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as published:
        assert list(published.keys()) == ["weight"]


def test_a_node_that_has_diverged_keeps_it_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (a, weight), (b, _) = node(tmp_path, "a", float("nan")), node(tmp_path, "b", 8.0)
    steps(a, 2)
    steps(b, 2)
    assert not (tmp_path / "a.safetensors").exists()
    assert "Node a has weights that are not finite" in caplog.text
    back, weight = node(tmp_path, "a", float("nan"))
    assert back.join() == "b"
    assert weight.item() == 8.0


def save(file: Path, weight: torch.Tensor, steps: object = 2) -> None:
    save_file({"weight": weight}, file, metadata={"life": file.stem, "steps": str(steps)})


GOOD = torch.full((1, 1), 4.0)


def partial(file: Path) -> None:
    save(file, GOOD)
    file.write_bytes(file.read_bytes()[:-2])


def without_note(file: Path) -> None:
    save_file({"weight": GOOD}, file)


def huge(file: Path) -> None:
    with open(file, "wb") as made:
        made.truncate(1 << 40)  # sparse


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a circle of links": lambda file: file.symlink_to(file),
    "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "an empty file": Path.touch,
    "a foreign file": lambda file: file.write_text("no weights"),
    "a partial file": partial,
    "a huge file": huge,
    "no note": without_note,
    "weights that are not numbers": lambda file: save(file, torch.full((1, 1), torch.nan)),
    "infinite weights": lambda file: save(file, torch.full((1, 1), torch.inf)),
    "whole numbers": lambda file: save(file, torch.ones(1, 1, dtype=torch.int64)),
    "another model": lambda file: save(file, torch.ones(3, 1)),
    "too many steps": lambda file: save(file, GOOD, steps=10**18),
    "steps below zero": lambda file: save(file, GOOD, steps=-5),
    "steps in words": lambda file: save(file, GOOD, steps="many"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_used_is_named_once_and_passed_over(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    b, _ = node(tmp_path, "b", 8.0)
    steps(b, 2)
    HOSTILE[what](tmp_path / "bad.safetensors")
    begun = time.monotonic()
    a, weight = node(tmp_path, "a", 0.0)
    steps(a, 6)
    assert weight.item() == 4.0
    late, weight = node(tmp_path, "late", 0.0)
    assert late.join() == "a"
    assert weight.item() == 4.0
    assert time.monotonic() - begun < 20.0
    named = [record.message for record in caplog.records if "is passed over" in record.message]
    assert len(named) == 2, "once by each node"
    assert all("bad.safetensors is passed over: " in line for line in named)


def test_no_file_counts_more_than_ten_times_as_much_as_the_node_itself(tmp_path: Path) -> None:
    save(tmp_path / "b.safetensors", torch.full((1, 1), 11.0), steps=10**9)
    a, weight = node(tmp_path, "a", 0.0)
    steps(a, 2)
    assert weight.item() == pytest.approx(10.0)


def test_a_file_system_that_does_not_answer_is_waited_for_until_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "b.safetensors", GOOD)
    monkeypatch.setattr(weight_exchange, "SECONDS", 0.5)
    monkeypatch.setattr("emo_hf.nodes.peer.os.read", lambda *_: time.sleep(30.0))  # as a network file system hangs
    a, weight = node(tmp_path, "a", 0.0)
    begun = time.monotonic()
    steps(a, 2)
    assert time.monotonic() - begun < 10.0
    assert weight.item() == 0.0
    assert "could not be read in time" in caplog.text


def write_until_the_limit(folder: str) -> None:
    """Exchange with files limited to less than the weights have, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))
    exchange = WeightExchange(nn.Linear(64, 64), folder, node="a", every=2)
    steps(exchange, 6)
    print("went on", exchange.steps, sorted(file.name for file in Path(folder).iterdir()), flush=True)


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    process = begin(write_until_the_limit, str(tmp_path / "exchange"), output=output)
    process.join(120)
    said = output.read_text()
    assert "went on 6 []" in said
    assert said.count("could not be written") == 1


@pytest.mark.parametrize("every", [0, -1, 2.0, "8", True])
def test_a_period_that_is_none_is_refused(every: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        WeightExchangeCallback(tmp_path, node="a", every=every)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        LocalSGDCallback(every)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="node must be a name"):
        WeightExchangeCallback(tmp_path, node=name, every=2)


def test_trainers_meet_through_the_callback(tmp_path: Path) -> None:
    emo_hf.register()
    try:
        ends = []
        for name in ("a", "b"):  # b comes when a is done
            exchange = WeightExchangeCallback(tmp_path / "exchange", node=name, every=4)
            model = tiny.classifier(seed=ord(name), dropout=0.0)
            trainer = tiny.trainer(tmp_path / name, model=model, callbacks=[exchange], learning_rate=1e-9)
            trainer.train()
            ends.append([param.detach().clone() for param in trainer.model.parameters()])
        torch.testing.assert_close(ends[0], ends[1], rtol=0.0, atol=1e-6)  # nothing was learned: b has what a had
        with safe_open(tmp_path / "exchange" / "b.safetensors", framework="pt") as published:
            assert published.metadata()["steps"] == "10"  # of 10, the last 2 at the end of training
    finally:
        emo_hf.unregister()


def train_a_node(folder: str, name: str, seed: int, count: int) -> None:
    """Learn the weights of a linear model, together with the other nodes of the folder."""
    torch.manual_seed(seed)
    model, truth = nn.Linear(4, 1), torch.tensor([1.0, -2.0, 3.0, 0.5])
    optimizer = emo_hf.EmoNavi(model.parameters(), lr=0.05)
    exchange = WeightExchange(model, folder, node=name, every=5)

    def error() -> float:
        return float((model.weight.detach() - truth).abs().max())

    warnings.simplefilter("ignore")  # the loss comes close to zero, which is worth a warning elsewhere
    print(exchange.join(), error(), flush=True)
    for _ in range(count):
        inputs = torch.randn(16, 4)
        loss = (model(inputs).squeeze(1) - inputs @ truth).square().mean()
        optimizer.zero_grad()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        exchange.step()
    exchange.exchange()
    print(optimizer.emotion.observations, error(), flush=True)


@pytest.mark.long
def test_of_two_real_nodes_one_is_killed_and_comes_back_without_optimizer_state(tmp_path: Path) -> None:
    folder = tmp_path / "exchange"

    def start(name: str, seed: int, count: int) -> Any:
        return begin(train_a_node, str(folder), name, seed, count, output=tmp_path / f"output{seed}.txt")

    def wait_for(name: str, count: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if (folder / f"{name}.safetensors").exists():
                with safe_open(folder / f"{name}.safetensors", framework="pt") as published:
                    if int(published.metadata()["steps"]) >= count:
                        return
            time.sleep(0.01)
        raise AssertionError(f"node {name} has not got to step {count}")

    begun = []
    try:
        begun.append(start("a", 0, 1_000_000))
        begun.append(start("b", 1, 1_000_000))
        wait_for("a", 500)
        wait_for("b", 500)
        begun[1].kill()  # perhaps while it publishes
        begun[1].join(30)
        begun.append(start("b", 2, 100))
        begun[2].join(120)
        output = (tmp_path / "output2.txt").read_text()
        assert begun[2].exitcode == 0, output
        assert begun[0].is_alive(), "node a did not outlive node b"
    finally:
        for process in begun:
            process.kill()
            process.join()
    joined, error_at_start, observations, error_at_end = output.split()[-4:]
    assert joined in ("a", "b")
    assert float(error_at_start) < 0.5  # random weights are off by about 3
    assert observations == "100"  # its emotion began afresh
    assert float(error_at_end) < 0.5
