"""One benchmark harness: ours against a baseline, both warmed, then interleaved in one run, so that a machine whose speed
drifts slows both alike. A bench is two functions and what they worked on."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BenchResult", "compare", "device_name"]


@dataclass(frozen=True)
class BenchResult:
    """Median seconds a run of each way; ``ratio`` above 1 means better than the baseline. ``figures`` are a bench's own."""

    bench: str
    device: str
    n: int
    ours: float
    baseline: float
    ratio: float
    figures: Mapping[str, float] = field(default_factory=dict)

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
    pairs: list[tuple[float, float]] = []
    for i in range(rounds):
        if i % 2:
            theirs = _seconds(baseline)
            pairs.append((_seconds(ours), theirs))
        else:
            mine = _seconds(ours)
            pairs.append((mine, _seconds(baseline)))
    return BenchResult(
        bench=bench,
        device=device_name(),
        n=n,
        ours=statistics.median(mine for mine, _ in pairs),
        baseline=statistics.median(theirs for _, theirs in pairs),
        ratio=statistics.median(theirs / mine for mine, theirs in pairs),
        figures=dict(figures or {}),
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


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
