"""`voxloop bench ingest`: our ingest against the textbook way, on made-up CT instances."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catalog import Archive, deterministic_uid, ingest
from catalog.walk import walk
from experiments.baselines import ingest_textbook
from experiments.bench import BenchResult, compare

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["bench", "corpus"]

SLICES = 100  # instances a series


def bench(spark: "SparkSession", folder: Path, *, n: int = 4000, rounds: int = 3) -> BenchResult:
    """Ingest ``n`` instances into an empty home, and the same files the textbook way; ``ceiling_ratio`` is our instances a
    CPU-second over those of the bare header walk in one process."""
    files = corpus(folder / "corpus", n)

    def ours() -> None:
        shutil.rmtree(folder / "home", ignore_errors=True)
        report = ingest(spark, Archive(folder / "home"), folder / "corpus")
        assert report.added == n, report

    def baseline() -> None:
        ingest_textbook.ingest(spark, folder / "corpus", folder / "textbook")

    result = compare("ingest", ours, baseline, n=n, rounds=rounds)
    cpu = time.process_time()
    for path in files:
        walk(path)
    bare = n / (time.process_time() - cpu)
    per_cpu = n / result.figures["ours_cpu"]
    figures = {**result.figures, "instances_per_cpu_s": per_cpu, "bare_per_cpu_s": bare, "ceiling_ratio": per_cpu / bare}
    return BenchResult(**{**result.__dict__, "figures": figures})


def corpus(folder: Path, n: int) -> list[Path]:
    """``n`` CT instances in series of SLICES under ``folder``; those that are there are left alone."""
    import highdicom as hd

    from catalog import write_series

    image = np.random.default_rng(0).normal(40, 20, (SLICES, 64, 64)).astype(np.int16)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]]
    for start in range(0, n, SLICES):
        case = f"case-{start // SLICES:05d}"
        count = min(SLICES, n - start)
        volume = hd.Volume(image[:count], affine, "PATIENT")
        write_series(
            volume, folder / case, patient_id=deterministic_uid(case)[-12:], case=case, modality="CT", description="bench"
        )
    return sorted(folder.glob("*/*.dcm"))
