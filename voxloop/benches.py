"""The benches by name, each with the size it has unless told otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from voxloop.command import spark_session
from voxloop.errors import FrontDoorError
from voxloop.settings import Settings

if TYPE_CHECKING:
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

    with spark_session(settings, warm=False) as spark:
        return ingest_bench.bench(spark, settings.home / "bench" / "ingest", n=n)


def _qido(settings: Settings, n: int) -> "BenchResult":
    from experiments import qido_bench

    return qido_bench.bench(settings.home / "bench" / "qido", n=n, index_url=settings.index_url)


BENCHES = {"ingest": Bench(_ingest, 4000), "qido": Bench(_qido, 1_000_000)}
