"""From one loss per step to one decision per step. Floats only: nothing in here imports torch or knows of parameters.

`decision.py` says what a decision is, `law.py` what a law is; each law has a file of its own, `laws.py` names them.
"""

from emo_hf.laws.decision import Decision, EmotionView, ShadowMix
from emo_hf.laws.law import Law, Zone
from emo_hf.laws.laws import LAWS

__all__ = ["LAWS", "Decision", "EmotionView", "Law", "ShadowMix", "Zone"]
