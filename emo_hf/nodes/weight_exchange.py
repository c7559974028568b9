"""Autonomous nodes: jobs of one process each that train by themselves and share weights through a folder.

Every few steps a node puts its weights there and mixes in what the others have put there since it last looked. Nobody
waits, so a node may be slow, come late, leave or come back: no process group has to know of it. Losses, emotions and
optimizer states stay where they are. For nodes that share nothing before the end see `emo_hf.nodes.averaging`.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from emo_hf.integrations.accelerate import unwrap
from emo_hf.nodes.averaging import WEIGHTS
from emo_hf.nodes.peer import Published, Unusable, read_peer, within
from emo_hf.reading import read_value, whole_number

SECONDS = 60.0
"""How long the reading at one exchange may take in all."""

MOST_TIMES = 10
"""How many times as much as a node itself another may count."""

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
    has done since it last mixed anything in, nᵢ those behind the news of node i, at most 10·n. So what a node has
    published counts once for each of the others, a node that is three times slower counts a third as often, and one
    that is gone no longer counts. Buffers (running means of BatchNorm) are not exchanged.

    Nothing in the folder is trusted: a file that is partial or foreign, does not fit the model, is not finite or
    cannot be read within a minute is passed over, and its node named once. Where the own weights cannot be written (a
    full disk) that is said once, and training goes on.

    Use DDP or `LocalSGDCallback` where the nodes are equal and see each other over a fast network.

    Args:
        model: the model; all nodes train the same parameters of the same shapes.
        folder: where the nodes meet, on a file system that they all see; made if it is not there. One for each run.
        node: this node's name, its own among those that run at the same time: letters, digits, `.`, `_`, `-`.
        every: this node's steps between two exchanges.

    Raises:
        ValueError: if the name or `every` is not such.
    """

    def __init__(self, model: nn.Module, folder: str | PathLike[str], *, node: str, every: int) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", node):
            raise ValueError(f"node must be a name of letters, digits, '.', '_' and '-', got {node!r}")
        self.folder, self.node = Path(folder), node
        self.every: int = read_value("every", every, whole_number(1))
        self.steps = 0
        """Steps done by this node since it was made."""
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self._life = uuid.uuid4().hex  # a node that comes back under its old name counts from 0 again
        self._mixed_at = 0
        self._seen: dict[str, int] = {}  # life → its steps when it was last taken from
        self._looked_at: dict[str, tuple[int, int]] = {}  # node → when its file was changed, and the file's number
        self._has_named: set[str] = set()

    def join(self) -> str | None:
        """Begin with the weights that were published last, this node's own of an earlier life included.

        Returns:
            The name of the node whose weights were taken; None if nobody has published any that can be used.
        """
        newest = None
        for name, published in self._published(others_only=False):
            self._seen[published.life] = published.steps
            if newest is None:
                newest = name
                self._put(published.weights)
                logger.warning("Node %s begins with the weights of %s, published after its step %s",
                               self.node, name, published.steps)  # fmt: skip
        return newest

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
        try:
            self._publish()
        except (OSError, SafetensorError) as error:
            self._name_once(self.node, f"The weights of node {self.node} could not be written to {self.folder}, and "
                                       f"training goes on without: {error}")  # fmt: skip
        whole, sums = own, {}
        for _, published in self._published(others_only=True):
            news = min(published.steps - self._seen.get(published.life, 0), MOST_TIMES * own)
            self._seen[published.life] = published.steps
            if news <= 0:
                continue
            whole += news
            for name, tensor in published.weights.items():  # in float32 at least, as in `average_saved`
                param = self._params[name]
                wide = torch.promote_types(param.dtype, torch.float32)
                if name not in sums:
                    sums[name] = param.detach().to(wide) * own
                sums[name].add_(tensor.to(param.device, wide), alpha=news)
        if sums:
            self._put({name: total / whole for name, total in sums.items()})
            self._mixed_at = self.steps

    def _publish(self) -> None:
        if not all(param.isfinite().all() for param in self._params.values()):
            logger.warning("Node %s has weights that are not finite and keeps them to itself", self.node)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f".{self.node}.{self._life}"
        tensors = {name: param.detach().cpu().contiguous() for name, param in self._params.items()}
        try:
            save_file(tensors, unfinished, metadata={"life": self._life, "steps": str(self.steps)})
            os.replace(unfinished, self.folder / f"{self.node}.safetensors")
        finally:
            unfinished.unlink(missing_ok=True)

    def _published(self, *, others_only: bool) -> Iterator[tuple[str, Published]]:
        """What has been published since this was last asked for, and can be used; the newest first."""
        deadline = time.monotonic() + SECONDS
        try:
            files = within(deadline, self._newest_first)
        except (OSError, Unusable) as error:
            self._name_once(str(self.folder), f"{self.folder} is passed over: {error}")
            return
        for changed, file in files:
            if self._looked_at.get(file.stem) == changed or (others_only and file.stem == self.node):
                continue
            self._looked_at[file.stem] = changed
            try:
                yield file.stem, within(deadline, read_peer, file, self._params)
            except (OSError, MemoryError, Unusable) as error:
                self._name_once(file.stem, f"{file} is passed over: {error}")

    def _newest_first(self) -> list[tuple[tuple[int, int], Path]]:
        found = ((file, file.lstat()) for file in self.folder.glob(WEIGHTS))
        return sorted((((state.st_mtime_ns, state.st_ino), file) for file, state in found), reverse=True)

    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, param in self._params.items():
                param.copy_(weights[name])

    def _name_once(self, node: str, message: str) -> None:
        if node not in self._has_named:
            self._has_named.add(node)
            logger.warning(message)


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
        self, args: TrainingArguments, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        if args.world_size > 1:
            raise ValueError(f"WeightExchangeCallback is for nodes of one process each, got {args.world_size}")
        emo = unwrap(optimizer)
        if emo is not None:
            emo.give_way("WeightExchangeCallback, which averages the weights over nodes by itself,")
        self._exchange = WeightExchange(model, **self._options)
        self._exchange.join()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._exchange is not None:
            self._exchange.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._exchange is not None:
            self._exchange.exchange()
            self._exchange = None
