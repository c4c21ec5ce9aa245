import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import rarfile

from raremask import BadInput, archives
from raremask.archives import unpack


def packed(path: Path, files: dict[str, bytes], compression=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def vint(number: int) -> bytes:
    """A number as RAR 5 writes it: seven bits a byte, the eighth says that more follows."""
    out = b""
    while True:
        number, low = number >> 7, number & 0x7F
        if not number:
            return out + bytes([low])
        out += bytes([low | 0x80])


def rar_block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
    header = vint(kind) + vint(flags) + (vint(len(data)) if flags & 2 else b"") + body
    header = vint(len(header)) + header
    return struct.pack("<I", zlib.crc32(header)) + header + data


def rar(path: Path, files: dict[str, bytes], method: int = 0, attributes: int = stat.S_IFREG | 0o644) -> Path:
    """Write a RAR 5 archive, by its published format; `method` 0 stores, others only claim to compress."""
    blocks = [b"Rar!\x1a\x07\x01\x00", rar_block(1, 0, vint(0))]
    for name, content in files.items():
        body = vint(4) + vint(len(content)) + vint(attributes)  # 4: a checksum follows
        body += struct.pack("<I", zlib.crc32(content)) + vint(method << 7) + vint(1)  # 1: Unix
        body += vint(len(name.encode())) + name.encode()
        blocks.append(rar_block(2, 2, body, content))
    path.write_bytes(b"".join([*blocks, rar_block(5, 0, vint(0))]))
    return path


FILES = {"set/images/a.png": b"one", "set/masks/a.png": b"two" * 1000, "set/empty.txt": b""}


@pytest.mark.parametrize("write", [packed, rar])
def test_an_archive_is_unpacked_as_it_was_packed(tmp_path, write):
    archive = write(tmp_path / "archive", FILES | {"__MACOSX/set/._a": b"clutter", "set/.DS_Store": b"clutter"})
    written = unpack(archive, tmp_path / "out")
    assert written == [tmp_path / "out" / name for name in FILES]
    assert [path.read_bytes() for path in written] == list(FILES.values())
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 3


@pytest.mark.parametrize("write", [packed, rar])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/tmp/evil", "C:/evil", "a/C:/evil", "..\\evil", "a/..\\..\\evil"]
)
def test_a_path_outside_the_target_is_refused_before_anything_is_written(tmp_path, write, name):
    archive = write(tmp_path / "archive", {"fine.txt": b"fine", name: b"evil"})
    with pytest.raises(BadInput, match="lies outside the folder it is unpacked to; nothing was written"):
        unpack(archive, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_links_and_devices_are_refused(tmp_path):
    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR):
        with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
            info = zipfile.ZipInfo("link")
            info.external_attr = (kind | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
        with pytest.raises(BadInput, match="'link' is a link or no plain file"):
            unpack(tmp_path / "archive.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_zip_made_on_windows_is_no_link(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        info = zipfile.ZipInfo("a\\b.txt")
        info.create_system, info.external_attr = 0, 0x20
        archive.writestr(info, "text")
    (path,) = unpack(tmp_path / "archive.zip", tmp_path / "out")
    assert path.read_text() == "text"


def test_a_bomb_is_refused_by_what_it_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE", 2**16)
    archive = packed(tmp_path / "bomb.zip", {"zeros.bin": bytes(2**22)})
    with pytest.raises(BadInput, match=r"claims 1 files of 0.0 GiB, packed into 0.0 MiB.*nothing was written"):
        unpack(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_FILES", 2)
    with pytest.raises(BadInput, match="claims 3 files"):
        unpack(packed(tmp_path / "many.zip", FILES), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_that_pack_well_are_no_bomb(tmp_path):
    archive = packed(tmp_path / "masks.zip", {f"{index}.tif": bytes(243_600) for index in range(100)})
    assert len(unpack(archive, tmp_path / "out")) == 100  # 24 MiB of zeros in 50 KiB


def test_a_member_that_is_larger_than_it_claims_is_stopped(tmp_path, monkeypatch):
    archive = packed(tmp_path / "liar.zip", {"a.bin": bytes(5000)})
    of_zip = archives._of_zip
    monkeypatch.setattr(archives, "_of_zip", lambda info: archives.Member(info.filename, 10, False, info))
    with pytest.raises(BadInput, match=r"'a.bin' is larger than it claims"):
        unpack(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "_of_zip", lambda info: archives.Member(info.filename, 9000, False, info))
    with pytest.raises(BadInput, match=r"'a.bin' breaks off 4000 bytes before its end"):
        unpack(archive, tmp_path / "other")
    monkeypatch.setattr(archives, "_of_zip", of_zip)


def test_a_full_disk_is_found_out_before(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(BadInput, match=r"needs 0.0 GiB, and the disk has 0.0"):
        unpack(packed(tmp_path / "archive.zip", FILES), tmp_path / "out")


def test_nothing_is_written_over_and_no_two_members_share_a_file(tmp_path):
    archive = packed(tmp_path / "archive.zip", FILES)
    unpack(archive, tmp_path / "out")
    with pytest.raises(BadInput, match=r"a.png is there already; nothing was written"):
        unpack(archive, tmp_path / "out")
    for names in (("A.png", "a.png"), ("a/b", "A/c"), ("a", "a/b"), ("x/a/b", "x/a")):
        with pytest.raises(BadInput, match="and another are one on some machines; nothing was written"):
            unpack(packed(tmp_path / "case.zip", dict.fromkeys(names, b"")), tmp_path / "case")
    assert not (tmp_path / "case").exists()


def test_a_broken_archive_is_named(tmp_path):
    archive = packed(tmp_path / "archive.zip", {"a.bin": os.urandom(5000)}, zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[100] ^= 1
    archive.write_bytes(data)
    with pytest.raises(BadInput, match=r"'a.bin' cannot be unpacked \(BadZipFile: Bad CRC"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(data[:2000])
    with pytest.raises(BadInput, match="is neither a ZIP nor a RAR archive; a download may have broken off"):
        unpack(archive, tmp_path / "out")
    with pytest.raises(BadInput, match=r"nowhere.zip: no such file"):
        unpack(tmp_path / "nowhere.zip", tmp_path / "out")
    with pytest.raises(BadInput, match="holds no file"):
        unpack(packed(tmp_path / "empty.zip", {"folder/": b""}), tmp_path / "out")


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_anywhere_in_a_compressed_archive_is_one_message(tmp_path, compression):
    archive = packed(tmp_path / "archive.zip", {"a.bin": os.urandom(100) * 50}, compression)
    whole, refused = archive.read_bytes(), 0
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        data = bytearray(whole)
        data[place] ^= 0xFF
        archive.write_bytes(data)
        try:
            unpack(archive, tmp_path / str(place))
        except BadInput:
            refused += 1
    assert refused > 10


def test_folders_of_archives_made_on_windows_are_no_files(tmp_path):
    archive = packed(tmp_path / "archive.zip", {"set\\": b"", "set\\images\\": b"", "set\\images\\a.png": b"one"})
    assert unpack(archive, tmp_path / "out") == [tmp_path / "out" / "set" / "images" / "a.png"]


def test_a_name_that_is_too_long_is_one_message(tmp_path):
    with pytest.raises(BadInput, match=r"cannot be (read|unpacked)"):
        unpack(packed(tmp_path / "archive.zip", {"a" * 300: b""}), tmp_path / "out")


def test_a_compressed_rar_without_a_program_for_it_says_which_to_install(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise rarfile.RarCannotExec("Cannot find working tool")

    monkeypatch.setattr(rarfile, "tool_setup", missing)
    archive = rar(tmp_path / "archive.rar", {"a.png": b"not really compressed"}, method=3)
    with pytest.raises(BadInput, match=r"needs unrar, unar, 7z or bsdtar. Install one"):
        unpack(archive, tmp_path / "out")
