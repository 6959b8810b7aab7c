"""A cohort for machines that have none: phantom abdomens with two organs that differ from patient to patient.

What varies: where an organ lies, its shape, whether its core and its shell are brighter or darker than the body and by how
much, the texture, the noise, the voxel spacing; bodies hold other round things of the organs' own intensities. So neither a
fixed position nor a fixed grey value finds the organs, and each further labelled patient has something to teach.
"""

from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from catalog import CohortFolder, LabelSet, Origin, Progress, Structure

__all__ = ["LABEL_SET", "PATIENTS", "cases", "write"]

PATIENTS = 36
COHORT = "phantom abdomen"
SHAPE = (28, 48, 48)
LOOKS = np.array(
    [[1, 1], [-1, -1], [1, -1], [-1, 1], [0, 1], [0, -1]]
)  # brighter or darker than the body: an organ's core, its shell
CORE = 0.62  # of the way from an organ's centre to its surface
LABEL_SET = LabelSet(
    COHORT,
    (
        Structure("liver", 1, ("SCT", "10200004", "Liver"), (221, 130, 101)),
        Structure("spleen", 2, ("SCT", "78961009", "Spleen"), (157, 108, 162)),
    ),
)


def cases(n: int = PATIENTS, *, seed: int = 0) -> Iterator[tuple[str, hd.Volume, hd.Volume]]:
    """Yield ``n`` times (case name, image, label map): float32 image of CT-like values and uint8 map, axes (slices, rows,
    columns) towards feet, posterior, left, LPS mm. Case ``i`` is the same whatever ``n`` is."""
    for index in range(n):
        image, mask, affine = _phantom(np.random.default_rng([seed, index]))
        volumes = (hd.Volume(array, affine, coordinate_system="PATIENT") for array in (image, mask))
        yield f"phantom_{index + 1:03d}", next(volumes), next(volumes)


def write(folder: Path, n: int = PATIENTS, *, seed: int = 0, progress: Progress | None = None) -> int:
    """Write the cohort as DICOM, laid out as ``catalog.import_nifti`` lays out one: images/CASE/NNNN.dcm, labels/CASE.dcm
    (SEG), label_set.json, index.csv. A case that is there is left alone. Returns ``n``."""
    cohort = CohortFolder(folder, f"{COHORT} {seed}", LABEL_SET, author="phantom")
    written = []
    for done, (case, image, mask) in enumerate(cases(n, seed=seed), start=1):
        if cohort.claim({case: Origin.of_volumes(image, mask)}):
            cohort.write(case, image, mask)
        written.append((case, True))
        if progress:
            progress(done, n)
    cohort.close(written)
    return n


def _phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inplane, slices = rng.uniform(3.0, 3.8), rng.uniform(4.6, 6.0)
    spacing = np.array([slices, inplane, inplane])
    grid = np.stack(
        np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, spacing, strict=True)], indexing="ij")
    )
    body = _blob(rng, grid, centre=(0, 0, 0), radii=(400, 62 + rng.uniform(-5, 5), 74 + rng.uniform(-6, 6)), rough=0.03) < 1
    image = np.where(body, 40.0, -80.0) + np.where(body, 7 * _texture(rng, 2.5), 0)
    mask = np.zeros(SHAPE, np.uint8)
    levels = [rng.choice(LOOKS) * rng.uniform(32, 56) for _ in LABEL_SET.structures]
    organs = (
        ((4, -6, -30), (36, 30, 27), (22, 18, 14), 1.5),
        ((8, 12, 36), (30, 26, 22), (18, 15, 10), 3.5),
    )
    for level in [*levels, rng.uniform(-45, 45, 2)]:  # things of the same intensities that are not the organs
        centre = rng.uniform((-60, -45, -55), (60, 45, 55))
        thing = (_blob(rng, grid, centre, radii=rng.uniform(5, 11, 3), rough=0.2) < 1) & body
        image[thing] = 40 + level[0] + 7 * _texture(rng, 2.0)[thing]
    for structure, level, (place, radii, jitter, grain) in zip(LABEL_SET.structures, levels, organs, strict=True):
        centre = np.array(place) + rng.uniform(-1, 1, 3) * jitter
        depth = _blob(rng, grid, centre, np.array(radii) * rng.uniform(0.78, 1.25, 3), rough=0.16)
        organ = (depth < 1) & body & (mask == 0)
        mask[organ] = structure.value
        shade = np.where(depth < CORE, level[0], level[1]) + 6 * _texture(rng, grain / 1.5)
        image[organ] = 40 + shade[organ]
    image = gaussian_filter(image, 0.5) + rng.normal(0, rng.uniform(4, 10), SHAPE)
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing * (-1, 1, 1)
    affine[:, 3] = *(affine[:3, :3] @ (1 - np.array(SHAPE)) / 2), 1
    return np.clip(image, -200, 300).round().astype(np.float32), mask, affine


def _blob(rng: np.random.Generator, grid: np.ndarray, centre: ArrayLike, radii: ArrayLike, *, rough: float) -> np.ndarray:
    """How deep each voxel lies in an ellipsoid (mm) that a smooth random field dents: 0 at its centre, 1 at its surface."""
    offset = (grid - np.reshape(centre, (3, 1, 1, 1))) / np.reshape(radii, (3, 1, 1, 1))
    return np.asarray(np.sqrt((offset**2).sum(0)) / (1 + rough * _texture(rng, 4.0)))


def _texture(rng: np.random.Generator, grain: float) -> np.ndarray:
    """A smooth random field of mean 0 and standard deviation 1; ``grain`` in voxels."""
    field = gaussian_filter(rng.normal(size=SHAPE), (grain * 0.6, grain, grain))
    return np.asarray((field - field.mean()) / field.std())
