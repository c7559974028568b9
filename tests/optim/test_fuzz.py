# ruff: noqa: PT017 (the errors are looked at, none is expected)
"""Whatever stands in optim_args or in the YAML file, the answer is a sentence that helps, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import emo_hf
from emo_hf.cli_errors import UserError
from emo_hf.train.config import read_job
from emo_hf.trainer.options import SELF_STOP_OPTIONS, known_options, parse_optim_args, read_options
from emo_hf.trainer.self_stop import SelfStop


@pytest.fixture(autouse=True, scope="module")
def registered():
    emo_hf.register()
    yield
    emo_hf.unregister()


values = st.sampled_from(
    ["true", "False", "auto", "none", "0", "1", "-1", "0.5", "1e400", "-1e-400", "nan", "inf", "1e-8", "١", "0x1",
     "1_0", "stop", "robust", "v3.1", "local", "", " ", "=", "'", "\\", "\x00", "💥", "None", "[]", "{}", "1.0", "1e3"]
) | st.text(max_size=8)  # fmt: skip
keys = st.sampled_from([*known_options(), "lr", "betas", "weight_decay", "use_shado", "emo", ""]) | st.text(
    max_size=10
)
texts = st.lists(st.tuples(keys, values), max_size=5).map(lambda parts: ",".join(f"{k}={v}" for k, v in parts))


def helps(error: Exception) -> bool:
    said = str(error)
    return 10 < len(said) < 2000 and not said.startswith(("could not convert", "invalid literal"))


@settings(max_examples=400)
@given(texts | st.text(max_size=40))
def test_any_optim_args_make_an_optimizer_or_a_sentence(text: str) -> None:
    try:
        given_options = parse_optim_args(text)
        read = read_options(given_options)
        SelfStop.of(read.callback)
        own = {key: value for key, value in given_options.items() if key not in SELF_STOP_OPTIONS}
        emo_hf.create_optimizer("emolynx", nn.Linear(2, 2), **own)
    except ValueError as error:
        assert helps(error), error


plain = st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats() | values
option_names = st.sampled_from(
    ["optim", "optim_args", "learning_rate", "output_dir", "task", "dataset", "train_file", "text_columns", "lora_r",
     "lora_target_modules", "max_length", "packing", "save_strategy", "eval_strategy", "logging_steps", "report_to",
     "num_train_epochs", "model_name_or_path", "use_lora", "dtype", "seed", "warmup_steps", "help", "resume"]
) | st.text(max_size=8)  # fmt: skip
nested = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=6), plain, max_size=3)
files = (
    st.dictionaries(option_names, nested, max_size=6).map(lambda d: yaml.safe_dump(d, allow_unicode=True))
    | st.text(max_size=60)
    | nested.map(yaml.safe_dump)
    | st.sampled_from(
        ["!!python/object/apply:os.system ['true']", "a: &a [*a]", "? [1]\n: 2", "- 1", "a: 1\na: 2", "\t"]
    )
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(files)
def test_any_yaml_file_makes_a_job_or_a_sentence(tmp_path_factory: Any, content: str) -> None:
    file: Path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    file.write_text(content, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        read_job([str(file)])
    except UserError as error:
        assert helps(error), error
        assert "\n" not in str(error)
