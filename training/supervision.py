"""Trainings in other processes: followed by what they log, ended with the process that launched them; how any training ends."""

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException

from catalog.errors import VoxloopError
from catalog.progress import Progress
from training.errors import TrainingError
from training.tracking import RunLog

__all__ = ["Metrics", "ended", "guarded", "supervised"]

Metrics = Callable[[int, Mapping[str, float]], None]
"""Is told an epoch's step and metrics; what it raises stops the training."""

LOOK_EVERY = 2.0  # seconds between two looks at how far other processes are
GRACE = 10.0  # seconds that a process has to end by itself
PATIENCE = 60.0  # seconds that the launching process waits for the others to end
PROBLEM, TRACE = "problem", "error.txt"  # the tag and the artifact in which a process says why it failed


@contextmanager
def ended(log: RunLog) -> Iterator[None]:
    """The run's status follows from how the block ends; SIGTERM ends it as an exception."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with log.system():
            yield
        log.end("FINISHED")
        log.forget_checkpoint()  # not before: a run that does not finish goes on from it
    except (KeyboardInterrupt, SystemExit) as stopped:
        log.end("KILLED")
        if isinstance(stopped, SystemExit) and stopped.code == 1:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except BaseException:
        log.end("FAILED")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored


def supervised(
    log: RunLog,
    steps: int,
    launch: Callable[[], object],
    stop: Callable[[], object],
    *,
    progress: Progress | None = None,
    on_metrics: Metrics | None = None,
) -> None:
    """Run ``launch``, which waits for the processes, on a thread, and tell the callbacks on this one.

    What a callback or a signal raises here goes on after ``stop`` has ended the processes. TrainingError says what one of
    them failed of.
    """
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the launchers talk
                launch()
        except BaseException as problem:
            failed.append(problem)
        finally:
            done.set()

    follower = _Follower(log, steps, progress, on_metrics)
    if PROBLEM in log.client.get_run(log.run_id).data.tags:  # of an earlier try
        log.client.delete_tag(log.run_id, PROBLEM)
    threading.Thread(target=run, daemon=True).start()
    try:
        while not done.wait(LOOK_EVERY):
            follower.look()
    except BaseException:
        stop()
        done.wait(PATIENCE)
        raise
    if failed:
        raise _failure(log, failed[0]) from failed[0]
    follower.look()


@contextmanager
def guarded(log: RunLog, lifeline: Connection | None = None) -> Iterator[None]:
    """One of several processes: it ends when its parent has gone or the lifeline's other end is closed, and says in the run
    why it failed."""
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the launching process ends them
    os.dup2(2, 1)  # standard output is the launching command's
    threading.Thread(target=_watch, args=(os.getppid(), lifeline), daemon=True).start()
    try:
        yield
    except Exception as problem:
        with suppress(MlflowException):
            if PROBLEM not in log.client.get_run(log.run_id).data.tags:  # else it is another's failure that reached this one
                log.client.set_tag(log.run_id, PROBLEM, json.dumps(_told(problem)))
                log.client.log_text(log.run_id, traceback.format_exc(), TRACE)
        raise


class _Follower:
    """Tells the callbacks what has been logged since the last look."""

    def __init__(self, log: RunLog, steps: int, progress: Progress | None, on_metrics: Metrics | None) -> None:
        self._log, self._steps, self._progress, self._on_metrics = log, steps, progress, on_metrics
        self._last = max(self._epochs(), default=-1)

    def look(self) -> None:
        """What MLflow does not answer is told at the next look."""
        epochs: dict[int, dict[str, float]] = {}
        try:
            step = self._log.client.get_run(self._log.run_id).data.metrics.get("step", 0) if self._progress else 0
            if self._on_metrics:
                epochs = self._metrics([step for step in self._epochs() if step > self._last])
        except MlflowException:
            return
        if self._progress:
            self._progress(int(step), self._steps)
        for epoch, values in sorted(epochs.items()):
            self._last = epoch
            if self._on_metrics:
                self._on_metrics(epoch, values)

    def _epochs(self) -> list[int]:
        """The steps at which epochs ended: the learning rate is logged then."""
        return [point.step for point in self._log.client.get_metric_history(self._log.run_id, "learning_rate")]

    def _metrics(self, steps: list[int]) -> dict[int, dict[str, float]]:
        found: dict[int, dict[str, float]] = {step: {} for step in steps}
        names = self._log.client.get_run(self._log.run_id).data.metrics if steps else {}
        for name in names:
            if not name.startswith(("final_", "system/")) and name != "step":
                for point in self._log.client.get_metric_history(self._log.run_id, name):
                    if point.step in found:
                        found[point.step][name] = point.value
        return found


def _failure(log: RunLog, problem: BaseException) -> Exception:
    """What the first process that failed says; ``problem`` where none could say anything."""
    tags = log.client.get_run(log.run_id).data.tags
    if PROBLEM not in tags:
        said = (
            f"{type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem).strip() else 'no reason given'}"
        )
        return TrainingError(f"a process ended: {said}", about=f"run {log.run_id}", remedy="go on with it: resume the run")
    told = json.loads(tags[PROBLEM])
    about = told["about"] or f"run {log.run_id}"
    return TrainingError(told["problem"], about=about, remedy=told["remedy"])


def _told(problem: Exception) -> dict[str, str]:
    if isinstance(problem, VoxloopError):
        return {"problem": problem.problem, "about": problem.about, "remedy": problem.remedy}
    said = f"a process failed: {type(problem).__name__}: {problem}"[:2000]
    return {"problem": said, "about": "", "remedy": f"see {TRACE} of the run"}


def _watch(parent: int, lifeline: Connection | None) -> None:
    """End this process once nobody waits for it."""
    never = threading.Event()
    while os.getppid() == parent and not (lifeline.poll(1.0) if lifeline else never.wait(1.0)):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    never.wait(GRACE)
    os._exit(128 + signal.SIGTERM)


def _terminate(number: int, _: Any) -> NoReturn:
    raise SystemExit(128 + number)
