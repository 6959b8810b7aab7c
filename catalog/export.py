"""Series as NIfTI files: every voxel where its DICOM header says, with the value it says."""

import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np

from catalog.disk import TEMPORARY, atomic_file
from catalog.errors import CatalogError
from catalog.frames import ImageFile, NoPicture
from catalog.planes import SIDEWAYS, Planes
from catalog.progress import Progress
from catalog.straightening import straightened

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["ExportReport", "export_nifti", "files_under"]

QFORM = 0.01
"""How far the qform may put a voxel from the sform, as a part of a voxel, before it is left out: its float32 quaternion is off
by up to a thousandth of a radian close to a half turn, where slightly oblique axial images are."""

_ENDINGS = (".nii.gz", ".nii")
_INTEGERS = (np.int16, np.uint16, np.int32, np.uint32, np.int64)


@dataclass(frozen=True)
class ExportReport:
    """What was written to ``out``: ``shape`` and ``affine`` with NIfTI's axes (column, row, slice) → RAS mm, the voxels'
    ``dtype`` and ``unit`` as the header names it, ``off_grid`` how far at most a slice's own position lies from where the
    affine has it (mm), the names of the ``segments`` by their value in a label map, and ``warnings``."""

    out: Path
    shape: tuple[int, ...]
    dtype: str
    unit: str
    affine: tuple[tuple[float, ...], ...]
    off_grid: float
    resampled: bool
    segments: dict[int, str]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "out": str(self.out), "segments": {str(k): name for k, name in self.segments.items()}}


@dataclass(frozen=True)
class _Content:
    """Voxels with the axes (slices, rows, columns) and their affine to LPS mm."""

    voxels: np.ndarray
    affine: np.ndarray
    unit: str = ""
    off_grid: float = 0.0
    resampled: bool = False
    segments: dict[int, str] | None = None
    warnings: tuple[str, ...] = ()


def files_under(path: Path) -> list[Path]:
    """The file ``path``, or every file in the folder ``path`` and below."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith(TEMPORARY))


def export_nifti(
    files: "Iterable[str | Path]",
    out: Path,
    *,
    about: str,
    resample: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write the one volume in ``files`` to ``out`` (.nii or .nii.gz), whole or not at all.

    Axes (column, row, slice), slices along the normal row × column, so that the affine, RAS mm, has a positive determinant;
    it is scanner-based, computed in float64 and held by the file's NIfTI-1 header in float32, as sform, and as qform where
    that can hold it. Voxels are the stored values after modality LUT or rescale: integers where these give integers, else
    float32 (float64 above 24 bits). A segmentation becomes a label map of its segment numbers on its own grid.

    Slices that are no regular, right-angled grid (a tilted gantry, uneven steps, missing slices) are refused with the reason,
    or with ``resample`` interpolated linearly onto one, as float32. Files that hold no picture are passed over with a warning.

    Raises CatalogError where ``out`` is there (unless ``force``), or ``files`` are not one volume, naming the attribute.
    """
    out = Path(out)
    if not out.name.endswith(_ENDINGS):
        raise CatalogError("the name does not end in .nii.gz or .nii", about=str(out), remedy="name a NIfTI file with --out")
    if out.exists() and not force:
        raise CatalogError("the file is there already", about=str(out), remedy="name another with --out, or add --force")
    images, passed = _images(files, about)
    with catch_warnings():
        simplefilter("ignore")  # of the files' own peculiarities
        try:
            segmented = any(_is_segmentation(image.header) for image in images)
            found = _label_map(images, about) if segmented else _volume(images, about, resample, progress)
        except (ValueError, TypeError, AttributeError) as problem:  # pydicom's, of an attribute that is garbled
            said = " ".join(str(problem).split())[:200]
            raise CatalogError(f"its headers are not as they should be: {said}", about=about) from problem
    affine = _write(found, out)
    return ExportReport(
        out=out,
        shape=found.voxels.shape[::-1],
        dtype=str(found.voxels.dtype),
        unit=found.unit,
        affine=tuple(map(tuple, affine.tolist())),
        off_grid=found.off_grid,
        resampled=found.resampled,
        segments=found.segments or {},
        warnings=(*passed, *found.warnings),
    )


def _images(files: "Iterable[str | Path]", about: str) -> tuple[list[ImageFile], list[str]]:
    images, passed = [], []
    for file in files:
        try:
            images.append(ImageFile(file))
        except NoPicture as problem:
            passed.append(str(problem))
    if not images:
        raise CatalogError("no DICOM image in it", about=about, remedy=passed[0] if passed else "check the path")
    more = [f"passed over {len(passed)} files without a picture, first {passed[0]}"] if passed else []
    return images, more


def _volume(images: Sequence[ImageFile], about: str, resample: bool, progress: Progress | None) -> _Content:
    planes = Planes(images, about=about)
    faults = planes.faults()
    if faults and not resample:
        remedy = "add --resample to interpolate a regular grid"
        raise CatalogError(f"no regular grid: {'; '.join(faults)}", about=about, remedy=remedy)
    voxels, affine = _values(planes, progress), planes.affine
    warnings = []
    if faults:
        voxels, affine = straightened(planes, voxels)
        warnings = [f"resampled: {fault}" for fault in faults]
        if planes.missing:
            warnings.append(f"interpolated the {planes.missing} missing of {len(voxels)} slices")
    unit = str(planes.header.get("Units") or planes.header.get("RescaleType") or "")
    off = 0.0 if faults else planes.off_grid
    return _Content(voxels, affine, unit, off, bool(faults), warnings=tuple(warnings))


def _values(planes: Planes, progress: Progress | None) -> np.ndarray:
    """The values of every slice after the modality transform, (slices, rows, columns)."""
    scales = [_scale(plane.header, planes.about) for plane in planes]
    stored = _stored(planes, progress)
    if all(scale == (1.0, 0.0) for scale in scales):
        return stored
    if stored.dtype.kind in "iu" and all(slope.is_integer() and shift.is_integer() for slope, shift in scales):
        pairs = list(zip(stored, scales, strict=True))
        ends = [int(end) * int(m) + int(b) for plane, (m, b) in pairs for end in (plane.min(), plane.max())]
        for kind in _INTEGERS:
            if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max:
                whole = np.empty(stored.shape, kind)
                for target, (plane, (slope, shift)) in zip(whole, pairs, strict=True):
                    target[...] = plane.astype(np.int64) * int(slope) + int(shift)
                return whole
    precise = stored.dtype.itemsize > 4 or (stored.dtype.kind in "iu" and stored.dtype.itemsize > 3)
    real = np.empty(stored.shape, np.float64 if precise else np.float32)
    for target, plane, (slope, shift) in zip(real, stored, scales, strict=True):
        target[...] = plane * np.float64(slope) + shift
    return real


def _stored(planes: Planes, progress: Progress | None) -> np.ndarray:
    """The slices as stored, or after a modality LUT (PS3.3 §C.11.1) where they have one."""
    from pydicom.pixels import apply_modality_lut

    slices = []
    for plane, pixels in zip(planes, _decoded(planes), strict=True):
        slices.append(apply_modality_lut(pixels, plane.header) if plane.header.get("ModalityLUTSequence") else pixels)
        if progress:
            progress(len(slices), len(planes.planes))
    found = np.stack(slices)
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _decoded(planes: Planes) -> Iterator[np.ndarray]:
    """The stored pixels of each slice; the header of a multi-frame file is read once, of many files one is open at a time."""
    order: dict[str, list[int]] = {}
    for plane in planes:
        order.setdefault(plane.image.path, []).append(plane.frame)
    streams: dict[str, Iterator[np.ndarray]] = {}
    for plane in planes:
        path, image = plane.image.path, plane.image
        if image.frames == 1:
            yield image.frame(0, raw=True)
            continue
        if path not in streams:
            streams[path] = image.each(order[path], raw=True)
        yield next(streams[path])


def _scale(header: "Dataset", about: str) -> tuple[float, float]:
    """(RescaleSlope, RescaleIntercept) as numbers."""
    if header.get("ModalityLUTSequence"):
        return 1.0, 0.0
    slope, shift = header.get("RescaleSlope"), header.get("RescaleIntercept")
    scale = (1.0 if slope is None else float(slope), 0.0 if shift is None else float(shift))
    if not np.isfinite(scale).all() or scale[0] == 0:
        raise CatalogError(f"RescaleSlope {slope}, RescaleIntercept {shift} give no values", about=about)
    return scale


def _is_segmentation(header: "Dataset") -> bool:
    return header.get("Modality") == "SEG" or "SegmentSequence" in header


def _label_map(images: Sequence[ImageFile], about: str) -> _Content:
    import highdicom as hd

    if len(images) > 1:
        named = ", ".join(image.name for image in images[:3])
        remedy = "export one by its file"
        raise CatalogError(f"{len(images)} objects with a segmentation among them: {named}", about=about, remedy=remedy)
    try:
        seg = hd.seg.segread(images[0].path)
        names = {int(number): str(seg.get_segment_description(number).segment_label) for number in seg.segment_numbers}
        kind = np.uint8 if max(names) < 256 else np.uint16
        volume = seg.get_volume(combine_segments=True, dtype=kind).ensure_handedness("LEFT_HANDED", flip_axis=0)
        off = _off_grid(images[0], volume.affine)
    except Exception as problem:  # highdicom and its codecs raise many kinds
        said = " ".join(str(problem).split())[:200]
        remedy = "segments that overlap, fractions and tilted grids have no label map"
        raise CatalogError(f"no label map can be made of it: {said}", about=about, remedy=remedy) from problem
    if off > SIDEWAYS:
        raise CatalogError(f"its slices are no regular grid: one lies {off:.2f} pixels off it", about=about)
    return _Content(np.asarray(volume.array), volume.affine, segments=names)


def _off_grid(image: ImageFile, affine: np.ndarray) -> float:
    """How far the first voxel of a frame lies beside the first of a slice of the grid, in pixels, at most."""
    placed = [[*image.described(frame).ImagePositionPatient, 1.0] for frame in range(image.frames)]
    inside = np.linalg.solve(affine, np.array(placed, dtype=np.float64).T)[1:3]
    return float(np.abs(inside).max())


def _write(found: _Content, out: Path) -> np.ndarray:
    """Write the file; its affine (column, row, slice) → RAS mm."""
    import nibabel

    affine: np.ndarray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ found.affine[:, [2, 1, 0, 3]] + 0.0
    image: Any = nibabel.Nifti1Image(found.voxels.transpose(2, 1, 0), affine, dtype=found.voxels.dtype)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    if _apart(image.get_qform(), affine, image.shape) > QFORM:
        image.set_qform(affine, code="unknown")
    image.header.set_xyzt_units("mm")
    with atomic_file(out.absolute()) as file:
        if out.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)
    return affine


def _apart(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines put a corner of the grid from each other, as a part of the shortest side of a voxel, at most."""
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    beside = np.c_[corners, np.ones(8)] @ (first - second)[:3].T
    return float(np.linalg.norm(beside, axis=1).max() / np.linalg.norm(second[:3, :3], axis=0).min())
