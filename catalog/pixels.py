"""What an image's decoded pixels are, frame by frame: their hash and their extent."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.errors import CatalogError
from catalog.files import open_binary
from catalog.sources import gone, read_dataset
from catalog.walk import walk

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["PixelFacts", "pixel_facts"]

_LARGEST = 1 << 31
"""Bytes of a frame that is decoded."""


@dataclass(frozen=True)
class PixelFacts:
    """The stored values of an image, before any rescale, palette or overlay.

    ``hash`` is the sha256, in hexadecimal, of all of them in the order frame, row, column, sample: each as Bits Allocated says
    (one bit as a byte) or as IEEE 754, little-endian, unused high bits filled by sign; samples by pixel, whatever the Planar
    Configuration (0); chroma in its full size, in the file's own colour space as the codec gives it. So it is the same for
    one image in every lossless transfer syntax, and in a lossy one it is that of what the decoders at hand give. It is what
    ``hashlib.sha256(pydicom.pixels.pixel_array(file, raw=True).tobytes())`` gives on a little-endian machine.

    ``min``, ``max`` and ``mean`` are of the finite values, None where there is none. ``shape`` is (rows, columns), with
    frames before it if there are several, and samples after it if a pixel has several.
    """

    hash: str
    min: float | None
    max: float | None
    mean: float | None
    shape: tuple[int, ...]


def pixel_facts(path: str | Path) -> PixelFacts | None:
    """Decode the pixels of a DICOM file or URL, holding one frame at a time (a deflated file as a whole); None if it has none.

    CatalogError with the reason where the file is not DICOM or broken, its pixels cannot be decoded, or they are fewer or more
    frames than Number of Frames says.
    """
    about = os.fspath(path)
    try:
        if walk(path).pixels is None:
            return None
    except FileNotFoundError:
        raise gone(path) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's own peculiarities
        header = read_dataset(path, pixels=False)
        frames = _Frames()
        try:
            for frame in _decoded(path, header):
                frames.add(frame)
        except CatalogError:
            raise
        except Exception as problem:  # pydicom and its codecs raise many kinds
            said = " ".join(str(problem).split())[:300] or type(problem).__name__
            raise CatalogError(f"the pixels cannot be decoded: {said}", about=about, remedy=_REMEDY) from None
    expected = int(header.get("NumberOfFrames") or 1)
    if frames.count != expected:
        raise CatalogError(f"{frames.count} frames where the header says {expected}", about=about, remedy=_REMEDY)
    return frames.facts()


def _decoded(path: str | Path, header: "Dataset") -> "Iterator[np.ndarray]":
    """The frames as stored, each (rows, columns) or (rows, columns, samples)."""
    from pydicom.pixels import iter_pixels
    from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

    samples, bits = int(header.get("SamplesPerPixel") or 1), int(header.get("BitsAllocated") or 8)
    if (size := int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * samples * bits // 8) > _LARGEST:
        raise ValueError(f"a frame of {size} bytes is too large")
    syntax = header.file_meta.TransferSyntaxUID
    if UID(syntax).type != "Transfer Syntax":
        raise ValueError(f"transfer syntax {syntax} is not known")
    if syntax == DeflatedExplicitVRLittleEndian:
        yield from iter_pixels(read_dataset(path), raw=True)
        return
    with open_binary(path) as file:
        yield from iter_pixels(file, raw=True, transfer_syntax_uid=syntax)


class _Frames:
    """Facts of the frames so far."""

    def __init__(self) -> None:
        self.digest, self.count, self.finite, self.total = hashlib.sha256(), 0, 0, 0.0
        self.low, self.high = math.inf, -math.inf
        self.shape: tuple[int, ...] = ()

    def add(self, frame: "np.ndarray[Any, Any]") -> None:
        self.digest.update(np.ascontiguousarray(frame, frame.dtype.newbyteorder("<")).data)
        self.count, self.shape = self.count + 1, frame.shape
        values = frame[np.isfinite(frame)] if frame.dtype.kind == "f" else frame
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.finite, self.total = self.finite + values.size, self.total + float(values.sum(dtype=np.float64))

    def facts(self) -> PixelFacts:
        shape = (self.count, *self.shape) if self.count > 1 else self.shape
        if not self.finite:
            return PixelFacts(self.digest.hexdigest(), None, None, None, shape)
        return PixelFacts(self.digest.hexdigest(), self.low, self.high, self.total / self.finite, shape)


_REMEDY = "the file may be cut short, or its transfer syntax one that no installed decoder knows"
