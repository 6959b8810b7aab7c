"""The cases of a dataset in any order, counted as they are read; those that fit stay on the device."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch

from datamodules.errors import DataError
from datamodules.sample import Sample

__all__ = ["Cache", "Read", "Volumes"]

HOST_MEMORY = 2 * 1024**3  # bytes that are kept where the device is the CPU

Read = Callable[[Sequence[int]], Iterator[Sample]]
"""Rows by their numbers, in the order asked for."""


class Cache:
    """Samples as they are stored, on ``device``: first come, first kept, within ``budget`` bytes (default: half of what a GPU
    has free, 2 GiB of a CPU's)."""

    def __init__(self, device: torch.device, budget: int | None = None) -> None:
        self.device = device
        self._left = _budget(device) if budget is None else budget
        self._kept: dict[tuple[str, int], Sample] = {}

    def get(self, role: str, row: int) -> Sample | None:
        """The sample, if it was kept."""
        return self._kept.get((role, row))

    def take(self, role: str, row: int, sample: Sample) -> Sample:
        """``sample`` on the device (its centres stay on the CPU, where patches are drawn), kept if there is room."""
        if self.device.type == "cuda":
            sample = replace(sample, image=sample.image.pin_memory(), mask=sample.mask.pin_memory())
        placed = replace(sample.to(self.device), centres=sample.centres)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # another thread's stream may use it next
        if (role, row) not in self._kept and placed.nbytes <= self._left:
            self._left -= placed.nbytes
            self._kept[role, row] = placed
        return placed


class Volumes:
    """The ``rows`` cases of one role, by number; ``read`` reads those that the ``cache`` lacks. ``about`` is their folder.

    DataError where ``read`` gives another number of cases than it was asked for, before the last of them is given.
    """

    def __init__(self, read: Read, rows: int, cache: Cache, *, role: str, about: str) -> None:
        self._read, self._rows, self._cache, self._role, self._about = read, rows, cache, role, about

    def in_order(self, order: Sequence[int]) -> Iterator[Sample]:
        """The cases of these numbers, one by one."""
        kept = {row: self._cache.get(self._role, row) for row in order}
        read = self._counted([row for row in order if kept[row] is None])
        for row in order:
            yield kept[row] or self._cache.take(self._role, row, next(read))

    def shuffled(self, seed: int, visits: Iterable[int]) -> Iterator[tuple[int, Sample]]:
        """(visit, case) for ascending numbers of visits along the endless chain of permutations that follows from ``seed``.

        Each permutation's part is one reading, so that a case that is kept is never asked for again.
        """
        for number, part in groupby(visits, lambda visit: visit // self._rows):
            chosen = list(part)
            order = np.random.default_rng((seed, 0, number)).permutation(self._rows)
            yield from zip(chosen, self.in_order([int(order[visit % self._rows]) for visit in chosen]), strict=True)

    def _counted(self, order: Sequence[int]) -> Iterator[Sample]:
        found = self._read(order) if order else iter(())
        for number in range(len(order)):
            sample = self._next(found)
            if sample is None:
                raise self._unlike(f"{number} cases were read, {len(order)} were asked for")
            if number + 1 == len(order) and self._next(found) is not None:
                raise self._unlike(f"more than the {len(order)} cases that were asked for were read")
            yield sample

    def _next(self, found: Iterator[Sample]) -> Sample | None:
        try:
            return next(found, None)
        except (OSError, ValueError, IndexError) as problem:  # damaged, or gone since the dataset was built
            raise self._unlike(f"cannot be read: {problem}") from problem

    def _unlike(self, problem: str) -> DataError:
        return DataError(problem, about=self._about, remedy="remove the dataset's folder; the next training builds it again")


def _budget(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0] // 2) if device.type == "cuda" else HOST_MEMORY
