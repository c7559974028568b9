"""Whether all ranks of a job have the same options: told at the first step, before a loss is exchanged."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

SYNC = "emo_sync"
GLOBAL = "global"
LOCAL = "local"

WITHOUT_STORE = ("mpi", "fake")
"""Backends whose ranks have no key-value store."""

_numbers = itertools.count()
"""Which of the optimizers of this process one is, in the order of their first steps: the same on all ranks."""


class SameOptions:
    """Compares the options of an optimizer once with those that the other ranks have.

    Weights drift apart where laws or weight decays differ, and ranks wait for others that never come where `emo_sync`
    differs. So the comparison is no collective: the options go through the key-value store that the process group was
    made with. Every rank puts its own there at its first step, and reads those of all. A rank that shares its loss
    waits for them, before its first exchange; one with `emo_sync=local` waits for nobody, and looks for them after
    1, 2, 4, 8, … steps. Ranks that are all local may differ. Without a store (MPI) nothing is compared.
    """

    def __init__(self) -> None:
        self.is_settled = False
        self._place = ""  # in the store
        self._steps = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": 0}  # a copy has a place of its own

    def compare(self, options: Mapping[str, str], owner: str) -> None:
        """Compare what must be the same, `emo_sync` included, unless that is settled; the owner is named in messages.

        Raises:
            RuntimeError: on every rank, naming the options that differ.
        """
        if self.is_settled or dist.get_backend() in WITHOUT_STORE:
            return
        store = dist.distributed_c10d._get_default_store()
        self._steps += 1
        if self._steps == 1:
            self._place = f"emo_hf/options/{next(_numbers)}"
            store.set(f"{self._place}/{dist.get_rank()}", json.dumps(dict(options)))
        keys = [f"{self._place}/{rank}" for rank in range(dist.get_world_size())]
        if options[SYNC] == LOCAL and (self._steps & (self._steps - 1) or not store.check(keys)):
            return
        differ = _different([json.loads(each) for each in store.multi_get(keys)])
        self.is_settled = True
        if differ:
            raise RuntimeError(
                f"{owner}: the ranks of this job have different options, with which their weights would drift apart, "
                f"or one would wait for the other: {differ}. Give all ranks the same"
            )


def _different(options: Sequence[Mapping[str, str]]) -> str:
    """Which options differ between rank 0 and others, in words; empty if none does."""
    if all(each[SYNC] == LOCAL for each in options):
        return ""
    said: dict[str, str] = {}
    for rank, each in enumerate(options):
        for name in sorted(options[0].keys() | each.keys()):
            ours, theirs = options[0].get(name, "left out"), each.get(name, "left out")
            if ours != theirs:
                said.setdefault(name, f"{name} is {ours} on rank 0 and {theirs} on rank {rank}")
    return "; ".join(said.values())
