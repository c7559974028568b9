"""Averages of saved weights: for nodes that share nothing before the end of their training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

WEIGHTS = "*.safetensors"
NOT_COPIED = (".safetensors", ".pt", ".pth", ".bin")
ADAPTER_CONFIG = "adapter_config.json"


def average_saved(
    folders: Sequence[str | PathLike[str]], output: str | PathLike[str], *, weights: Sequence[float] | None = None
) -> Path:
    """Average the adapters or models that several nodes have saved, tensor by tensor.

    The nodes have to begin with the same weights: the same seed when the adapter is made. Of LoRA the factors A and B
    are averaged, as local SGD does, and new classification heads with them; the adapter stays as large as one of them.
    PEFT's `add_weighted_adapter(..., combination_type="cat")` takes the mean of the products B·A instead, which makes
    an adapter as large as all of them together, and refuses adapters with heads (`modules_to_save`).

    Args:
        folders: what `save_pretrained` has written, or Trainer checkpoints: `*.safetensors` and configuration.
        output: folder for the average, with the configuration of the first; optimizer states are not copied.
        weights: how much each counts, for example the number of its steps; all the same if left out.

    Returns:
        The folder of the average.

    Raises:
        ValueError: if what is in the folders does not fit together, or the weights do not.
    """
    sources, target = [Path(folder) for folder in folders], Path(output)
    shares = [1.0] * len(sources) if weights is None else [float(weight) for weight in weights]
    if not sources or len(shares) != len(sources) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"weights must be {len(sources)} numbers of at least 0, not all 0, got {weights}")
    files = [sorted(file.name for file in source.glob(WEIGHTS)) for source in sources]
    for source, names in zip(sources, files, strict=True):
        if not names or names != files[0]:
            raise ValueError(f"{source} holds {names or 'no ' + WEIGHTS}, {sources[0]} holds {files[0]}")
        if source.resolve() == target.resolve():
            raise ValueError(f"output must be another folder than what is averaged, got {target}")
        _same_adapter(sources[0], source)
    target.mkdir(parents=True, exist_ok=True)
    for file in sources[0].iterdir():
        if file.is_file() and file.suffix not in NOT_COPIED and file.name != "trainer_state.json":
            shutil.copy(file, target)
    for name in files[0]:
        _average_files([source / name for source in sources], shares, target / name)
    return target


def _average_files(files: list[Path], shares: list[float], output: Path) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
        shapes = [{name: tuple(one.get_slice(name).get_shape()) for name in one.keys()} for one in opened]  # noqa: SIM118
        for file, theirs in zip(files, shapes, strict=True):
            if theirs != shapes[0]:
                raise ValueError(f"{file} does not fit {files[0]}: {differ(shapes[0], theirs)}")
        averages = {}
        for name in shapes[0]:
            tensors = [one.get_tensor(name) for one in opened]
            # In float32 at least: a sum in bfloat16 has lost what the mean could hold.
            total = torch.zeros_like(tensors[0], dtype=torch.promote_types(tensors[0].dtype, torch.float32))
            for share, tensor in zip(shares, tensors, strict=True):
                total.add_(tensor.to(total), alpha=share)
            averages[name] = total.div_(sum(shares)).to(tensors[0].dtype)
        save_file(averages, output, metadata=opened[0].metadata())


def _same_adapter(first: Path, other: Path) -> None:
    # Two adapters of the same shapes may still mean different things: lora_alpha, for one.
    if not (first / ADAPTER_CONFIG).is_file():
        return
    one, two = (json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")) for folder in (first, other))
    for key in one.keys() | two.keys():
        mine, theirs = (sorted(value) if isinstance(value, list) else value for value in (one.get(key), two.get(key)))
        if mine != theirs and key != "base_model_name_or_path":
            raise ValueError(f"The adapters have different {key}: {mine} in {first}, {theirs} in {other}")


def differ(mine: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]]) -> str:
    """Where two tables of shapes differ, in words."""
    name = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))[0]
    return f"{name} is {theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
