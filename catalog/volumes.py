"""Which volumes a series holds: slices that repeat a position are told apart by what differs in their headers.

A volume of a series is named by a reference: the SeriesInstanceUID, and where the series holds several what picks one out,
``1.2.3#EchoTime=4.6`` or ``1.2.3#DiffusionBValue=1000&ImageType=DERIVED\\PRIMARY\\ADC``. ``TriggerTime=@3`` is the third in
order at each position: the times themselves differ from slice to slice.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import numpy as np

from catalog.dictionary import address
from catalog.errors import CatalogError
from catalog.slices import Slice, number, slices, thickness
from catalog.sources import gone, read_dataset, read_series

if TYPE_CHECKING:
    import highdicom as hd

__all__ = ["KEYWORDS", "SeriesVolume", "parse", "pick", "read_volume", "split_series", "volumes_of"]

_GRID = ("FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
"""What is one for all slices of a volume."""

_TELLING = (
    *("ImageType", "EchoTime", "EchoNumbers", "DiffusionBValue", "DiffusionGradientOrientation", "InversionTime", "FlipAngle"),
    *("TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "NominalPercentageOfRespiratoryPhase", "TriggerTime"),
    *("FrameReferenceTime", "ConvolutionKernel", "StackID", "AcquisitionNumber", "AcquisitionTime"),
)
"""What tells the volumes of a series apart, the most telling first."""

_ORDERED = ("TriggerTime", "AcquisitionTime")
"""What may do so by its order at each position."""

_PLACE = ("ImagePositionPatient", "SpacingBetweenSlices", "SliceThickness")
KEYWORDS = (*_GRID, *_TELLING, *_PLACE)
"""The attributes that ``split_series`` asks of a slice."""

Criteria = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SeriesVolume:
    """A volume of a series. ``criteria`` (keyword, value) pick it out of the series; none where it is the whole series.

    ``slices`` are in the order of the volume's first axis, and ``geometry`` (index → LPS mm) is its grid, as
    ``Archive.volume`` gives it; where ``problem`` says why they are no regular volume, None.
    """

    series_uid: str
    criteria: Criteria
    slices: tuple[Slice, ...]
    geometry: "hd.VolumeGeometry | None"
    problem: str = ""

    @property
    def ref(self) -> str:
        """What ``Archive.volume`` takes."""
        told = "&".join(f"{keyword}={quote(value, safe=_SAFE)}" for keyword, value in self.criteria)
        return f"{self.series_uid}#{told}" if told else self.series_uid

    @property
    def is_localizer(self) -> bool:
        """Whether the images only show where others lie (PS3.3 C.8.2.1.1.1)."""
        return "LOCALIZER" in self.slices[0]["ImageType"].split("\\")

    def has(self, keyword: str, value: str) -> bool:
        """Whether the criterion holds: numbers are compared as numbers."""
        found = self.slices[0].values.get(keyword, "")
        return (keyword, value) in self.criteria or found == value or _same_numbers(found, value)


_SAFE = " /\\,.:+@^"


def split_series(series_uid: str, found: Sequence[Slice]) -> list[SeriesVolume]:
    """The volumes of a series, one or several, in the order of their criteria; never none.

    First slices of other size, spacing, orientation or frame of reference are parted. Then, as long as several slices lie
    at one position, the first attribute parts them that has other values there, and no more values than slices lie at a
    position: what differs from slice to slice, as a time may, tells no volumes apart. Where nothing does, one that holds
    all of them is given, with its problem.
    """
    parts: list[tuple[Criteria, Sequence[Slice]]] = [((), found)]
    for keyword in _GRID:
        parts = [
            ((*criteria, (keyword, value)) if len(groups) > 1 else criteria, group)
            for criteria, part in parts
            for groups in [_grouped(part, keyword)]
            for value, group in groups.items()
        ]
    told = [volume for criteria, part in parts for volume in _told_apart(part, criteria)]
    return [_volume(series_uid, criteria, part, problem) for criteria, part, problem in told]


def _told_apart(part: Sequence[Slice], criteria: Criteria) -> list[tuple[Criteria, Sequence[Slice], str]]:
    if not all(len(_position(found)) == 3 for found in part):
        return [(criteria, part, "its images have no position in the patient: not slices of a volume")]
    most = _repeats(part)
    if most == 1:
        return [(criteria, part, "")]
    exactly = ((keyword, _grouped(part, keyword)) for keyword in _TELLING)
    in_order = ((keyword, _by_order(part, keyword, most)) for keyword in _ORDERED)
    for keyword, groups in chain(exactly, in_order):
        if 2 <= len(groups) <= most and max(map(_repeats, groups.values())) < most:
            return [volume for value, group in groups.items() for volume in _told_apart(group, (*criteria, (keyword, value)))]
    return [(criteria, part, f"{most} slices lie at one position, and nothing in their headers tells them apart")]


def _repeats(part: Iterable[Slice]) -> int:
    """How many slices lie at one position, at most."""
    return max(Counter(_position(found) for found in part).values())


def _position(found: Slice) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in found.numbers("ImagePositionPatient"))


def _grouped(part: Sequence[Slice], keyword: str) -> dict[str, list[Slice]]:
    """The slices by the attribute's value, in the order of the values."""
    groups: dict[str, list[Slice]] = {}
    for found in part:
        groups.setdefault(_rounded(found, keyword), []).append(found)
    numbers = [number(value) for value in groups]
    by = (lambda value: (float(value), "")) if None not in numbers else (lambda value: (0.0, value))
    return {value: groups[value] for value in sorted(groups, key=by)}


def _by_order(part: Sequence[Slice], keyword: str, most: int) -> dict[str, list[Slice]]:
    """Groups ``@1``, ``@2``, … of the first, second, … slice at each position; none where not every position has as many."""
    groups: dict[str, list[Slice]] = {f"@{rank}": [] for rank in range(1, most + 1)}
    stacks: dict[tuple[float, ...], list[Slice]] = {}
    for found in part:
        stacks.setdefault(_position(found), []).append(found)
    for stack in stacks.values():
        times = [number(found[keyword]) for found in stack]
        if len(stack) < most or None in times or len(set(times)) < most:
            return {}
        for rank, found in enumerate(sorted(stack, key=lambda found: float(found[keyword])), 1):
            groups[f"@{rank}"].append(found)
    return groups


def _rounded(found: Slice, keyword: str) -> str:
    """The value, without the noise in the last digits of what is computed for each slice anew."""
    if keyword not in ("PixelSpacing", "ImageOrientationPatient"):
        return found[keyword]
    return "\\".join(f"{round(value, 4) + 0.0:g}" for value in found.numbers(keyword))


def _volume(series_uid: str, criteria: Criteria, part: Sequence[Slice], problem: str) -> SeriesVolume:
    from highdicom import VolumeGeometry
    from highdicom.spatial import get_volume_positions

    first = part[0]
    if not problem and (len(first.numbers("PixelSpacing")), len(first.numbers("ImageOrientationPatient"))) != (2, 6):
        problem = "its images have no pixel spacing or no orientation"
    elif not problem and any(len({found[keyword] for found in part}) > 1 for keyword in _GRID):
        problem = "its slices differ a little in orientation or spacing"
    if problem:
        return SeriesVolume(series_uid, criteria, tuple(part), None, problem)
    positions = np.array([found.numbers("ImagePositionPatient") for found in part])
    orientation = first.numbers("ImageOrientationPatient")
    between, order = thickness(first.values.get) or 1.0, [0]
    if len(part) > 1:
        between, order = get_volume_positions(positions, orientation)
    if order is None:
        return SeriesVolume(series_uid, criteria, tuple(part), None, "slices are missing or unevenly spaced")
    ordered = [found for _, found in sorted(zip(order, part, strict=True), key=lambda pair: pair[0])]
    grid = VolumeGeometry.from_attributes(
        image_position=ordered[0].numbers("ImagePositionPatient"),
        image_orientation=orientation,
        rows=int(first["Rows"]),
        columns=int(first["Columns"]),
        pixel_spacing=first.numbers("PixelSpacing"),
        spacing_between_slices=between,
        number_of_frames=len(part),
        coordinate_system="PATIENT",
        frame_of_reference_uid=first["FrameOfReferenceUID"] or None,
    )
    return SeriesVolume(series_uid, criteria, tuple(ordered), grid)


def parse(ref: str) -> tuple[str, Criteria]:
    """(SeriesInstanceUID, criteria) of a reference; CatalogError where a criterion is none, or names no attribute."""
    series_uid, _, told = ref.partition("#")
    criteria = [part.partition("=")[::2] for part in told.split("&")] if told else []
    for keyword, _ in criteria:
        address(keyword)
    return series_uid, tuple((keyword, unquote(value)) for keyword, value in criteria)


def volumes_of(paths: Iterable[str], series_uid: str, keywords: Iterable[str] = ()) -> list[SeriesVolume]:
    """``split_series`` of files; ``keywords`` are asked of each slice besides."""
    from catalog.walk import walk

    found: list[Slice] = []
    for path in paths:
        try:
            found += slices(walk(path).json, path, {*KEYWORDS, *keywords})
        except FileNotFoundError:
            raise gone(path) from None
    return split_series(series_uid, found)


def pick(paths: Sequence[str], ref: str) -> SeriesVolume:
    """The one volume of a series' files that ``ref`` names.

    CatalogError where none or several fit, with the references of those there are, or where it is no regular volume.
    """
    series_uid, criteria = parse(ref)
    volumes = volumes_of(paths, series_uid, [keyword for keyword, _ in criteria])
    fitting = [volume for volume in volumes if all(volume.has(*criterion) for criterion in criteria)]
    if len(fitting) != 1:
        problem = f"the series holds {len(volumes)} volumes, and {len(fitting) or 'none'} of them fit"
        remedy = f"ask for one of {', '.join(repr(volume.ref) for volume in (fitting or volumes)[:8])}"
        raise CatalogError(problem, about=ref, remedy=remedy)
    if fitting[0].problem:
        raise CatalogError(f"not one regular volume: {fitting[0].problem}", about=ref)
    return fitting[0]


def read_volume(paths: Sequence[str], ref: str) -> "hd.Volume":
    """The volume that ``ref`` names of a series' files, as VolumeSource.volume."""
    if "#" in ref:
        return _read(pick(paths, ref))
    try:
        return read_series(paths, about=ref)
    except CatalogError:
        volumes = volumes_of(paths, ref)
        in_parts = len(paths) > 1 and volumes[0].slices[0].frame is not None  # multi-frame objects that make one volume
        if len(volumes) == 1 and not in_parts:
            raise
        return _read(pick(paths, ref))  # which says what there is, where there are several


def _read(volume: SeriesVolume) -> "hd.Volume":
    import highdicom as hd

    if volume.slices[0].frame is None:
        return read_series([found.path for found in volume.slices], about=volume.ref)
    assert volume.geometry is not None  # pick gives no other
    array = np.empty(volume.geometry.spatial_shape, np.float32)
    for path in dict.fromkeys(found.path for found in volume.slices):
        places = [place for place, found in enumerate(volume.slices) if found.path == path]
        try:
            image = hd.Image.from_dataset(read_dataset(path), copy=False)
            array[places] = image.get_frames([volume.slices[place].frame for place in places], dtype=np.float32)
        except (ValueError, AttributeError, RuntimeError, NotImplementedError, KeyError, TypeError) as problem:
            line = " ".join(str(problem).split())[:200]
            raise CatalogError(f"its frames cannot be read: {line}", about=volume.ref) from problem
    return volume.geometry.with_array(array)


def _same_numbers(first: str, second: str) -> bool:
    a, b = ([number(part) for part in text.split("\\")] for text in (first, second))
    return None not in a and a == b
