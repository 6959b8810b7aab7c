"""What a training learns from: labelled cases with their roles, of a project, of a folder of NIfTI files, or prepared ones.

A project's roles are the frozen split's. A folder's follow from the order of a keyed hash of its cases: other cases, other
roles. With ``fold`` the cases that are not held out are divided anew: one part of ``FOLDS`` validates, the others train.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.labels import LabelRevision, current
from catalog.labelset import LabelSet
from catalog.nifti import open_nifti, voxels
from catalog.nifti_folder import NiftiFolder
from catalog.progress import Progress
from catalog.project import Case, Project
from catalog.split import freeze
from datamodules.cases import LabelledCase
from datamodules.dataset import DatasetInfo, build
from datamodules.fingerprint import Fingerprint, measure
from datamodules.plan import Plan
from training.errors import TrainingError
from training.launch import TrainJob

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from catalog.archive import Archive
__all__ = ["FOLDS", "TrainingSet"]

FOLDS = 5


@dataclass(frozen=True)
class TrainingSet:
    """``cases`` train and validate; none is of the holdout. ``pool``, training cases without a label, are measured too.

    ``archive`` is None where the images are files; ``prepared`` is the dataset that was carried here, where there is one, and
    ``planned`` the plan it was built by. ``catalog_version`` and ``labels_version`` are -1 where no table was read.
    ``revisions`` are the labels by case.
    """

    name: str
    model: str
    label_set: LabelSet
    channels: tuple[str, ...]
    cases: tuple[LabelledCase, ...]
    overrides: Mapping[str, Any]
    archive: "Archive | None" = None
    pool: tuple[LabelledCase, ...] = ()
    prepared: DatasetInfo | None = None
    planned: Plan | None = None
    catalog_version: int = -1
    labels_version: int = -1
    revisions: Mapping[str, LabelRevision] | None = None

    @classmethod
    def of_project(cls, archive: "Archive", project: "Project", *, fold: int | None = None) -> "TrainingSet":
        """The labels of ``project`` so far; TrainingError where no training case has one."""
        roles = freeze(archive, project)
        labels_version = archive.labels.version()
        known = current(archive, project.key, version=labels_version)
        everyone = [_case(case, roles[case.series_uid], known.get(case.series_uid)) for case in project.cases(archive)]
        listed = [case for case in everyone if case.label and case.role != "holdout"]
        cases = listed if fold is None else _folded(listed, fold, project.split.seed)
        if "train" not in {case.role for case in cases}:
            raise TrainingError("no training case has a label", about=f"project {project.key}", remedy="label one, then train")
        return cls(
            name=project.key,
            model=project.model,
            label_set=project.label_set,
            channels=tuple(channel.name for channel in project.channels) or ("image",),
            cases=tuple(cases),
            overrides=project.plan,
            archive=archive,
            pool=tuple(case for case in everyone if not case.label and case.role == "train"),
            catalog_version=archive.objects.version(),
            labels_version=labels_version,
            revisions={case.case: known[case.case] for case in cases},
        )

    @classmethod
    def of_folder(cls, folder: Path, *, fold: int | None = None) -> "TrainingSet":
        """The NIfTI files of ``folder`` (``catalog.nifti_folder``) that have a label map, or a class in classes.csv.

        Without ``fold`` the first part validates. TrainingError where nothing is labelled or cases are too few.
        """
        source = NiftiFolder(folder)
        classes = source.classes()
        if classes:
            label_set, listed = source.class_set(), [case for case in source.cases if case.case in classes]
        else:
            listed = [case for case in source.cases if case.label is not None]
            label_set = source.label_set(()) or source.label_set(_values([case.label for case in listed if case.label]))
        if label_set is None or len(listed) < 2:
            remedy = "put a label map for each image into its folder labels/, or write classes.csv (case,class)"
            raise TrainingError(f"{len(listed)} labelled cases; two are the least", about=str(folder), remedy=remedy)
        cases = [
            LabelledCase(
                case=case.case,
                images=tuple(map(str, case.images)),
                label="" if classes else str(case.label),
                role="train",
                states={s.name: "present" if s.name == classes[case.case] else "absent" for s in label_set.structures}
                if classes
                else {},
                patient_id=case.case,
            )
            for case in listed
        ]
        task = {"task": "classification", "exclusive": True} if classes else {}
        name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in source.name)
        folded = _folded(cases, fold or 0, source.name)
        return cls(name, name, label_set, source.channels, tuple(folded), task)

    @classmethod
    def of_dataset(cls, folder: Path) -> "TrainingSet":
        """A prepared dataset, as it was carried here: nothing of its cases can be built or measured anew."""
        info = DatasetInfo.read(folder.resolve())
        return cls(
            info.label_set.name,
            info.label_set.name,
            info.label_set,
            info.plan.channels,
            (),
            {},
            prepared=info,
            planned=info.plan,
        )

    @property
    def modalities(self) -> tuple[str, ...] | None:
        """Of the channels, as DICOM names them; None where they are to be measured."""
        if self.archive is None:
            return None
        return tuple(str(self.archive.sources(ref)[0].Modality) for ref in self.cases[0].images)

    def fingerprint(self, spark: "SparkSession") -> Fingerprint:
        """Measured on the training cases alone."""
        training = [case for case in (*self.cases, *self.pool) if case.role == "train"]
        return measure(spark, self.archive, training, self.label_set, modalities=self.modalities, channels=self.channels)

    def plan(self, fingerprint: Fingerprint | None, overrides: Mapping[str, Any]) -> Plan:
        """The plan derived from ``fingerprint`` (None: of a prepared dataset's plan) and this machine's device, with the set's
        own overrides and these put in."""
        from training.network import device
        from training.sizing import chosen, device_memory, sized, suited

        given = {**self.overrides, **overrides}
        if self.planned is None:
            assert fingerprint is not None
            plan = Plan.make(given, self.label_set, fingerprint)
        else:
            kept = {} if {"network", "task"} & set(given) else chosen(self.planned)
            given = {**kept, **given}
            plan = self._replanned(self.planned, given)
        return sized(suited(plan, device(), given), device_memory() // 2, given=given)

    def _replanned(self, planned: Plan, given: Mapping[str, Any]) -> Plan:
        """What was fixed when the dataset was prepared, with ``given`` put in; the rest is this machine's to say."""
        kept = {name: getattr(planned, name) for name in ("patch", "intensities", "task", "exclusive")}
        if {"network", "task"} & set(given) or planned.task != "segmentation":
            kept["network_args"] = {}
        plan = Plan.from_dict({**planned.preparation(), **kept, **given})
        if plan.preparation() != planned.preparation():
            changed = [name for name, value in plan.preparation().items() if value != planned.preparation()[name]]
            remedy = "leave it out, or build another dataset from the images"
            raise TrainingError("was fixed when the dataset was prepared", about=f"plan: {', '.join(changed)}", remedy=remedy)
        return plan

    def build(self, spark: "SparkSession", plan: Plan, root: Path, *, progress: Progress | None = None) -> DatasetInfo:
        """The dataset of ``plan`` under ``root``, where it is not there yet."""
        return build(spark, self.archive, self.cases, plan, self.label_set, root, progress=progress)

    def learned(self, dataset: DatasetInfo) -> Sequence[LabelRevision]:
        """The label revisions that ``dataset`` trains on: not those of validation, nor of cases that were left out."""
        if self.revisions is None:
            return []
        out = {case for case, _ in dataset.left_out}
        used = [case.case for case in self.cases if case.role == "train" and case.case not in out]
        return [self.revisions[case] for case in used]

    def job(self, dataset: DatasetInfo, plan: Plan, **more: Any) -> TrainJob:
        """All that training on ``dataset`` depends on; ``more`` are the fields of TrainJob that are not the set's to say."""
        learned = self.learned(dataset)
        return TrainJob(
            project=self.name,
            model=self.model,
            dataset=dataset.path,
            plan=plan,
            label_set=self.label_set,
            experiment=self.name,
            catalog_version=self.catalog_version,
            labels_version=self.labels_version,
            label_ids=tuple(sorted(revision.label_id for revision in learned)),
            readers=tuple(sorted({revision.author for revision in learned})),
            left_out=dataset.left_out,
            **more,
        )


def _case(case: Case, role: str, revision: LabelRevision | None) -> LabelledCase:
    label, states = (revision.label_id, dict(revision.states)) if revision is not None else ("", {})
    return LabelledCase(case.series_uid, case.refs, label, role, states, case.study_uid, case.patient_id)


def _folded(cases: Sequence[LabelledCase], fold: int, seed: str) -> list[LabelledCase]:
    """``cases`` with the patients of one part of FOLDS validating, in the order of a keyed hash of the patient or study."""
    if not 0 <= fold < FOLDS:
        raise TrainingError(f"fold {fold} is none of 0…{FOLDS - 1}", about="--fold", remedy="folds are counted from 0")
    units = sorted({_unit(case) for case in cases}, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())
    parts = min(FOLDS, len(units))
    validating = set(units[fold % parts :: parts])
    return [replace(case, role="validation" if _unit(case) in validating else "train") for case in cases]


def _unit(case: LabelledCase) -> str:
    return case.patient_id.strip() or case.study_uid or case.case


def _values(labels: Sequence[Path]) -> set[int]:
    import numpy as np

    return {int(value) for path in labels for value in np.unique(voxels(open_nifti(path), path)).tolist()}
