"""The training of two_nodes.sh: FOLDER [slowly | CHECKPOINT]. 40 steps of a tiny BERT, then a digest."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import emo_hf
from emo_hf.integrations.accelerate import unwrap
from tests import tiny


class Slowly(TrainerCallback):
    """Leaves time to be killed between two steps."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        time.sleep(0.3)


def main(folder: str, how: str = "") -> None:
    emo_hf.register()
    trainer = tiny.trainer(
        Path(folder), data=tiny.examples(80), num_train_epochs=4, save_strategy="steps", save_steps=10,
        callbacks=[Slowly()] if how == "slowly" else [],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=how if how not in ("", "slowly") else None)
    weights = b"".join(param.detach().numpy().tobytes() for param in trainer.model.parameters())
    emotion = unwrap(trainer.optimizer).emotion
    digest = hashlib.sha256(weights + repr(emotion).encode()).hexdigest()
    print("ended", digest[:16], f"observations {emotion.observations}, scalar {emotion.scalar:.6f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
