"""The slices of one volume: where each lies by its own header, and whether they are a regular grid."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import CatalogError
from catalog.frames import ImageFile
from catalog.nifti import SHEAR
from catalog.slices import thickness

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["Plane", "Planes"]

UNEVEN = 0.01
"""How far a step between slices may be from the mean one, as a part of it: what highdicom takes for regular too."""

SIDEWAYS = 0.01
"""How far a slice may lie beside the others, as a part of a pixel."""

_SAME = 1e-3  # mm
_ANGLE = 1e-4  # of direction cosines
_TELLING = (
    *("TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "EchoTime", "EffectiveEchoTime", "DiffusionBValue"),
    *("DiffusionGradientOrientation", "InversionTime", "FlipAngle", "TriggerTime", "NominalCardiacTriggerDelayTime"),
    *("NominalPercentageOfCardiacPhase", "FrameReferenceTime", "AcquisitionNumber", "ImageType", "FrameType", "StackID"),
    *("ConvolutionKernel", "ReconstructionDiameter", "KVP", "SliceThickness", "AcquisitionTime", "ContentTime"),
)


@dataclass(frozen=True)
class Plane:
    """Frame ``frame`` of ``image``, described by ``header``; ``position`` is its first voxel's centre in LPS mm."""

    image: ImageFile
    frame: int
    header: "Dataset"
    position: np.ndarray


class Planes:
    """The slices of one volume, ordered along the normal row × column of their orientation (PS3.3 §C.7.6.2.1.1).

    Axes (slices, rows, columns); vectors in LPS mm. Raises CatalogError, which names the attribute, where they cannot be one
    volume: several series, localizers, no position, or different size, spacing, orientation or frame of reference; a position
    that is there twice.
    """

    def __init__(self, images: Sequence[ImageFile], *, about: str) -> None:
        self.about = about
        _refuse_other_kinds(images, about)
        planes = [plane for image in images for plane in _planes_of(image)]
        self._refuse_differences(planes)
        header = planes[0].header
        along, down = np.array(header.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        height, width = (float(value) for value in header.PixelSpacing)
        if (
            abs(along @ down) > _ANGLE
            or abs(np.linalg.norm([along, down], axis=1) - 1).max() > _ANGLE
            or min(height, width) <= 0
        ):
            problem = "ImageOrientationPatient or PixelSpacing is wrong: two unit vectors at a right angle, lengths above 0"
            raise CatalogError(problem, about=about)
        self.row_step, self.column_step = down * height, along * width
        self.pixel = (height, width)
        self.normal = np.cross(along, down) / np.linalg.norm(np.cross(along, down))
        self.planes = sorted(planes, key=lambda plane: float(self.normal @ plane.position))
        self.shape = (len(planes), int(header.Rows), int(header.Columns))
        self._refuse_doubles()

    def __iter__(self) -> Iterator[Plane]:
        return iter(self.planes)

    @property
    def header(self) -> "Dataset":
        """Of the first slice."""
        return self.planes[0].header

    @cached_property
    def distances(self) -> np.ndarray:
        """Of each slice from the first, along the normal (mm)."""
        return self._from_first @ self.normal

    @cached_property
    def offsets(self) -> np.ndarray:
        """Of each slice from where the first is, within the plane: (slices, 2), mm down the rows and along the columns."""
        return np.stack(
            [self._from_first @ (step / np.linalg.norm(step)) for step in (self.row_step, self.column_step)], axis=1
        )

    @cached_property
    def steps(self) -> np.ndarray:
        """Between neighbours, along the normal (mm), one fewer than slices."""
        return np.diff(self.distances)

    @property
    def affine(self) -> np.ndarray:
        """(slice, row, column) index → LPS mm, float64; as exact as the slices are regular (``faults``)."""
        alone = self.normal * (thickness(self.header.get) or 1.0)
        step = self._from_first[-1] / (len(self.planes) - 1) if len(self.planes) > 1 else alone
        affine = np.eye(4)
        affine[:3] = np.stack([step, self.row_step, self.column_step, self.planes[0].position], axis=1)
        return affine

    @property
    def off_grid(self) -> float:
        """How far at most a slice's position lies from where ``affine`` has it (mm)."""
        placed = np.arange(len(self.planes))[:, None] * self.affine[:3, 0]
        return float(np.linalg.norm(self._from_first - placed, axis=1).max())

    @cached_property
    def missing(self) -> int:
        """How many slices are lacking where every step is a multiple of the smallest, else 0."""
        if len(self.steps) < 2:
            return 0
        times = self.steps / self.steps.min()
        whole = np.rint(times)
        return int((whole - 1).sum()) if (np.abs(times - whole) <= UNEVEN).all() else 0

    def faults(self) -> list[str]:
        """Why the slices are no regular grid, a line each; empty where they are one."""
        if len(self.planes) < 2:
            return []
        return [fault for fault in (self._tilt(), self._sideways(), self._unevenness()) if fault]

    @cached_property
    def _from_first(self) -> np.ndarray:
        return np.array([plane.position - self.planes[0].position for plane in self.planes])

    @property
    def _slope(self) -> np.ndarray:
        """mm within the plane for each mm along the normal."""
        slope: np.ndarray = self.offsets[-1] / self.distances[-1]
        return slope

    def _tilt(self) -> str:
        drift = float(np.linalg.norm(self.offsets[-1]))
        if np.linalg.norm(self._slope) <= SHEAR or drift <= SIDEWAYS * min(self.pixel):
            return ""
        degrees, stated = np.degrees(np.arctan(np.linalg.norm(self._slope))), self.header.get("GantryDetectorTilt")
        said = f"; GantryDetectorTilt says {stated}°" if stated else ""
        return f"the gantry was tilted: the slices lie {degrees:.3f}° off their normal, {drift:.2f} mm over all{said}"

    def _sideways(self) -> str:
        beside = np.linalg.norm(self.offsets - self.distances[:, None] * self._slope, axis=1)
        worst = int(beside.argmax())
        if beside[worst] <= SIDEWAYS * min(self.pixel):
            return ""
        return f"{self._named(worst)} lies {beside[worst]:.3f} mm beside the line of the others (ImagePositionPatient)"

    def _unevenness(self) -> str:
        off = np.abs(self.steps - self.steps.mean())
        if (off <= UNEVEN * self.steps.mean()).all():
            return ""
        worst = int(np.abs(self.steps - np.median(self.steps)).argmax())
        between = f"between {self._named(worst)} and {self._named(worst + 1)} (ImagePositionPatient)"
        if self.missing:
            gaps = f"{self.missing} slice{'s are' if self.missing > 1 else ' is'} missing"
            return f"{gaps}: steps of {self.steps.min():.4g} mm, but {self.steps[worst]:.4g} mm {between}"
        return (
            f"the slices are unevenly spaced: mostly {np.median(self.steps):.4g} mm, but {self.steps[worst]:.4g} mm {between}"
        )

    def _named(self, index: int) -> str:
        plane = self.planes[index]
        return f"{plane.image.name}{f' frame {plane.frame + 1}' if plane.image.frames > 1 else ''}"

    def _refuse_differences(self, planes: Sequence[Plane]) -> None:
        for keyword in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "FrameOfReferenceUID"):
            first = planes[0]
            other = next((plane for plane in planes if not _alike(first.header.get(keyword), plane.header.get(keyword))), None)
            if other is not None:
                values = f"{_shown(first.header.get(keyword))} in {first.image.name}, {_shown(other.header.get(keyword))}"
                problem = f"the slices differ in {keyword}: {values} in {other.image.name}"
                raise CatalogError(problem, about=self.about, remedy="export each part from a folder of its own")

    def _refuse_doubles(self) -> None:
        same = np.flatnonzero(self.steps < _SAME)
        if not same.size:
            return
        first, second = self.planes[same[0]], self.planes[same[0] + 1]
        places = len(self.planes) - len(same)
        problem = f"several volumes in one: {len(self.planes)} slices at {places} places"
        told = [name for name in _TELLING if _shown(first.header.get(name)) != _shown(second.header.get(name))]
        if told:
            values = f"{_shown(first.header.get(told[0]))}, {_shown(second.header.get(told[0]))}, …"
            problem += f", which differ in {told[0]} ({values})"
        else:
            problem += f", as {first.image.name} and {second.image.name}, which differ in nothing that tells volumes apart"
        raise CatalogError(problem, about=self.about, remedy="export each volume from a folder of its own")


def _refuse_other_kinds(images: Sequence[ImageFile], about: str) -> None:
    series = {str(image.header.get("SeriesInstanceUID", "")) for image in images}
    if len(series) > 1:
        listed = ", ".join(sorted(series)[:3]) + (", …" if len(series) > 3 else "")
        remedy = "ingest the folder, then export a series by its UID"
        raise CatalogError(f"{len(series)} series: {listed}", about=about, remedy=remedy)
    for image in images:
        if "LOCALIZER" in (image.header.get("ImageType") or ()):
            problem = f"a localizer, no part of a volume: {image.name} (ImageType)"
            raise CatalogError(problem, about=about, remedy="export the other slices from a folder of their own")
        if image.header.get("SamplesPerPixel", 1) != 1 or image.header.get("PhotometricInterpretation") == "PALETTE COLOR":
            raise CatalogError("colour images are not volumes", about=about)


def _planes_of(image: ImageFile) -> Iterable[Plane]:
    for frame in range(image.frames):
        header = image.described(frame) if image.frames > 1 or _enhanced(image) else image.header
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            value = np.atleast_1d(np.array(header.get(keyword), dtype=np.float64))  # NaN where there is none
            if value.shape != (count,) or not np.isfinite(value).all():
                problem = (
                    f"no {keyword}: it is not known where its slices lie ({image.header.get('Modality') or 'no modality'})"
                )
                raise CatalogError(problem, about=image.path)
        if image.frames > 1 and not _enhanced(image):
            raise CatalogError("its frames have no positions of their own (no functional groups)", about=image.path)
        yield Plane(image, frame, header, np.array(header.ImagePositionPatient, dtype=np.float64))


def _enhanced(image: ImageFile) -> bool:
    return bool(image.header.get("PerFrameFunctionalGroupsSequence"))


def _alike(first: Any, second: Any) -> bool:
    try:
        return bool(np.allclose(np.array(first, dtype=np.float64), np.array(second, dtype=np.float64), rtol=0, atol=_ANGLE))
    except (TypeError, ValueError):
        return (first or None) == (second or None)


def _shown(value: Any) -> str:
    return " ".join(str(value).split())
