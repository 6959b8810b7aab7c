"""`voxloop bench ingest` and `ingest-memory`: our ingest against the textbook way, and by how much memory, on made-up CT."""

import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from catalog import Archive, IngestReport, ingest
from catalog.walk import walk
from experiments.baselines import ingest_textbook
from experiments.bench import BenchResult, compare, cost, device_name
from experiments.ct_corpus import ct_corpus

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Start", "bench", "memory"]

Start = Callable[[str], "SparkSession"]
"""Starts Spark in this process on a master; it can be pickled."""

FEW = 4000
"""The rows that the memory of many is compared with."""


def bench(start: Start, folder: Path, *, n: int = 4000, rounds: int = 5) -> BenchResult:
    """Ingest ``n`` instances into an empty home, and the same files the textbook way.

    Figures: ``textbook_per_cpu_s``, instances a CPU-second; ``instances_per_cpu_s`` of ours and ``bare_per_cpu_s`` of the
    header walk alone in a process a core, measured in turn, and ``ceiling_ratio``, what share of the second the first is;
    ``again_ratio``, the first ingest's seconds over those of a second one of the same folder; ``cores_ratio``, the seconds of
    Spark on one core over those on all; ``index_cpu_s``, what following the table costs the query index, no part of ``ours``.
    """
    corpus, home = ct_corpus(folder / f"corpus-{n}", n), folder / "home"
    cores = _cores(start, corpus, folder, rounds)
    spark = start("local[*]")

    def ours() -> None:
        shutil.rmtree(home, ignore_errors=True)
        report = ingest(spark, Archive(home), corpus)
        assert report.added == n, report

    def textbook() -> None:
        ingest_textbook.ingest(spark, corpus, folder / "textbook")

    result = compare("ingest", ours, textbook, n=n, rounds=rounds, warmup=3)
    archive = Archive(home)
    again: list[IngestReport] = []
    seconds = [cost(lambda: again.append(ingest(spark, archive, corpus))).wall for _ in range(rounds)]
    assert {report.added for report in again} == {0}, again
    index = cost(lambda: archive.index.follow(archive.objects))
    alone, bare = _beside_the_walk(ours, sorted(corpus.rglob("IM*")), rounds)
    figures = {
        **result.figures,
        "instances_per_cpu_s": n / alone,
        "textbook_per_cpu_s": n / result.figures["baseline_cpu"],
        "bare_per_cpu_s": n / bare,
        "ceiling_ratio": bare / alone,
        "again_ratio": result.ours / statistics.median(seconds),
        "cores": float(os.cpu_count() or 1),
        "cores_ratio": cores,
        "index_cpu_s": index.cpu,
    }
    return replace(result, figures=figures)


def memory(start: Start, folder: Path, *, n: int = 100_000) -> BenchResult:
    """Ingest FEW instances, then ``n``, in one Spark: ``ours`` and ``baseline`` are the driver's and its Python workers'
    largest resident memory (MB) at ``n`` and at FEW, ``ratio`` the second over the first. Java's heap is what it was told.
    """
    spark, peaks = start("local[*]"), {}
    for count in (FEW, FEW, n):  # the first one loads what is loaded once
        corpus = ct_corpus(folder / f"corpus-{count}", count, pixels=16)
        shutil.rmtree(folder / "home", ignore_errors=True)
        with _watched() as peak:
            report = ingest(spark, Archive(folder / "home"), corpus)
        assert report.added == count, report
        peaks[count] = dict(peak)
    many, few = (sum(peaks[count].values()) for count in (n, FEW))
    figures = {f"{who}_mb_{count}": peaks[count][who] for count in (FEW, n) for who in ("driver", "workers")}
    return BenchResult("ingest-memory", device_name(), n, many, few, few / many, figures)


@contextmanager
def _watched() -> Iterator[dict[str, float]]:
    """The largest resident memory, in MB, of this process and of the Python workers together while the block runs."""
    peak, ended = {"driver": 0.0, "workers": 0.0}, threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not ended.wait(0.05):
            peak["driver"] = max(peak["driver"], me.memory_info().rss / 1e6)
            peak["workers"] = max(peak["workers"], sum(map(_python_mb, me.children(recursive=True))))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _python_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6 if "python" in process.name() else 0.0
    except psutil.Error:  # it ended meanwhile
        return 0.0


def _cores(start: Start, corpus: Path, folder: Path, rounds: int) -> float:
    """Seconds of an ingest on one core over those on all, in two Sparks that take turns."""
    context, sides = get_context("spawn"), []
    for master in ("local[1]", "local[*]"):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, start, master, corpus, folder / f"home-{master[6]}"), daemon=True
        )
        process.start()
        sides.append((ours, process))

    def ask(pipe: Any) -> float:
        pipe.send("go")
        return float(pipe.recv())

    for pipe, _ in sides * 4:  # warm
        ask(pipe)
    pairs = [tuple(ask(pipe) for pipe, _ in sides) for _ in range(rounds)]
    for pipe, process in sides:
        pipe.send("end")
        process.join()
    return statistics.median(one / every for one, every in pairs)


def _serve(pipe: Any, start: Start, master: str, corpus: Path, home: Path) -> None:
    spark = start(master)
    while pipe.recv() == "go":
        shutil.rmtree(home, ignore_errors=True)
        pipe.send(cost(lambda: ingest(spark, Archive(home), corpus)).wall)
    spark.stop()


def _beside_the_walk(ours: Callable[[], object], files: Sequence[Path], rounds: int) -> tuple[float, float]:
    """CPU seconds of ``ours``, and of walking ``files`` in a process a core, at once as Spark's workers are; both in turn."""
    count = os.cpu_count() or 1
    shares = [files[i * len(files) // count : (i + 1) * len(files) // count] for i in range(count)]
    pairs = []
    with get_context("spawn").Pool(count) as pool:
        for _ in range(rounds + 3):
            pairs.append((cost(ours).cpu, sum(pool.map(_walked, shares, chunksize=1))))
    warm = pairs[3:]
    return statistics.median(mine for mine, _ in warm), statistics.median(walk for _, walk in warm)


def _walked(files: Sequence[Path]) -> float:
    """CPU seconds to turn the headers of ``files`` into DICOM JSON, nothing else."""
    started = time.process_time()
    for path in files:
        assert walk(path).text
    return time.process_time() - started
