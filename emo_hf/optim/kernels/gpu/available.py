"""Whether there are kernels for a device: Triton, a device that it knows, and a compiler that works for it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import subprocess
from contextlib import nullcontext
from typing import Any

import torch

from emo_hf.optim.kernels.library import FLOATS

INTERPRETER_VARIABLE = "TRITON_INTERPRET"
"""The environment variable that has Triton run kernels as Python, on tensors in main memory; read once, at import."""

DEVICES = ("cuda", "xpu")

WRONG = (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError, subprocess.SubprocessError)
"""What comes of a Triton that is broken, too old or too new, of a device that it does not know, of no C compiler."""

logger = logging.getLogger(__name__)


def works_for(param: torch.Tensor) -> bool:
    """Whether the kernels can move a parameter of this dtype on this device; the first one has a kernel compiled."""
    return param.dtype in FLOATS and works_on(param.device)


def works_on(device: torch.device) -> bool:
    """Whether kernels can be launched on a device."""
    if device.type == "cpu":
        return is_interpreted()
    return device.type in DEVICES and has_triton() and _launches(device)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def is_interpreted() -> bool:
    """Whether kernels run as Python, in main memory: slowly, to show that they are right."""
    return os.environ.get(INTERPRETER_VARIABLE, "0").lower() in ("1", "true", "on", "yes") and has_triton()


def kernel(name: str) -> Any:
    """A kernel by the name of its module in `source` and its own, as in `fact.squares`."""
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"emo_hf.optim.kernels.gpu.source.{module}"), function)


@functools.cache
def _launches(device: torch.device) -> bool:
    """Whether a kernel can be compiled and launched on a device; the attempt is made once per process and device."""
    try:
        with on(device):
            kernel("formats.add_one")[(1,)](torch.zeros(1, device=device))
    except WRONG as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        logger.warning(
            "Triton cannot work on %s (%s): the optimizer steps in plain PyTorch, more slowly", device, said
        )
        return False
    return True


def on(device: torch.device) -> Any:
    """A context in which kernels are launched on a device."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)
