"""What is installed here, and which fast paths work and why others do not."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shlex
from collections.abc import Iterator
from typing import Any

import torch

from emo_hf.doctor.findings import Finding
from emo_hf.integrations.accelerate import SWITCH
from emo_hf.optim.family import FAMILY
from emo_hf.optim.kernels import build
from emo_hf.optim.kernels.cache import cache_folder, objection
from emo_hf.optim.optimizer import EmoOptimizer

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "trl", "datasets", "aenum", "tensorboard", "matplotlib", "scipy",
    "deepspeed", "lightning", "triton",
)  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def versions() -> dict[str, str]:
    """Package → version, or that it is not installed."""
    found = {"python": f"{platform.python_version()} on {platform.system()} {platform.machine()}"}
    return found | {package: version(package) or "not installed" for package in ("emo_hf", *PACKAGES)}


def version(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    if package == "emo_hf":
        import emo_hf

        return emo_hf.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> dict[str, str]:
    """What there is to compute on."""
    found = {"cpu": f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {memory / 2**30:.0f} GiB"
    return found


def supported() -> Finding:
    """Whether the versions here are those that this package was made for."""
    try:
        required = importlib.metadata.requires("emo_hf") or []
        from packaging.requirements import Requirement
    except ImportError as error:  # not installed, but found on the path
        return Finding(name="versions", passed=None, said=f"what is required is not known here ({error})")
    wrong = []
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "hf"}):
            continue
        found = version(requirement.name)
        if found is not None and not requirement.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        return Finding(
            name="versions", passed=False, said=", ".join(wrong), remedy='pip install --upgrade "emo_hf[hf]"'
        )
    return Finding(name="versions", said="all that is installed is supported")


def fast_paths() -> list[Finding]:
    """Each fast path: whether it works here, and why not."""
    return [_native(), _fused("cpu"), _cuda(), _triton(), _tap()]


def _native() -> Finding:
    name = "native kernels (C, on the CPU)"
    with _noted(logging.getLogger(build.__name__)) as said:
        library = build.kernels()
    compiler = build.find_compiler()
    if library is None:
        why = said[-1] if said else "they could not be compiled when they were first needed in this process"
        if compiler is None:
            why = "no C compiler found (CC, cc, gcc, clang): steps are taken in plain PyTorch, more slowly"
        return Finding(name=name, passed=None, said=why, remedy="install gcc or clang, or set CC to a compiler")
    command = shlex.join(compiler or ())
    try:
        folder = cache_folder()
        trouble = objection(folder)
    except OSError as error:
        trouble = f"there is no folder to keep them in ({error})"
    if trouble is not None:
        return Finding(
            name=name,
            said=f"compiled with {command} for this process alone: {trouble}",
            remedy="set EMO_HF_CACHE to a folder of yours, else each process compiles them for about a second",
        )
    return Finding(name=name, said=f"compiled with {command}, kept in {folder}")


def _fused(device: str) -> Finding:
    name = f"torch's fused Adam ({device})"
    param = torch.nn.Parameter(torch.ones(2, device=device))
    param.grad = torch.ones_like(param)
    try:
        torch.optim.AdamW([param], fused=True).step()
    except (RuntimeError, ValueError) as error:
        return Finding(name=name, passed=None, said=f"torch {torch.__version__} has none: {error}")
    return Finding(name=name, said="works")


def _cuda() -> Finding:
    name = "CUDA"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = (
            f"this torch ({torch.__version__}) is built without it"
            if built is None
            else f"torch is built for CUDA {built}, but no GPU or no driver is found"
        )
        return Finding(name=name, passed=None, said=why)
    fused = _fused("cuda")
    return Finding(name=name, said=f"{torch.version.cuda}; fused Adam: {fused.said}", passed=fused.passed)


def _triton() -> Finding:
    name = "triton"
    if importlib.util.find_spec("triton") is None:
        return Finding(name=name, passed=None, said="not installed; only GPUs need it")
    if not torch.cuda.is_available():
        return Finding(name=name, passed=None, said=f"{version('triton')} is installed, and there is no GPU for it")
    return Finding(name=name, said=f"{version('triton')}")


def _tap() -> Finding:
    name = "loss tap"
    if os.environ.get(SWITCH) == "0":
        return Finding(
            name=name,
            passed=None,
            said=f"switched off by {SWITCH}=0: losses must be shown with observe(loss)",
            remedy=f"unset {SWITCH}, unless your own code calls observe",
        )
    if importlib.util.find_spec("accelerate") is None:
        return Finding(name=name, passed=None, said="accelerate is not installed: show losses with observe(loss)")
    return Finding(name=name, said="on Accelerator.backward, as soon as an emo optimizer is made")


def chosen_paths() -> dict[str, str]:
    """Optimizer → what moves its parameters here, by device and dtype."""
    devices_here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = {}
    for name, cls in FAMILY.items():
        parts = []
        for device in devices_here:
            of_device = {dtype: _path(cls, torch.device(device), DTYPES[dtype]) for dtype in DTYPES}
            same = len(set(of_device.values())) == 1
            words = next(iter(of_device.values())) if same else ", ".join(f"{k} {v}" for k, v in of_device.items())
            parts.append(f"{device}: {words}")
        found[name] = "; ".join(parts)
    return found


def _path(cls: type[EmoOptimizer], device: torch.device, dtype: torch.dtype) -> str:
    param = torch.nn.Parameter(torch.zeros(2, 2, device=device, dtype=dtype))
    optimizer: Any = cls([param])
    name: str = optimizer._buckets.implementation(optimizer.param_groups[0], param)
    return name


@contextlib.contextmanager
def _noted(logger: logging.Logger) -> Iterator[list[str]]:
    """The warnings of a logger, which are not printed in the meantime."""
    said: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, propagates = Note(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
