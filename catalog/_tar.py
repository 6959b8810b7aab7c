"""Tar headers, read more strictly than tarfile reads them."""

import tarfile

from catalog.files import utf8

__all__ = ["BLOCK", "TarHeader", "is_tar", "special"]

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a header."""

_LONGEST = 1 << 20
"""Bytes of a header that extends the next."""

_EXTENDING = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class TarHeader(tarfile.TarInfo):
    """A header that is told from the archive's end when it is damaged, and that cannot be longer than a header is.

    Sparse files in the forms whose maps have no bound are damage too.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "TarHeader":
        """As TarInfo.fromtarfile; ReadError where what stands there is neither a header nor the mark of the end."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as problem:
            raise tarfile.ReadError(f"{problem}, where a header or the mark of its end must be") from None

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "TarHeader":
        """As TarInfo.frombuf."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _EXTENDING and header.size > _LONGEST):
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(_SPARSE)
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError(_SPARSE)


def special(entry: tarfile.TarInfo) -> str:
    """Why a member is not unpacked that is neither a file nor a folder."""
    if entry.issym():
        return "a symbolic link, which is not followed"
    if entry.islnk():
        return f"a hard link to {utf8(entry.linkname)}, which is a member of its own"
    return "a device or a pipe" if entry.isdev() else f"no file: a member of type {entry.type!r}"


def is_tar(block: bytes) -> bool:
    """Whether a file that begins so is a tar archive, of any age: its first header's checksum is right."""
    try:
        tarfile.TarInfo.frombuf(block[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


_SPARSE = "a sparse file, which is not read"
