"""Frames of DICOM image files, decoded one at a time, in every transfer syntax for which a codec is installed."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from warnings import catch_warnings, simplefilter

import numpy as np

from catalog import deflated
from catalog.errors import CatalogError
from catalog.files import is_url, open_binary

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["ImageFile", "NoPicture"]

LARGEST_FRAME = 1 << 28
"""Pixels: a header that promises more in one frame is taken for a broken one."""

_EXPLICIT, _DEFLATED, _RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_ENCAPSULATED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
_JPEG_12, _JPEG_RETIRED = "1.2.840.10008.1.2.4.51", ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
_LOSSY = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 53, 55, 81, 91, 203))
_NAMELESS = {f"1.2.840.10008.1.2.4.{number}": "JPEG XL" for number in (110, 111, 112)}
_AGAIN = "copy or export it again"


class NoPicture(CatalogError):
    """The file is no DICOM, or its kind of object has no pixels."""


class ImageFile:
    """The DICOM image file ``path``, with or without preamble: the header is read at once, frames when they are asked for.

    ``header`` is without pixels, ``frames`` counts them. Raises CatalogError where the file is no DICOM, or its header
    promises no picture or an impossible one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = os.fspath(path)
        with self._told("the header cannot be read"):
            self.header, self._stated = self._read(stop_before_pixels=True)
            self.frames = int(self.header.get("NumberOfFrames") or 1)
            rows, columns = int(self.header.get("Rows") or 0), int(self.header.get("Columns") or 0)
        if not rows or not columns:
            kind = self.header.get("Modality") or self.header.get("SOPClassUID") or "no modality"
            raise NoPicture(f"there is no picture in it ({kind})", about=str(path))
        if self.frames < 1 or rows * columns > LARGEST_FRAME:
            raise CatalogError(f"no image has {self.frames} frames of {rows} × {columns}", about=str(path), remedy=_AGAIN)

    def frame(self, index: int, *, raw: bool = False) -> np.ndarray:
        """Frame ``index`` (from 0) as stored, (rows, columns) or (rows, columns, samples); YBR is made RGB unless ``raw``.

        Only this frame is decoded. CatalogError where it is not there or no installed codec takes it.
        """
        return next(self.each([index], raw=raw))

    def each(self, indices: Sequence[int], *, raw: bool = False) -> Iterator[np.ndarray]:
        """The frames ``indices``, each as ``frame`` gives it, the file's header read once for all."""
        from pydicom.pixels import iter_pixels

        decoded: Any = None
        for index in indices:
            with self._told("the pixels cannot be decoded"):
                if self._syntax in _NAMELESS:
                    raise NotImplementedError
                if self._own_codec:
                    decoded = iter_pixels(self._native(index), raw=raw)
                elif decoded is None:
                    read_whole = not self._stated or self._syntax == _DEFLATED
                    decoded = iter_pixels(self._whole if read_whole else self._opened(), indices=list(indices), raw=raw)
                found: np.ndarray = next(decoded)
            yield found

    def encapsulated(self, index: int) -> bytes:
        """Frame ``index`` (from 0) as it is compressed, its fragments joined. CatalogError where that cannot be told."""
        from pydicom.encaps import get_frame

        with self._told("the frame cannot be found"):
            whole = self._whole
            tables = tuple(whole.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths"))
            extended = tables if all(tables) else None
            return bytes(get_frame(whole.PixelData, index, number_of_frames=self.frames, extended_offsets=extended))

    def native(self, index: int) -> bytes:
        """Frame ``index`` (from 0) as it lies in a file that is not compressed (PS3.5 §8.1.1), in little endian.

        It has the colour space, the chroma sampling and the planar configuration that the header names, so the header stays
        true (but for YBR_RCT and YBR_ICT, which only JPEG 2000 has: RGB). Of 1 bit a pixel it begins on a byte.
        """
        return self._laid_out(self.frame(index, raw=self._coloured_as_stored))

    def decompressed(self) -> "Dataset":
        """The whole object in explicit VR little endian, the pixels as ``native`` has them.

        CatalogError where no codec takes it, or it is big endian, in which other values than pixels must be turned, too.
        """
        from pydicom.uid import UID

        whole = self._whole
        if self._syntax == _BIG_ENDIAN:
            remedy = "take it as it is stored"
            raise CatalogError("an object in big endian is not converted as a whole", about=self.path, remedy=remedy)
        if self._syntax not in (_IMPLICIT, _EXPLICIT, _DEFLATED):
            frames = self.each(range(self.frames), raw=self._coloured_as_stored)
            if self.header.get("BitsAllocated") == 1:  # the next frame begins within a byte
                pixels = self._laid_out(np.concatenate([frame.reshape(-1) for frame in frames]))
            else:
                pixels = b"".join(map(self._laid_out, frames))
            for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                whole.pop(keyword, None)
            whole.add_new(0x7FE00010, "OW" if self.header.BitsAllocated > 8 else "OB", pixels + b"\0" * (len(pixels) % 2))
            if whole.get("PhotometricInterpretation") in ("YBR_RCT", "YBR_ICT"):
                whole.PhotometricInterpretation = "RGB"
        whole.file_meta.TransferSyntaxUID = UID(_EXPLICIT)
        return whole

    @property
    def lossy(self) -> bool:
        """Whether the transfer syntax may have changed the pixels' values."""
        return self._syntax in _LOSSY

    def described(self, index: int) -> "Dataset":
        """The header as it holds for frame ``index``: its functional groups (PS3.3 §C.7.6.16) laid over the attributes."""
        from pydicom import Dataset

        found = Dataset(dict(self.header.items()))
        each = self.header.get("PerFrameFunctionalGroupsSequence") or ()
        for groups in (*(self.header.get("SharedFunctionalGroupsSequence") or ())[:1], *each[index : index + 1]):
            for macro in groups:
                if macro.VR == "SQ" and macro.value:
                    found.update(macro.value[0])
        return found

    @property
    def _coloured_as_stored(self) -> bool:
        """Whether the header names the colour space of the samples: what is told to be RGB may be YBR within a JPEG file."""
        return str(self.header.get("PhotometricInterpretation")).startswith("YBR_FULL")

    def _laid_out(self, pixels: np.ndarray) -> bytes:
        """Decoded pixels, colour by pixel, as the header says that they lie."""
        if self.header.get("BitsAllocated") == 1:
            return np.packbits(pixels.reshape(-1), bitorder="little").tobytes()
        if pixels.ndim == 3 and self.header.get("PhotometricInterpretation") == "YBR_FULL_422" and pixels.shape[1] % 2 == 0:
            pairs = pixels.reshape(pixels.shape[0], -1, 2, 3)
            chroma = (pairs[..., 1:].sum(axis=2, dtype=np.uint32) + 1) // 2
            pixels = np.concatenate([pairs[..., 0], chroma], axis=-1).astype(pixels.dtype)
        elif pixels.ndim == 3 and self.header.get("PlanarConfiguration") == 1:
            pixels = np.moveaxis(pixels, -1, 0)
        return pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()

    @cached_property
    def _syntax(self) -> str:
        return str(self.header.file_meta.TransferSyntaxUID)

    @cached_property
    def _own_codec(self) -> bool:
        """Whether ``_native`` decodes it: what pydicom has no decoder for, or none that takes these files."""
        if self._syntax in (_ENCAPSULATED, _DEFLATED_FRAMES, *_JPEG_RETIRED):
            return True
        if self._syntax == _RLE:
            return bool(self.header.get("BitsAllocated") == 1)
        return self._syntax == _JPEG_12 and self.header.get("SamplesPerPixel", 1) == 1

    @cached_property
    def _whole(self) -> "Dataset":
        return self._read()[0]

    def _native(self, index: int) -> "Dataset":
        """Frame ``index`` as an object of its own in explicit VR little endian."""
        whole, encoded = self._whole, self.encapsulated(index)
        if self._syntax == _DEFLATED_FRAMES:
            encoded = zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded, 16 * LARGEST_FRAME)
        elif self._syntax == _RLE:
            encoded = _packed(self._one(encoded, whole, _RLE))
        elif self._syntax != _ENCAPSULATED:
            encoded = _jpeg(encoded)
        return self._one(encoded, whole, _EXPLICIT)

    def _one(self, pixels: bytes, whole: "Dataset", syntax: str) -> "Dataset":
        from pydicom import Dataset
        from pydicom.dataset import FileMetaDataset
        from pydicom.encaps import encapsulate
        from pydicom.uid import UID

        found = Dataset(dict(whole.group_dataset(0x0028).items()))
        found.NumberOfFrames = 1
        found.add_new("PixelData", "OB" if syntax == _RLE else "OW", encapsulate([pixels]) if syntax == _RLE else pixels)
        found["PixelData"].is_undefined_length = syntax == _RLE
        found.file_meta = FileMetaDataset()
        found.file_meta.TransferSyntaxUID = UID(syntax)
        return found

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return os.path.basename(self.path)

    def _opened(self) -> "str | BinaryIO":
        return open_binary(self.path) if is_url(self.path) else self.path

    def _read(self, **options: Any) -> "tuple[Dataset, bool]":
        """The data set, and whether the file states its transfer syntax; the one it was read by is set where it does not."""
        from pydicom.errors import InvalidDicomError
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

        with open_binary(self.path) as file:
            try:
                found = deflated.read(file, about=self.path, **options)
            except InvalidDicomError:
                file.seek(0)
                found = deflated.read(file, about=self.path, force=True, **options)
                if "SOPClassUID" not in found and "Rows" not in found:
                    raise NoPicture("not a DICOM file", about=self.path) from None
        if found.file_meta.get("TransferSyntaxUID"):
            return found, True
        implicit, little = found.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
        return found, False

    @contextmanager
    def _told(self, problem: str) -> Iterator[None]:
        """What a reader or a codec raises, of whatever kind, as a CatalogError with its reason."""
        from pydicom import config

        about = self.path
        try:
            with catch_warnings(), config.disable_value_validation():
                simplefilter("ignore")  # of the file's own peculiarities
                yield
        except CatalogError:
            raise
        except FileNotFoundError:
            raise CatalogError("the file has gone", about=about, remedy="bring it back, or ingest its folder again") from None
        except NotImplementedError:
            uid = self.header.file_meta.TransferSyntaxUID
            remedy = "convert it to a transfer syntax that is read, as JPEG 2000 or explicit VR little endian"
            name = _NAMELESS.get(uid, uid.name)
            raise CatalogError(f"no codec for its transfer syntax is installed: {name}", about=about, remedy=remedy) from None
        except Exception as reason:  # each codec raises its own kinds
            if isinstance(reason, AttributeError) and "no pixel data" in str(reason):
                raise NoPicture("there are no pixels in it", about=about) from None
            said = " ".join(str(reason).split())[:200] or type(reason).__name__
            raise CatalogError(f"{problem}: {said}", about=about, remedy=_AGAIN) from reason


def _packed(found: "Dataset") -> bytes:
    """The bits of a 1-bit frame in RLE, eight to a byte as in a native frame (PS3.5 §8.1.1): RLE itself works on bytes."""
    from pydicom.pixels import pixel_array

    bits = found.Rows * found.Columns
    found.Rows, found.Columns = (found.Rows, found.Columns // 8) if found.Columns % 8 == 0 else (1, -(-bits // 8))
    found.BitsAllocated, found.BitsStored, found.HighBit = 8, 8, 7
    return bytes(pixel_array(found, raw=True).tobytes())


def _jpeg(encoded: bytes) -> bytes:
    """The samples of a JPEG frame of 12 bits, sequential, spectral or progressive, in little endian."""
    import libjpeg

    scan = encoded.find(b"\xff\xda")
    end = scan + 2 + int.from_bytes(encoded[scan + 2 : scan + 4])
    if b"\xff\xc1" in encoded[:scan] and encoded[end - 3 : end] == b"\0\0\0":
        # Some writers leave the last coefficient of a sequential scan 0, where it is 63 (ITU T.81 Table B.3).
        encoded = encoded[: end - 2] + b"\x3f\0" + encoded[end:]
    found: np.ndarray = libjpeg.decode(encoded)
    return found.astype(found.dtype.newbyteorder("<")).tobytes()
