"""Who labels: a human through the viewer, or a simulated reader who reveals ground truth."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import highdicom as hd

from catalog import Archive, LabelSet, Submission, seg
from labeling.errors import LabelingError

__all__ = ["Reader", "SimulatedReader"]


class Reader(Protocol):
    """Labels one series; ``suggestion`` is a model's mask on the series' grid, or None."""

    def label(self, series: str, suggestion: hd.Volume | None) -> Submission:
        """The reader's answer: a uint8 label map on the series' grid, and for each structure whether it is there."""
        ...


class SimulatedReader:
    """Knows the truth and reveals it for the series asked for: DICOM SEG files, by SeriesInstanceUID of the images."""

    def __init__(self, archive: Archive, labels: LabelSet, truth: Mapping[str, Path], *, author: str = "simulated") -> None:
        self._archive, self._labels, self._truth, self._author = archive, labels, truth, author

    def label(self, series: str, suggestion: hd.Volume | None) -> Submission:
        """See Reader; LabelingError where the truth of that series is not known."""
        if series not in self._truth:
            raise LabelingError("no ground truth for this series", about=series, remedy="import the cohort with its labels/")
        image = self._archive.volume(series)
        mask = seg.decode(self._truth[series], image, self._labels)
        found = set(map(int, set(mask.array.ravel().tolist())))
        return Submission(
            series_uid=series,
            mask=mask,
            states={s.name: "present" if s.value in found else "absent" for s in self._labels.structures},
            author=self._author,
            role="simulated",
            voxels_changed=None if suggestion is None else int((suggestion.array != mask.array).sum()),
        )
