"""Autonomous ranks in the Trainer: each trains by itself and feels its own loss; weights are averaged now and then.

For one's own loop accelerate's `LocalSGD` does the same, with an optimizer that was made with `emo_sync="local"`.
"""

from __future__ import annotations

from typing import Any

from accelerate.local_sgd import LocalSGD
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from emo_hf.integrations import accelerate as loss_tap
from emo_hf.loss.rank_mean import LOCAL


class LocalSGDCallback(TrainerCallback):
    """Averages the weights of all ranks every few steps, and no gradients, in a Trainer run under DDP.

    Needs `optim_args="emo_sync=local"` and `average_tokens_across_devices=False`, which would make the ranks wait for
    each other at every step. Weights are averaged before an evaluation, a checkpoint and the end as well. A checkpoint
    holds the optimizer state of rank 0 only: after a resume all ranks go on with it.

    Do not use it where the interconnect is fast (DDP is better at equal samples) or the model is sharded.

    Args:
        every: steps between two averages.

    Raises:
        ValueError: if `every` is not a whole number of at least 1; when training begins, if the settings do not fit.
    """

    def __init__(self, every: int) -> None:
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {every!r}")
        self.every = every
        self._local_sgd: LocalSGD | None = None
        loss_tap.install()  # which notes the model that the Trainer's accelerator prepares

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.world_size == 1:
            return
        emo = loss_tap.unwrap(optimizer)
        if emo is not None and emo.emo_sync != LOCAL:
            raise ValueError(f'LocalSGDCallback needs optim_args="emo_sync=local", got emo_sync={emo.emo_sync}')
        if args.average_tokens_across_devices:
            raise ValueError("LocalSGDCallback needs average_tokens_across_devices=False")
        found = loss_tap.prepared_around(model)
        if found is None:
            raise ValueError("LocalSGDCallback works under DDP only: the model is not wrapped in it")
        accelerator, wrapped = found
        self._local_sgd = LocalSGD(accelerator, wrapped, self.every)
        self._local_sgd.__enter__()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._local_sgd is None:
            return
        self._local_sgd.step()
        if (control.should_save or control.should_evaluate) and self._local_sgd.num_steps % self.every:
            self._local_sgd._sync_and_avg_model_params()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._local_sgd is not None:
            self._local_sgd.__exit__(None, None, None)
            self._local_sgd = None
