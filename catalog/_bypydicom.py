"""Files that the direct walk does not know its way in, read by pydicom: within bounds, into the same DICOM JSON."""

import os
import warnings
from typing import Any

from pydicom import config
from pydicom.filereader import read_dataset, read_partial

from catalog import _element
from catalog._dataset import DEPTH, INLINE, LARGEST, PIXELS, UNDEFINED, Broken, Ends, Reader
from catalog._element import BINARY, file_tag
from catalog._pixels import locate

__all__ = ["read_by_pydicom"]

_READS = 1 << 18
"""How often pydicom may read from a file."""


def read_by_pydicom(reader: Reader) -> str:
    """Read the file anew by pydicom; what the file ends before, if anything."""
    partial = reader.elements, reader.notes
    reader.elements, reader.notes, reader.pixels = {}, [], None
    file, cut = _Bounded(reader), list[str]()
    found: list[tuple[int, str | None, int, int]] = []

    def at_pixels(tag: int, vr: str | None, length: int) -> bool:
        if file_tag(tag) in PIXELS:
            found.append((file_tag(tag), vr, file.tell(), length))
        return bool(found)

    try:
        with config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if reader.inflated is None:
                dataset = read_partial(file, at_pixels, defer_size=LARGEST, force=True)
                stored = _take(reader, dataset.file_meta, 0, cut) | _take(reader, dataset, 0, cut)
            else:
                reader.elements = {tag: text for tag, text in partial[0].items() if tag & 0xFFFF == 2}
                file.at = reader.data_set_at
                stored = _take(reader, read_dataset(file, False, True, None, at_pixels, LARGEST), 0, cut)
    except Exception:
        reader.elements, reader.notes = partial
        raise
    for name, attribute in stored.items():
        tag = file_tag(int(name, 16))
        reader.elements[tag] = _element.element(tag, attribute)
    try:
        for tag, vr, start, length in found:
            locate(reader, tag, vr or PIXELS[tag], start, length)
    except Ends as problem:
        cut.append(str(problem))
    return cut[0] if cut else ""


def _take(reader: Reader, dataset: Any, base: int, cut: list[str], depth: int = 0) -> dict[str, Any]:
    """A pydicom data set as DICOM JSON, element by element; ``base``: where the stream that its offsets count in begins."""
    taken: dict[str, Any] = {}
    if depth > DEPTH:
        raise Broken(f"sequences nest deeper than {DEPTH}")
    for tag in dataset.keys():  # noqa: SIM118 (iterating a data set converts its elements)
        raw, where = dataset.get_item(tag, keep_deferred=True), base
        try:
            if raw.is_raw:
                where = base + raw.value_tell
                if raw.length != UNDEFINED and where + raw.length > reader.size:
                    cut.append(f"the file ends {where + raw.length - reader.size} bytes before {tag} does")
                    continue
                if raw.value is None and raw.length > LARGEST:
                    raise ValueError(f"{raw.length} bytes are too many")
            element = dataset[tag]
            if element.VR == "SQ":
                items = [_take(reader, item, where, cut, depth + 1) for item in element.value]
                taken[f"{tag:08X}"] = {"vr": "SQ", "Value": items}
            elif element.VR in BINARY and element.value and len(element.value) > INLINE:
                taken[f"{tag:08X}"] = {"vr": element.VR, "BulkDataURI": f"?offset={where}&length={len(element.value)}"}
            else:
                taken[f"{tag:08X}"] = element.to_json_dict(None, 0)
                _element.dumps(taken[f"{tag:08X}"])
        except (Broken, RecursionError):
            raise
        except Exception as problem:  # pydicom raises whatever its converters raise
            taken.pop(f"{tag:08X}", None)
            reader.note(file_tag(tag), str(problem)[:200])
    return taken


class _Bounded:
    """The file as pydicom reads it: never more than there is, nor without end."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.at, self.reads = reader, 0, 0

    def read(self, length: int = -1) -> bytes:
        if length < 0:  # pydicom would inflate all of it, however much that is
            raise RuntimeError("a deflated data set after a broken file meta group")
        self.reads += 1
        if self.reads > _READS:
            raise RuntimeError("more elements than a header has")
        length = min(length, max(self.reader.size - self.at, 0))
        buffer, base = self.reader.need(self.at, length)
        self.at += length
        return buffer[self.at - length - base : self.at - base]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.reader.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at
