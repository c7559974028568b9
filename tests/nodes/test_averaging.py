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


def test_adapters_and_their_heads_are_averaged_by_their_weights_and_peft_loads_the_average(tmp_path: Path) -> None:
    saved = [adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    for name in ("optimizer.pt", "trainer_state.json", "rng_state.pth", "training_args.bin"):
        (tmp_path / "1" / name).touch()
    for weights, share in ((None, 0.5), ([3, 1], 0.75)):
        output = average_saved([tmp_path / "1", tmp_path / "2"], tmp_path / f"average {share}", weights=weights)
        assert {file.name for file in output.iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "README.md",
        }  # fmt: skip
        loaded = dict(PeftModel.from_pretrained(tiny.classifier(), output).named_parameters())
        for part in ("lora_A.default.weight", "lora_B.default.weight", "classifier.modules_to_save.default.weight"):
            name = next(name for name in loaded if name.endswith(part))
            one, other = (each[name.replace(".modules_to_save", "").replace(".default", "")] for each in saved)
            torch.testing.assert_close(loaded[name].data, share * one + (1 - share) * other)


def test_many_bfloat16_models_are_averaged_in_float32(tmp_path: Path) -> None:
    value = torch.tensor([1.0078125], dtype=torch.bfloat16)  # the smallest above 1; a sum of 300 rounds to another
    for node in range(300):
        (tmp_path / str(node)).mkdir()
        save_file({"weight": value}, tmp_path / str(node) / "model.safetensors")
    output = average_saved([tmp_path / str(node) for node in range(300)], tmp_path / "average")
    average = load_file(output / "model.safetensors")["weight"]
    assert average.dtype == torch.bfloat16
    assert average.item() == value.item()


def test_what_does_not_fit_together_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    for shape in (2, 3):
        (tmp_path / str(shape)).mkdir()
        save_file({"weight": torch.ones(shape)}, tmp_path / str(shape) / "model.safetensors")
    for name in ("adapter", "other"):
        adapter(tmp_path / name, 1)
    file = tmp_path / "other" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 64}))
    (tmp_path / "empty").mkdir()
    for folders, weights, said in (
        (["2", "3"], None, r"weight is \(3,\) there and \(2,\) here"),
        (["2", "empty"], None, "empty holds no"),
        (["adapter", "other"], None, "different lora_alpha: 8 in .*adapter, 64 in .*other"),
        (["2", "2"], [1.0], "weights must be 2 numbers"),
        (["2", "2"], [0.0, 0.0], "weights must be 2 numbers"),
        (["2", "2"], [2.0, -1.0], "weights must be 2 numbers"),
    ):
        with pytest.raises(ValueError, match=said):
            average_saved([tmp_path / folder for folder in folders], tmp_path / "average", weights=weights)
        assert not list((tmp_path / "average").glob("*"))
    with pytest.raises(ValueError, match="output must be another folder"):
        average_saved([tmp_path / "2"], tmp_path / "2")
