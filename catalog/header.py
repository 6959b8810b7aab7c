"""The columns of ``object_catalog`` that a DICOM header gives."""

from functools import lru_cache
from typing import Any

import pyarrow as pa

from catalog._dataset import first
from catalog._element import file_tag
from catalog.schemas import TYPED, TYPED_LATER
from catalog.walk import Header

__all__ = ["typed"]

_COLUMNS = {**TYPED, **TYPED_LATER}.values()
_TAGS = [(file_tag(int(tag, 16)), pa.types.is_integer(kind)) for tag, kind in _COLUMNS]


def typed(header: Header) -> list[Any]:
    """The attributes of schemas.TYPED and TYPED_LATER, each its first value, None where absent or not of its type."""
    texts = header.elements
    return [None if (text := texts.get(tag)) is None else _value(text, whole) for tag, whole in _TAGS]


@lru_cache(maxsize=16_384)
def _value(text: bytes, whole: bool) -> Any:
    return _whole(first(text)) if whole else _text(first(text))


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
