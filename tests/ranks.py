"""Real jobs of several processes on this machine, and what each of their ranks brought back."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

TIMEOUT = 600.0
"""Seconds after which a job is taken to hang."""

Job = Callable[[Path], dict[str, Any]]


def run_job(module: str, folder: Path, world: int = 2) -> list[dict[str, Any]]:
    """Run every function in the `JOBS` of `tests.rank_jobs.<module>`, in order, on ranks of one process group.

    Args:
        module: name of the module.
        folder: for the files of the job, shared by its ranks.
        world: number of ranks.

    Returns:
        For each rank: name of the function → what it returned, and under `output` what the rank printed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.ranks", module, str(folder)]
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    outputs = [(folder / f"output{rank}.txt").open("w+") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=outputs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]
    try:
        codes = [rank.wait(TIMEOUT) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        said = []
        for output in outputs:
            output.seek(0)
            said.append(output.read())
            output.close()
    assert codes == [0] * world, "\n\n".join(text[-3000:] for text in said)
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]
    return [{**result, "output": output} for result, output in zip(results, said, strict=True)]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def alone() -> Iterator[None]:
    """Take a process out of the environment of its job for a while, for a run that knows nothing of other ranks."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    taken = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(taken)


def main(module: str, folder: str) -> None:
    torch.set_num_threads(1)
    jobs: dict[str, Job] = importlib.import_module(f"tests.rank_jobs.{module}").JOBS
    results = {}
    for name, job in jobs.items():
        (Path(folder) / name).mkdir(exist_ok=True)
        results[name] = job(Path(folder) / name)
    torch.save(results, Path(folder) / f"rank{os.environ['RANK']}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # torch 2.13 may wait for gloo's threads for ever, holding the lock that they need


if __name__ == "__main__":
    main(*sys.argv[1:])
