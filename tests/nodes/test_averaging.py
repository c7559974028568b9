"""Averages of what several nodes have saved: adapters with their heads, and whole models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from emo_hf import average_saved
from tests import tiny


def adapter(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """A saved adapter, every number of it its own."""
    config = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(tiny.classifier(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.normal_()
    model.save_pretrained(folder)
    return load_file(folder / "adapter_model.safetensors")


def test_adapters_and_their_heads_are_averaged_and_peft_loads_the_average(tmp_path: Path) -> None:
    saved = [adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    output = average_saved([tmp_path / "1", tmp_path / "2"], tmp_path / "average")
    loaded = PeftModel.from_pretrained(tiny.classifier(), output)
    for part in ("lora_A.default.weight", "lora_B.default.weight", "classifier.modules_to_save.default.weight"):
        name, param = next((name, param) for name, param in loaded.named_parameters() if name.endswith(part))
        key = name.replace(".modules_to_save", "").replace(".default", "")
        torch.testing.assert_close(param.data, (saved[0][key] + saved[1][key]) / 2)


def test_a_node_can_count_more_than_another(tmp_path: Path) -> None:
    saved = [adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    output = average_saved([tmp_path / "1", tmp_path / "2"], tmp_path / "average", weights=[3, 1])
    for name, tensor in load_file(output / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, 0.75 * saved[0][name] + 0.25 * saved[1][name])


def test_many_bfloat16_models_are_averaged_in_float32(tmp_path: Path) -> None:
    value = torch.tensor([1.0078125], dtype=torch.bfloat16)  # the smallest above 1; a sum of 300 rounds to another
    for node in range(300):
        (tmp_path / str(node)).mkdir()
        save_file({"weight": value}, tmp_path / str(node) / "model.safetensors")
    output = average_saved([tmp_path / str(node) for node in range(300)], tmp_path / "average")
    average = load_file(output / "model.safetensors")["weight"]
    assert average.dtype == torch.bfloat16
    assert average.item() == value.item()


def test_an_optimizer_state_is_not_taken_for_that_of_the_average(tmp_path: Path) -> None:
    adapter(tmp_path / "1", 1)
    for name in ("optimizer.pt", "trainer_state.json", "rng_state.pth", "training_args.bin"):
        (tmp_path / "1" / name).touch()
    output = average_saved([tmp_path / "1"], tmp_path / "average")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in output.iterdir()}
    assert not any((output / name).exists() for name in ("optimizer.pt", "trainer_state.json", "rng_state.pth"))


def test_adapters_of_different_scales_are_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        adapter(tmp_path / str(seed), seed)
    file = tmp_path / "2" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    with pytest.raises(ValueError, match=r"different lora_alpha: 8 in .*1, 64 in .*2"):
        average_saved([tmp_path / "1", tmp_path / "2"], tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_what_does_not_fit_together_is_refused_by_name(tmp_path: Path) -> None:
    for name, shape in (("1", 2), ("2", 3)):
        (tmp_path / name).mkdir()
        save_file({"weight": torch.ones(shape)}, tmp_path / name / "model.safetensors")
    (tmp_path / "empty").mkdir()
    one, two = tmp_path / "1", tmp_path / "2"
    with pytest.raises(ValueError, match=r"weight is \(3,\) there and \(2,\) here"):
        average_saved([one, two], tmp_path / "average")
    with pytest.raises(ValueError, match="empty holds no"):
        average_saved([one, tmp_path / "empty"], tmp_path / "average")
    with pytest.raises(ValueError, match="output must be another folder"):
        average_saved([one], one)
    for weights in ([1.0], [0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(ValueError, match="weights must be 2 numbers"):
            average_saved([one, one], tmp_path / "average", weights=weights)
