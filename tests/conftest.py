"""Settings for all tests: the same examples every time, and no more threads than small tensors can use."""

from __future__ import annotations

import torch
from hypothesis import settings

settings.register_profile("emo_hf", derandomize=True, deadline=None, database=None, print_blob=False)
settings.load_profile("emo_hf")
torch.set_num_threads(1)
