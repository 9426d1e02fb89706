"""Tars are whole or refused: no image is left out because a header cannot be read or the end is missing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from data.conftest import classes, encoded, write_tar

from deepvit.data import open_data, open_images
from deepvit.errors import UserError

BLOCK = 512


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_images(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """24 images of 3 classes."""
    return write_tar(tmp_path / "a.tar", classes(8))


def headers(archive: Path) -> list[int]:
    with tarfile.open(archive) as tar:
        return [member.offset for member in tar]


def test_a_flipped_bit_in_any_header_is_noticed(archive: Path) -> None:
    """Today's tarfile reads on to the damaged header and ends there without a word: 9 of 24 images."""
    whole = archive.read_bytes()
    offsets = headers(archive)
    rng = np.random.default_rng(0)
    for offset in offsets:
        for place in rng.integers(0, 257, 4):  # name, mode, owner, size, time, checksum, type, link
            damaged = bytearray(whole)
            damaged[offset + int(place)] ^= 1 << int(rng.integers(8))
            archive.write_bytes(damaged)
            text = refusal(archive)
            assert "damaged" in text or "not a readable uncompressed tar" in text
    damaged = bytearray(whole)
    damaged[offsets[9] + 3] ^= 1
    archive.write_bytes(damaged)
    assert f"the header at byte {offsets[9]:,} is none" in refusal(archive)
    assert "(9 members before that are whole)" in refusal(archive)


def test_a_tar_cut_off_anywhere_is_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in (*np.linspace(600, end, 25).astype(int).tolist(), end // BLOCK * BLOCK + BLOCK):
        archive.write_bytes(whole[:length])
        text = refusal(archive)
        assert "cut off" in text or "damaged" in text, text
    offsets = headers(write_tar(archive, classes(8)))
    archive.write_bytes(whole[: offsets[5]])  # between two members
    assert "without the marker that ends a tar" in refusal(archive)
    assert "(5 members are there)" in refusal(archive)
    archive.write_bytes(whole[: offsets[5] + BLOCK + 10])  # inside one
    assert "is cut off: its member ant/05.png should end at byte" in refusal(archive)


def test_a_single_flipped_bit_in_the_marker_is_noticed(archive: Path) -> None:
    damaged = bytearray(archive.read_bytes())
    end = (len(archive.read_bytes().rstrip(b"\0")) + BLOCK - 1) // BLOCK * BLOCK
    for place in (end + 5, end + BLOCK + 5, end + 2 * BLOCK + 5):
        damaged[place] ^= 4
        archive.write_bytes(damaged)
        assert "damaged" in refusal(archive)
        damaged[place] ^= 4


def test_joined_tars_are_noticed(archive: Path, tmp_path: Path) -> None:
    other = write_tar(tmp_path / "b.tar", classes(2, names=("dog",)))
    archive.write_bytes(archive.read_bytes() + other.read_bytes())
    assert "as when tars are joined by cat" in refusal(archive)


def test_an_empty_file_and_a_compressed_tar_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    assert "not a readable uncompressed tar (empty file)" in refusal(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x"))
    assert "not a readable uncompressed tar" in refusal(tmp_path / "z.tar")


def test_links_stand_for_their_files(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"ant/0.png": encoded(1), "ant/1.png": encoded(2)})
    with tarfile.open(path, "a") as tar:
        for name, kind, target in (
            ("bee/hard.png", tarfile.LNKTYPE, "ant/0.png"),
            ("bee/soft.png", tarfile.SYMTYPE, "../ant/1.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    images = open_images(path)
    assert [images.where(i).split(" in ")[0] for i in range(4)] == [
        "ant/0.png",
        "ant/1.png",
        "bee/hard.png",
        "bee/soft.png",
    ]
    assert images.image(2).tobytes() == images.image(0).tobytes() != images.image(1).tobytes()
    assert images.image(3).tobytes() == images.image(1).tobytes()
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("bee/lost.png")
        info.type, info.linkname = tarfile.SYMTYPE, "nowhere.png"
        tar.addfile(info)
    assert "bee/lost.png" in refusal(path)
    assert "link to bee/nowhere.png, which is not there" in refusal(path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_common_form_is_read_whole(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for name, content in classes(3).items():
            info = tarfile.TarInfo(
                f"{'a long folder name ' * (3 if form == tarfile.USTAR_FORMAT else 9)}/{name}"
            )
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert len(open_images(tmp_path / "a.tar")) == 9


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    members: dict[str, bytes] = {}
    for i in range(6):
        members |= {f"{i}.png": encoded(i), f"{i}.cls": b"0"}
    for part in ("train", "val"):
        write_tar(tmp_path / f"{part}-0.tar", members)
    damaged = bytearray((tmp_path / "train-0.tar").read_bytes())
    damaged[headers(tmp_path / "train-0.tar")[4]] ^= 1
    (tmp_path / "train-0.tar").write_bytes(damaged)
    with pytest.raises(UserError, match=r"train-0\.tar is damaged: the header at byte .* \(4 members before"):
        open_data(f"wds/{tmp_path}")
