"""Which structure of a label set something that others have outlined is: by what the user says, by its name, by its code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catalog.errors import CatalogError
from catalog.labelset import LabelSet, Structure

__all__ = ["Outlined", "checked_mapping", "matched", "short"]

_TISSUE = ("SCT", "85756007")
"""What viewers call everything that they are not told the name of."""


@dataclass(frozen=True)
class Outlined:
    """A segment, an ROI or a voxel value: its ``number`` in the source, its ``name``, and its ``code`` (scheme, value), empty
    where there is none or it has modifiers, as a side: those alone may tell two structures apart."""

    number: int
    name: str
    code: tuple[str, str] | tuple[()] = ()


def matched(found: Sequence[Outlined], labels: LabelSet, mapping: Mapping[str, str] | None = None) -> dict[int, Structure]:
    """Number → structure, of those that have one.

    ``mapping`` (source name → structure) decides first, then the name, both in any case, then the code, where one structure
    alone has it (retired SNOMED RT codes count as their SNOMED CT ones).
    """
    names = {short(structure.name).lower(): structure for structure in reversed(labels.structures)}
    exact = {short(structure.name): structure for structure in labels.structures}
    said = {source.lower(): names[short(name).lower()] for source, name in (mapping or {}).items()}
    chosen = {}
    for one in found:
        name = one.name.strip()
        structure = (
            said.get(name.lower()) or exact.get(short(name)) or names.get(short(name).lower()) or _by_code(one.code, labels)
        )
        if structure is not None:
            chosen[one.number] = structure
    return chosen


def checked_mapping(mapping: Mapping[str, str], labels: LabelSet) -> dict[str, str]:
    """``mapping``; CatalogError where it leads to no structure of ``labels``."""
    names = {short(structure.name).lower() for structure in labels.structures}
    for source, name in mapping.items():
        if short(name).lower() not in names:
            remedy = f"the structures are {', '.join(structure.name for structure in labels.structures)}"
            raise CatalogError(f"{name!r} is no structure of {labels.name}", about=f"--map {source}={name}", remedy=remedy)
    return dict(mapping)


def short(text: str, most: int = 64) -> str:
    """``text`` in at most ``most`` bytes of UTF-8: DICOM counts characters, some of its readers bytes."""
    return text.encode()[:most].decode(errors="ignore").strip()


def _by_code(code: tuple[str, str] | tuple[()], labels: LabelSet) -> Structure | None:
    from pydicom.sr.coding import Code

    if not code or code == _TISSUE:
        return None
    theirs = Code(code[1], code[0], "")
    fitting = [one for one in labels.structures if one.code[:2] != _TISSUE and Code(one.code[1], one.code[0], "") == theirs]
    return fitting[0] if len(fitting) == 1 else None
