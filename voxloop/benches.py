"""The benches by name, each with the size it has unless told otherwise."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from voxloop.errors import FrontDoorError
from voxloop.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from experiments.bench import BenchResult

__all__ = ["BENCHES", "Bench", "find"]


@dataclass(frozen=True)
class Bench:
    """``run`` takes the settings and how many instances."""

    run: "Callable[[Settings, int], BenchResult]"
    size: int


def find(name: str) -> Bench:
    """The bench of this name; FrontDoorError names those there are."""
    if name not in BENCHES:
        raise FrontDoorError("no such bench", about=name, remedy=f"there are: {', '.join(BENCHES)}")
    return BENCHES[name]


def _ingest(settings: Settings, n: int) -> "BenchResult":
    from experiments import ingest_bench

    return ingest_bench.bench(partial(_spark, settings), settings.home / "bench" / "ingest", n=n)


def _ingest_memory(settings: Settings, n: int) -> "BenchResult":
    from experiments import ingest_bench

    return ingest_bench.memory(partial(_spark, settings), settings.home / "bench" / "ingest", n=n)


def _spark(settings: Settings, master: str) -> "SparkSession":
    from voxloop.spark import start

    return start(settings.model_copy(update={"spark_master": master}), warm=False)


def _qido(settings: Settings, n: int) -> "BenchResult":
    from experiments import qido_bench

    return qido_bench.bench(settings.home / "bench" / "qido", n=n, index_url=settings.index_url)


def _frames(settings: Settings, n: int) -> "BenchResult":
    from experiments import dicomweb_bench

    return dicomweb_bench.frames(settings.home / "bench" / "dicomweb", n=n)


def _metadata(settings: Settings, n: int) -> "BenchResult":
    from experiments import dicomweb_bench

    return dicomweb_bench.metadata(settings.home / "bench" / "dicomweb", n=n)


def _viewer(settings: Settings, n: int) -> "BenchResult":
    from catalog import Archive
    from experiments import viewer_bench
    from voxloop.processes import LOOPBACK, Server, free_port
    from voxloop.viewer import installed

    if not (installed(settings.viewer_folder) / "index.html").is_file():
        raise FrontDoorError("the viewer is not here", about="bench viewer", remedy="make viewer fetches it")
    own = settings.model_copy(update={"home": settings.home / "bench" / "viewer", "index_url": ""})
    study, port = viewer_bench.series(Archive(own.home), n), free_port()
    address = f"http://{LOOPBACK}:{port}"
    command = [sys.executable, "-m", "voxloop.web", "--host", LOOPBACK, "--port", str(port)]
    log, told = own.home / "logs" / "web.log", own.environment()
    with Server("the web server", command, log=log, ready_url=f"{address}/healthz", environment=told) as server:
        server.wait_ready()
        return viewer_bench.bench(address, study, n=n)


def _loader(settings: Settings, n: int) -> "BenchResult":
    from experiments import loader_bench

    return loader_bench.bench(settings.home / "bench" / "loader", n=n)


def _infer(settings: Settings, n: int) -> "BenchResult":
    from experiments import infer_bench

    return infer_bench.bench(n=n)


def _train(settings: Settings, n: int) -> "BenchResult":
    from experiments import train_bench

    return train_bench.bench(settings.home / "bench" / "train", n=n)


BENCHES = {
    "ingest": Bench(_ingest, 4000),
    "ingest-memory": Bench(_ingest_memory, 100_000),
    "qido": Bench(_qido, 1_000_000),
    "frames": Bench(_frames, 200),
    "metadata": Bench(_metadata, 1000),
    "viewer": Bench(_viewer, 300),
    "loader": Bench(_loader, 24),
    "infer": Bench(_infer, 10),
    "train": Bench(_train, 24),
}
