"""The Spark session of this process: local by default, a cluster by its master's URL."""

import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from py4j.protocol import Py4JError
from pyspark.errors import PySparkRuntimeError
from pyspark.sql import SparkSession

from voxloop.errors import FrontDoorError
from voxloop.java import java_home
from voxloop.processes import LOOPBACK
from voxloop.settings import Settings

__all__ = ["session", "start"]


def start(settings: Settings, *, warm: bool = True) -> SparkSession:
    """The session that the settings describe; its files are under HOME/spark, its log is HOME/logs/spark.log."""
    scratch = settings.home / "spark"
    for left in scratch.glob("*"):  # of a process that was killed
        if left.name.isdigit() and not psutil.pid_exists(int(left.name)):
            shutil.rmtree(left, ignore_errors=True)
    log = settings.home / "logs" / "spark.log"
    return session(
        master=settings.spark_master, scratch=scratch / str(os.getpid()), memory=settings.spark_memory, log=log, warm=warm
    )


def session(
    *, master: str = "local[*]", scratch: Path, memory: str = "3g", log: Path | None = None, warm: bool = True
) -> SparkSession:
    """Start Spark, or return the one that this process has.

    ``master`` is a Spark master URL, ``scratch`` a folder for shuffle files and ``memory`` the driver's heap;
    what Spark and its workers say goes to ``log``.
    With ``warm``, Python workers are forked from a daemon that has imported torch once (``voxloop.spark_daemon``), so that
    a job that predicts does not pay for the import in each worker.
    """
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["PYARROW_IGNORE_TIMEZONE"] = "1"
    warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas")
    scratch.mkdir(parents=True, exist_ok=True)
    builder = SparkSession.builder.master(master).appName("voxloop")  # type: ignore[attr-defined]
    for key, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": memory,
        **({"spark.driver.host": LOOPBACK, "spark.driver.bindAddress": LOOPBACK} if master.startswith("local") else {}),
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.python.daemon.module": "voxloop.spark_daemon" if warm else "pyspark.daemon",
        "spark.log.level": "ERROR",
    }.items():
        builder = builder.config(key, value)
    with _saying_to(log or scratch / "spark.log"):
        started: SparkSession = builder.getOrCreate()
        started.sparkContext.setLogLevel("ERROR")
    if threading.current_thread() is threading.main_thread():  # Spark's own handler calls Java in the middle of a call to Java
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return started


@contextmanager
def _saying_to(log: Path) -> Iterator[None]:
    """Give what is started inside the ``with`` the file ``log`` as its standard error, for as long as it lives.

    Raises FrontDoorError, which names the log, where Spark does not start.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    screen = os.dup(2)
    with log.open("ab") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    except (PySparkRuntimeError, Py4JError, OSError) as problem:
        said = str(problem).splitlines()[0]
        raise FrontDoorError(f"Spark did not start: {said}", about=str(log), remedy="is Java 17 or newer usable?") from problem
    finally:
        sys.stderr.flush()
        os.dup2(screen, 2)
        os.close(screen)
