"""The columns of the tables in HOME/tables. Keys are fixed; columns may be added at the end.

object_catalog   (path, modificationTime, length)          a row a file as it was
labels           label_id                                  a row a label revision
predictions      sop_uid                                   a row a predicted segmentation
scores           (project, series_uid, model_version, kind)
splits           (project, unit)
features         (source_uid, structure, name)             a row a measured value
"""

import pyarrow as pa

__all__ = ["FEATURES", "LABELS", "OBJECTS", "OBJECT_KEY", "PREDICTIONS", "SCORES", "SPLITS", "TYPED", "TYPED_LATER"]

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us", "UTC")
_TEXTS = pa.list_(_TEXT)


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, _TEXT) for name in names]


TYPED: dict[str, tuple[str, pa.DataType]] = {
    "StudyInstanceUID": ("0020000D", _TEXT),
    "SeriesInstanceUID": ("0020000E", _TEXT),
    "SOPInstanceUID": ("00080018", _TEXT),
    "SOPClassUID": ("00080016", _TEXT),
    "TransferSyntaxUID": ("00020010", _TEXT),
    "PatientID": ("00100020", _TEXT),
    "PatientName": ("00100010", _TEXT),
    "PatientBirthDate": ("00100030", _TEXT),
    "PatientSex": ("00100040", _TEXT),
    "StudyDate": ("00080020", _TEXT),
    "StudyTime": ("00080030", _TEXT),
    "StudyID": ("00200010", _TEXT),
    "StudyDescription": ("00081030", _TEXT),
    "AccessionNumber": ("00080050", _TEXT),
    "ReferringPhysicianName": ("00080090", _TEXT),
    "Modality": ("00080060", _TEXT),
    "SeriesNumber": ("00200011", _WHOLE),
    "SeriesDescription": ("0008103E", _TEXT),
    "BodyPartExamined": ("00180015", _TEXT),
    "FrameOfReferenceUID": ("00200052", _TEXT),
    "InstanceNumber": ("00200013", _WHOLE),
    "Rows": ("00280010", _WHOLE),
    "Columns": ("00280011", _WHOLE),
    "NumberOfFrames": ("00280008", _WHOLE),
}
"""The attributes that have a column of their own: name → (tag as in DICOM JSON, type)."""

TYPED_LATER: dict[str, tuple[str, pa.DataType]] = {
    "SeriesDate": ("00080021", _TEXT),
    "SeriesTime": ("00080031", _TEXT),
    "PerformedProcedureStepStartDate": ("00400244", _TEXT),
    "PerformedProcedureStepStartTime": ("00400245", _TEXT),
    "Manufacturer": ("00080070", _TEXT),
    "ManufacturerModelName": ("00081090", _TEXT),
    "StationName": ("00081010", _TEXT),
    "InstitutionName": ("00080080", _TEXT),
    "ProtocolName": ("00181030", _TEXT),
    "BitsAllocated": ("00280100", _WHOLE),
}
"""More of them, whose columns stand after ``ingested_at``."""

USABLE = ("ok", "archive", "rejected")
"""The values of ``status`` that ask for nothing to be done."""

OBJECT_KEY = ("path", "modificationTime", "length")

OBJECTS = pa.schema(
    [
        ("path", _TEXT),
        ("modificationTime", _TIME),
        ("length", _WHOLE),
        *_texts("original_path", "relative_path", "local_path", "extension", "file_type"),
        ("path_tags", _TEXTS),
        ("is_anon", pa.bool_()),
        ("meta", _TEXT),
        *((name, kind) for name, (_, kind) in TYPED.items()),
        *_texts("status", "error"),
        ("ingested_at", _TIME),
        *((name, kind) for name, (_, kind) in TYPED_LATER.items()),
        ("file_meta", _TEXT),
        ("notes", _TEXTS),
        ("pixel_offset", _WHOLE),
        ("pixel_length", _WHOLE),
        ("frame_offsets", pa.list_(_WHOLE)),
        ("frame_lengths", pa.list_(_WHOLE)),
        ("pixel_hash", _TEXT),
        ("pixel_min", _REAL),
        ("pixel_max", _REAL),
        ("pixel_mean", _REAL),
        ("pixel_shape", pa.list_(_WHOLE)),
    ]
)
"""``file_type`` is ``dicom``, ``nifti``, ``other``, or an archive's: ``zip``, ``tar``, ``gzip``, ``bzip2``, ``xz``. ``meta`` is
the data set's header as DICOM JSON (PS3.18 F; of a NIfTI file its header as a JSON object), ``file_meta`` the file meta group
(0002) in the same form, ``notes`` the elements that were left out and why. ``pixel_offset`` and ``pixel_length`` say where the
pixels lie, in bytes of the file at ``path``; ``frame_offsets`` and ``frame_lengths`` where each frame does, null where that
cannot be told without decoding. ``pixel_hash``, ``pixel_min``, ``pixel_max``, ``pixel_mean`` and ``pixel_shape`` are as in
``catalog.pixels.PixelFacts``, where the pixels were read.

``status`` is ``ok``; ``incomplete`` (a UID is missing), ``broken``, ``unreadable`` (the system
refused; it is tried again) or ``not_dicom``, with the reason in ``error``; ``archive``
(what is in it has rows of its own where it was unpacked); or ``conflict``: another file of this SOPInstanceUID has other pixels
and a label, and stays current until someone decides, after which it is ``ok`` or ``rejected``. ``ingested_at`` orders the rows
of one path."""

LABELS = pa.schema(
    [
        *_texts("label_id", "project", "seg_uid", "series_uid", "study_uid", "patient_id", "parent"),
        ("states", pa.map_(_TEXT, _TEXT)),
        *_texts("author", "role", "status", "suggested_by"),
        ("seconds", _REAL),
        ("voxels_changed", _WHOLE),
        ("created_at", _TIME),
        ("added_path_length", _WHOLE),
    ]
)
"""``states``: structure → ``present``, ``absent`` or ``not_annotated``; ``suggested_by``: the model version that made the
suggestion, ``voxels_changed`` how many voxels the author changed in it, ``added_path_length`` how many voxels of contour the
author had to draw (Vaassen et al. 2020); ``seconds``: the author's time."""

PREDICTIONS = pa.schema(
    [
        *_texts("sop_uid", "project", "series_uid", "study_uid", "patient_id", "model_name", "model_version", "run_id"),
        *_texts("code_revision", "plan_digest"),
        ("catalog_version", _WHOLE),
        ("labels_version", _WHOLE),
        ("label_ids", _TEXTS),
        ("readers", _TEXTS),
        ("source_digest", _TEXT),
        ("source_uids", _TEXTS),
        *_texts("mask_sha256", "receipt"),
        ("volumes_ml", pa.map_(_TEXT, _REAL)),
        ("uncertainty", _REAL),
        ("created_at", _TIME),
        *_texts("source_sha256", "labels_sha256", "weights_sha256"),
        ("channels", _TEXTS),
    ]
)
"""``receipt`` is the sha256 of the canonical JSON of the row without it; ``source_digest`` is the sha256 over the sorted
SOPInstanceUIDs in ``source_uids``, ``source_sha256`` over the volume as the model was given it; ``labels_sha256`` is over the
SEG files of ``label_ids`` (empty where the model was registered without a home), ``weights_sha256`` over the weights' file;
``volumes_ml`` is millilitres by structure; ``channels`` are the references of the case's volumes in their order, where it has
several (none: the one volume of ``series_uid``)."""

SCORES = pa.schema([*_texts("project", "series_uid", "model_version", "kind"), ("value", _REAL), ("created_at", _TIME)])

SPLITS = pa.schema([*_texts("project", "unit", "unit_kind", "role"), ("created_at", _TIME)])
"""``unit`` is a PatientID, or a StudyInstanceUID where ``unit_kind`` is ``study`` (it names no patient, or several)."""

FEATURES = pa.schema(
    [
        *_texts("source_uid", "structure", "name"),
        ("value", _REAL),
        *_texts("unit", "series_uid", "study_uid", "patient_id", "project", "source"),
        *_texts("label_id", "model_name", "model_version"),
        ("created_at", _TIME),
        *_texts("note"),
    ]
)
"""``source_uid`` is the SOPInstanceUID of the segmentation that was measured, ``source`` is ``label`` (of ``label_id``) or
``prediction`` (of a version of ``model_name``); ``name`` as in ``catalog.features``. Where ``value`` is null, ``note`` says why
it could not be measured."""
