"""The columns of ``object_catalog`` that a DICOM header gives."""

from typing import Any

import pyarrow as pa

from catalog.schemas import TYPED, TYPED_LATER
from catalog.walk import Header

__all__ = ["typed"]

_TAGS = [(name, int(tag, 16), pa.types.is_integer(kind)) for name, (tag, kind) in {**TYPED, **TYPED_LATER}.items()]


def typed(header: Header) -> dict[str, Any]:
    """The attributes of schemas.TYPED, each its first value, None where absent or not of its type."""
    return {name: _whole(header.first(tag)) if whole else _text(header.first(tag)) for name, tag, whole in _TAGS}


def _text(value: Any) -> str | None:
    if isinstance(value, dict):  # a person's name
        value = value.get("Alphabetic")
    if value is None or value == "":
        return None
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _whole(value: Any) -> int | None:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return number if -(2**63) <= number < 2**63 else None
