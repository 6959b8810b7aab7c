"""One benchmark harness: ours against a baseline, both warmed, then interleaved in one run, so that a machine whose speed
drifts slows both alike. A bench is two functions and what they worked on."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

__all__ = ["BenchResult", "Cost", "compare", "cost", "device_name"]


@dataclass(frozen=True)
class BenchResult:
    """Median wall seconds a run of each way; ``ratio`` above 1 means better than the baseline. ``figures``: ``wall_ratio`` (the
    same), ``cpu_ratio`` (CPU seconds of this process and its children), and a bench's own."""

    bench: str
    device: str
    n: int
    ours: float
    baseline: float
    ratio: float
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The one JSON object that ``voxloop bench NAME --json`` ends with."""
        own = {"bench": self.bench, "device": self.device, "n": self.n}
        return {**own, "ours": self.ours, "baseline": self.baseline, "ratio": self.ratio, **self.figures}


def compare(
    bench: str,
    ours: Callable[[], object],
    baseline: Callable[[], object],
    *,
    n: int,
    rounds: int = 5,
    warmup: int = 1,
    figures: Mapping[str, float] | None = None,
) -> BenchResult:
    """Run both ``warmup`` times uncounted, then in turn ``rounds`` times (ABBA order).

    ``n`` is how many things a run works on. The ratio is the median of the pairs' ratios baseline / ours, in wall time.
    """
    for _ in range(warmup):
        ours()
        baseline()
    pairs: list[tuple[Cost, Cost]] = []
    for i in range(rounds):
        if i % 2:
            theirs = cost(baseline)
            pairs.append((cost(ours), theirs))
        else:
            mine = cost(ours)
            pairs.append((mine, cost(baseline)))
    ratios = {
        "wall_ratio": statistics.median(theirs.wall / mine.wall for mine, theirs in pairs),
        "cpu_ratio": statistics.median(theirs.cpu / mine.cpu for mine, theirs in pairs),
        "ours_cpu": statistics.median(mine.cpu for mine, _ in pairs),
        "baseline_cpu": statistics.median(theirs.cpu for _, theirs in pairs),
    }
    return BenchResult(
        bench=bench,
        device=device_name(),
        n=n,
        ours=statistics.median(mine.wall for mine, _ in pairs),
        baseline=statistics.median(theirs.wall for _, theirs in pairs),
        ratio=ratios["wall_ratio"],
        figures={**ratios, **(figures or {})},
    )


def device_name() -> str:
    """The accelerator's name, or the processor's with its cores."""
    import os
    import platform
    from pathlib import Path

    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores"


@dataclass(frozen=True)
class Cost:
    """Seconds of one run: by the clock, and of the processors (of this process and all its children)."""

    wall: float
    cpu: float


def cost(work: Callable[[], object]) -> Cost:
    """What ``work`` takes, of this process and its children."""
    cpu, started = _cpu_seconds(), time.perf_counter()
    work()
    return Cost(time.perf_counter() - started, max(_cpu_seconds() - cpu, 1e-9))


def _cpu_seconds() -> float:
    """CPU seconds of this process, its children that live and those that have ended."""
    total, me = 0.0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended meanwhile; its parent has its times
            continue
        total += times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return total
