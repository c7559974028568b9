"""The checks that PyTorch's own test suite makes of every optimizer, by its own machinery."""

# ruff: noqa: PT009, PT027 (torch's TestCase compares tensors, dtypes and containers of them)
from __future__ import annotations

import inspect
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import (
    OptimizerErrorEnum,
    TensorTracker,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optims,
)
from torch.testing._internal.common_utils import TestCase, parametrize

from emo_hf.optim.rules.void import Void
from tests.emo_cases import lr_for, rule_of
from tests.optimizer_infos import emo_db

LOSSES = [2.0, 1.9, 1.5, 3.0, 9.0, 2.5, 1.0, 0.2]  # quiet, improving, worsening, leaping


def all_inputs(device: Any, dtype: torch.dtype, optim_info: Any) -> list[Any]:
    return _get_optim_inputs_including_global_cliquey_kwargs(device, dtype, optim_info)


def neutral_losses() -> Any:
    """These tests move the gradients by hand: the steps that see no loss warn of it, which is right."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)


class TestEmoOptimizers(TestCase):
    @optims(emo_db, dtypes=[torch.float32])
    def test_errors(self, device, dtype, optim_info) -> None:
        for error_input in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            params = error_input.optimizer_error_input.params
            params = [Parameter(torch.ones(1, device=device))] if params is None else params
            kwargs, kind = error_input.optimizer_error_input.kwargs, error_input.error_type
            if error_input.error_on is OptimizerErrorEnum.STEP_ERROR:
                optimizer = optim_info.optim_cls(params, **kwargs)
                with neutral_losses(), self.assertRaisesRegex(kind, error_input.error_regex):
                    optimizer.step()
            elif issubclass(kind, Warning):
                with self.assertWarnsRegex(kind, error_input.error_regex):
                    optim_info.optim_cls(params, **kwargs)
            else:
                with self.assertRaisesRegex(kind, error_input.error_regex):
                    optim_info.optim_cls(params, **kwargs)

    def _problem(self, device: Any, dtype: torch.dtype, contiguous: bool = True) -> tuple[list[Parameter], Callable]:
        def shaped(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device, dtype=dtype)

        weight = Parameter(shaped(10, 5) if contiguous else shaped(10, 5, 2)[..., 0])
        bias = Parameter(shaped(10) if contiguous else shaped(10, 2)[..., 0])
        inputs = shaped(5)

        def closure_for(optimizer: Optimizer) -> Callable[[], Tensor]:
            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = (weight.mv(inputs) + bias).pow(2).sum()
                loss.backward()
                return loss

            return closure

        return [weight, bias], closure_for

    @parametrize("contiguous", [True, False])
    @parametrize("with_lrsched", [True, False])
    @parametrize("separate_closure", [True, False])
    @optims(emo_db, dtypes=[torch.float32])
    def test_every_implementation_goes_in_the_right_direction(
        self, device, dtype, optim_info, contiguous, with_lrsched, separate_closure
    ) -> None:
        for constructors in optim_info.scheduler_inputs if with_lrsched else [[]]:
            for optim_input in all_inputs(device, dtype, optim_info):
                params, closure_for = self._problem(device, dtype, contiguous)
                groups: list[dict[str, Any]] = [{"params": params}]
                if rule_of(optim_info.optim_cls) is Void:  # which holds the size of its first group
                    groups.insert(0, {"params": [Parameter(torch.ones(2, device=device))]})
                optimizer = optim_info.optim_cls(groups, **deepcopy(optim_input.kwargs))
                schedulers = [constructor(optimizer) for constructor in constructors]
                closure = closure_for(optimizer)
                initial = closure().item()
                for _ in range(12):
                    if separate_closure:
                        loss = closure()
                        optimizer.observe(loss)
                        optimizer.step()
                    else:
                        loss = optimizer.step(closure)
                    for scheduler in schedulers:
                        scheduler.step(loss) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
                final = closure().item()
                self.assertEqual(final > initial, optim_input.kwargs.get("maximize", False), msg=str(optim_input))

    @optims(emo_db, dtypes=[torch.float32])
    def test_param_groups_keep_their_own_options(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            (weight, bias), closure_for = self._problem(device, dtype)
            groups = [{"params": [weight], "lr": lr_for(optim_info.optim_cls, 1e-2)}, {"params": [bias], "lr": 0.0}]
            optimizer = optim_info.optim_cls(groups, **deepcopy(optim_input.kwargs))
            before = weight.clone(), bias.clone()
            for _ in range(5):
                optimizer.step(closure_for(optimizer))
            self.assertNotEqual(weight, before[0])
            if not optim_input.kwargs.get("use_shadow"):  # which moves parameters whatever their rate
                self.assertEqual(bias, before[1])

    @parametrize("num_dim", [0, 1, 2])
    @optims(emo_db, dtypes=[torch.float32])
    def test_tensor_lr(self, device, dtype, optim_info, num_dim) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            kwargs = {key: value for key, value in optim_input.kwargs.items() if key != "lr"}
            torch.manual_seed(0)
            params, closure_for = self._problem(device, dtype)
            torch.manual_seed(0)
            twins, twin_closure_for = self._problem(device, dtype)
            with_float = optim_info.optim_cls(params, lr=0.0009765625, **kwargs)
            rate = torch.tensor(0.0009765625).reshape([1] * num_dim)
            with_tensor = optim_info.optim_cls(twins, lr=rate, **kwargs)
            for _ in range(5):
                with_float.step(closure_for(with_float))
                with_tensor.step(twin_closure_for(with_tensor))
                self.assertEqual(params, twins, rtol=0, atol=0)

    def _compare_with_forloop(self, device: Any, dtype: torch.dtype, optim_info: Any, flag: str) -> None:
        if flag not in optim_info.supported_impls:
            with self.assertRaisesRegex(ValueError, f"no {flag} implementation"):
                optim_info.optim_cls([torch.ones(1, device=device)], **{flag: True})
            return
        exact = {torch.float64: 1e-9, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
        for optim_input in optim_info.optim_inputs_func(device=device, dtype=dtype):
            tracker = TensorTracker({"rtol": exact, "atol": exact})
            for value in (False, True):
                torch.manual_seed(7)
                shapes = [(3, 4), (5,), (2, 3, 2, 2), (), (0,), (1,), (3, 1)]
                params = [Parameter(torch.rand(s, device=device, dtype=dtype)) for s in shapes]
                params[0].data = params[0].data.t()  # a parameter that is not contiguous
                kwargs = deepcopy(optim_input.kwargs) | {name: False for name in optim_info.supported_impls}
                optimizer = optim_info.optim_cls(params, **kwargs | {flag: value})
                for step, loss in enumerate(LOSSES):
                    for i, param in enumerate(params):
                        away_from_zero = 0.5 + torch.rand_like(param)
                        param.grad = None if (i + step) % 7 == 5 else away_from_zero * (-1) ** (i + step // 3)
                    optimizer.observe(loss)
                    optimizer.step()
                    for param in params:
                        tensors = [param, *optimizer.state[param].values()]
                        for tensor in tensors:
                            tracker.pop_check_set(tensor, self) if value else tracker.add(tensor)
            self.assertTrue(tracker.all_popped())

    @optims(emo_db, dtypes=[torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_foreach_matches_forloop(self, device, dtype, optim_info) -> None:
        self._compare_with_forloop(device, dtype, optim_info, "foreach")

    @optims(emo_db, dtypes=[torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_fused_matches_forloop(self, device, dtype, optim_info) -> None:
        self._compare_with_forloop(device, dtype, optim_info, "fused")

    @optims(emo_db, dtypes=[torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_native_matches_forloop(self, device, dtype, optim_info) -> None:
        self._compare_with_forloop(device, dtype, optim_info, "native")

    @optims(emo_db, dtypes=[torch.float32])
    def test_set_default_dtype_works_with_every_implementation(self, device, dtype, optim_info) -> None:
        default = torch.get_default_dtype()
        for optim_input in all_inputs(device, dtype, optim_info):
            finals = []
            for default_dtype in (torch.float32, torch.float64):
                try:
                    torch.set_default_dtype(default_dtype)
                    param = Parameter(torch.ones(4, device=device, dtype=dtype))
                    optimizer = optim_info.optim_cls([param], **deepcopy(optim_input.kwargs))
                    for loss in LOSSES:
                        param.grad = torch.full_like(param, 0.5)
                        optimizer.observe(loss)
                        optimizer.step()
                    finals.append(param.detach().clone())
                finally:
                    torch.set_default_dtype(default)
            self.assertEqual(finals[0], finals[1], rtol=0, atol=0)

    @optims(emo_db, dtypes=[torch.float32])
    def test_step_is_noop_when_params_have_no_grad(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            params = [torch.randn(2, 3, device=device, dtype=dtype, requires_grad=flag) for flag in (False, True)]
            before = [param.clone() for param in params]
            optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
            self.assertEqual(float(optimizer.step(lambda: torch.tensor([1.0]))), 1.0)
            self.assertEqual(params, before)
            self.assertEqual(len(optimizer.state_dict()["state"]), 0)

    @optims(emo_db, dtypes=[torch.float32])
    def test_step_is_noop_for_zero_grads(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            param = torch.randn(2, 3, device=device, dtype=dtype, requires_grad=True)
            before = param.clone()
            optimizer = optim_info.optim_cls([param], **deepcopy(optim_input.kwargs) | {"weight_decay": 0})
            param.grad = torch.zeros_like(param)
            for loss in (2.0, 1.8, 1.7):
                optimizer.observe(loss)
                optimizer.step()
            self.assertEqual(param, before)

    @optims(emo_db, dtypes=[torch.float32])
    def test_step_handles_an_empty_parameter(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            params = [Parameter(torch.empty(0, device=device)), Parameter(torch.ones(2, device=device))]
            optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step(lambda: 1.0)
            self.assertFalse(torch.equal(params[1], torch.ones(2)))

    @optims(emo_db, dtypes=[torch.float32])
    def test_optimizer_can_be_printed(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            params = [Parameter(torch.randn(2, 3, device=device)) for _ in range(2)]
            optimizer = optim_info.optim_cls(params, **optim_input.kwargs)
            self.assertIn(optim_info.name, repr(optimizer))

    @parametrize("named", [False, True])
    @optims(emo_db, dtypes=[torch.float32])
    def test_state_dict_deterministic(self, device, dtype, optim_info, named) -> None:
        """A state loaded into equal parameters gives equal steps and equal states, and is not changed by loading."""
        for optim_input in all_inputs(device, dtype, optim_info):

            def entries(params: list[Parameter]) -> list[Any]:
                return list(zip(["weight", "bias"], params, strict=True)) if named else params

            torch.manual_seed(3)
            params, closure_for = self._problem(device, dtype)
            optimizer = optim_info.optim_cls(entries(params), **deepcopy(optim_input.kwargs))
            for _ in range(3):
                optimizer.step(closure_for(optimizer))
            torch.manual_seed(3)
            twins, twin_closure_for = self._problem(device, dtype)
            for twin, param in zip(twins, params, strict=True):
                twin.data.copy_(param.data)
            twin_optimizer = optim_info.optim_cls(entries(twins), **deepcopy(optim_input.kwargs))
            state = deepcopy(optimizer.state_dict())
            kept = deepcopy(state)
            twin_optimizer.load_state_dict(state)
            self.assertEqual(state, kept)
            for _ in range(3):
                optimizer.step(closure_for(optimizer))
                twin_optimizer.step(twin_closure_for(twin_optimizer))
                self.assertEqual(params, twins, rtol=0, atol=0)
            self.assertEqual(optimizer.state_dict(), twin_optimizer.state_dict(), rtol=0, atol=0)
            # Repeated parameters have one representation in the state.
            twin_optimizer.param_groups.extend(twin_optimizer.param_groups)
            groups = [o.state_dict()["param_groups"][-1] for o in (optimizer, twin_optimizer)]
            self.assertEqual(groups[0], groups[1])

    @optims(emo_db, dtypes=[torch.float32])
    def test_can_load_older_state_dict(self, device, dtype, optim_info) -> None:
        """A state from before a flag existed is loaded, with the flag as this optimizer has it."""
        for flag in optim_info.not_og_supported_flags:
            for optim_input in all_inputs(device, dtype, optim_info):
                params, closure_for = self._problem(device, dtype)
                optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
                optimizer.step(closure_for(optimizer))
                state, was = deepcopy(optimizer.state_dict()), [g[flag] for g in optimizer.param_groups]
                for group in state["param_groups"]:
                    del group[flag]
                optimizer.load_state_dict(state)
                self.assertEqual([group[flag] for group in optimizer.param_groups], was)
                optimizer.step(closure_for(optimizer))

    @optims(emo_db, dtypes=[torch.float32])
    def test_can_load_from_and_to_named_state_dicts(self, device, dtype, optim_info) -> None:
        params, closure_for = self._problem(device, dtype)
        named = list(zip(["weight", "bias"], params, strict=True))
        for source, target in ((params, named), (named, params), (named, named)):
            optimizer, other = optim_info.optim_cls(source), optim_info.optim_cls(target)
            optimizer.step(closure_for(optimizer))
            other.load_state_dict(deepcopy(optimizer.state_dict()))
            self.assertEqual(other.emotion, optimizer.emotion)
            other.step(closure_for(other))

    @optims(emo_db, dtypes=[torch.float32])
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            params, closure_for = self._problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
            for _ in range(3):
                optimizer.step(closure_for(optimizer))
            with tempfile.TemporaryFile() as file:
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                loaded = torch.load(file, weights_only=True)
            self.assertEqual(loaded, optimizer.state_dict(), rtol=0, atol=0)

    @optims(emo_db, dtypes=[torch.float32])
    def test_load_state_dict_casts_the_state_to_the_dtype_of_the_parameters(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            params, closure_for = self._problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
            optimizer.step(closure_for(optimizer))
            doubles = [Parameter(param.detach().double()) for param in params]
            other = optim_info.optim_cls(doubles, **deepcopy(optim_input.kwargs))
            other.load_state_dict(optimizer.state_dict())
            for double in doubles:
                self.assertTrue(all(value.dtype is torch.float64 for value in other.state[double].values()))
                double.grad = torch.ones_like(double)
            other.observe(1.0)
            other.step()

    def _count_calls(self, optim_info: Any, register: str, hook: Callable[..., Any], run: str, *args: Any) -> Any:
        param = Parameter(torch.ones(2))
        param.grad = torch.ones(2)
        optimizer = optim_info.optim_cls([param])
        handle = getattr(optimizer, register)(hook)
        arguments = (optimizer.state_dict(),) if run == "load_state_dict" else args
        with neutral_losses():
            getattr(optimizer, run)(*arguments)
            handle.remove()
            getattr(optimizer, run)(*arguments)
        return optimizer

    @optims(emo_db, dtypes=[torch.float32])
    def test_each_hook_runs_once_and_not_after_its_removal(self, device, dtype, optim_info) -> None:
        for register, run in (
            ("register_step_pre_hook", "step"),
            ("register_step_post_hook", "step"),
            ("register_state_dict_pre_hook", "state_dict"),
            ("register_state_dict_post_hook", "state_dict"),
            ("register_load_state_dict_pre_hook", "load_state_dict"),
            ("register_load_state_dict_post_hook", "load_state_dict"),
        ):
            calls: list[Any] = []
            optimizer = self._count_calls(optim_info, register, lambda *seen, calls=calls: calls.append(seen), run)
            self.assertEqual(len(calls), 1, msg=register)
            self.assertIs(calls[0][0], optimizer)

    @optims(emo_db, dtypes=[torch.float32])
    def test_hooks_may_be_put_in_front(self, device, dtype, optim_info) -> None:
        optimizer = optim_info.optim_cls([Parameter(torch.ones(2))])
        order: list[str] = []
        for kind in ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post"):
            register = getattr(optimizer, f"register_{kind}_hook")
            register(lambda *_, kind=kind: order.append(kind + " second"))
            register(lambda *_, kind=kind: order.append(kind + " first"), prepend=True)
        optimizer.load_state_dict(optimizer.state_dict())
        kinds = ("state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
        self.assertEqual(order, [f"{kind} {place}" for kind in kinds for place in ("first", "second")])

    @optims(emo_db, dtypes=[torch.float32])
    def test_step_hooks_of_all_optimizers_come_first_before_and_last_after(self, device, dtype, optim_info) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        order: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: order.append("all, before")),
            register_optimizer_step_post_hook(lambda *_: order.append("all, after")),
        ]
        try:
            optimizer = optim_info.optim_cls([Parameter(torch.ones(2))])
            optimizer.register_step_pre_hook(lambda *_: order.append("one, before"))
            optimizer.register_step_post_hook(lambda *_: order.append("one, after"))
            optimizer.step(lambda: order.append("step") or 1.0)
        finally:
            for handle in handles:
                handle.remove()
        self.assertEqual(order, ["all, before", "one, before", "step", "one, after", "all, after"])

    @optims(emo_db, dtypes=[torch.float32])
    def test_deepcopy_and_pickle_copy_all_attributes(self, device, dtype, optim_info) -> None:
        def attributes(optimizer: Optimizer) -> set[str]:
            return {name for name, value in vars(optimizer).items() if not inspect.ismethod(value)}

        for optim_input in all_inputs(device, dtype, optim_info):
            params, closure_for = self._problem(device, dtype)
            optimizer = optim_info.optim_cls(params, **deepcopy(optim_input.kwargs))
            optimizer.step(closure_for(optimizer))
            public = {name for name in attributes(optimizer) if not name.startswith("_")}
            copied, pickled = deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
            for twin in (copied, pickled):
                self.assertEqual({name for name in attributes(twin) if not name.startswith("_")}, public)
                self.assertEqual(twin.state_dict(), optimizer.state_dict(), rtol=0, atol=0)

    @optims(emo_db, dtypes=[torch.float32])
    def test_non_empty_state(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            model = torch.nn.Linear(5, 5).to(device=device, dtype=dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **deepcopy(optim_input.kwargs))
            loss = model(torch.rand(2, 5, device=device, dtype=dtype)).sum()
            loss.backward()
            optimizer.step(lambda loss=loss: loss)
            wanted = rule_of(optim_info.optim_cls)(optimizer.defaults).new_state(model.weight).keys()
            self.assertLessEqual(wanted, optimizer.state[model.weight].keys())

    @optims(emo_db, dtypes=[torch.float32])
    def test_a_closure_runs_once_with_gradients_and_its_loss_is_returned(self, device, dtype, optim_info) -> None:
        for optim_input in all_inputs(device, dtype, optim_info):
            param = Parameter(torch.ones(3, device=device))
            optimizer = optim_info.optim_cls([param], **deepcopy(optim_input.kwargs))
            calls: list[bool] = []

            def closure(param: Parameter = param, calls: list[bool] = calls) -> Tensor:
                calls.append(torch.is_grad_enabled())
                loss = param.square().sum()
                param.grad = None
                loss.backward()
                return loss

            with torch.no_grad():
                returned = optimizer.step(closure)
            self.assertEqual(calls, [True])
            self.assertEqual(returned.item(), 3.0)
            self.assertFalse(math.isnan(param.sum().item()))


instantiate_device_type_tests(TestEmoOptimizers, globals(), only_for=("cpu", "cuda"))
