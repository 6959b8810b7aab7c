"""Every DICOM object as a row, and what others say about it: labels, predictions, scores."""

from catalog._query import quoted
from catalog.archive import Archive
from catalog.cases import Study, Verdict, case_volumes, examine
from catalog.catalog import Catalog
from catalog.channels import Channel
from catalog.cohort import CohortFolder, Origin
from catalog.conflicts import resolve
from catalog.disk import atomic_file
from catalog.errors import CatalogError, VoxloopError
from catalog.existing import Imported, LabelImport, import_labels
from catalog.files import exists, located
from catalog.importing import ImportReport, import_nifti
from catalog.ingest import IngestReport, ingest
from catalog.labels import LabelRevision, State, Submission, current, mask, submit
from catalog.labelset import LabelSet, Structure
from catalog.progress import Progress
from catalog.project import Case, Project, Split
from catalog.seg import Algorithm
from catalog.series import write_series
from catalog.sources import FileVolumes, VolumeSource
from catalog.split import Role, freeze
from catalog.table import DeltaTable, MemoryTable, Table
from catalog.uids import deterministic_uid

__all__ = [
    "Algorithm",
    "Archive",
    "Case",
    "Catalog",
    "CatalogError",
    "Channel",
    "CohortFolder",
    "DeltaTable",
    "FileVolumes",
    "ImportReport",
    "Imported",
    "IngestReport",
    "LabelImport",
    "LabelRevision",
    "LabelSet",
    "MemoryTable",
    "Origin",
    "Progress",
    "Project",
    "Role",
    "Split",
    "State",
    "Structure",
    "Study",
    "Submission",
    "Table",
    "Verdict",
    "VolumeSource",
    "VoxloopError",
    "atomic_file",
    "case_volumes",
    "current",
    "deterministic_uid",
    "examine",
    "exists",
    "freeze",
    "import_labels",
    "import_nifti",
    "ingest",
    "located",
    "mask",
    "quoted",
    "resolve",
    "submit",
    "write_series",
]
