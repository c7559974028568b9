"""The order of the training examples: a run resumed in the middle of an epoch sees what it has not yet seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from emo_hf.train.renamed_weights import LoadsRenamedWeights


class RecipeTrainer(LoadsRenamedWeights, Trainer):
    """The Trainer, resuming models of every naming, and with an order that depends on seed and epoch only.

    Under `group_by_length` the Trainer draws that order from torch's global generator, whose state at the beginning of
    an epoch is not that at a checkpoint in its middle: the resumed run would go through the rest of another order.
    """

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            return SeededByEpoch(sampler, lambda: seed + int(self.state.epoch or 0))
        return sampler


class SeededByEpoch(Sampler[int]):
    """A sampler whose generator is seeded anew each time that it is iterated over.

    Args:
        sampler: has an attribute `generator`.
        seed: called at the beginning of each epoch.
    """

    def __init__(self, sampler: Any, seed: Callable[[], int]) -> None:
        self._sampler = sampler
        self._seed = seed

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = torch.Generator().manual_seed(self._seed())
        return iter(self._sampler)
