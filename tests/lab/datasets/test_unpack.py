"""Archives: unpacked once, whole or not at all, and never outside their folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from piggyback.errors import DataError, PiggybackWarning
from piggyback.lab.datasets import find, load
from piggyback.lab.datasets.unpack import writable
from support import toy_sets


def pack(root: Path, name: str, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    """Write ``<root>/<name>.tar`` of files by name, or of members as they are."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"{name}.tar", "w") as archive:
        for path, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root / f"{name}.tar"


def special(name: str, kind: bytes, link: str = "") -> tuple[str, tarfile.TarInfo]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return name, member


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("top", ["gtsrb/", ""])
def test_it_is_unpacked_beside_the_archive_once(root: Path, top: str) -> None:
    packed = pack(root, "gtsrb", [(f"{top}train/a/1.jpg", b"one"), (f"{top}test/a/2.jpg", b"two")])
    assert find("gtsrb", [root]) == root / "gtsrb"
    assert (root / "gtsrb" / "train" / "a" / "1.jpg").read_bytes() == b"one"
    assert sorted(p.name for p in root.iterdir()) == ["gtsrb", "gtsrb.tar"]
    packed.unlink()
    assert find("gtsrb", [root]) == root / "gtsrb"


def test_it_goes_to_the_cache_where_the_folder_is_read_only(root: Path, tmp_path: Path) -> None:
    packed = pack(root, "dtd", [("dtd/train/a/1.jpg", b"one")])
    root.chmod(0o555)
    try:
        place = find("dtd", [root])
        assert place is not None
        assert place.parent == tmp_path / "cache" / "data"
        assert everything(root) == ["dtd.tar"]
        before = (place / "train" / "a" / "1.jpg").stat().st_mtime_ns
        assert find("dtd", [root]) == place
        assert (place / "train" / "a" / "1.jpg").stat().st_mtime_ns == before
        os.utime(packed, (1, 1))  # another archive of that name
        assert find("dtd", [root]) != place
    finally:
        root.chmod(0o755)


def test_a_folder_marked_read_only_is_not_written_even_by_root(root: Path) -> None:
    root.mkdir()
    assert writable(root)
    root.chmod(0o555)
    assert not writable(root)
    root.chmod(0o755)


@pytest.mark.parametrize(
    "member",
    [
        special("gtsrb/link", tarfile.SYMTYPE, "/etc/passwd"),
        special("gtsrb/hard", tarfile.LNKTYPE, "gtsrb/a.jpg"),
        special("gtsrb/device", tarfile.CHRTYPE),
        special("gtsrb/pipe", tarfile.FIFOTYPE),
        ("../outside.jpg", b"x"),
        ("gtsrb/../../outside.jpg", b"x"),
    ],
)
def test_hostile_members_leave_nothing(root: Path, member: tuple[str, bytes]) -> None:
    pack(root, "gtsrb", [("gtsrb/a.jpg", b"x"), member])
    with pytest.raises(DataError, match=r"gtsrb\.tar: .*(refused|cannot be unpacked)"):
        find("gtsrb", [root])
    assert everything(root.parent) == ["sets", "sets/gtsrb.tar"]


def test_an_absolute_name_stays_inside(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    pack(root, "gtsrb", [(str(outside), b"x")])
    find("gtsrb", [root])
    assert not outside.exists()


def test_a_member_cannot_claim_more_than_the_archive_holds(root: Path) -> None:
    packed = pack(root, "gtsrb", [("gtsrb/a.jpg", b"x" * 2000)])
    raw = bytearray(packed.read_bytes())
    member = tarfile.TarInfo("gtsrb/a.jpg")
    member.size = 1 << 40
    raw[:512] = member.tobuf()[:512]
    packed.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"gtsrb\.tar"):
        find("gtsrb", [root])
    assert everything(root) == ["gtsrb.tar"]


@pytest.mark.parametrize("part", [0, 100, 700, 6000])
def test_a_truncated_archive_leaves_nothing(root: Path, part: int) -> None:
    packed = pack(root, "gtsrb", [(f"gtsrb/{i}.jpg", bytes(3000)) for i in range(4)])
    packed.write_bytes(packed.read_bytes()[:part])
    with pytest.raises(DataError, match=r"gtsrb\.tar: cannot be unpacked .*get it again"):
        find("gtsrb", [root])
    assert everything(root) == ["gtsrb.tar"]


def test_a_compressed_archive_is_not_taken(root: Path) -> None:
    root.mkdir()
    with tarfile.open(root / "gtsrb.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("gtsrb/a.jpg"))
    with pytest.raises(DataError, match=r"gtsrb\.tar: cannot be unpacked"):
        find("gtsrb", [root])


def test_a_full_disk_is_found_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(root, "gtsrb", [("gtsrb/a.jpg", bytes(5000))])
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4999}))
    with pytest.raises(DataError, match=r"needs 5000 bytes in .*, which has 4999"):
        find("gtsrb", [root])
    assert everything(root) == ["gtsrb.tar"]


def test_a_process_that_was_faster_is_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(root, "gtsrb", [("gtsrb/a.jpg", b"mine")])
    rename = Path.rename

    def late(source: Path, target: Path) -> Path:
        target.mkdir()
        (target / "a.jpg").write_bytes(b"theirs")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", late)
    assert find("gtsrb", [root]) == root / "gtsrb"
    assert (root / "gtsrb" / "a.jpg").read_bytes() == b"theirs"
    assert everything(root) == ["gtsrb", "gtsrb.tar", "gtsrb/a.jpg"]


def test_a_packed_set_is_read(root: Path) -> None:
    toy_sets.folders(root / "made" / "cifar10")
    with tarfile.open(root / "cifar10.tar", "w") as archive:
        archive.add(root / "made" / "cifar10", "cifar10")
    with pytest.warns(PiggybackWarning, match="12 train images, published 5000"):
        assert len(load("cifar10", [root]).test) == 6
