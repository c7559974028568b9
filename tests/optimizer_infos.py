"""The emo optimizers as entries of torch's own optimizer database: inputs, errors, implementations, schedulers."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    OptimizerInfo,
    OptimizerInput,
    get_error_inputs_for_all_optims,
)

from emo_hf import EmoOptimizer
from emo_hf.optim.options import IMPLEMENTATION_OPTIONS
from tests.emo_cases import OPTIMIZERS, rule_of


def optim_inputs(device: Any, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """What the constructors are called with; which implementation moves the tensors is the tests' to choose."""
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "another lr": {"lr": 0.01},
        "lr as a tensor": {"lr": torch.tensor(0.001)},
        "weight decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True},
        "maximize, weight decay": {"weight_decay": 0.1, "maximize": True},
        "betas and eps": {"betas": (0.8, 0.95), "eps": 1e-4},
        "shadow": {"use_shadow": True},
        "shadow, weight decay": {"use_shadow": True, "weight_decay": 0.1},
    }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in options.items()]


def optim_error_inputs(device: Any, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """What torch expects of every optimizer to refuse, and what only these refuse."""
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1e-2}, "lr must be a finite number of at least 0, got -0.01"),
        ({"betas": (1.0, 0.0)}, r"beta1 must be in \[0, 1\), got 1.0"),
        ({"betas": (0.0, 1.0)}, r"beta2 must be in \[0, 1\), got 1.0"),
        ({"weight_decay": -1}, "weight_decay must be a finite number of at least 0, got -1"),
        ({"eps": -1e-8}, "eps must be a finite number of at least 0"),
        ({"use_shadow": "no"}, "use_shadow='no' is not acceptable: it takes true or false"),
    ]
    inputs = [
        ErrorOptimizerInput(
            OptimizerInput(params=[Parameter(torch.ones(1, device=device, dtype=dtype))], kwargs=kwargs),
            error_type=ValueError,
            error_regex=said,
        )
        for kwargs, said in wrong
    ]
    sparse = torch.ones(2, 2, device=device, dtype=dtype)
    sparse.grad = torch.eye(2, device=device, dtype=dtype).to_sparse()
    imaginary = torch.ones(2, 3, device=device, dtype=torch.complex64)
    imaginary.grad = torch.ones_like(imaginary)
    inputs += [
        ErrorOptimizerInput(
            OptimizerInput(params=[param], kwargs={}),
            error_on=OptimizerErrorEnum.STEP_ERROR,
            error_type=RuntimeError,
            error_regex=said,
        )
        for param, said in (
            (sparse, "does not support sparse gradients: use sparse=False"),
            (imaginary, "does not support complex parameters: use torch.view_as_real"),
        )
    ]
    return get_error_inputs_for_all_optims(device, dtype) + inputs


def _info(cls: type[EmoOptimizer]) -> OptimizerInfo:
    return OptimizerInfo(
        cls,
        optim_inputs_func=optim_inputs,
        optim_error_inputs_func=optim_error_inputs,
        scheduler_inputs=(
            [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
            [lambda opt: LinearLR(opt, start_factor=0.4, total_iters=4)],
            [
                lambda opt: StepLR(opt, gamma=0.9, step_size=10),
                lambda opt: ExponentialLR(opt, gamma=0.99),
                lambda opt: ReduceLROnPlateau(opt),
            ],
        ),
        supported_impls=tuple(name for name in IMPLEMENTATION_OPTIONS if name in rule_of(cls).implementations),
        supports_fused_on=("cpu", "cuda", "xpu") if "fused" in rule_of(cls).implementations else (),
        not_og_supported_flags=("foreach", "fused", "native", "compensate", "maximize"),
        supports_complex=False,
        supports_sparse=False,
    )


emo_db = [_info(cls) for cls in OPTIMIZERS]
