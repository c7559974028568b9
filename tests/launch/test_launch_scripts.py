"""The launch scripts say what they will do, and fail early where they can."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.ranks import free_port

ROOT = Path(__file__).parents[2]
SINGLE, MULTI = "launch_single_node.sh", "launch_multi_node.sh"
TWO_NODES = ("--nodes", "2", "--node-rank", "1", "--address", "node0")
CONFIGS = sorted(path.stem for path in (ROOT / "configs" / "accelerate").glob("*.yaml"))


def launch(script: str, *arguments: str, limit: float = 200) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False, env=environment)


@pytest.fixture
def train(tmp_path: Path) -> str:
    script = tmp_path / "train.py"
    script.write_text(
        "import json, os, sys\n"
        "'fail' in sys.argv and sys.exit(5)\n"
        "from accelerate import Accelerator\n"
        "from transformers.training_args import OptimizerNames\n"
        "accelerator = Accelerator(cpu=True)\n"
        "name = OptimizerNames('emonavi').value\n"
        "seen = [accelerator.num_processes, accelerator.process_index, name, sys.argv[1:]]\n"
        "open(os.environ['RANKS_WRITE_TO'] + os.environ['RANK'], 'w').write(json.dumps(seen))\n"
    )
    return str(script)


def test_a_dry_run_prints_the_plan_and_the_command_and_runs_nothing(train: str) -> None:
    batch = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps=2")
    port = str(free_port())
    result = launch(SINGLE, "--dry-run", "--processes", "3", "--precision", "bf16", "--port", port, train, *batch)
    assert result.returncode == 0
    plan = {key: value.strip() for key, _, value in (line.partition(":") for line in result.stdout.splitlines())}
    assert plan.items() >= {
        "nodes": "1", "processes": "3", "strategy": "MULTI_GPU (ddp.yaml)", "precision": "bf16",
    }.items()  # fmt: skip
    assert plan["global batch"].startswith("24 ")
    assert plan["command"].endswith(f"-m emo_hf.run {train} {' '.join(batch)}")
    result = launch(MULTI, *TWO_NODES, "--processes-per-node", "4", "--dry-run", "--as-is", train, "--lr", "1")
    assert result.returncode == 0
    assert "this is node 1" in result.stdout
    assert "--num_machines 2 --machine_rank 1 --num_processes 8" in result.stdout, "those of all nodes"
    assert f"--rdzv_backend static {train} --lr 1" in result.stdout


@pytest.mark.long
def test_two_machines_train_as_one_job_and_go_on_after_one_of_them_was_lost() -> None:
    result = launch("../tests/launch/two_nodes.sh", limit=600)
    if result.returncode == 77:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("the same weights and the same emotion, to the last bit, on both nodes\n")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_strategy_has_a_config_that_accelerate_reads(name: str, train: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    assert load_config_from_file(str(file)).num_processes == yaml.safe_load(file.read_text())["num_processes"]
    result = launch(SINGLE, "--config", name, "--port", str(free_port()), "--dry-run", train)
    assert f"({name}.yaml)" in result.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (SINGLE, (), "nothing to run"),
        (SINGLE, ("--config", "nope", "TRAIN"), "config 'nope' not found; known: ddp deepspeed_zero1"),
        (SINGLE, ("nope.py",), "training script 'nope.py' not found"),
        (SINGLE, ("--proceses", "2", "TRAIN"), "unknown option --proceses"),
        (SINGLE, ("--processes", "0", "TRAIN"), "--processes takes a whole number from 1 to 1024, got '0'"),
        (SINGLE, ("--port",), "--port takes a value"),
        (MULTI, ("TRAIN",), "--nodes is missing"),
        (MULTI, ("--nodes", "2", "--node-rank", "0", "TRAIN"), "--address is missing"),
        (MULTI, ("--nodes", "2", "--node-rank", "2", "--address", "h", "TRAIN"), "number from 0 to 1, got '2'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    script: str, arguments: tuple[str, ...], message: str, train: str
) -> None:
    result = launch(script, *(train if argument == "TRAIN" else argument for argument in arguments))
    assert result.returncode == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("script", "options"), [(SINGLE, ()), (MULTI, ("--nodes", "1", "--node-rank", "0", "--address", "127.0.0.1"))]
)
def test_a_taken_port_is_found_out_at_once(script: str, options: tuple[str, ...], train: str) -> None:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        result = launch(script, *options, "--port", port, train)
    assert result.returncode == 2
    assert f"port {port} is taken" in result.stderr


@pytest.mark.long
def test_the_script_runs_on_every_process_with_its_arguments(
    train: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKS_WRITE_TO", str(tmp_path / "rank"))
    result = launch(SINGLE, "--cpu", "--processes", "2", "--port", str(free_port()), train, "well", "a b")
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == f'[2, {rank}, "emonavi", ["well", "a b"]]', result.stderr
    assert result.returncode == 0
    assert "the job failed with exit code" not in result.stderr


@pytest.mark.long
def test_a_job_that_fails_is_said_to_have_failed(train: str) -> None:
    result = launch(SINGLE, "--cpu", "--processes", "2", "--port", str(free_port()), train, "fail")
    assert result.returncode != 0
    assert "exitcode  : 5" in result.stderr, "the ranks did not run to where they fail"
    assert "the job failed with exit code" in result.stderr
