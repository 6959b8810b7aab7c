"""The gate: a candidate becomes champion only if it is shown not to be worse than the champion and the best ever.

Both predict the project's holdout series that have a current label; Dice is averaged by patient, the patients are paired, and
the mean difference has a one-sided 95% lower bound by bootstrap over patients (SciPy, percentile, seeded). The candidate is
non-inferior if that bound is at least −margin.

The plain percentile bound is too high for few patients. Its level is expanded as in Hesterberg, "What Teachers Should Know
About the Bootstrap" (The American Statistician 69, 2015): α' = Φ(√(n/(n−1)) · t(α, n−1)). How often a candidate that is
worse by exactly the margin passes, instead of 5% (4,000 simulations of 1,999 resamples; in brackets the plain percentile)::

    patients                                      5            7            9           20
    normal differences                         6.1 (10.4)   5.1 (8.5)    5.3 (8.1)   5.2 (6.4)
    skewed: few patients lose much            16.2 (21.9)  14.2 (18.5)  12.4 (15.8)  9.8 (11.3)
    skewed: few patients gain much             2.2 (4.9)    1.7 (4.0)    1.7 (3.6)   2.5 (3.2)

(skewed: exponential differences). A loss that only a few patients suffer is not to be seen in few holdout patients.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from catalog.cases import case_volumes
from catalog.labels import LabelRevision, current, mask
from catalog.progress import Progress
from catalog.split import freeze
from serving.errors import ServingError

if TYPE_CHECKING:
    from catalog.archive import Archive
    from catalog.project import Project
    from serving.registry import Registry

__all__ = ["FEW_PATIENTS", "Comparison", "Evidence", "compare", "evaluate", "judge", "patient_means"]

FEW_PATIENTS = 5
"""Below this many holdout patients no bound is claimed: the means decide and the version is tagged ``unproven``."""

CONFIDENCE = 0.95
RESAMPLES = 9999

Scores = Mapping[str, Mapping[str, float | None]]
"""Label revision id → structure → Dice; None where the reader did not annotate the structure."""


@dataclass(frozen=True)
class Comparison:
    """Candidate minus ``other``, in mean foreground Dice over paired patients; ``lower`` is None with few patients."""

    other: str
    role: Literal["champion", "best"]
    mean_difference: float
    lower: float | None
    passed: bool


@dataclass(frozen=True)
class Evidence:
    """What the gate saw and decided; JSON by ``to_dict``, kept with the version (``Registry.record``)."""

    model: str
    candidate: str
    champion: str | None
    best: str | None
    margin: float
    labels: dict[str, dict[str, str]]  # label revision id → series, patient
    scores: dict[str, dict[str, dict[str, float | None]]]  # version → label revision id → structure → Dice
    means: dict[str, float]  # version → mean foreground Dice over patients
    structures: dict[str, float]  # the candidate's mean Dice by structure
    comparisons: tuple[Comparison, ...]
    verdict: Literal["champion", "rejected"]
    unproven: bool
    reason: str
    catalog_version: int = -1
    labels_version: int = -1
    patients: int = field(default=0)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Evidence":
        """The inverse of ``to_dict``."""
        return cls(**{**stored, "comparisons": tuple(Comparison(**c) for c in stored["comparisons"])})

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def patient_means(scores: Scores, labels: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """Mean foreground Dice by patient: over the annotated structures of a label, then over the patient's labels. A patient
    with nothing annotated has no mean."""
    by_patient: dict[str, list[float]] = {}
    for label_id, dice in scores.items():
        known = [value for value in dice.values() if value is not None]
        if known:
            by_patient.setdefault(labels[label_id]["patient"], []).append(float(np.mean(known)))
    return {patient: float(np.mean(values)) for patient, values in by_patient.items()}


def compare(
    candidate: Mapping[str, float],
    other: Mapping[str, float],
    *,
    version: str,
    role: Literal["champion", "best"],
    margin: float,
) -> Comparison:
    """One-sided non-inferiority of ``candidate`` against ``other``, both mean Dice by patient (the same patients)."""
    from scipy.stats import bootstrap, norm, t

    patients = sorted(candidate.keys() & other.keys())
    difference = np.array([candidate[patient] - other[patient] for patient in patients])
    mean = float(difference.mean())
    if (n := len(patients)) < FEW_PATIENTS:
        return Comparison(version, role, mean, None, mean >= -margin)
    expanded = norm.cdf(np.sqrt(n / (n - 1)) * t.ppf(1 - CONFIDENCE, n - 1))
    interval = bootstrap(
        (difference,),
        np.mean,
        confidence_level=1 - expanded,
        alternative="greater",
        method="percentile",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Comparison(version, role, mean, float(interval.low), float(interval.low) >= -margin)


def judge(
    model: str,
    candidate: str,
    scores: Mapping[str, Scores],
    labels: Mapping[str, Mapping[str, str]],
    *,
    champion: str | None,
    best: str | None,
    margin: float,
    catalog_version: int = -1,
    labels_version: int = -1,
) -> Evidence:
    """The verdict on ``candidate`` from each version's Dice on the holdout's label revisions. Pure and deterministic."""
    means = {version: patient_means(dice, labels) for version, dice in scores.items()}
    own = means[candidate]
    rivals: list[tuple[str, Literal["champion", "best"]]] = []
    if champion is not None and champion != candidate:
        rivals.append((champion, "champion"))
    if best is not None and best not in (champion, candidate):
        rivals.append((best, "best"))
    compared = tuple(compare(own, means[v], version=v, role=role, margin=margin) for v, role in rivals) if own else ()
    passed = bool(own) and all(comparison.passed for comparison in compared)
    names = {name for dice in scores[candidate].values() for name in dice}
    by_structure = {
        name: float(np.mean([v for dice in scores[candidate].values() if (v := dice.get(name)) is not None]))
        for name in sorted(names)
        if any(dice.get(name) is not None for dice in scores[candidate].values())
    }
    return Evidence(
        model=model,
        candidate=candidate,
        champion=champion,
        best=best,
        margin=margin,
        labels={label_id: dict(label) for label_id, label in labels.items()},
        scores={version: {label_id: dict(d) for label_id, d in dice.items()} for version, dice in scores.items()},
        means={version: float(np.mean(list(m.values()))) for version, m in means.items() if m},
        structures=by_structure,
        comparisons=compared,
        verdict="champion" if passed else "rejected",
        unproven=len(own) < FEW_PATIENTS,
        reason=_reason(own, compared, margin),
        catalog_version=catalog_version,
        labels_version=labels_version,
        patients=len(own),
    )


def _reason(own: Mapping[str, float], compared: tuple[Comparison, ...], margin: float) -> str:
    if not own:
        return "No holdout patient has a label, so there is no evidence; label a holdout series first."
    few = f" Only {len(own)} holdout patients (fewer than {FEW_PATIENTS}): decided by the mean, unproven."
    tail = few if len(own) < FEW_PATIENTS else ""
    if not compared:
        return f"First champion: mean Dice {np.mean(list(own.values())):.3f} over {len(own)} holdout patients.{tail}"
    worst = min(compared, key=lambda c: (c.passed, c.mean_difference if c.lower is None else c.lower))
    bound = "" if worst.lower is None else f", at least {worst.lower:+.3f} with 95% confidence"
    verb = "Not worse than" if worst.passed else "Not shown to be as good as"
    return (
        f"{verb} version {worst.other} ({worst.role}): mean Dice {worst.mean_difference:+.3f} over {len(own)} holdout "
        f"patients{bound}; the margin is {-margin:+.3f}.{tail}"
    )


def evaluate(
    archive: "Archive", project: "Project", registry: "Registry", candidate: str, *, progress: Progress | None = None
) -> Evidence:
    """Run candidate, champion and best on the holdout's current label revisions, judge, and record the evidence.

    What earlier evidence says of a version and a label revision is not computed again; evidence that was changed or lost counts
    as none. For a candidate that its evidence has
    made champion already, that evidence is returned: the step may be repeated.
    """
    model = project.model
    champion = registry.champion(model)
    if champion == candidate and (recorded := _recorded(registry, model, candidate)) is not None:
        return recorded
    best, labels_version = registry.best(model), archive.labels.version()
    holdout = {series for series, role in freeze(archive, project).items() if role == "holdout"}
    revisions = [r for r in current(archive, project.key, version=labels_version).values() if r.series_uid in holdout]
    versions = [version for version in dict.fromkeys((candidate, champion, best)) if version is not None]
    evidence = judge(
        model,
        candidate,
        _dice(archive, project, registry, versions, revisions, progress),
        {r.label_id: {"series": r.series_uid, "patient": r.patient_id or r.study_uid} for r in revisions},
        champion=champion,
        best=best,
        margin=project.margin,
        catalog_version=archive.objects.version(),
        labels_version=labels_version,
    )
    registry.record(evidence)
    return evidence


def _recorded(registry: "Registry", model: str, version: str) -> Evidence | None:
    with suppress(ServingError):
        return registry.evidence(model, version)
    return None


def _dice(
    archive: "Archive",
    project: "Project",
    registry: "Registry",
    versions: Sequence[str],
    revisions: Sequence[LabelRevision],
    progress: Progress | None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Version → label revision id → structure → Dice."""
    from serving.model import load
    from training import Prompts, dice_by_structure

    cases = {case.series_uid: case for case in project.cases(archive)}
    scores: dict[str, dict[str, dict[str, float | None]]] = {}
    for version in versions:
        earlier = _recorded(registry, project.model, version)
        scores[version] = dict(earlier.scores[version]) if earlier is not None else {}
    hot = {
        version: functools.cache(lambda v=version: load(registry.fetch(project.model, v, archive.home / "models")))
        for version in versions
    }
    for done, revision in enumerate(revisions):
        new = [version for version in versions if revision.label_id not in scores[version]]
        if new:
            images, truth = case_volumes(archive, cases[revision.series_uid]), mask(archive, revision, project.label_set)
        for version in new:
            found = hot[version]().predictor.predict(images, Prompts()).mask
            scores[version][revision.label_id] = dice_by_structure(
                found.array, truth.array, project.label_set.structures, revision.states
            )
        if progress:
            progress(done + 1, len(revisions))
    wanted = {revision.label_id for revision in revisions}
    return {version: {k: v for k, v in dice.items() if k in wanted} for version, dice in scores.items()}
