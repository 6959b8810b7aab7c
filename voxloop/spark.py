"""The Spark session of this process: local by default, a cluster by its master's URL."""

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from voxloop.java import java_home

__all__ = ["session"]


def session(*, master: str = "local[*]", scratch: Path, memory: str = "3g") -> SparkSession:
    """Start Spark, or return the one that this process has.

    ``master`` is a Spark master URL, ``scratch`` a folder for shuffle files and ``memory`` the driver's heap.
    Python workers are forked from a daemon that has imported torch once (``voxloop.spark_daemon``), so that a job
    that predicts does not pay for the import in each worker.
    """
    os.environ["JAVA_HOME"] = str(java_home())
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    os.environ["PYARROW_IGNORE_TIMEZONE"] = "1"
    scratch.mkdir(parents=True, exist_ok=True)
    builder = SparkSession.builder.master(master).appName("voxloop")  # type: ignore[attr-defined]
    for key, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": memory,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.local.dir": str(scratch),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.python.daemon.module": "voxloop.spark_daemon",
        "spark.log.level": "ERROR",
    }.items():
        builder = builder.config(key, value)
    started: SparkSession = builder.getOrCreate()
    started.sparkContext.setLogLevel("ERROR")
    return started
