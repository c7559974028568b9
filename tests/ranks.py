"""Real jobs of several processes on this machine, and what each of their ranks brought back."""

from __future__ import annotations

import fcntl
import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import emo_hf
from emo_hf import EmotionView

TIMEOUT = 600.0
"""Seconds after which a job is taken to hang."""

GRACE = 30.0
"""Seconds that the other ranks of a job are given when one of them has failed."""

IMPORTED_ONCE = ["tests.tiny", "tests.emo_cases", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"]
"""What all ranks of all jobs need, which costs as much as the jobs themselves."""

WORKER = "PYTEST_XDIST_WORKER"
"""Environment variable: which of several test processes this is."""

Job = Callable[[Path], dict[str, Any]]


@contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone, which is what `fully_shard` needs."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def run_job(module: str, folder: Path, world: int = 2, *, share: bool = True) -> list[dict[str, Any]]:
    """Run every function in the `JOBS` of `tests.rank_jobs.<module>`, in order, on ranks of one process group.

    Where the tests of a module are dealt out to several processes, the first has the job run and the others read what
    came of it.

    Args:
        module: name of the module.
        folder: for the files of the job, shared by its ranks; see `shared_folder`.
        world: number of ranks.
        share: whether other test processes may read what came of it; not where it begins with files of this one.

    Returns:
        For each rank: name of the function → what it returned, and under `output` what the rank printed.
    """
    folder = shared_folder(module, folder) if share else folder
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _run_ranks(module, folder, world)
            (folder / "done").touch()
    said = [(folder / f"output{rank}.txt").read_text() for rank in range(world)]
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]
    return [{**result, "output": output} for result, output in zip(results, said, strict=True)]


def shared_folder(module: str, folder: Path) -> Path:
    """The folder of a job that all processes of a test run share, or the given one where there is a single process.

    Args:
        module: name of the job's module.
        folder: a temporary folder of this process.
    """
    own = next((parent for parent in folder.parents if parent.name == f"popen-{os.environ.get(WORKER)}"), None)
    return folder if own is None else own.parent / "jobs" / module


def _run_ranks(module: str, folder: Path, world: int) -> None:
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        begin(
            _run_rank,
            module,
            str(folder),
            environment=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            output=folder / f"output{rank}.txt",
        )
        for rank in range(world)
    ]
    try:
        deadline = time.monotonic() + TIMEOUT
        while any(rank.is_alive() for rank in ranks) and time.monotonic() < deadline:
            time.sleep(0.02)
            if any(rank.exitcode for rank in ranks):
                deadline = min(deadline, time.monotonic() + GRACE)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    said = [(folder / f"output{rank}.txt").read_text() for rank in range(world)]
    assert [rank.exitcode for rank in ranks] == [0] * world, "\n\n".join(text[-3000:] for text in said)


def fork_server() -> Any:
    """Makes processes that know nothing of this one, and share with each other what they would all import."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(IMPORTED_ONCE)
    return server


def begin(
    function: Callable[..., None], *arguments: Any, environment: Mapping[str, str] = os.environ, output: Path
) -> Any:
    """Begin a process of its own.

    Args:
        function: what it runs, at the top of a module.
        arguments: what it is run with.
        environment: its environment variables.
        output: the file that takes what it prints.
    """
    process = fork_server().Process(target=_run, args=(function, arguments, dict(environment), str(output)))
    process.start()
    return process


def _run(function: Callable[..., None], arguments: Any, environment: dict[str, str], output: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function(*arguments)


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def numbers(emotion: EmotionView) -> dict[str, float]:
    """An emotion without the name of its law."""
    values = asdict(emotion)
    del values["law"]
    values["scalar"] = values["scalar"] or 0.0  # settle has none
    details = values.pop("details")
    return {**values, **details}


@contextmanager
def alone() -> Iterator[None]:
    """Take a process out of the environment of its job for a while, for a run that knows nothing of other ranks."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def _run_rank(module: str, folder: str) -> None:
    emo_hf.register()
    jobs: dict[str, Job] = importlib.import_module(f"tests.rank_jobs.{module}").JOBS
    results = {}
    for name, job in jobs.items():
        (Path(folder) / name).mkdir(exist_ok=True)
        begun = time.monotonic()
        results[name] = job(Path(folder) / name)
        print(f"{name}: {time.monotonic() - begun:.2f} s", flush=True)
    torch.save(results, Path(folder) / f"rank{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # torch 2.13 may wait for gloo's threads for ever, holding the lock that they need
