"""Unpacks archives that nobody vouches for: nothing leaves the target folder, and nothing grows without a bound."""

import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import rarfile

from raremask import BadInput

MAX_BYTES = 60 * 2**30  # all unpacked files together; the largest dataset here has 11 GiB
MAX_FILES = 200_000
MAX_RATIO, FREE = 100, 2**27  # of unpacked to packed, past 128 MiB: a bomb has over 1000, images have about 1
CHUNK = 2**20
BROKEN = (
    zipfile.BadZipFile,
    rarfile.Error,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,  # a password is needed
)
CLUTTER = ("__MACOSX", ".DS_Store", "Thumbs.db")  # what systems leave in archives


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Args:
        name: Its path as the archive has it.
        size: Bytes it claims to have.
        link: Whether it is a link or something else that is no plain file.
        source: What the archive's reader opens it by.
    """

    name: str
    size: int
    link: bool
    source: Any


def unpack(archive: Path, target: Path) -> list[Path]:
    """Unpack a ZIP or RAR archive into a folder.

    Every member is judged before the first byte is written.

    Args:
        archive: The file.
        target: The folder, which is made; files that are there already are not written over.

    Returns:
        The files, in the archive's order.

    Raises:
        BadInput: If the archive cannot be read; if a member lies outside the target, is a link, or has the name of
            another one, of a folder or of a file that is there; if there are too many, or they are too large or too
            well packed to be images; or if RAR needs a program that is not installed.
    """
    with _readable(archive), _opened(archive) as (members, reader):
        written = [(member, _place(archive, member, target)) for member in members if not _is_clutter(member.name)]
        _judge(archive, written)
        for member, path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _readable(archive, member.name), reader.open(member.source) as source, path.open("xb") as file:
                _copy(archive, member, source, file)
    return [path for _, path in written]


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[Member], Any]]:
    if not archive.is_file():
        raise BadInput(f"{archive}: no such file")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield [_of_zip(info) for info in file.infolist() if not _is_folder(info.filename)], file
    elif rarfile.is_rarfile(archive):
        try:
            with rarfile.RarFile(archive) as file:
                if file.needs_password():
                    raise BadInput(f"{archive}: needs a password")
                yield [_of_rar(info) for info in file.infolist() if not info.is_dir()], file
        except rarfile.RarCannotExec as error:
            raise BadInput(
                f"{archive}: its files are compressed, and unpacking them needs unrar, unar, 7z or bsdtar. Install "
                "one (on Debian: apt install unar), or unpack the archive yourself and pack it as ZIP."
            ) from error
    else:
        raise BadInput(f"{archive}: is neither a ZIP nor a RAR archive; a download may have broken off.")


def _of_zip(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    return Member(info.filename, info.file_size, bool(mode) and not stat.S_ISREG(mode) and stat.S_IFMT(mode) != 0, info)


def _of_rar(info: rarfile.RarInfo) -> Member:
    return Member(info.filename, info.file_size, not info.is_file(), info)


@contextmanager
def _readable(archive: Path, name: str = "") -> Iterator[None]:
    """Make one error of what readers raise at a damaged archive; of a full disk too, which has no other way out."""
    try:
        yield
    except rarfile.RarCannotExec:
        raise  # nothing is broken
    except BROKEN as error:
        what = f"{name!a} cannot be unpacked" if name else "cannot be read"
        raise BadInput(f"{archive}: {what} ({type(error).__name__}: {error})") from error


def _is_folder(name: str) -> bool:
    return name.endswith(("/", "\\"))


def _is_clutter(name: str) -> bool:
    return any(part in CLUTTER or part.startswith("._") for part in PurePosixPath(name.replace("\\", "/")).parts)


def _place(archive: Path, member: Member, target: Path) -> Path:
    """Where a member goes, if it may."""
    path = PurePosixPath(member.name.replace("\\", "/"))
    drive = any(":" in part for part in path.parts)  # of Windows, where one in the middle leaves the folder, too
    if drive or path.is_absolute() or ".." in path.parts or not path.parts or "\0" in member.name:
        raise BadInput(f"{archive}: {member.name!a} lies outside the folder it is unpacked to; nothing was written.")
    if member.link:
        raise BadInput(f"{archive}: {member.name!a} is a link or no plain file; nothing was written.")
    return target.joinpath(*path.parts)


def _judge(archive: Path, written: list[tuple[Member, Path]]) -> None:
    if not written:
        raise BadInput(f"{archive}: holds no file.")
    total = sum(member.size for member, _ in written)
    packed = max(1, archive.stat().st_size)
    if len(written) > MAX_FILES or total > MAX_BYTES or (total > FREE and total > MAX_RATIO * packed):
        raise BadInput(
            f"{archive}: claims {len(written)} files of {total / 2**30:.1f} GiB, packed into {packed / 2**20:.1f} MiB. "
            f"That is no dataset of images (at most {MAX_FILES} files, {MAX_BYTES / 2**30:.0f} GiB, {MAX_RATIO} times "
            "the packed size); nothing was written."
        )
    room = shutil.disk_usage(_existing(written[0][1])).free
    if total > room:
        raise BadInput(f"{archive}: needs {total / 2**30:.1f} GiB, and the disk has {room / 2**30:.1f}.")
    files = Counter(os.fspath(path).lower() for _, path in written)
    folders = {os.fspath(parent).lower(): parent for _, path in written for parent in path.parents}
    for member, path in written:
        if path.exists():
            raise BadInput(f"{archive}: {path} is there already; nothing was written.")
        spelled = all(folders[os.fspath(parent).lower()] == parent for parent in path.parents)
        if files[os.fspath(path).lower()] > 1 or os.fspath(path).lower() in folders or not spelled:
            raise BadInput(f"{archive}: {member.name!a} and another are one on some machines; nothing was written.")


def _existing(path: Path) -> Path:
    return next(parent for parent in path.resolve().parents if parent.exists())


def _copy(archive: Path, member: Member, source: IO[bytes], file: IO[bytes]) -> None:
    """Copy a member, and stop if it has more bytes than it claims."""
    left = member.size
    while chunk := source.read(CHUNK):
        left -= len(chunk)
        if left < 0:
            raise BadInput(f"{archive}: {member.name!a} is larger than it claims.")
        file.write(chunk)
    if left:
        raise BadInput(f"{archive}: {member.name!a} breaks off {left} bytes before its end.")
