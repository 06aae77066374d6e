"""The bytes that webdataset's TarWriter writes, in less time: most of a header is the same for all members.

`tests/pipeline/test_tar.py` holds it to them. Small members are why: of a label's 1,024 bytes in a shard one is data.
"""

from __future__ import annotations

import io
import tarfile
from typing import IO

from pipeline.manifest import BLOCK

RECORD = tarfile.RECORDSIZE
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
"""Fields of a ustar header (POSIX.1-1988): NUL-padded letters, 11 octal digits, 6 octal digits."""


def _template() -> bytes:
    """The header of webdataset's members without name, size and checksum."""
    import webdataset

    file = io.BytesIO()
    with webdataset.TarWriter(file, encoder=False, mtime=0) as tar:  # a fixed time: the same samples, the same bytes
        tar.tarstream.format = tarfile.USTAR_FORMAT  # what TarWriter means to ask for
        tar.write({"__key__": "key", "extension": b""})
    header = bytearray(file.getvalue()[:BLOCK])
    header[NAME], header[SIZE], header[CHECKSUM] = bytes(100), bytes(12), b" " * 8  # which a checksum counts as blanks
    return bytes(header)


class TarWriter:
    """Writes members one after the other to a file that is open for binary writing."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.written = file, 0
        self._template = _template()
        self._sum = sum(self._template)

    def write(self, name: str, data: bytes) -> None:
        """Append a member; the name has at most 100 letters, all of them ASCII (`shards.KEY`)."""
        letters, size = name.encode("ascii"), b"%011o\0" % len(data)
        assert len(letters) <= NAME.stop, name
        assert len(size) == 12, f"{name}: {len(data):,} bytes are more than a tar's member may have"
        header = bytearray(self._template)
        header[: len(letters)] = letters
        header[SIZE] = size
        header[CHECKSUM] = b"%06o\0 " % (self._sum + sum(letters) + sum(size))
        whole = b"".join((header, data, bytes(-len(data) % BLOCK)))
        self.file.write(whole)
        self.written += len(whole)

    def close(self) -> None:
        """End the archive: two empty blocks, filled up to a whole record. The file stays open."""
        self.file.write(bytes(2 * BLOCK + -(self.written + 2 * BLOCK) % RECORD))
