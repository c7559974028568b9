"""Nodes that share weights through a folder: what is mixed, who may come and go, and real processes that do."""

from __future__ import annotations

import math
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
from emo_hf.nodes.peer import read_peer as peer
from tests import tiny
from tests.ranks import begin

Node = tuple[WeightExchange, nn.Parameter]


def node(folder: Path, name: str, value: float, every: int = 2) -> Node:
    """A node with one trainable weight, and that weight."""
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    nn.init.constant_(model.weight, value)
    return WeightExchange(model, folder, node=name, every=every), model.weight


def steps(exchange: WeightExchange, count: int) -> None:
    for _ in range(count):
        exchange.step()


SCRIPTS = {
    "equal nodes meet half way": ("a=0 b=8 a2 b2", {"a": 0.0, "b": 4.0}),
    "what is published counts once": ("a=0 b=8 b2 a2 a20", {"a": 4.0}),
    "a node counts by its steps since it last mixed anything in": ("a=0 b=8 a2 b2 a=2 a2", {"a": (4 * 2 + 2 * 8) / 6}),
    "and by no others": ("a=0 b=8 b2 a2 a=2 b=6 b2 a2", {"a": 4.0}),
    "a slow node counts by its steps": ("a=0/6 b=8 b2 a6", {"a": 2 / 8 * 8.0}),
    "a late node begins with the newest, and leaves the rest alone": (
        "gone=100 gone2 a=3 a-joins-gone a=3 a2 late=-50 late-joins-a late2", {"a": 3.0, "late": 3.0},
    ),
    "the first node joins nobody": ("a=3 a-joins-", {"a": 3.0}),
    "a node that comes back is heard again, with fewer steps than in its first life": (
        "a=0 b=8 b20 a2 b:=0 b-joins-a b=100 b2 a2", {"a": (20 * 8 / 22 + 100) / 2},
    ),
}  # fmt: skip
"""Scripts, and the weights at their end.

`a=0` begins a node or sets its weight, `a=0/6` one that exchanges every 6 steps, `b:=0` a new life of it; `a2` are two
steps, and `a-joins-b` has it join, which takes the weights of b.
"""


@pytest.mark.parametrize("what", SCRIPTS)
def test_nodes_mix_by_the_steps_that_are_news(what: str, tmp_path: Path) -> None:
    nodes: dict[str, Node] = {}
    script, expected = SCRIPTS[what]
    for word in script.split():
        if "-joins-" in word:
            name, _, other = word.partition("-joins-")
            assert nodes[name][0].join() == (other or None)
        elif "=" in word:
            name, _, value = word.partition("=")
            value, _, every = value.partition("/")
            if name in nodes:
                nodes[name][1].data.fill_(float(value))
            else:
                name = name.removesuffix(":")
                nodes[name] = node(tmp_path / "not there at first", name, float(value), int(every or 2))
        else:
            name = word.rstrip("0123456789")
            steps(nodes[name][0], int(word.removeprefix(name)))
    assert {name: nodes[name][1].item() for name in expected} == pytest.approx(expected)


def test_a_file_that_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (a, _), (b, _) = node(tmp_path, "a", 0.0), node(tmp_path, "b", 8.0)
    read: list[str] = []
    monkeypatch.setattr(
        weight_exchange, "read_peer", lambda file, params: read.append(file.stem) or peer(file, params)
    )
    steps(b, 2)
    steps(a, 6)
    assert read == ["b"]


def test_a_node_that_has_diverged_keeps_it_to_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (a, _), (b, _) = node(tmp_path, "a", float("nan")), node(tmp_path, "b", 8.0)
    steps(a, 2)
    steps(b, 2)
    assert not (tmp_path / "a.safetensors").exists()
    assert "Node a has weights that are not finite" in caplog.text
    back, weight = node(tmp_path, "a", float("nan"))
    assert back.join() == "b"
    assert weight.item() == 8.0


def save(file: Path, value: Any, steps: object = 2) -> None:
    save_file(
        {"weight": torch.as_tensor(value).reshape(-1, 1)}, file, metadata={"life": file.stem, "steps": f"{steps}"}
    )


def partial(file: Path) -> None:
    save(file, 4.0)
    file.write_bytes(file.read_bytes()[:-2])


def huge(file: Path) -> None:
    with open(file, "wb") as made:
        made.truncate(1 << 40)  # sparse


NO_NODE, NOT_FINITE = "it is not what a node writes, or not the whole of it", "its weight is not finite"
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "it is not a file"),
    "circle": (lambda file: file.symlink_to(file), "it is not a file"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "it is not a file"),
    "foreign": (lambda file: file.write_text("no weights"), NO_NODE),
    "partial": (partial, NO_NODE),
    "huge": (huge, "it has 1099511627776 bytes, and this model needs"),
    "no_note": (lambda file: save_file({"weight": torch.ones(1, 1)}, file), NO_NODE),
    "not_a_number": (lambda file: save(file, math.nan), NOT_FINITE),
    "whole_numbers": (lambda file: save(file, 3), NOT_FINITE),
    "other_model": (lambda file: save(file, [1.0] * 3), "weight is (3, 1) there and (1, 1) here"),
    "many_steps": (lambda file: save(file, 4.0, steps=10**18), "it is said to have 1000000000000000000 steps"),
    "negative_steps": (lambda file: save(file, 4.0, steps=-5), "it is said to have -5 steps"),
    "steps_in_words": (lambda file: save(file, 4.0, steps="many"), NO_NODE),
}
"""What lies in the folder, and what is said of it."""


def test_what_cannot_be_used_is_named_once_by_each_node_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps(node(tmp_path, "b", 8.0)[0], 2)
    for what, (make, _) in HOSTILE.items():
        make(tmp_path / f"{what}.safetensors")
    begun = time.monotonic()
    a, weight = node(tmp_path, "a", 0.0)
    steps(a, 6)
    late, late_weight = node(tmp_path, "late", 0.0)
    assert late.join() == "a"
    assert weight.item() == late_weight.item() == 4.0
    assert time.monotonic() - begun < 20.0
    for what, (_, said) in HOSTILE.items():
        named = [record.message for record in caplog.records if f"{what}.safetensors" in record.message]
        assert len(named) == 2, what
        assert all(" is passed over: " in line and said in line for line in named), named


def test_no_file_counts_more_than_ten_times_as_much_as_the_node_itself(tmp_path: Path) -> None:
    save(tmp_path / "b.safetensors", 11.0, steps=10**9)
    a, weight = node(tmp_path, "a", 0.0)
    steps(a, 2)
    assert weight.item() == pytest.approx(10.0)


def test_a_file_system_that_does_not_answer_is_waited_for_until_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path / "b.safetensors", 4.0)
    monkeypatch.setattr(weight_exchange, "SECONDS", 0.5)
    monkeypatch.setattr(Path, "read_bytes", lambda _: time.sleep(30.0))  # as a network file system hangs
    a, weight = node(tmp_path, "a", 0.0)
    begun = time.monotonic()
    steps(a, 2)
    assert time.monotonic() - begun < 10.0
    assert weight.item() == 0.0
    assert "could not be read in time" in caplog.text


def test_a_period_or_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    for every in (0, 2.0, "eight", True):
        said = f"every={every!r} is not acceptable: it takes a whole number of at least 1"
        with pytest.raises(ValueError, match=said):
            LocalSGDCallback(every)
        with pytest.raises(ValueError, match=said):
            WeightExchangeCallback(tmp_path, node="a", every=every)
    for name in ("", "a/b", "..", ".hidden"):
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


def write_until_the_limit(folder: str) -> None:
    """Exchange with files limited to less than the weights have, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12))
    exchange = WeightExchange(nn.Linear(64, 64), folder, node="a", every=2)
    steps(exchange, 6)
    print("went on", exchange.steps, sorted(file.name for file in Path(folder).iterdir()), flush=True)


def train_a_node(folder: str, name: str, count: int) -> None:
    """Learn the weights of a linear model, together with the other nodes of the folder."""
    model, truth = nn.Linear(4, 1), torch.tensor([1.0, -2.0, 3.0, 0.5])
    optimizer = emo_hf.EmoNavi(model.parameters(), lr=0.05)
    exchange = WeightExchange(model, folder, node=name, every=5)
    warnings.simplefilter("ignore")  # the loss comes close to zero, which is worth a warning elsewhere
    print(exchange.join(), float((model.weight.detach() - truth).abs().max()), flush=True)
    for _ in range(count):
        inputs = torch.randn(16, 4)
        loss = (model(inputs).squeeze(1) - inputs @ truth).square().mean()
        optimizer.zero_grad()
        optimizer.observe(loss)
        loss.backward()
        optimizer.step()
        exchange.step()
    print(optimizer.emotion.observations, flush=True)


@pytest.mark.long
def test_of_two_real_nodes_one_is_killed_and_comes_back_and_a_third_has_a_full_disk(tmp_path: Path) -> None:
    folder, begun = tmp_path / "exchange", []

    def start(job: Callable[..., None], *arguments: Any) -> Path:
        output = tmp_path / f"output{len(begun)}.txt"
        begun.append(begin(job, *arguments, output=output))
        return output

    def wait_for(name: str, count: int) -> None:
        deadline, file = time.monotonic() + 120, folder / f"{name}.safetensors"
        while time.monotonic() < deadline:
            if file.exists():
                with safe_open(file, framework="pt") as published:
                    if int(published.metadata()["steps"]) >= count:
                        return
            time.sleep(0.01)
        raise AssertionError(f"node {name} has not got to step {count}")

    try:
        on_full_disk = start(write_until_the_limit, str(tmp_path / "full"))
        for name in ("a", "b"):
            start(train_a_node, str(folder), name, 1_000_000)
        wait_for("a", 500)
        wait_for("b", 500)
        begun[2].kill()  # perhaps while it publishes
        begun[2].join(30)
        came_back = start(train_a_node, str(folder), "b", 100)
        begun[3].join(120)
        begun[0].join(120)
        assert begun[1].is_alive(), "node a did not outlive node b"
    finally:
        for process in begun:
            process.kill()
            process.join()
    joined, error_at_start, observations = came_back.read_text().split()[-3:]
    assert joined in ("a", "b")
    assert float(error_at_start) < 0.5  # random weights are off by about 3
    assert observations == "100"  # its emotion began afresh
    said = on_full_disk.read_text()
    assert "went on 6 []" in said
    assert said.count("could not be written") == 1
