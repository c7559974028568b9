"""The optimizers, in pure torch. Nothing in here knows of Hugging Face."""

from emo_hf.optim.base import EmoOptimizer
from emo_hf.optim.emofact import EmoFact
from emo_hf.optim.emolynx import EmoLynx
from emo_hf.optim.emonavi import EmoNavi
from emo_hf.optim.emotion import Emotion, EmotionView

__all__ = ["EmoFact", "EmoLynx", "EmoNavi", "EmoOptimizer", "Emotion", "EmotionView"]
