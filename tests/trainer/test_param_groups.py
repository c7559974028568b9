"""Parameter groups of real PEFT models, and of plain models as the Trainer groups them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from emo_hf.trainer.param_groups import ROLES, GroupOptions, build_param_groups, has_adapters

DECAY = 0.1
SIZE: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def pretrained(model: Any) -> Any:
    for parameter in model.parameters():
        parameter.is_pretrained = True  # lost by the copies that PEFT makes for modules_to_save
    return model


def bert() -> Any:
    return pretrained(transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=32, **SIZE)))


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2)
    return pretrained(transformers.GPT2LMHeadModel(config))


def llama() -> Any:
    return pretrained(transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, use_cache=False, **SIZE)))


def mixtral() -> Any:
    config = transformers.MixtralConfig(vocab_size=32, num_key_value_heads=2, num_local_experts=2, **SIZE)
    return pretrained(transformers.MixtralForCausalLM(config))


def lora(model: Any, **options: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, **{"target_modules": ["query", "q_proj", "c_attn"], **options}))


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

LORA_MODELS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "LoRA with a new head": (lambda: lora(bert(), task_type="SEQ_CLS"), LORA | HEAD),
    "LoRA on Conv1D": (lambda: lora(gpt2(), fan_in_fan_out=True), LORA),
    "rsLoRA": (lambda: lora(llama(), use_rslora=True), LORA),
    "DoRA": (
        lambda: lora(bert(), use_dora=True, target_modules=["query", "word_embeddings"]),
        LORA | EMBEDDING | {"magnitude_no_decay": "*.lora_magnitude_vector.default.weight"},
    ),
    "LoRA on embeddings": (lambda: lora(bert(), target_modules=["query", "word_embeddings"]), LORA | EMBEDDING),
    "LoRA with its own bias": (
        lambda: lora(bert(), lora_bias=True),
        LORA | {"lora_b_no_decay": "*.lora_B.default.bias"},
    ),
    "LoRA with all biases and a new head": (
        lambda: lora(bert(), bias="all", modules_to_save=["classifier"]),
        LORA | HEAD | {"no_decay": "*[!t].bias"},
    ),
    "LoRA with the biases of its layers": (
        lambda: lora(bert(), bias="lora_only"),
        LORA | {"no_decay": "*.query.base_layer.bias"},
    ),
    "LoRA with retrained norms": (
        lambda: lora(bert(), modules_to_save=["LayerNorm"]),
        LORA | {"head_no_decay": "*.LayerNorm.modules_to_save.default.*"},
    ),
    "LoRA with trainable tokens": (
        lambda: lora(llama(), trainable_token_indices=[1, 2]),
        LORA | {"embedding": "*.trainable_tokens_delta.default"},
    ),
    "LoRA on expert parameters": (
        lambda: lora(mixtral(), target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"]),
        LORA,
    ),
    "two LoRA adapters": (two_adapters, LORA),
    "LoRA injected without a PeftModel": (
        lambda: peft.inject_adapter_in_model(LoraConfig(r=2, target_modules=["query"]), bert()),
        LORA,
    ),
}

OTHER_MODELS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "AdaLoRA": (
        lambda: get_peft_model(llama(), peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9)),
        {"lora_a": "*.lora_A.default", "lora_b": "*.lora_B.default", "adapter_no_decay": "*.lora_E.default"},
    ),
    "LoHa": (
        lambda: get_peft_model(llama(), peft.LoHaConfig(r=2, target_modules=["q_proj"])),
        {"adapter": "*.hada_w*"},
    ),
    "DeLoRA": (
        lambda: get_peft_model(llama(), peft.DeloraConfig(r=2, target_modules=["q_proj"])),
        {"adapter": "*.delora_[AB].default", "adapter_no_decay": "*.delora_lambda.default"},
    ),
    "IA3 with a new head": (
        lambda: get_peft_model(
            bert(), peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
        ),
        {"adapter_no_decay": "*.ia3_l.default"} | HEAD,
    ),
    "trainable tokens alone": (
        lambda: get_peft_model(
            llama(), peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[1, 2])
        ),
        {"embedding": "*.trainable_tokens_delta.default"},
    ),
    "prompt tuning": (
        lambda: get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        {"adapter": "prompt_encoder.default.embedding.weight"},
    ),
    "a prompt encoder with a new head": (
        lambda: get_peft_model(bert(), peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
        {"adapter": "prompt_encoder.*.weight", "adapter_no_decay": "prompt_encoder.*.bias"} | HEAD,
    ),
    "adaption prompts, whose layers share no base class": (
        lambda: get_peft_model(
            llama(), peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=3, adapter_layers=1)
        ),
        {"adapter": "*.adaption_prompt", "adapter_no_decay": "*.adaption_gate"},
    ),
    "X-LoRA": (
        xlora,
        {"adapter": "*.internal_xlora_classifier.*.weight", "adapter_no_decay": "*.internal_xlora_classifier.*.bias"},
    ),
    "no adapters": (llama, {"decay": "*[!m].weight", "no_decay": "*norm.weight"}),
}

MODELS = LORA_MODELS | OTHER_MODELS


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def group_of(model: nn.Module, **options: Any) -> dict[str, str]:
    """Group name by parameter name."""
    groups = build_param_groups(model, **{"lr": 1e-3, "weight_decay": DECAY, **options})
    group_by_id = {id(parameter): group["name"] for group in groups for parameter in group["params"]}
    return {name: group_by_id[id(p)] for name, p in model.named_parameters() if id(p) in group_by_id}


def by_name(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for group in groups}


@pytest.mark.parametrize("case", MODELS)
def test_each_parameter_is_once_in_the_group_of_the_layer_that_holds_it_in_the_order_of_roles_and_model(
    case: str,
) -> None:
    build, patterns = MODELS[case]
    model = build()
    expected = {
        name: [group for group, pattern in patterns.items() if fnmatchcase(name, pattern)] for name in trainable(model)
    }
    assert {name: [group] for name, group in group_of(model).items()} == expected
    assert set(group_of(model).values()) == set(patterns)

    groups = build_param_groups(model, lr=1e-3)
    assert all(group["params"] for group in groups)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in trainable(model).values())
    names = [{"decay": "base", "no_decay": "base_no_decay"}.get(group["name"], group["name"]) for group in groups]
    assert names == [name for role in ROLES for name in (role, f"{role}_no_decay") if name in names]
    position = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    for group in groups:
        places = [position[id(parameter)] for parameter in group["params"]]
        assert places == sorted(places)

    model.requires_grad_(True)  # what PEFT has wrapped is the model's own when it is trained too
    groups = build_param_groups(model, lr=1e-3)
    own = {id(p) for group in groups if group["name"] in ("decay", "no_decay") for p in group["params"]}
    assert own == {id(p) for p in model.parameters() if hasattr(p, "is_pretrained")}


@pytest.mark.parametrize("case", LORA_MODELS)
def test_lora_weights_get_the_rates_and_decays_of_pefts_lora_plus(case: str) -> None:
    model = LORA_MODELS[case][0]()
    theirs = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=1e-3,
        loraplus_lr_ratio=16,
        loraplus_lr_embedding=1e-5,
        loraplus_weight_decay=DECAY,
    ).param_groups
    roles = {"lora_b": GroupOptions(lr_ratio=16), "embedding": GroupOptions(lr=1e-5)}
    ours = build_param_groups(model, lr=1e-3, weight_decay=DECAY, roles=roles)

    def settings_of(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
        by_id = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
        parts = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"}
        return {name: by_id[id(p)] for name, p in trainable(model).items() if parts.intersection(name.split("."))}

    assert settings_of(ours) == settings_of(theirs) != {}


@pytest.mark.parametrize(
    ("build", "unfrozen"),
    [(bert, "*"), (gpt2, "*"), (llama, "*"), (mixtral, "*"), (bert, "*.bias"), (bert, "*.query.weight")],
)
def test_without_adapters_the_groups_are_those_of_the_trainer(
    build: Callable[[], Any], unfrozen: str, tmp_path: Path
) -> None:
    model = build()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = fnmatchcase(name, unfrozen)
    arguments = transformers.TrainingArguments(
        str(tmp_path), learning_rate=3e-4, weight_decay=DECAY, use_cpu=True, report_to="none"
    )
    theirs = transformers.Trainer(model, arguments).create_optimizer().param_groups
    ours = build_param_groups(model, lr=3e-4, weight_decay=DECAY)

    def content(groups: list[dict[str, Any]]) -> list[tuple[set[int], float, float]]:
        return [({id(p) for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups if g["params"]]

    assert content(ours) == content(theirs)


class GatedLayerNorm(nn.LayerNorm):
    """A norm with a weight of its own below it."""

    def __init__(self, *_: int) -> None:
        super().__init__(1)
        self.gate = nn.Linear(1, 1)


names = st.sampled_from(
    ["norm", "q_norm", "Norm", "normal", "abnorm", "norm_1", "final_layernorm", "RMSNorm2", "rms_norm", "biased", "fc"]
)
leaves = st.sampled_from([nn.Linear, lambda *_: nn.LayerNorm(1), lambda *_: nn.RMSNorm(1), GatedLayerNorm])
trees = st.recursive(leaves, lambda subtree: st.dictionaries(names, subtree, min_size=1, max_size=3), max_leaves=6)


@given(tree=st.dictionaries(names, trees, min_size=1))
@settings(max_examples=60, deadline=None)
def test_names_and_norms_are_judged_as_the_trainer_judges_them(tree: dict[str, Any]) -> None:
    def build(node: Any) -> Any:
        if not isinstance(node, dict):
            return node(1, 1)
        module = nn.Module()
        for name, child in node.items():
            module.add_module(name, build(child))
        return module

    model = build(tree)
    decaying = set(transformers.Trainer.get_decay_parameter_names(object.__new__(transformers.Trainer), model))
    assert {name for name, group in group_of(model).items() if group == "decay"} == decaying


class Wrapper(nn.Module):
    """Holds a model the way DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture
def fsdp2(tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))

    def shard(model: nn.Module) -> nn.Module:
        for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    yield shard
    torch.distributed.destroy_process_group()


WRAPPED_CASES = ["DoRA", "LoRA with all biases and a new head", "LoRA with trainable tokens", "LoHa", "prompt tuning"]


@pytest.mark.parametrize("case", WRAPPED_CASES)
@pytest.mark.parametrize("wrap", [Wrapper, torch.compile])
def test_a_wrapped_model_has_the_groups_of_the_model_inside(case: str, wrap: Callable[..., nn.Module]) -> None:
    model = MODELS[case][0]()
    inside = build_param_groups(model, lr=1e-3)
    outside = build_param_groups(wrap(model), lr=1e-3)
    assert [group["name"] for group in outside] == [group["name"] for group in inside]
    assert [list(map(id, group["params"])) for group in outside] == [list(map(id, g["params"])) for g in inside]
    assert has_adapters(wrap(model))


@pytest.mark.parametrize("case", WRAPPED_CASES)
def test_a_model_sharded_by_fsdp2_has_the_groups_of_the_whole_one(case: str, fsdp2: Callable[[Any], Any]) -> None:
    model = MODELS[case][0]()
    whole = group_of(model)
    assert group_of(fsdp2(model)) == whole


def test_parameters_partitioned_by_deepspeed_zero_3_keep_their_groups() -> None:
    model = MODELS["DeLoRA"][0]()
    whole = group_of(model)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert group_of(model) == whole


def test_a_layer_compiled_on_its_own_keeps_its_roles() -> None:
    model = lora(bert())
    whole = group_of(model)
    attention = model.base_model.model.bert.encoder.layer[0].attention.self
    attention.query = torch.compile(attention.query)
    assert {name.replace("_orig_mod.", ""): group for name, group in group_of(model).items()} == whole


def test_names_that_look_like_lora_mean_nothing_outside_pefts_layers() -> None:
    model = nn.ModuleDict(
        {"lora_A": nn.Linear(2, 2), "modules_to_save": nn.Linear(2, 2), "lora_B": nn.Embedding(2, 2)}
    )
    assert not has_adapters(model)
    assert set(group_of(model).values()) == {"decay", "no_decay"}


def test_an_unknown_tuner_layer_is_an_adapter_around_a_base_layer() -> None:
    class Gate(nn.Module, BaseTunerLayer):
        def __init__(self, base_layer: nn.Module) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.lora_A = nn.ParameterDict({"default": nn.Parameter(torch.ones(2, 2))})

    class Lora(peft.tuners.lora.Linear):
        pass

    known = Lora(nn.Linear(2, 2), "default", LoraConfig(), r=2)
    assert set(group_of(nn.Sequential(Gate(nn.Linear(2, 2)))).items()) == {
        ("0.lora_A.default", "adapter"),
        ("0.base_layer.weight", "decay"),
        ("0.base_layer.bias", "no_decay"),
    }
    assert group_of(nn.Sequential(known))["0.lora_A.default.weight"] == "lora_a"


def test_the_frozen_adapter_of_two_is_in_no_group() -> None:
    model = two_adapters()
    model.set_adapter("second")
    assert all(".second." in name for name in group_of(model))


def test_tied_parameters_are_grouped_once_where_the_model_has_them_first() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    groups = build_param_groups(model, lr=1e-3)
    assert sum(p is model.lm_head.weight for group in groups for p in group["params"]) == 1

    tied = lora(bert(), modules_to_save=["classifier"])
    assert not tied.base_model.model.bert.pooler.dense.bias.requires_grad
    tied.base_model.model.bert.pooler.dense.bias = tied.base_model.model.classifier.modules_to_save["default"].bias
    assert group_of(tied)["base_model.model.bert.pooler.dense.bias"] == "no_decay"


def test_merged_adapters_leave_a_plain_model() -> None:
    model = lora(bert())
    assert has_adapters(model)
    assert has_adapters(model.base_model.model)
    assert not has_adapters(model.merge_and_unload())


def test_a_role_has_its_own_rate_and_decay_and_the_others_have_the_optimizers() -> None:
    model = lora(bert(), modules_to_save=["classifier"], lora_bias=True)
    roles = {"lora_b": GroupOptions(lr_ratio=4), "head": GroupOptions(lr=0.5, weight_decay=0.3)}
    groups = by_name(build_param_groups(model, lr=0.1, weight_decay=DECAY, roles=roles))
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "lora_a": (0.1, DECAY),
        "lora_b": (0.4, DECAY),
        "lora_b_no_decay": (0.4, 0.0),
        "head": (0.5, 0.3),
        "head_no_decay": (0.5, 0.0),
    }


@pytest.mark.parametrize(("case", "role"), [("DoRA", "magnitude"), ("IA3 with a new head", "adapter")])
def test_scales_decay_only_where_their_role_asks_for_it(case: str, role: str) -> None:
    model = MODELS[case][0]()
    plain = by_name(build_param_groups(model, lr=1e-3, weight_decay=DECAY))
    asked = by_name(build_param_groups(model, lr=1e-3, roles={role: GroupOptions(weight_decay=0.3)}))
    assert plain[f"{role}_no_decay"]["weight_decay"] == 0.0
    assert asked[role]["weight_decay"] == 0.3
    assert f"{role}_no_decay" not in asked
    model = MODELS["a prompt encoder with a new head"][0]()
    groups = by_name(build_param_groups(model, lr=1e-3, roles={"adapter": GroupOptions(weight_decay=0.3)}))
    assert (groups["adapter"]["weight_decay"], groups["adapter_no_decay"]["weight_decay"]) == (0.3, 0.0)


def test_groups_train_in_a_torch_optimizer() -> None:
    model = lora(bert(), bias="all", modules_to_save=["classifier"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    roles = {"lora_b": GroupOptions(lr=0.0)}
    optimizer = torch.optim.SGD(build_param_groups(model, lr=1e-1, roles=roles))
    model(input_ids=torch.arange(8).view(2, 4), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    moved = {group_of(model)[name] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head", "head_no_decay", "no_decay"}


def test_options_of_a_role_that_the_model_lacks_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    build_param_groups(lora(llama()), lr=1e-3, roles={"head": GroupOptions(lr=1.0), "lora_a": GroupOptions(lr=1.0)})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'head'" in caplog.text
    assert "lora_a" in caplog.text


def test_a_model_with_nothing_to_train_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    lora(llama()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no parameter of PeftModel is trainable.*requires_grad.*is_trainable=True"):
        build_param_groups(peft.PeftModel.from_pretrained(llama(), tmp_path), lr=1e-3)
    assert build_param_groups(peft.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True), lr=1e-3)


@pytest.mark.parametrize("option", ["lr", "lr_ratio", "weight_decay"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), "0.1", True])
def test_a_wrong_setting_is_an_error_that_names_it(option: str, value: Any) -> None:
    message = rf"{option} must be a finite number >= 0, got {value!r}"
    with pytest.raises(ValueError, match=message):
        GroupOptions(**{option: value})
    if option != "lr_ratio":
        with pytest.raises(ValueError, match=message):
            build_param_groups(nn.Linear(2, 2), **{"lr": 1e-3, option: value})


def test_an_unknown_role_and_two_rates_for_one_are_errors() -> None:
    with pytest.raises(ValueError, match=r"\['lora_c'\].*lora_a.*base"):
        build_param_groups(nn.Linear(2, 2), lr=1e-3, roles={"lora_c": GroupOptions()})
    with pytest.raises(ValueError, match=r"exclude each other, got lr=0\.1 and lr_ratio=2"):
        GroupOptions(lr=0.1, lr_ratio=2)


def test_plain_models_are_grouped_without_importing_hugging_face() -> None:
    program = """
import sys
from torch import nn
from emo_hf.trainer.param_groups import build_param_groups, has_adapters
groups = build_param_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), lr=0.1)
assert [(group["name"], len(group["params"])) for group in groups] == [("decay", 1), ("no_decay", 3)], groups
assert not {"transformers", "peft", "accelerate"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
