"""Whether all ranks of a job have the same options: told at the first step, before a loss is exchanged."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

SYNC = "emo_sync"
GLOBAL = "global"
LOCAL = "local"
SAME = "the same"

WITHOUT_STORE = ("mpi", "fake")
"""Backends whose ranks have no key-value store."""

_numbers = itertools.count()
"""Which of the optimizers of this process one is, in the order of their first steps: the same on all ranks."""


class SameOptions:
    """Compares the options of an optimizer once with those that the other ranks have.

    Weights drift apart where laws or weight decays differ, and ranks wait for others that never come where `emo_sync`
    differs. So the comparison is no collective: the options go through the key-value store that the process group was
    made with. Every rank puts its own there at its first step, and rank 0 compares. A rank that shares its loss waits
    for what rank 0 has found, before its first exchange; one with `emo_sync=local` waits for nobody, and looks for it
    after 1, 2, 4, 8, … steps. Ranks that are all local may differ. Without a store (MPI) nothing is compared.
    """

    def __init__(self) -> None:
        self.is_settled = False
        self._number: int | None = None
        self._steps = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_number": None, "_steps": 0}

    def compare(self, options: Mapping[str, str], owner: str) -> None:
        """Compare, unless that is settled.

        Args:
            options: what must be the same, by name; `emo_sync` among them.
            owner: whose they are, for the message.

        Raises:
            RuntimeError: on every rank, naming the options that differ.
        """
        if self.is_settled or dist.get_backend() in WITHOUT_STORE:
            return
        store, rank = dist.distributed_c10d._get_default_store(), dist.get_rank()
        waits = options[SYNC] != LOCAL
        is_first, self._steps = self._number is None, self._steps + 1
        if self._number is None:
            self._number = next(_numbers)
        place = f"emo_hf/options/{self._number}"
        keys, found = [f"{place}/{other}" for other in range(dist.get_world_size())], f"{place}/found"
        if is_first:
            store.set(keys[rank], json.dumps(dict(options)))
        if not waits and self._steps & (self._steps - 1):
            return
        differ = ""
        if rank == 0:
            if not (waits or store.check(keys)):
                return
            differ = _different({other: json.loads(store.get(key)) for other, key in enumerate(keys)})
            store.set(found, differ or SAME)
        else:
            if waits or store.check(keys[:1]):  # rank 0 may be one that does not wait, and finds nothing in time
                differ = _different({0: json.loads(store.get(keys[0])), rank: options})
            if not differ:
                if not (waits or store.check([found])):
                    return
                differ = store.get(found).decode().removeprefix(SAME)
        self.is_settled = True
        if differ:
            raise RuntimeError(
                f"{owner}: the ranks of this job have different options, with which their weights would drift apart, "
                f"or one would wait for the other: {differ}. Give all ranks the same"
            )


def _different(options: Mapping[int, Mapping[str, str]]) -> str:
    """Which options differ between rank 0 and others, in words; empty if none does."""
    first = options[0]
    if all(each[SYNC] == LOCAL for each in options.values()):
        return ""
    said: dict[str, str] = {}
    for rank, each in options.items():
        for name in sorted(first.keys() | each.keys()):
            ours, theirs = first.get(name, "left out"), each.get(name, "left out")
            if ours != theirs:
                said.setdefault(name, f"{name} is {ours} on rank 0 and {theirs} on rank {rank}")
    return "; ".join(said.values())
