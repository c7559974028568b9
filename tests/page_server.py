"""What is imported and read once, in the process from which those of the pages are forked."""

import lightning.pytorch  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401

import emo_hf.train.train  # noqa: F401
import tests.page_kit  # noqa: F401
from emo_hf.train.builtin import load_once

load_once(mask_names=True)
