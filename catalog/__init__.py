"""Every DICOM object as a row, and what others say about it: labels, predictions, scores."""

from catalog.archive import Archive
from catalog.errors import CatalogError, VoxloopError
from catalog.labels import LabelRevision, State, Submission, current, mask, submit
from catalog.labelset import LabelSet, Structure
from catalog.progress import Progress
from catalog.project import Case, Project, Split
from catalog.seg import Algorithm
from catalog.sources import FileVolumes, VolumeSource
from catalog.split import Role, freeze
from catalog.table import DeltaTable, MemoryTable, Table
from catalog.uids import deterministic_uid

__all__ = [
    "Algorithm",
    "Archive",
    "Case",
    "CatalogError",
    "DeltaTable",
    "FileVolumes",
    "LabelRevision",
    "LabelSet",
    "MemoryTable",
    "Progress",
    "Project",
    "Role",
    "Split",
    "State",
    "Structure",
    "Submission",
    "Table",
    "VolumeSource",
    "VoxloopError",
    "current",
    "deterministic_uid",
    "freeze",
    "mask",
    "submit",
]
