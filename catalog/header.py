"""A DICOM file's header as DICOM JSON (PS3.18 F), read without its pixels.

``read_header`` is the one way in: how the bytes are walked may change behind it.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.schemas import TYPED

__all__ = ["BrokenFile", "NotDicom", "read_header", "typed"]

BULK = 16_384
"""Bytes above which a binary value is left in the file and named by a BulkDataURI."""

_UNDEFINED = 0xFFFFFFFF
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}


class NotDicom(Exception):
    """The file is something else than DICOM."""


class BrokenFile(Exception):
    """The file is DICOM but cannot be read to its end."""


def read_header(path: str | Path) -> dict[str, Any]:
    """The file meta group and the data set up to the pixels, tag → attribute, as DICOM JSON.

    Files without preamble are read too, if they hold one of schemas.TYPED. Binary values above BULK bytes
    and pixels become ``BulkDataURI``.

    Raises NotDicom, BrokenFile (a value or the pixels end after the file does) or OSError.
    """
    from pydicom import config

    try:
        with config.disable_value_validation():
            dataset, missing = _read(path)
            if not getattr(dataset, "preamble", None) and not any(keyword in dataset for keyword in TYPED):
                raise NotDicom("not a DICOM file")
            header = {**_json(getattr(dataset, "file_meta", None) or {}), **_json(dataset)}
    except (NotDicom, OSError):
        raise
    except Exception as problem:  # pydicom raises whatever its parsers raise
        raise (BrokenFile if _has_preamble(path) else NotDicom)(f"{type(problem).__name__}: {problem}") from problem
    if missing > 0:
        raise BrokenFile(f"the file ends {missing} bytes before its pixels do")
    return header


def typed(header: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of schemas.TYPED, each its first value, None where absent or not of its type."""
    return {name: _first(header.get(tag), kind) for name, (tag, kind) in TYPED.items()}


def _first(attribute: Any, kind: pa.DataType) -> Any:
    values = attribute.get("Value") if attribute else None
    value = values[0] if values else None
    if isinstance(value, dict):
        value = value.get("Alphabetic")
    if value is None or value == "":
        return None
    if pa.types.is_integer(kind):
        return _whole(value)
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _whole(value: Any) -> int | None:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return number if -(2**63) <= number < 2**63 else None


def _read(path: str | Path) -> tuple[Any, int]:
    """The data set up to the pixels and how many bytes of them are missing at the end of the file."""
    import pydicom
    from pydicom.filereader import read_partial

    ends: list[int] = []
    with open(path, "rb") as file:

        def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
            if tag in _PIXELS and length != _UNDEFINED:
                ends.append(file.tell() + length)
            return tag in _PIXELS

        dataset = read_partial(file, stop_when=at_pixels, force=True)
        size = os.fstat(file.fileno()).st_size
    meta = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return dataset, 0
    return dataset, max([end - size for end in ends], default=0)


def _has_preamble(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _json(dataset: Any) -> dict[str, Any]:
    if not dataset:
        return {}
    refer: Callable[[Any], str] = lambda element: f"bulkdata/{element.tag:08X}"  # noqa: E731
    stored = dataset.to_json_dict(bulk_data_threshold=BULK, bulk_data_element_handler=refer, suppress_invalid_tags=True)
    return {tag: _finite(attribute) for tag, attribute in stored.items()}


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot hold as the strings that PS3.18 §F.2.2 gives them."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
