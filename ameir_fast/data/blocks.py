"""Text files of any size, plain or compressed, in blocks of whole lines with their line numbers."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import zstandard

from ..errors import InputError

BLOCK = 16 << 20
#: A longer line is a damaged file, or one of another kind.
LONGEST_LINE = 1 << 20
_LONGEST_QUOTED = 8 * LONGEST_LINE
_PACKED = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: What may come after a file's name when it is compressed.
PACKED = (".gz", ".zst")
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r+\n")


@dataclass(frozen=True)
class Block:
    """Whole lines of ``path``, each ended by a newline; ``line`` is the number of the first one, from 1."""

    path: Path
    line: int
    data: bytes

    def refuse(self, index: int, what: str) -> None:
        """Raises ``InputError`` that names the block's line at position ``index``."""
        raise InputError(f"{self.path}: line {self.line + index} {what}")


class Reading:
    """How far the reading of ``paths`` has come, in bytes as they lie on the disk."""

    def __init__(self, paths: Sequence[Path]):
        self.total = sum(p.stat().st_size for p in paths)
        self._before = 0
        self._file: BinaryIO | None = None

    @property
    def done(self) -> int:
        return self._before + (self._file.tell() if self._file is not None and not self._file.closed else 0)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0


def blocks(paths: Sequence[Path], quoted: bool = False, size: int = BLOCK, reading: Reading | None = None,
           encoding: str = "utf-8") -> Iterator[Block]:
    """The lines of plain, gzip and zstandard files (told by their first bytes), one file after another.

    A newline is added where the last line has none, a byte order mark and carriage returns at line ends are taken
    away. With ``quoted`` no block ends within ``"…"``, so that a quoted value may hold newlines. Blocks are UTF-8;
    ``encoding`` is the files', ``"utf-8"`` or ``"latin-1"``.

    Raises ``InputError`` naming the file for one that is empty, missing, damaged or cut off, and its line for bytes
    that are not UTF-8, NUL bytes, and lines of more than ``LONGEST_LINE`` bytes.
    """
    for path in paths:
        path = Path(path)
        empty = True
        for block in _blocks_of(path, quoted, size, reading, encoding):
            empty = False
            yield block
        if empty:
            raise InputError(f"{path}: the file is empty")


def bare_name(path: Path) -> str:
    """A file's name without the end that says that it is compressed."""
    return path.stem if path.suffix in PACKED else path.name


def each_once(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The same files. Raises ``InputError`` for one given twice, or packed and unpacked beside each other: its rows would
    be in training and test alike; and for pipes and devices, which can be read only once."""
    seen: dict[object, Path] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if not path.is_file():
            raise InputError(f"{path}: is no regular file; what comes from a pipe or device must be written to one first")
        whole, status = path.resolve(), path.stat()
        inode = (status.st_dev, status.st_ino) if status.st_ino else whole  # some file systems number nothing
        for key in (inode, whole.parent / bare_name(whole)):
            first = seen.setdefault(key, path)
            if first is not path:
                same = first.samefile(path)
                what = f"{path}: is given twice" if same else f"{first} and {path.name}: look like the same file"
                raise InputError(f"{what}, and its rows would be in several splits")
    return tuple(paths)


def matching(folder: Path, pattern: str) -> list[Path]:
    """The files of ``folder`` whose ``bare_name`` matches ``pattern``, in order."""
    return sorted(path for path in folder.iterdir() if path.is_file() and fnmatchcase(bare_name(path), pattern))


def first_line(path: Path) -> str:
    """The first line of a file that is not blank, without its end; raises as ``blocks`` does."""
    return first_numbered_line(path)[1]


def first_numbered_line(path: Path) -> tuple[int, str]:
    """The same after its number."""
    for block in blocks([path], size=_PACKED):
        for number, line in enumerate(block.data.decode().split("\n"), block.line):
            if line.strip():
                return number, line
    raise InputError(f"{path}: holds only blank lines")


def _blocks_of(path: Path, quoted: bool, size: int, reading: Reading | None, encoding: str) -> Iterator[Block]:
    line, rest = 1, b""
    for read in _gathered(_pieces(path, size, reading), size):
        end = _end(rest, read, quoted)
        if end < 0:
            rest += read
            if len(rest) > LONGEST_LINE and b"\n" not in rest:
                raise InputError(f"{path}: line {line} has more than {LONGEST_LINE:,} bytes")
            if len(rest) > max(size, _LONGEST_QUOTED):
                raise InputError(f"{path}: line {line} or one soon after it opens a quote that is not closed")
            continue
        block = _checked(Block(path, line, rest + read[:end]), encoding)
        rest = read[end:]
        line += block.data.count(b"\n")
        yield block
    if rest:
        yield _checked(Block(path, line, rest + b"\n"), encoding)


def _end(rest: bytes, read: bytes, quoted: bool) -> int:
    """Where the last whole line of ``read`` ends, or -1."""
    end = read.rfind(b"\n") + 1
    if quoted:
        quotes = rest.count(b'"') + read.count(b'"', 0, end)
        while end and quotes % 2:
            before = read.rfind(b"\n", 0, end - 1) + 1
            quotes -= read.count(b'"', before, end)
            end = before
    return end or -1


def _pieces(path: Path, size: int, reading: Reading | None) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            if reading is not None:
                reading._file = file
            start = file.read(4)
            file.seek(0)
            if start == _ZSTD:
                yield from _unpacked(file)
            else:
                stream = gzip.GzipFile(fileobj=file) if start.startswith(_GZIP) else file
                while piece := stream.read(size):
                    yield piece
            if reading is not None:
                reading._before += file.tell()
                reading._file = None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path}: damaged or cut off ({error})") from None


def _gathered(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of ``size`` but for the last, or up to twice as large."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        for start in range(0, len(piece), size):
            part = piece[start:start + size]
            held.append(part)
            length += len(part)
            if length >= size:
                yield b"".join(held)
                held, length = [], 0
    if held:
        yield b"".join(held)


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    """Zstandard's ``stream_reader`` takes a file that is cut off for a whole one; this does not."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    packed, started = file.read(_PACKED), True
    while packed:
        if piece := frame.decompress(packed):
            yield piece
        packed, started = frame.unused_data, True
        if frame.eof:
            frame, started = zstandard.ZstdDecompressor().decompressobj(), False
        packed = packed or file.read(_PACKED)
    if started:
        raise EOFError("the compressed data ends too early")


def _checked(block: Block, encoding: str) -> Block:
    data = block.data.removeprefix(_BOM) if block.line == 1 else block.data
    if b"\r\n" in data:
        data = _LINE_END.sub(b"\n", data)
    if b"\0" in data:
        block.refuse(data.count(b"\n", 0, data.index(b"\0")), "holds a NUL byte")
    if not data.isascii() and encoding == "latin-1":
        data = data.decode(encoding).encode()
    elif not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            block.refuse(data.count(b"\n", 0, error.start), f"is not UTF-8 ({error.reason})")
    start = 0
    while len(data) - start > LONGEST_LINE:  # jumps from line to line only where one could be too long
        end = data.rfind(b"\n", start, start + LONGEST_LINE + 1)
        if end < 0:
            block.refuse(data.count(b"\n", 0, start), f"has more than {LONGEST_LINE:,} bytes")
        start = end + 1
    return Block(block.path, block.line, data)
