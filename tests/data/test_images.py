"""Every kind of image is read right, or refused in one line that names it; the same pixels wherever they are read."""

from __future__ import annotations

import contextlib
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import encoded, picture, write_files, write_tar
from PIL import Image

from deepvit.data import InputSpec, Loaders, open_data, open_images, read_image
from deepvit.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def pixels(path: Path) -> np.ndarray:
    """As every reader of files sees them: [h, w, 3]."""
    image = open_images(path).image(0)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_images(path).image(0)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert "0x" not in text  # no address of a Python object
    return text


def corners() -> Image.Image:
    """4 wide, 2 high: red at the upper left, green at the upper right, blue at the lower left."""
    image = Image.new("RGB", (4, 2), WHITE)
    image.putpixel((0, 0), RED)
    image.putpixel((3, 0), GREEN)
    image.putpixel((0, 1), BLUE)
    return image


# How a viewer must turn a file of each EXIF orientation (TIFF 6.0): its inverse makes the file from the picture.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "webp", "tif"])
def test_exif_orientation_is_followed(orientation: int, ending: str, tmp_path: Path) -> None:
    upright = corners()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(STORED[orientation]) if orientation > 1 else upright
    options = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", stored, exif=exif, **options)
    assert np.array_equal(pixels(path), np.asarray(upright))


def test_exif_orientation_of_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (64, 32), RED), exif=exif)
    assert pixels(path).shape == (64, 32, 3)


def test_broken_exif_turns_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", corners(), exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xffrubbish")
    assert np.array_equal(pixels(path), np.asarray(corners()))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_cut(ending: str, tmp_path: Path) -> None:
    wide = np.array([[0, 257, 5000], [32768, 60000, 65535]], dtype=np.uint16)
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(wide))
    assert np.array_equal(pixels(path)[..., 1], np.round(wide / 257))


def test_sixteen_bits_of_the_other_byte_order(tmp_path: Path) -> None:
    wide = np.array([[0, 257, 65535]], dtype=np.uint16)
    image = Image.frombytes("I;16B", (3, 1), wide.astype(">u2").tobytes())
    path = saved(tmp_path / "a.tif", image)
    assert pixels(path)[0, :, 0].tolist() == [0, 1, 255]


def test_floats_from_zero_to_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)))
    assert pixels(path)[0, :, 2].tolist() == [0, 128, 255]


@pytest.mark.parametrize("values", [[0.0, 300.0], [-1.0, 0.5], [0.0, np.nan]])
def test_floats_of_no_agreed_range_are_refused(values: list[float], tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([values], dtype=np.float32)))
    assert "no agreed range" in refusal(path)


def test_whole_numbers_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 100000]], dtype=np.int32)))
    assert "32 bits have no agreed range" in refusal(path)


def test_grey_and_one_bit(tmp_path: Path) -> None:
    grey = saved(tmp_path / "a.png", Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8)))
    assert pixels(grey)[0].tolist() == [[0] * 3, [77] * 3, [255] * 3]
    bit = saved(tmp_path / "b.png", Image.fromarray(np.array([[0, 255, 0]], dtype=np.uint8)).convert("1"))
    assert pixels(bit)[0].tolist() == [[0] * 3, [255] * 3, [0] * 3]


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    layer = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    layer.putpixel((0, 0), (*RED, 255))
    layer.putpixel((1, 0), (0, 0, 0, 51))
    assert pixels(saved(tmp_path / "a.png", layer))[0].tolist() == [[*RED], [204] * 3, [*WHITE]]
    grey = Image.new("LA", (2, 1), (100, 255))
    grey.putpixel((1, 0), (0, 0))
    assert pixels(saved(tmp_path / "b.png", grey))[0].tolist() == [[100] * 3, [*WHITE]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert pixels(saved(tmp_path / "c.png", palette))[0].tolist() == [[*RED], [*BLUE]]
    assert pixels(saved(tmp_path / "d.png", palette, transparency=1))[0].tolist() == [[*RED], [*WHITE]]
    assert pixels(saved(tmp_path / "e.gif", palette, transparency=1))[0].tolist() == [[*RED], [*WHITE]]
    key = Image.new("RGB", (2, 1), RED)
    key.putpixel((1, 0), BLUE)
    assert pixels(saved(tmp_path / "f.png", key, transparency=BLUE))[0].tolist() == [[*RED], [*WHITE]]


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
    assert np.abs(pixels(path).astype(int) - RED).max() < 8


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_of_an_animation_the_first_frame(ending: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    options: dict[str, object] = {"lossless": True} if ending == "webp" else {}
    path = saved(tmp_path / f"a.{ending}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert (pixels(path) == RED).all()


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "the file is empty, 0 bytes" in refusal(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_bytes(b"<html>404</html>")
    assert "in no image format that is known here" in refusal(tmp_path / "text.jpg")
    for ending in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        whole = saved(tmp_path / f"whole.{ending}", picture(1, (64, 64))).read_bytes()
        (tmp_path / f"part.{ending}").write_bytes(whole[: len(whole) * 2 // 3])
        assert "cannot be read" in refusal(tmp_path / f"part.{ending}")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    bomb = saved(tmp_path / "bomb.png", Image.new("L", (64, 64)))
    assert "decompression bomb" in refusal(bomb)


def test_gone_and_forbidden_files_are_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"ant/0.png": encoded(1)})
    images = open_images(tmp_path)
    (tmp_path / "ant" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png cannot be read \(No such file or directory\)"):
        images.image(0)


def test_damaged_bytes_are_read_or_refused_never_a_traceback(tmp_path: Path) -> None:
    """Every format, bits flipped by a seeded generator: a UserError is the only way out."""
    rng = np.random.default_rng(0)
    formats = {
        "PNG": {},
        "JPEG": {},
        "GIF": {},
        "TIFF": {},
        "WEBP": {},
        "BMP": {},
        "PPM": {},
        "TGA": {},
        "ICO": {},
    }
    refused = 0
    for kind, options in formats.items():
        buffer = io.BytesIO()
        picture(3, (24, 16)).save(buffer, kind, **options)
        for _ in range(60):
            damaged = bytearray(buffer.getvalue())
            for place in rng.integers(0, min(len(damaged), 200), 4):
                damaged[place] ^= 1 << int(rng.integers(8))
            path = tmp_path / "a.png"
            path.write_bytes(bytes(damaged))
            with contextlib.suppress(UserError):
                open_images(path).image(0)
                continue
            refusal(path)
            refused += 1
    assert refused > 100


def test_every_source_reads_the_same_pixels(tmp_path: Path) -> None:
    """A turned photograph and a 16-bit image from a folder, a tar and all of timm's readers, in memory and not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    members: dict[str, bytes] = {}
    for part in ("train", "val"):
        for name, image, extra in (
            ("turned", corners().resize((8, 8), 0), {"exif": exif}),
            ("wide", Image.fromarray(wide), {}),
        ):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", **extra)
            members |= {f"{part}/{name}/{i}.png": buffer.getvalue() for i in range(2)}
    folder = write_files(tmp_path / "set", members)
    expected = [np.asarray(read_image(folder / "val" / name / "0.png")) for name in ("turned", "wide")]
    assert expected[0][0, -1].tolist() == [*RED]  # upper left before the turn
    assert expected[1][0, 5].tolist() == [round(5000 / 257)] * 3
    specs: list[tuple[str, dict[str, object]]] = [
        (str(folder), {}),
        (str(write_tar(tmp_path / "all.tar", members)), {}),
        ("torch/image_folder", {"root": str(folder)}),
    ]
    if find_spec("datasets"):
        specs.append((f"hfds/{folder}", {"root": str(tmp_path / "cache")}))
    if find_spec("webdataset"):
        shards: dict[str, bytes] = {}
        for i, name in enumerate(("turned", "wide")):
            shards |= {f"{i}.png": members[f"val/{name}/0.png"], f"{i}.cls": str(i).encode()}
        for part in ("train", "val"):
            write_tar(tmp_path / f"{part}-0.tar", shards)
        specs.append((f"wds/{tmp_path}", {}))
    for spec, options in specs:
        data = open_data(spec, **options)
        for cache in ("auto", "off"):
            loaders = Loaders(
                data,
                input=InputSpec(8, (0.0,) * 3, (1.0,) * 3),
                batch_size=2,
                cache=cache,
                workers=1,
                progress=False,
            )
            batches = list(loaders.val_dataloader())
            images = torch.cat([x for x, _ in batches]).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
            labels = torch.cat([y for _, y in batches]).tolist()
            for image, label in zip(images, labels, strict=True):
                assert np.array_equal(image, expected[label]), (spec, cache, label)
            loaders.teardown()
