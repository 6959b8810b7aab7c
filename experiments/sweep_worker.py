"""A process that trains for a sweep, job after job, on a device of its own, and that never outlives the sweep."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from catalog.errors import VoxloopError
from training.errors import TrainingError

if TYPE_CHECKING:
    from training.launch import TrainJob

__all__ = ["TrainingProcess", "devices", "free_memory"]

GRACE_S = 30.0
"""Seconds that a training has to end its run when it is told to stop."""


class TrainingProcess:
    """Starts with its first job. ``device`` is its CUDA_VISIBLE_DEVICES ("": as here), ``threads`` are the CPU's."""

    def __init__(self, device: str, threads: int) -> None:
        self._device, self._threads = device, threads
        self._process: Any = None
        self._pipe: Connection | None = None

    def run(self, job: "TrainJob", on_metrics: Callable[[int, Mapping[str, float]], None]) -> str:
        """Train ``job``; the MLflow run id. What ``on_metrics`` raises, in the thread that calls, stops the training there.

        TrainingError where the process ended: the next job starts another.
        """
        pipe = self._started()
        try:
            pipe.send(job)
            while (told := pipe.recv())[0] == "metrics":
                try:
                    on_metrics(*told[1:])
                except BaseException:
                    pipe.send(False)
                    while pipe.recv()[0] == "metrics":
                        pipe.send(False)
                    raise
                pipe.send(True)
        except (EOFError, OSError):
            self._process.join(GRACE_S)
            remedy = "too little memory, perhaps: take fewer --workers, or a smaller batch or patch"
            raise TrainingError(f"its process ended ({self._process.exitcode})", about="the trial", remedy=remedy) from None
        if told[0] == "failed":
            raise told[1]
        return str(told[1])

    def terminate(self) -> None:
        """Tell it to end; a run that it trains will be KILLED."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """Return when it has ended, by force if need be."""
        self.terminate()
        if self._process is not None:
            self._process.join(GRACE_S)
            self._process.kill()
            self._process.join()

    def _started(self) -> Connection:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._device, self._threads), daemon=True)
            self._process.start()
            theirs.close()  # so that its end is seen here
        assert self._pipe is not None
        return self._pipe


def devices() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(index) for index in range(torch.cuda.device_count())]


def free_memory() -> None:
    """Give back what a training left on the device, one that failed above all."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Stopped(Exception):
    """The sweep does not want this training to go on."""


def _serve(pipe: Connection, device: str, threads: int) -> None:
    """What the process runs, until the other end of ``pipe`` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the sweep says who stops
    os.dup2(2, 1)  # standard output is the sweep's
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    threading.Thread(target=_follow, daemon=True).start()
    from training.launch import LocalLauncher

    def told(step: int, values: Mapping[str, float]) -> None:
        try:
            pipe.send(("metrics", step, dict(values)))
            go_on = pipe.recv()
        except (EOFError, OSError):
            raise SystemExit(128 + signal.SIGTERM) from None
        if not go_on:
            raise _Stopped

    launcher = LocalLauncher(on_metrics=told, threads=threads)
    while True:
        try:
            pipe.send(_trained(launcher.run, pipe.recv()))
        except (EOFError, OSError):
            return


def _trained(run: Callable[["TrainJob"], str], job: "TrainJob") -> tuple[Any, ...]:
    try:
        return "done", run(job)
    except _Stopped:
        return ("stopped",)
    except VoxloopError as problem:
        return "failed", problem
    except Exception as problem:
        return "failed", TrainingError(f"{type(problem).__name__}: {problem}")
    finally:
        free_memory()


def _follow() -> None:
    """When the sweep's process is gone, however it ended, end this one, and its run as KILLED."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)
