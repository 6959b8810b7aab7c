"""`voxloop bench ingest`: our ingest against the textbook way, on made-up CT instances."""

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from catalog import Archive, ingest
from catalog.walk import walk
from experiments.baselines import ingest_textbook
from experiments.bench import BenchResult, compare, cost
from experiments.ct_corpus import ct_corpus

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["bench"]


def bench(spark: "SparkSession", folder: Path, *, n: int = 4000, rounds: int = 5) -> BenchResult:
    """Ingest ``n`` instances into an empty home, and the same files the textbook way.

    Figures: ``instances_per_cpu_s`` of both; ``bare_per_cpu_s``, instances a CPU-second of the bare header walk in one process,
    and ``ceiling_ratio``, how much of that our ingest reaches; ``again_ratio``, the first ingest's seconds over a second one's
    of the same folder; ``index_cpu_s``, what following the table costs the query index, which is no part of ``ours``.
    """
    corpus, home, done = ct_corpus(folder / f"corpus-{n}", n), folder / "home", []

    def ours() -> None:
        shutil.rmtree(home, ignore_errors=True)
        report = ingest(spark, Archive(home), corpus)
        assert report.added == n, report

    def textbook() -> None:
        ingest_textbook.ingest(spark, corpus, folder / "textbook")

    result = compare("ingest", ours, textbook, n=n, rounds=rounds, warmup=2)
    archive = Archive(home)
    again = statistics.median(cost(lambda: done.append(ingest(spark, archive, corpus))).wall for _ in range(rounds))
    assert {report.added for report in done} == {0}, done
    index = cost(lambda: archive.index.follow(archive.objects))
    files = sorted(corpus.rglob("IM*"))
    bare = n / min(_walked(files) for _ in range(rounds))
    per_cpu = n / result.figures["ours_cpu"]
    figures = {
        **result.figures,
        "instances_per_cpu_s": per_cpu,
        "textbook_per_cpu_s": n / result.figures["baseline_cpu"],
        "bare_per_cpu_s": bare,
        "ceiling_ratio": per_cpu / bare,
        "again_ratio": result.ours / again,
        "index_cpu_s": index.cpu,
    }
    return replace(result, figures=figures)


def _walked(files: list[Path]) -> float:
    """CPU seconds to turn the headers of ``files`` into DICOM JSON, nothing else."""
    started = time.process_time()
    for path in files:
        assert walk(path).text
    return time.process_time() - started
