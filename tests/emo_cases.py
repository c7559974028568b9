"""What the optimizer tests are run over: every optimizer, every generation, every implementation of its rule."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from emo_hf import FAMILY, EmoOptimizer
from emo_hf.optim.rules.rule import Rule
from emo_hf.optim.version import Version


def pinned(cls: type[EmoOptimizer], version: str) -> type[EmoOptimizer]:
    """An optimizer whose default generation is another one, under a name of its own."""
    name = f"{cls.__name__}_{version.replace('.', '_')}"
    made = type(name, (cls,), {"__module__": __name__, "versions": {version: cls.versions[version]}})
    globals()[name] = made  # so that it can be pickled
    return made


OPTIMIZERS: list[type[EmoOptimizer]] = [
    cls if version == next(iter(cls.versions)) else pinned(cls, version)
    for cls in FAMILY.values()
    for version in cls.versions
]


def version_of(cls: type[EmoOptimizer]) -> Version:
    """The generation that a class makes by default."""
    return cls.version_named(None)


def rule_of(cls: type[EmoOptimizer]) -> type[Rule]:
    """The rule of that generation."""
    return version_of(cls).rule


def lr_for(cls: type[EmoOptimizer], lr: float) -> float:
    """A rate of the size of `lr`; where it is a scale, of which a law makes about a thousandth, a scale for it."""
    return 1000 * lr if version_of(cls).lr_is_a_scale else lr


IMPLEMENTATIONS: list[tuple[type[EmoOptimizer], str]] = [
    (cls, name) for cls in OPTIMIZERS for name in rule_of(cls).implementations
]

SHAPES = [(3, 4), (5,), (2, 3, 2, 2), ()]

each_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS)
each_implementation = pytest.mark.parametrize(
    ("cls", "implementation"), IMPLEMENTATIONS, ids=[f"{cls.__name__}-{name}" for cls, name in IMPLEMENTATIONS]
)


OF_EACH_RULE: list[type[EmoOptimizer]] = list({rule_of(cls): cls for cls in reversed(OPTIMIZERS)}.values())
"""The first optimizer with each update rule."""

each_rule = pytest.mark.parametrize("cls", OF_EACH_RULE)
each_implementation_of_a_rule = pytest.mark.parametrize(
    ("cls", "implementation"), [(cls, name) for cls, name in IMPLEMENTATIONS if cls in OF_EACH_RULE]
)


def make(cls: type[EmoOptimizer], params: Any, implementation: str | None = None, **options: Any) -> EmoOptimizer:
    """An optimizer that moves its tensors with the named implementation, or with its own choice."""
    optimizer = cls(params, **options)
    if implementation is not None:
        optimizer._buckets.implementation = lambda group, param: implementation  # type: ignore[method-assign]
    return optimizer


def parameters(shapes: Sequence[Sequence[int]] = ((3, 4), (5,)), seed: int = 0) -> list[nn.Parameter]:
    """Parameters of the given shapes with normal entries."""
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(tuple(shape), generator=generator)) for shape in shapes]


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The parameters in two groups with their own learning rates, the second with a name."""
    return [{"params": params[:2], "lr": 0.01}, {"params": params[2:], "lr": 0.002, "name": "rest"}]


def build(
    cls: type[EmoOptimizer], implementation: str | None = None, dtype: torch.dtype = torch.float32, **options: Any
) -> EmoOptimizer:
    """An optimizer over two groups of parameters of the usual shapes, the same each time."""
    params = [nn.Parameter(param.detach().to(dtype)) for param in parameters(SHAPES)]
    return make(cls, two_groups(params), implementation, **options)


def give_gradients(params: Sequence[Tensor], step: int) -> None:
    """Gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def losses(count: int) -> list[float]:
    """Losses that fall, leap and wobble, so that every branch of the emotion is visited."""
    return [2.0 * 0.9**t + (4.0 if t % 7 == 5 else 0.0) + 0.1 * (t % 3) for t in range(count)]


def run(optimizer: EmoOptimizer, steps: range) -> None:
    """Take steps with the gradients and losses that belong to their numbers."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    values = losses(steps.stop)
    for t in steps:
        give_gradients(params, t)
        optimizer.observe(values[t])
        optimizer.step()


class ScalarReads(TorchDispatchMode):
    """Counts how often a tensor is read as a number, for which a device would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def held(params: Sequence[Tensor]) -> list[Tensor]:
    """Copies of what parameters hold."""
    return [param.detach().clone() for param in params]


def through_a_file(value: Any, *, weights_only: bool = True) -> Any:
    """What comes back of something that is saved and loaded."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def snapshot(optimizer: Optimizer) -> tuple[list[Tensor], dict[str, Any]]:
    """Copies of everything an optimizer moves or remembers."""
    params = held([param for group in optimizer.param_groups for param in group["params"]])
    return params, copy.deepcopy(optimizer.state_dict())


def assert_refused(optimizer: Optimizer, state: Any, said: str) -> None:
    """A state is refused in words that `said` is found in, and nothing has changed."""
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(state)
    assert_identical(snapshot(optimizer), before)


def assert_identical(one: Any, other: Any) -> None:
    """Equal to the last bit, however deeply nested."""
    if isinstance(one, Tensor):
        if not _plainly_equal(one, other):
            torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_identical(a, b)
    else:
        assert one == other


PLAIN = (Tensor, nn.Parameter)


def _plainly_equal(one: Tensor, other: Any) -> bool:
    """What `assert_close` would find equal, seen at a tenth of its time; False where it has to look."""
    return (
        type(one) in PLAIN
        and type(other) in PLAIN
        and (one.dtype, one.device, one.layout, one.shape) == (other.dtype, other.device, other.layout, other.shape)
        and one.layout is torch.strided
        and torch.equal(one, other)
    )
