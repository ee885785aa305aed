"""Processes of their own for tests, which start at once and can be killed.

They are forked from a server that has imported the programs, seconds that each would take alone.
"""

import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PATIENCE = 120  # seconds after which a process that should have ended hangs

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "scipy.integrate", "cnf.scripts.train", "cnf.scripts.evaluate", "torch.distributed"]
)


def start(target, *arguments) -> BaseProcess:
    """A process that calls a function of a module; nothing else of this one is there."""
    process = _CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


def wait(*processes: BaseProcess) -> list[int]:
    """The exit statuses; none may hang."""
    end = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert None not in statuses, f"hanging after {PATIENCE} s: {statuses}"
    return statuses


def program(folder: Path, *words: object) -> BaseProcess:
    """`cnf …` in a process of its own; what it says is in FOLDER/out and FOLDER/err."""
    return start(run_program, folder, [str(word) for word in words])


def said(folder: Path) -> tuple[str, str]:
    """What a program said, on standard output and on standard error."""
    return (folder / "out").read_text(), (folder / "err").read_text()


def together(target, folder: Path, *arguments) -> list[int]:
    """Two processes that `cnf.utils.distributed` joins, each calling target(FOLDER/RANK, …).

    Gives their exit statuses.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        (folder / str(rank)).mkdir(parents=True)
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = start(_joined, target, environment, folder / str(rank), *arguments)
        processes.append(process)
    return wait(*processes)


def run_program(folder: Path, words: list[str]) -> None:
    """What `program` has a process do."""
    from cnf.scripts.__main__ import main

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "out", "w") as sys.stdout, open(folder / "err", "w") as sys.stderr:
        try:
            status = main(words)
        except SystemExit as exited:
            status = exited.code
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.exit(status)


def _joined(target, environment: dict, folder: Path, *arguments) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    target(folder, *arguments)
