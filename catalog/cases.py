"""The cases of a project: by rules over headers a study's series become one case of ordered channels, or are refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from catalog._query import quoted
from catalog.channels import Channel
from catalog.project import Case, Project
from catalog.slices import Slice, number, slices
from catalog.volumes import KEYWORDS, SeriesVolume, split_series

if TYPE_CHECKING:
    import highdicom as hd

    from catalog.archive import Archive
    from catalog.sources import VolumeSource

__all__ = ["Study", "Verdict", "case_volumes", "examine"]

_TOLD = ("Modality", "SeriesDescription", "SeriesNumber", "SeriesDate", "SeriesTime")
_STUDIES_AT_ONCE = 100


@dataclass(frozen=True)
class Verdict:
    """What became of a volume, or of a series that is none: it is ``channel`` of the case, or ``reason`` says why not.

    ``ref`` names the volume (``catalog.volumes``); without channels in the project a volume that is a case has the channel
    ``image``.
    """

    ref: str
    modality: str
    description: str
    channel: str
    reason: str


@dataclass(frozen=True)
class Study:
    """A study of the cohort: its cases, or the ``reason`` why it has none, and a verdict for each volume of each series."""

    study_uid: str
    patient_id: str
    cases: tuple[Case, ...]
    reason: str
    verdicts: tuple[Verdict, ...]


def examine(archive: "Archive", project: Project) -> Iterator[Study]:
    """Every study of the cohort, by StudyInstanceUID, with its cases and the reasons.

    A series outside the cohort, without images, or of localizers is in no case, nor is a volume that is irregular. With
    channels a study is one case, if exactly one volume fits each (or one is preferred), the volumes share a
    FrameOfReferenceUID and overlap; without them each series that is one regular volume is a case.
    CatalogError as ``Project.cases``.
    """
    cohort: dict[str, dict[str, Case]] = {}
    for case in project.series(archive):
        cohort.setdefault(case.study_uid, {})[case.series_uid] = case
    keywords = {*KEYWORDS, *_TOLD, *(keyword for channel in project.channels for keyword in channel.where)}
    images = set(archive.sql("SELECT SeriesInstanceUID FROM series WHERE is_image")["SeriesInstanceUID"].to_pylist())
    studies = sorted(cohort)
    for start in range(0, len(studies), _STUDIES_AT_ONCE):
        uids = studies[start : start + _STUDIES_AT_ONCE]
        found = _headers(archive, uids, keywords)
        for study_uid in uids:
            chosen, series = cohort[study_uid], found.get(study_uid, {})
            patient = next((case.patient_id for case in chosen.values() if case.patient_id), "")
            candidates, verdicts = _candidates(series, chosen, images)
            study = _channelled if project.channels else _single
            cases, reason, more = study(project.channels, candidates, study_uid, patient)
            listed = sorted([*verdicts, *more], key=lambda verdict: verdict.ref)
            yield Study(study_uid, patient, tuple(cases), reason, tuple(listed))


def case_volumes(source: "VolumeSource", case: Case) -> "list[hd.Volume]":
    """The channels of a case in their order, float32, each on the grid of the first (index → LPS mm).

    The others are resampled linearly at the centres of its voxels, without smoothing before; outside a channel's outer
    faces stands that channel's lowest value. A channel on the same grid is given as it is. CatalogError as
    ``VolumeSource.volume``.
    """
    volumes = [source.volume(ref) for ref in case.refs]
    grid = volumes[0].get_geometry()
    return [volumes[0], *(_resampled(volume, grid) for volume in volumes[1:])]


def _headers(archive: "Archive", studies: Sequence[str], keywords: set[str]) -> dict[str, dict[str, list[Slice]]]:
    """StudyInstanceUID → SeriesInstanceUID → slices of the current objects."""
    listed = ", ".join(quoted(uid) for uid in studies)
    columns = "StudyInstanceUID, SeriesInstanceUID, path, meta"
    found: dict[str, dict[str, list[Slice]]] = {}
    for batch in archive.query(f"SELECT {columns} FROM instances WHERE StudyInstanceUID IN ({listed})"):
        for study, series, path, meta in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            found.setdefault(study, {}).setdefault(series, []).extend(slices(orjson.loads(meta), path, keywords))
    return found


def _candidates(
    series: Mapping[str, Sequence[Slice]], cohort: Mapping[str, Case], images: set[str]
) -> tuple[list[SeriesVolume], list[Verdict]]:
    """The volumes that a case may have, and why the others may be in none."""
    candidates, verdicts = [], []
    for uid, found in sorted(series.items()):
        if uid not in cohort or uid not in images:
            reason = (
                "not in the project's cohort" if uid not in cohort else f"no image: {found[0]['Modality'] or 'no modality'}"
            )
            verdicts.append(_verdict(SeriesVolume(uid, (), tuple(found), None), reason=reason))
            continue
        for volume in split_series(uid, found):
            if volume.problem:
                verdicts.append(_verdict(volume, reason=volume.problem))
            else:
                candidates.append(volume)
    return candidates, verdicts


Found = tuple[list[Case], str, list[Verdict]]


def _single(_: Sequence[Channel], candidates: Sequence[SeriesVolume], study_uid: str, patient_id: str) -> Found:
    """Each series that is one volume is a case."""
    cases, verdicts = [], []
    for volume in candidates:
        if volume.criteria:
            verdicts.append(_verdict(volume, reason="one of several volumes of its series: a channel may ask for it"))
        elif volume.is_localizer:
            verdicts.append(_verdict(volume, reason="a localizer"))
        else:
            cases.append(Case(volume.series_uid, study_uid, patient_id))
            verdicts.append(_verdict(volume, channel="image"))
    return cases, "" if cases else "no series of it is one regular volume", verdicts


def _channelled(channels: Sequence[Channel], candidates: Sequence[SeriesVolume], study_uid: str, patient_id: str) -> Found:
    """One case of a volume a channel, or why not."""
    fitting = {channel.name: [v for v in candidates if not _misfit(channel, v)] for channel in channels}
    taken, reasons = [], []
    for channel in channels:
        volume, reason = _one(channel, fitting[channel.name])
        taken.append(volume)
        reasons += [reason] if reason else []
    chosen = [volume for volume in taken if volume is not None]
    reason = "; ".join(reasons) or _together(channels, chosen)
    case = Case(chosen[0].series_uid, study_uid, patient_id, tuple(volume.ref for volume in chosen)) if not reason else None
    verdicts = []
    for volume in candidates:
        names = [channel.name for channel, one in zip(channels, taken, strict=True) if one is volume]
        if names and case:
            verdicts.append(_verdict(volume, channel=names[0]))
        else:
            verdicts.append(_verdict(volume, reason=_why_not(channels, volume, fitting, names, reason)))
    return [case] if case else [], reason, verdicts


def _misfit(channel: Channel, volume: SeriesVolume) -> str:
    if volume.is_localizer and "ImageType" not in channel.where:
        return "is a localizer"
    return channel.misfit(volume.slices[0])


def _one(channel: Channel, fitting: Sequence[SeriesVolume]) -> tuple[SeriesVolume | None, str]:
    """The volume for a channel, or why there is none."""
    if not fitting:
        return None, f"no volume fits channel {channel.name}"
    if channel.prefer == "largest":
        best = max(map(_voxels, fitting))
        fitting = [volume for volume in fitting if _voxels(volume) == best]
    elif channel.prefer == "latest":
        last = max(map(_time, fitting))
        fitting = [volume for volume in fitting if _time(volume) == last]
    elif channel.prefer == "first":
        fitting = sorted(fitting, key=_number)[:1]
    if len(fitting) == 1:
        return fitting[0], ""
    also = f", and none is the {channel.prefer} alone" if channel.prefer else "; narrow `where`, or say which to `prefer`"
    return None, f"{len(fitting)} volumes fit channel {channel.name}{also}"


def _voxels(volume: SeriesVolume) -> int:
    return int(np.prod(volume.geometry.spatial_shape)) if volume.geometry else 0


def _time(volume: SeriesVolume) -> str:
    return volume.slices[0]["SeriesDate"] + volume.slices[0]["SeriesTime"]


def _number(volume: SeriesVolume) -> tuple[float, str]:
    found = number(volume.slices[0]["SeriesNumber"])
    return (float("inf") if found is None else found, volume.ref)


def _together(channels: Sequence[Channel], chosen: Sequence[SeriesVolume]) -> str:
    """Why volumes do not make a case together; empty where they do."""
    first = chosen[0]
    for index, (channel, volume) in enumerate(zip(channels, chosen, strict=True)):
        if any(volume is other for other in chosen[:index]):
            same = next(c.name for c, other in zip(channels, chosen, strict=True) if other is volume)
            return f"one volume fits the channels {same} and {channel.name}: narrow `where`"
        if index and not (
            first.slices[0]["FrameOfReferenceUID"]
            and volume.slices[0]["FrameOfReferenceUID"] == first.slices[0]["FrameOfReferenceUID"]
        ):
            return f"the channels {channels[0].name} and {channel.name} are not in one FrameOfReferenceUID"
        if index and not _overlap(first, volume):
            return f"the channels {channels[0].name} and {channel.name} do not overlap"
    return ""


def _overlap(one: SeriesVolume, another: SeriesVolume) -> bool:
    """Whether the box around ``another``, its faces along the axes of ``one``, meets ``one``."""
    first, other = one.geometry, another.geometry
    if first is None or other is None:
        return False
    corners = np.array(list(np.ndindex(2, 2, 2))) * np.array(other.spatial_shape) - 0.5
    points = (np.linalg.inv(first.affine) @ other.affine @ np.c_[corners, np.ones(8)].T)[:3]
    return bool((points.max(1) > -0.5).all() and (points.min(1) < np.array(first.spatial_shape) - 0.5).all())


def _why_not(
    channels: Sequence[Channel],
    volume: SeriesVolume,
    fitting: Mapping[str, Sequence[SeriesVolume]],
    names: Sequence[str],
    refused: str,
) -> str:
    if names:
        return f"would be {names[0]}, but {refused}"
    said = []
    for channel in channels:
        if any(volume is other for other in fitting[channel.name]):
            said.append(f"{channel.name}: fits, as {len(fitting[channel.name]) - 1} more do")
        else:
            said.append(f"{channel.name}: {_misfit(channel, volume)}")
    return "; ".join(said)


def _verdict(volume: SeriesVolume, *, channel: str = "", reason: str = "") -> Verdict:
    first = volume.slices[0]
    return Verdict(volume.ref, first["Modality"], first["SeriesDescription"], channel, reason)


def _resampled(volume: "hd.Volume", grid: "hd.VolumeGeometry") -> "hd.Volume":
    """``volume`` at the voxel centres of ``grid``, one of its slices at a time."""
    from scipy.ndimage import map_coordinates

    if volume.spatial_shape == grid.spatial_shape and np.allclose(volume.affine, grid.affine, atol=1e-4):
        return grid.with_array(np.asarray(volume.array, np.float32))
    to_other = np.linalg.inv(volume.affine) @ grid.affine
    last = np.array(volume.spatial_shape)[:, None] - 0.5
    fill, array = volume.array.min(), np.empty(grid.spatial_shape, np.float32)
    rows, columns = (axis.ravel() for axis in np.indices(grid.spatial_shape[1:]))
    for index, plane in enumerate(array):
        centres = np.stack([np.full_like(rows, index), rows, columns, np.ones_like(rows)]).astype(np.float64)
        where = (to_other @ centres)[:3]
        values = map_coordinates(volume.array, where, order=1, mode="nearest")
        inside = ((where >= -0.5 - _ROUNDING) & (where <= last + _ROUNDING)).all(0)
        plane[...] = np.where(inside, values, fill).reshape(plane.shape)
    return grid.with_array(array)


_ROUNDING = 1e-6  # voxels, by which a face may lie off its place in floating point
