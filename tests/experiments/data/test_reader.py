"""A picture is read alike whatever its file holds it in, and what cannot be is told with a way."""

import ast
import pathlib
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from experiments.data import reader
from experiments.data.listing import list_folder
from experiments.data.reader import decode, few_levels

GREY = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(np.uint8)
CLEAR = np.zeros_like(GREY)


def on_white(grey: np.ndarray) -> np.ndarray:
    """Black, and transparent by as much as the grey is bright."""
    return np.dstack([CLEAR, 255 - grey])


FORMS = {
    "8 bits.png": (GREY, {}),
    "16 bits.png": (GREY.astype(np.uint16) * 257, {}),
    "float.tif": ((GREY / 255).astype(np.float32), {}),
    "32 bits.tif": (GREY.astype(np.int32) * 257, {}),
    "colours.png": (np.dstack([GREY] * 3), {}),
    "grey and alpha.png": (on_white(GREY), {"mode": "LA"}),
    "colours and alpha.png": (np.dstack([CLEAR, CLEAR, CLEAR, 255 - GREY]), {"mode": "RGBA"}),
    "12 of 16 bits.png": (np.rint(GREY * (4095 / 255)).astype(np.uint16), {"white": 4095}),
    "float of 255.tif": (GREY.astype(np.float32), {"white": 255}),
    "around zero.tif": (((GREY / 127.5) - 1).astype(np.float32), {"black": -1, "white": 1}),
    "upside down.tif": (((255 - GREY) / 255).astype(np.float32), {"black": 1, "white": 0}),
}


def write(folder: pathlib.Path, name: str) -> tuple[str, tuple[float, ...]]:
    """The path of one of FORMS, and the range of values that it takes."""
    pixels, told = FORMS[name]
    Image.fromarray(pixels, mode=told.get("mode")).save(folder / name)
    told_range = (told.get("black", 0), told["white"]) if "white" in told else ()
    return str(folder / name), told_range


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_grey_is_read_of_every_form(name: str, channels: int, tmp_path) -> None:
    path, value_range = write(tmp_path, name)
    found = decode(path, name, image_size=None, channels=channels, value_range=value_range)
    np.testing.assert_array_equal(found, np.dstack([GREY] * channels))
    square = decode(path, name, image_size=5, channels=channels, value_range=value_range)
    plain = reader.fit(Image.fromarray(GREY), 5)
    np.testing.assert_array_equal(square, np.concatenate([plain] * channels, axis=2))


@pytest.mark.parametrize(
    ("least", "most", "kind", "likely"),
    [
        (0, 255, np.float32, "(0,255)"),
        (3, 3900, np.float32, "(0,4095)"),
        (-0.9, 0.7, np.float32, "(-1,1)"),
        (-3, 7.5, np.float32, "(-3,7.5)"),
        (0, 2**20 - 1, np.int32, f"(0,{2**20 - 1})"),
    ],
)
def test_the_range_that_a_refusal_proposes_is_taken(least, most, kind, likely, tmp_path) -> None:
    """It is the one that such values are likely of, and spreads them over most grey levels."""
    path, values = str(tmp_path / "a.tif"), np.linspace(least, most, 64).astype(kind)
    Image.fromarray(np.tile(values, (4, 1))).save(path)
    with pytest.raises(
        ValueError, match=r"a.tif cannot be used \(mode . holds .*: 0 is bl"
    ) as error:
        decode(path, "a.tif", image_size=None)
    said = str(error.value)
    assert "--config.data.value_range" in said and "--value_range" in said
    assert f"such as {likely}." in said
    value_range = ast.literal_eval(likely)
    found = decode(path, "a.tif", image_size=None, channels=1, value_range=value_range)
    assert np.ptp(found.astype(int)) > 200 and (np.diff(found[0, :, 0].astype(int)) >= 0).all()


def test_what_is_no_number_is_refused(tmp_path) -> None:
    path = str(tmp_path / "a.tif")
    Image.fromarray(np.array([[0, np.nan, 1]], np.float32)).save(path)
    with pytest.raises(ValueError, match=r"a.tif cannot be used \(mode F holds nan to nan\)"):
        decode(path, "a.tif", image_size=None)


def test_a_transparent_colour_of_16_bits_is_transparent(tmp_path) -> None:
    deep = np.array([[0, 1000, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png", transparency=1000)
    for background, level in (("white", 255), ("black", 0)):
        found = decode(
            str(tmp_path / "a.png"), "", image_size=None, channels=1, background=background
        )
        assert found.ravel().tolist() == [0, level, 255]


def test_orientation_tags_are_heeded(tmp_path) -> None:
    """Each of the eight, as the turned picture stored without one."""
    turned = {3: 2, 6: 3, 8: 1}  # quarter turns to the left
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.fromarray(GREY).save(tmp_path / "a.png", exif=exif)
        found = decode(str(tmp_path / "a.png"), "", image_size=None, channels=1)[..., 0]
        if tag in (1, *turned):
            np.testing.assert_array_equal(found, np.rot90(GREY, turned.get(tag, 0)))
        else:
            mirrored = {2: GREY[:, ::-1], 4: GREY[::-1], 5: GREY.T, 7: np.rot90(GREY, 2).T}[tag]
            np.testing.assert_array_equal(found, mirrored)


def told(pixels: list[np.ndarray], folder: pathlib.Path, value_range: tuple = (), **how) -> str:
    for i, picture in enumerate(pixels):
        suffix = "tif" if picture.dtype == np.float32 else "png"
        Image.fromarray(picture, **how).save(folder / f"{i}.{suffix}")
    files = [str(path) for path in sorted(folder.iterdir())]
    return few_levels(len(files), files.__getitem__, value_range=value_range)


def test_few_grey_levels_are_told_with_the_range_that_mends_it(tmp_path) -> None:
    """12 and 14 bits in files of 16, and none of 15; of the whole set, not of one picture."""
    for bits in (8, 10, 12, 14, 15, 16):
        values = np.linspace(0, 2**bits - 1, 300).astype(np.uint16).reshape(2, 1, -1)
        (tmp_path / f"{bits}").mkdir()
        said = told(list(values), tmp_path / f"{bits}")
        if bits >= 15:
            assert said == ""
            continue
        assert f"as their files hold 0 to {2**bits - 1}." in said
        assert f"such as (0,{2**bits - 1})." in said
        again = told(list(values), tmp_path / f"{bits}", (0, 2**bits - 1))
        assert again == ""


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_few_levels_are_told_of_what_is_seen(tmp_path) -> None:
    """Not of the black below a transparent picture; and of pictures of 8 bits as well."""
    for name in ("clear", "dark", "both", "black", "damaged"):
        (tmp_path / name).mkdir()
    assert told([on_white(GREY)], tmp_path / "clear", mode="LA") == ""
    dark, deep = GREY // 16, GREY.astype(np.uint16)
    assert "use the grey levels 0 to 15 of 0 to 255 alone: stretch" in told(
        [dark, dark], tmp_path / "dark"
    )
    assert told([dark, 240 + dark], tmp_path / "both") == ""
    assert "0 to 0 of 0 to 255 alone: stretch" in told([0 * deep], tmp_path / "black")
    (tmp_path / "damaged" / "0.png").write_bytes(b"no picture")
    assert told([], tmp_path / "damaged") == ""


WRITABLE = sorted(
    end
    for end in reader.extensions()
    if Image.registered_extensions()[end] in Image.SAVE
    and Image.registered_extensions()[end] not in ("BLP", "ICNS", "IM", "MSP", "XBM")
)


@pytest.mark.parametrize("end", WRITABLE)
def test_every_ending_that_pillow_writes_is_listed_and_read(end: str, tmp_path) -> None:
    """The kinds of the usual photographs among them."""
    smooth = np.add.outer(np.arange(0, 128, 4), np.arange(0, 128, 4)).astype(np.uint8)
    picture = Image.fromarray(smooth).convert("F" if end == ".pfm" else "RGB")
    picture = picture.point(lambda v: v / 255) if end == ".pfm" else picture
    picture = picture.convert("1") if end == ".pbm" else picture
    path = tmp_path / f"a{end.upper()}"
    picture.save(path, format=Image.registered_extensions()[end])
    assert list_folder(str(tmp_path)).names == [path.name]
    found = decode(str(path), "", image_size=None, channels=1)
    error = np.abs(found[..., 0].astype(int) - smooth)
    assert found.shape == (32, 32, 1) and (end == ".pbm" or error.mean() < 6)


def test_the_usual_endings_are_read_and_documents_are_not() -> None:
    usual = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
    usual |= {
        end for end, name in ((".avif", "avif"), (".jp2", "jpg_2000")) if features.check(name)
    }
    assert usual <= {*WRITABLE}
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt", ".npz", ".svg"} & reader.extensions()


@pytest.fixture
def heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A plugin like pillow-heif, whose pictures are PNG files behind eight letters."""

    def opened(stream, name):
        stream.seek(8)
        return PngImagePlugin.PngImageFile(stream)

    def register() -> None:
        Image.register_open("HEIF", opened, lambda prefix: prefix.startswith(b"heifheif"))
        Image.register_extension("HEIF", ".heic")

    for table in ("ID", "OPEN", "EXTENSION"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    plugin = types.SimpleNamespace(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    yield
    monkeypatch.undo()
    reader.formats.cache_clear()
    reader.extensions.cache_clear()


def heic_folder(folder: pathlib.Path) -> str:
    Image.fromarray(GREY).save(folder / "a.png")
    (folder / "b.heic").write_bytes(b"heifheif" + (folder / "a.png").read_bytes())
    return str(folder)


def test_without_its_plugin_heic_is_left_out_and_the_plugin_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reader.formats.cache_clear()
    reader.extensions.cache_clear()
    found = list_folder(heic_folder(tmp_path))
    assert found.names == ["a.png"]
    assert "1 of other kinds (.heic 1); `pip install pillow-heif` reads some" in found.left_out()


def test_with_its_plugin_heic_is_read(heif, tmp_path) -> None:
    reader.formats.cache_clear()
    reader.extensions.cache_clear()
    found = list_folder(heic_folder(tmp_path))
    assert found.names == ["a.png", "b.heic"] and found.left_out() == ""
    pixels = decode(str(tmp_path / "b.heic"), "", image_size=None, channels=1)
    np.testing.assert_array_equal(pixels[..., 0], GREY)
