"""Laws with their hands tied: what a run gains or loses against them is what its emotion is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

from emo_hf.emotion.decision import Decision


@dataclass(frozen=True, slots=True)
class Ablation:
    """Takes the place of a law's factors; the law feels, logs and signals as ever.

    Attributes:
        name: what `emo_law` calls it.
        factor: the factor on the learning rate of every step.
    """

    name: str
    factor: float

    def apply(self, decision: Decision) -> Decision:
        return replace(decision, coefficient=self.factor, decay_factor=1.0, floor=0.0)


NONE = Ablation("none", 1.0)
