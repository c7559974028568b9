"""Autonomous nodes: jobs of one process each that train by themselves and share weights through a folder.

Every few steps a node puts its weights there and mixes in what the others have put there since it last looked. Nobody
waits, so a node may be slow, come late, leave or come back: no process group has to know of it. Losses, emotions and
optimizer states stay where they are. For nodes that share nothing before the end see `emo_hf.nodes.averaging`.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.nodes.averaging import WEIGHTS, differ, mean
from emo_hf.nodes.period import check_period

logger = logging.getLogger(__name__)


class WeightExchange:
    """Shares the trainable parameters of a model with other nodes, for a loop of one's own.

        exchange = WeightExchange(model, "shared/run", node="a", every=64)
        exchange.join()
        for batch in loader:
            ...
            optimizer.step()
            exchange.step()
        exchange.exchange()

    At an exchange the node's weights become

        θ ← (n·θ + Σᵢ nᵢ·θᵢ) / (n + Σᵢ nᵢ)

    over the others that have published since it last took from them; n is the number of steps that the node itself
    has done since it last mixed anything in, nᵢ those behind the news of node i. So what a node has published counts
    once for each of the others, a node that is three times slower counts a third as often, and one that is gone no
    longer counts. Buffers (running means of BatchNorm) are not exchanged.

    Use DDP or `LocalSGDCallback` where the nodes are equal and see each other over a fast network.

    Args:
        model: the model; all nodes train the same parameters of the same shapes.
        folder: where the nodes meet, on a file system that they all see; made if it is not there. One for each run.
        node: this node's name, its own among those that run at the same time: letters, digits, `.`, `_`, `-`.
        every: this node's steps between two exchanges.

    Raises:
        ValueError: if the name or `every` is not such; if another node's weights do not fit this model.
    """

    def __init__(self, model: nn.Module, folder: str | PathLike[str], *, node: str, every: int) -> None:
        check_period(every)
        if not re.fullmatch(r"[\w-][\w.-]*", node):
            raise ValueError(f"node must be a name of letters, digits, '.', '_' and '-', got {node!r}")
        self.folder = Path(folder)
        self.node = node
        self.every = every
        self.steps = 0
        """Steps done by this node since it was made."""
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self._life = uuid.uuid4().hex  # a node that comes back under its old name counts from 0 again
        self._mixed_at = 0
        self._seen: dict[str, int] = {}  # life → its steps when it was last taken from

    def join(self) -> str | None:
        """Begin with the weights that were published last, this node's own of an earlier life included.

        Returns:
            The name of the node whose weights were taken; None if nobody has published any yet.
        """
        files = sorted(self.folder.glob(WEIGHTS), key=lambda file: file.stat().st_mtime_ns)
        for file in files:
            with safe_open(file, framework="pt") as published:
                self._note(published)
                if file == files[-1]:
                    self._mix([(1, file, published)], own=0)
                    steps = published.metadata()["steps"]
        if not files:
            return None
        logger.warning("Node %s begins with the weights of %s, published after its step %s",
                       self.node, files[-1].stem, steps)  # fmt: skip
        return files[-1].stem

    def step(self) -> None:
        """Count one step of the optimizer, and exchange if it is time."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.exchange()

    def exchange(self) -> None:
        """Publish this node's weights, then mix in the others' news; also to be called when the node has finished."""
        own = self.steps - self._mixed_at
        if not own:
            return
        self._publish()
        with ExitStack() as opened:
            news = []
            for file in sorted(self.folder.glob(WEIGHTS)):
                published = opened.enter_context(safe_open(file, framework="pt"))
                steps = self._note(published)
                if steps > 0 and file.stem != self.node:
                    news.append((steps, file, published))
            if news:
                self._mix(news, own)
                self._mixed_at = self.steps

    def _publish(self) -> None:
        if not all(param.isfinite().all() for param in self._params.values()):
            logger.warning("Node %s has weights that are not finite and keeps them to itself", self.node)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{self.node}.{self._life}"
        tensors = {name: param.detach().cpu().contiguous() for name, param in self._params.items()}
        save_file(tensors, unfinished, metadata={"life": self._life, "steps": str(self.steps)})
        os.replace(unfinished, self.folder / f"{self.node}.safetensors")

    def _note(self, published: Any) -> int:
        # The steps behind what is new in this file.
        life, steps = published.metadata()["life"], int(published.metadata()["steps"])
        news = steps - self._seen.get(life, 0)
        self._seen[life] = steps
        return news

    def _mix(self, news: list[tuple[int, Path, Any]], own: int) -> None:
        mine = {name: tuple(param.shape) for name, param in self._params.items()}
        for _, file, published in news:
            theirs = {name: tuple(published.get_slice(name).get_shape()) for name in published.keys()}  # noqa: SIM118
            if theirs != mine:
                raise ValueError(f"What {file} holds does not fit this model: {differ(mine, theirs)}")
        whole = own + sum(steps for steps, _, _ in news)
        with torch.no_grad():
            for name, param in self._params.items():
                parts = [(steps, published.get_tensor(name)) for steps, _, published in news]
                if own:
                    parts.append((own, param))
                param.copy_(mean(parts, whole))


class WeightExchangeCallback(TrainerCallback):
    """`WeightExchange` in a Trainer: the node joins when training begins and exchanges at its end once more.

    Args:
        folder: where the nodes meet.
        node: this node's name.
        every: this node's steps between two exchanges.

    Raises:
        ValueError: as `WeightExchange`; when training begins, if the job has more than one process.
    """

    def __init__(self, folder: str | PathLike[str], *, node: str, every: int) -> None:
        WeightExchange(nn.Module(), folder, node=node, every=every)  # refuses what is wrong at once
        self._options: dict[str, Any] = {"folder": folder, "node": node, "every": every}
        self._exchange: WeightExchange | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.world_size > 1:
            raise ValueError(f"WeightExchangeCallback is for nodes of one process each, got {args.world_size}")
        emo = unwrap(optimizer)
        if emo is not None:
            emo.give_way("WeightExchangeCallback, which averages the weights over nodes by itself,")
        self._exchange = WeightExchange(model, **self._options)
        self._exchange.join()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._exchange is not None:
            self._exchange.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._exchange is not None:
            self._exchange.exchange()
            self._exchange = None
