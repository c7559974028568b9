"""The optimizers, in pure torch. Nothing in here knows of Hugging Face."""

from emo_hf.emotion.v3_1 import Emotion, EmotionView
from emo_hf.optim.optimizer import EmoOptimizer
from emo_hf.optim.rules.fact import EmoFact
from emo_hf.optim.rules.lynx import EmoLynx
from emo_hf.optim.rules.navi import EmoNavi

__all__ = ["EmoFact", "EmoLynx", "EmoNavi", "EmoOptimizer", "Emotion", "EmotionView"]
