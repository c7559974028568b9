"""Parameter groups of real PEFT models, and of plain models as the Trainer groups them."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from emo_hf.trainer.param_groups import ROLES, GroupOptions, build_param_groups, has_adapters
from tests.ranks import one_rank

DECAY = 0.1
SIZE: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

Groups = list[dict[str, Any]]


def pretrained(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.is_pretrained = True  # lost by the copies that PEFT makes for modules_to_save
    return model


def bert() -> Any:
    return pretrained(transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=32, **SIZE)))


def llama() -> Any:
    return pretrained(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, use_cache=False, **SIZE)))


def mixtral() -> Any:
    config = transformers.MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=2, **SIZE)
    return pretrained(transformers.MixtralForCausalLM(config))


def lora(model: Any, **options: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["query", "q_proj"], **options}))


def two_adapters() -> Any:
    model = lora(llama())
    model.add_adapter("second", LoraConfig(r=3, target_modules=["v_proj"]))
    model.base_model.set_adapter(["default", "second"])
    return model


def xlora() -> Any:
    with TemporaryDirectory() as folder:
        lora(llama(), task_type="CAUSAL_LM").save_pretrained(folder)
        config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=8, adapters={"first": folder, "second": folder})
        return get_peft_model(llama(), config)


LORA = {"lora_a": "*.lora_A.*.weight", "lora_b": "*.lora_B.*.weight"}
HEAD = {"head": "*.modules_to_save.default.weight", "head_no_decay": "*.modules_to_save.default.bias"}
EMBEDDING = {"embedding": "*.lora_embedding_[AB].default"}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]

MODELS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "DoRA": (lambda: lora(bert(), use_dora=True, target_modules=["query", "word_embeddings"]),
             LORA | EMBEDDING | {"magnitude_no_decay": "*.lora_magnitude_vector.default.weight"}),
    "LoRA with its own bias": (lambda: lora(bert(), lora_bias=True),
                               LORA | {"lora_b_no_decay": "*.lora_B.default.bias"}),
    "LoRA with all biases and a new head": (lambda: lora(bert(), bias="all", modules_to_save=["classifier"]),
                                            LORA | HEAD | {"no_decay": "*[!t].bias"}),
    "LoRA with retrained norms": (lambda: lora(bert(), modules_to_save=["LayerNorm"]),
                                  LORA | {"head_no_decay": "*.LayerNorm.modules_to_save.default.*"}),
    "LoRA with trainable tokens": (lambda: lora(llama(), trainable_token_indices=[1, 2]),
                                   LORA | {"embedding": "*.trainable_tokens_delta.default"}),
    "LoRA on expert parameters": (lambda: lora(mixtral(), target_modules=[], target_parameters=EXPERTS), LORA),
    "two LoRA adapters": (two_adapters, LORA),
    "LoRA injected without a PeftModel": (
        lambda: peft.inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), bert()), LORA
    ),
    "AdaLoRA": (lambda: get_peft_model(llama(), peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9)),
                {"lora_a": "*.lora_A.*", "lora_b": "*.lora_B.*", "adapter_no_decay": "*.lora_E.*"}),
    "DeLoRA": (lambda: get_peft_model(llama(), peft.DeloraConfig(target_modules=["q_proj"], r=2)),
               {"adapter": "*.delora_[AB].default", "adapter_no_decay": "*.delora_lambda.default"}),
    "a prompt encoder with a new head": (
        lambda: get_peft_model(bert(), peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
        {"adapter": "prompt_encoder.*.weight", "adapter_no_decay": "prompt_encoder.*.bias"} | HEAD),
    "adaption prompts, whose layers share no base class": (
        lambda: get_peft_model(llama(), peft.AdaptionPromptConfig(
            task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1)),
        {"adapter": "*.adaption_prompt", "adapter_no_decay": "*.adaption_gate"}),
    "X-LoRA": (xlora, {"adapter": "*.internal_xlora_classifier.*.weight",
                       "adapter_no_decay": "*.internal_xlora_classifier.*.bias"}),
    "no adapters": (llama, {"decay": "*[!m].weight", "no_decay": "*norm.weight"}),
}  # fmt: skip
"""What is trained → how it is made, and the names of the parameters of each group."""


def build(case: str) -> Any:
    return MODELS[case][0]()


def group_of(model: nn.Module, **options: Any) -> dict[str, str]:
    """Group name by parameter name, as it is without wrappers."""
    groups = build_param_groups(model, **{"lr": 1e-3, "weight_decay": DECAY, **options})
    group_by_id = {id(parameter): group["name"] for group in groups for parameter in group["params"]}
    assert len(group_by_id) == sum(len(group["params"]) for group in groups), "each is in one group"
    plain = {name.replace("_orig_mod.", "").removeprefix("module."): p for name, p in model.named_parameters()}
    return {name: group_by_id[id(p)] for name, p in plain.items() if id(p) in group_by_id}


def settings_of(groups: Groups) -> dict[str, tuple[float, float]]:
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}


@pytest.mark.parametrize("case", MODELS)
def test_each_parameter_is_in_the_group_of_the_layer_that_holds_it_in_the_order_of_roles_and_model(case: str) -> None:
    model, patterns = build(case), MODELS[case][1]
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    expected = {name: [group for group, p in patterns.items() if fnmatchcase(name, p)] for name in trainable}
    assert {name: [group] for name, group in group_of(model).items()} == expected

    groups = build_param_groups(model, lr=1e-3)
    names = [{"decay": "base", "no_decay": "base_no_decay"}.get(group["name"], group["name"]) for group in groups]
    assert names == [name for role in ROLES for name in (role, f"{role}_no_decay") if name in names]
    position = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    for group in groups:
        places = [position[id(parameter)] for parameter in group["params"]]
        assert places == sorted(places) != []
    if "LoRA" in case and "lora_b" in patterns:
        assert_rates_and_decays_of_pefts_lora_plus(model)

    model.requires_grad_(True)  # what PEFT has wrapped is the model's own when it is trained too
    groups = build_param_groups(model, lr=1e-3)
    own = {id(p) for group in groups if group["name"] in ("decay", "no_decay") for p in group["params"]}
    assert own == {id(p) for p in model.parameters() if hasattr(p, "is_pretrained")}


def assert_rates_and_decays_of_pefts_lora_plus(model: nn.Module) -> None:
    options = {"loraplus_lr_ratio": 16, "loraplus_lr_embedding": 1e-5, "loraplus_weight_decay": DECAY}
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, **options).param_groups
    roles = {"lora_b": GroupOptions(lr_ratio=16), "embedding": GroupOptions(lr=1e-5)}
    ours = build_param_groups(model, lr=1e-3, weight_decay=DECAY, roles=roles)
    parts = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
    of_lora = {id(p) for name, p in model.named_parameters() if p.requires_grad and parts & set(name.split("."))}

    def rates(groups: Groups) -> dict[int, tuple[float, float]]:
        return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    assert {key: rates(ours)[key] for key in of_lora} == {key: rates(theirs)[key] for key in of_lora} != {}


class GatedLayerNorm(nn.LayerNorm):
    """A norm with a weight of its own below it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.gate = nn.Linear(1, 1)


def tree() -> nn.Module:
    """Modules of all kinds below names that look like norms and biases, and others that nearly do."""

    def leaves(name: str) -> dict[str, nn.Module]:
        norms = {"biased": nn.RMSNorm(1), "layer": nn.LayerNorm(1), "gated": GatedLayerNorm()}
        return {"leaf": nn.Linear(1, 1), name: nn.Linear(1, 1), **norms}

    names = ("norm", "q_norm", "Norm", "normal", "abnorm", "norm_1", "final_layernorm", "RMSNorm2", "rms_norm", "fc")
    return nn.ModuleDict({name: nn.ModuleDict(leaves(name)) for name in names})


@pytest.mark.parametrize(("model", "unfrozen"), [(bert, "*.bias"), (tree, "*")])
def test_without_adapters_the_groups_are_those_of_the_trainer(
    model: Callable[[], Any], unfrozen: str, tmp_path: Path
) -> None:
    made = model()
    for name, parameter in made.named_parameters():
        parameter.requires_grad = fnmatchcase(name, unfrozen)
    rates = {"learning_rate": 3e-4, "weight_decay": DECAY}
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **rates)
    theirs = transformers.Trainer(made, arguments).create_optimizer().param_groups
    ours = build_param_groups(made, lr=3e-4, weight_decay=DECAY)

    def content(groups: Groups) -> list[tuple[set[int], float, float]]:
        return [({id(p) for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups if g["params"]]

    assert content(ours) == content(theirs)


# Models within something


class Wrapper(nn.Module):
    """Holds a model the way DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def sharded(model: nn.Module) -> nn.Module:
    """By FSDP2."""
    with one_rank():
        mesh = init_device_mesh("cpu", (1,))
        for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)


def partitioned(model: nn.Module) -> nn.Module:
    """As DeepSpeed ZeRO-3 leaves parameters behind."""
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    return model


@pytest.mark.parametrize(
    ("case", "wrap"),
    [
        ("DoRA", Wrapper), ("a prompt encoder with a new head", torch.compile), ("DoRA", sharded),
        ("LoRA with trainable tokens", sharded), ("DeLoRA", partitioned),
    ],
)  # fmt: skip
def test_a_wrapped_model_has_the_groups_of_the_model_inside(case: str, wrap: Callable[..., nn.Module]) -> None:
    model = build(case)
    whole = group_of(model)
    outside = wrap(model)
    assert group_of(outside) == whole
    assert has_adapters(outside)


def test_names_that_look_like_lora_mean_nothing_outside_pefts_layers_and_unknown_tuners_are_adapters() -> None:
    likely = {"lora_A": nn.Linear(2, 2), "modules_to_save": nn.Linear(2, 2), "lora_B": nn.Embedding(2, 2)}
    assert not has_adapters(nn.ModuleDict(likely))
    assert set(group_of(nn.ModuleDict(likely)).values()) == {"decay", "no_decay"}

    class Gate(nn.Module, BaseTunerLayer):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.lora_A = nn.ParameterDict({"default": nn.Parameter(torch.ones(2, 2))})

    expected = {"0.lora_A.default": "adapter", "0.base_layer.weight": "decay", "0.base_layer.bias": "no_decay"}
    assert group_of(nn.Sequential(Gate(nn.Linear(2, 2)))) == expected


def test_the_frozen_adapter_of_two_is_in_no_group_and_merged_adapters_leave_a_plain_model() -> None:
    model = two_adapters()
    model.set_adapter("second")
    assert all(".second." in name for name in group_of(model))
    assert has_adapters(model.base_model.model)
    assert not has_adapters(model.merge_and_unload())


def test_tied_parameters_are_grouped_once_where_the_model_has_them_first() -> None:
    tied = lora(bert(), modules_to_save=["classifier"])
    tied.base_model.model.bert.pooler.dense.bias = tied.base_model.model.classifier.modules_to_save["default"].bias
    assert group_of(tied)["base_model.model.bert.pooler.dense.bias"] == "no_decay"


# Options


def test_a_role_has_its_own_rate_and_decay_and_one_that_the_model_lacks_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = lora(bert(), modules_to_save=["classifier"], lora_bias=True)
    roles = {"lora_b": GroupOptions(lr_ratio=4), "head": GroupOptions(lr=0.5, weight_decay=0.3)}
    groups = build_param_groups(model, lr=0.1, weight_decay=DECAY, roles=roles | {"magnitude": GroupOptions(lr=1.0)})
    assert settings_of(groups) == {
        "lora_a": (0.1, DECAY), "lora_b": (0.4, DECAY), "lora_b_no_decay": (0.4, 0.0), "head": (0.5, 0.3),
        "head_no_decay": (0.5, 0.0),
    }  # fmt: skip
    no_effect = "options of role 'magnitude' have no effect: the trainable roles are ['head', 'lora_a', 'lora_b']"
    assert caplog.messages == [no_effect]


@pytest.mark.parametrize(
    ("case", "role", "biases"),
    [
        ("DoRA", "magnitude", False),
        ("DeLoRA", "adapter", False),
        ("a prompt encoder with a new head", "adapter", True),
    ],
)
def test_scales_decay_only_where_their_role_asks_for_it_and_biases_never(case: str, role: str, biases: bool) -> None:
    model = build(case)
    plain = settings_of(build_param_groups(model, lr=0.1, weight_decay=DECAY))
    asked = settings_of(build_param_groups(model, lr=0.1, roles={role: GroupOptions(weight_decay=0.3)}))
    assert plain[f"{role}_no_decay"] == (0.1, 0.0)
    assert asked[role] == (0.1, 0.3)
    assert asked.get(f"{role}_no_decay") == ((0.1, 0.0) if biases else None)


def test_a_model_with_nothing_to_train_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    lora(llama()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no parameter of PeftModel is trainable.*requires_grad.*is_trainable=True"):
        build_param_groups(peft.PeftModel.from_pretrained(llama(), tmp_path), lr=1e-3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model: GroupOptions(lr=True), "option lr=True is not acceptable: it takes a number of at least 0"),
        (lambda model: GroupOptions(lr_ratio=float("nan")), "option lr_ratio=nan is not acceptable"),
        (lambda model: GroupOptions(lr=0.1, lr_ratio=2), r"exclude each other, got lr=0\.1 and lr_ratio=2"),
        (lambda model: build_param_groups(model, lr=-1.0), "option lr=-1.0 is not acceptable"),
        (lambda model: build_param_groups(model, lr=1, weight_decay=float("inf")), "option weight_decay=inf is not"),
        (lambda model: build_param_groups(model, lr=1, roles={"lora_c": GroupOptions()}), r"\['lora_c'\].*lora_a"),
    ],
)
def test_wrong_settings_are_errors_that_name_them(make: Callable[[nn.Module], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(nn.Linear(2, 2))
