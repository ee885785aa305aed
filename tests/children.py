"""Processes for tests, which start at once and can be killed.

They are forked from a server that has imported the programs, seconds that each would take alone.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

PATIENCE = 120  # seconds after which a process that should have ended hangs

FORKED = multiprocessing.get_context("forkserver")
_PROGRAMS = [f"cnf.scripts.{name}" for name in ("figures", "evaluation", "report", "training")]
_LATE = ("scipy.integrate", "torch.distributed", "torch._dynamo")  # an optimizer imports the last
FORKED.set_forkserver_preload(["pytest", *_LATE, *_PROGRAMS])


def start(target, folder: Path, *arguments, context=FORKED) -> BaseProcess:
    """A process that calls target(FOLDER, …), of a module; nothing else of this one is there."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks = folder / "stacks"
    given = (stacks, target, folder, *arguments)
    process = context.Process(target=_watched, args=given, name=str(stacks))
    process.start()
    return process


def _watched(stacks: Path, target, *arguments) -> None:
    """Call the target; if it hangs, the stacks of its threads are written before it is killed."""
    with open(stacks, "w") as file:
        faulthandler.dump_traceback_later(0.75 * PATIENCE, file=file)
        try:
            target(*arguments)
        finally:
            faulthandler.cancel_dump_traceback_later()


def wait(*processes: BaseProcess) -> list[int]:
    """The exit statuses; none may hang."""
    end = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
        statuses = [process.exitcode for process in processes]
        hanging = [Path(each.name) for each in processes if each.exitcode is None]
    finally:
        for process in processes:
            process.kill()
            process.join()
    told = (f"{stacks}:\n{stacks.read_text()}" for stacks in hanging)
    assert None not in statuses, f"hanging after {PATIENCE} s: {statuses}\n" + "\n".join(told)
    return statuses


def program(folder: Path, *words: object, fresh: bool = False) -> BaseProcess:
    """`cnf …` in another process; what it says is in FOLDER/out and FOLDER/err.

    A fresh process imports all that it needs.
    """
    context = multiprocessing.get_context("spawn") if fresh else FORKED
    return start(run_program, folder, [str(word) for word in words], context=context)


def said(folder: Path) -> tuple[str, str]:
    """What a program said, on standard output and on standard error."""
    return (folder / "out").read_text(), (folder / "err").read_text()


def together(target, folder: Path, *arguments) -> list[int]:
    """Two processes that `cnf.utils.distributed` joins, each calling target(FOLDER/RANK, …).

    Gives their exit statuses.
    """
    processes, joined = [], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    for rank in range(2):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, **joined}
        processes.append(start(_joined, folder / str(rank), target, environment, *arguments))
    return wait(*processes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_program(folder: Path, words: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which `nohup … &` ignores
    sys.exit(_called(folder, words))


def run_programs(folder: Path, ports: list[int], commands: list[list[str]]) -> None:
    """Run `cnf …` commands in one of two joined processes; FOLDER/found has their outcomes."""
    found = []
    for port, words in zip(ports, commands, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        found.append([_called(folder, words), *said(folder)])
    (folder / "found").write_text(json.dumps(found))


def both(
    folder: Path, *commands: tuple[object, ...], target=run_programs
) -> list[tuple[list, list]]:
    """Run `cnf …` commands one after the other, each in the same two joined processes.

    Gives the status, the output and the errors of both processes for each command.
    """
    ports = [_free_port() for _ in commands]
    words = [[str(word) for word in command] for command in commands]
    assert together(target, folder, ports, words) == [0, 0]
    found = (json.loads((folder / str(rank) / "found").read_text()) for rank in range(2))
    return list(zip(*found, strict=True))


def _called(folder: Path, words: list[str]) -> int:
    from cnf.scripts.__main__ import main

    torch.set_num_threads(1)
    with open(folder / "out", "w") as sys.stdout, open(folder / "err", "w") as sys.stderr:
        try:
            status = main(words)
        except SystemExit as exited:
            status = exited.code
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return status


def _joined(folder: Path, target, environment: dict, *arguments) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    target(folder, *arguments)
