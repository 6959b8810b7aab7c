"""Attributes by name: pydicom's dictionary, as SQL and rules over headers need it."""

import difflib
import re
from functools import cache

from catalog.errors import CatalogError

__all__ = ["address", "addresses"]

_NUMBER = re.compile(r"\(?([0-9A-Fa-f]{4}),?([0-9A-Fa-f]{4})\)?")


@cache
def addresses() -> dict[str, str]:
    """Keyword → tag as in DICOM JSON: ``ConvolutionKernel`` → ``00181210``."""
    from pydicom.datadict import DicomDictionary

    return {entry[4]: f"{tag:08X}" for tag, entry in DicomDictionary.items() if entry[4]}


def address(name: str) -> str:
    """The tag as in DICOM JSON of a keyword (PS3.6), or of a tag written ``00181210``, ``0018,1210`` or ``(0018,1210)``.

    CatalogError, with the keyword that may be meant, where it is neither.
    """
    known = addresses().get(name)
    number = _NUMBER.fullmatch(name)
    if known or number:
        return known or "".join(number.groups()).upper()  # type: ignore[union-attr]
    near = difflib.get_close_matches(name, addresses(), n=1)
    remedy = f"{near[0]}?" if near else "a keyword of the DICOM dictionary, or a tag as 00181210"
    raise CatalogError("no such DICOM attribute", about=name, remedy=remedy)
