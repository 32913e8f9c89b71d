"""Laws of the emoji, on a font made here and on Noto Color Emoji where it is installed."""

import hashlib
import io
import os
import pathlib
import unicodedata

import numpy as np
import pytest
from PIL import Image

from experiments.data import emoji, emoji_names, prepared
from experiments.data.dataset import SPLITS, read_images
from tests.experiments import emoji_font
from tests.experiments.emoji_font import TONES, png

GROUPS = list(emoji_names.GROUPS)


@pytest.fixture(scope="session")
def noto() -> list[emoji.Glyph]:
    if not os.path.isfile(emoji.DEBIAN_FONT):
        pytest.skip(f"Debian's {emoji.DEBIAN_PACKAGE} is not installed")
    return emoji.read_font(emoji.DEBIAN_FONT)


@pytest.fixture
def font(tmp_path: pathlib.Path) -> str:
    return str(emoji_font.small(tmp_path / "small.ttf"))


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGBA"))


def margins(image: np.ndarray) -> tuple[int, int, int, int]:
    """White rows and columns before and after what is drawn: top, bottom, left, right."""
    drawn = (image < 255).any(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    height, width = drawn.shape
    return rows[0], height - 1 - rows[-1], columns[0], width - 1 - columns[-1]


# Reading a font.


def test_every_sequence_has_its_own_picture(font):
    found = {glyph.sequence: glyph.picture for glyph in emoji.read_font(font)}
    plain = [sequence.replace("\ufe0f", "") for sequence in emoji_font.SEQUENCES]
    assert found == {sequence: png(i) for i, sequence in enumerate(plain)}


def test_the_largest_pictures_are_read(tmp_path):
    path = emoji_font.write(tmp_path / "f.ttf", {"😀": png(1)}, strikes=(20, 109, 64))
    assert emoji.read_font(str(path)) == [("😀", "grinning face", png(1))]


def test_glyphs_of_one_picture_are_read_once_under_the_shortest_sequence(tmp_path):
    pictures = {"👍🏿": png(1), "👍": png(1), "😀": png(2)}
    found = emoji.read_font(str(emoji_font.write(tmp_path / "f.ttf", pictures)))
    assert [glyph.sequence for glyph in found] == ["👍", "😀"]


def test_sequences_of_one_glyph(tmp_path):
    same = {
        "\U000fe4e8": "🇩🇪",  # a private code point
        "\U000fe001": "🔧",
        "🇸🇯": "🇳🇴",
        "🚀\u200d👩": "👩\u200d🚀",  # backwards
        "🦰\u200d👩🏽": "👩🏽\u200d🦰",
        "👨\u200d❤\u200d👩": "👩\u200d❤\u200d👨",
        "❤\ufe0f": "❤",
    }
    pictures = {sequence: png(i) for i, sequence in enumerate(same.values())}
    found = emoji.read_font(str(emoji_font.write(tmp_path / "f.ttf", pictures, same=same)))
    assert {glyph.sequence for glyph in found} == set(same.values())
    assert {glyph.text for glyph in found} >= {"flag of de", "flag of no or sj", "woman, rocket"}


# Names, groups, bases.


@pytest.mark.parametrize(
    ("sequence", "name", "group"),
    [
        ("😀", "grinning face", "faces"),
        ("👍🏿", "thumbs up sign, dark skin tone", "people and body"),
        ("🏃🏻\u200d♀\ufe0f", "runner, light skin tone, woman", "people and body"),
        ("🏃\u200d➡", "runner, facing right", "people and body"),
        ("👩🏽\u200d🦰", "woman, medium skin tone, red hair", "people and body"),
        ("👩\u200d🚀", "woman, rocket", "people and body"),
        ("🐈\u200d⬛", "cat, black large square", "animals and nature"),
        ("🍄", "mushroom", "animals and nature"),
        ("🍕", "slice of pizza", "food and drink"),
        ("🚀", "rocket", "travel and places"),
        ("⚽", "soccer ball", "activities"),
        ("🔧", "wrench", "objects"),
        ("♀", "female sign", "symbols"),
        ("7\ufe0f\u20e3", "keycap digit seven", "symbols"),
        ("🇩", "regional indicator symbol letter d", "symbols"),
        ("🇩🇪", "flag of de", "flags"),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag of gb-eng",
         "flags"),
        ("🏴\U000e007f", "unknown flag", "flags"),
        ("🏴\u200d☠", "waving black flag, skull and crossbones", "flags"),
        ("\U000fe4e8", "u+fe4e8", "symbols"),
    ],
)  # fmt: skip
def test_names_and_groups(sequence, name, group):
    assert emoji_names.name(sequence) == name
    assert GROUPS[emoji_names.group(sequence)] == group


@pytest.mark.parametrize("sequence", [*emoji_font.SEQUENCES, "❤\ufe0f", "🐱", "‼\ufe0f", "♻", "🀄"])
def test_an_emoji_in_a_text_is_read_as_its_name(sequence: str) -> None:
    """Alone, between words, and twice: two flags are no third one."""
    name = emoji_names.name(sequence)
    assert emoji_names.spelled(sequence) == name
    assert emoji_names.spelled(f"a{sequence} b") == f"a {name} b"
    assert emoji_names.spelled(sequence * 2) == f"{name} {name}"


@pytest.mark.parametrize("text", ["", " ", "red  apple, 2×2!", "Côte d'Ivoire", "#1 * 3", "… “é”"])
def test_a_text_without_emoji_is_left_as_it_is(text: str) -> None:
    assert emoji_names.spelled(text) == text


@pytest.mark.parametrize(
    "variants",
    [
        ("👍", *("👍" + tone for tone in TONES)),
        ("🏃", "🏃🏻\u200d♀", "🏃🏿\u200d♂\ufe0f\u200d➡\ufe0f"),
        ("🧑\u200d🚀", "👩🏽\u200d🚀", "👨\u200d🚀"),
        ("🧑", "👩", "👨🏾", "👩🏻\u200d🦳"),
        ("👭", "👫🏽", "👩🏻\u200d🤝\u200d👨🏿", "🧑\u200d🤝\u200d🧑"),
        ("💏", "👩\u200d❤\ufe0f\u200d💋\u200d👨🏿"),
        ("👪", "👨\u200d👦", "👦\u200d👨", "👩\u200d👩\u200d👧\u200d👦"),
        ("🤝", "🤝🏽", "🫱🏻\u200d🫲🏿"),
        ("🎅", "🤶🏿", "🧑🏽\u200d🎄"),
        ("❤\u200d🔥", "❤\ufe0f\u200d🔥"),
    ],
)
def test_variants_share_a_base_and_a_split(variants):
    assert len({emoji_names.base(variant) for variant in variants}) == 1
    assert len({emoji_names.is_held_out(variant) for variant in variants}) == 1


def test_other_pictures_have_other_bases():
    unlike = (
        *("🇩🇪", "🇪🇩", "🇦🇺", "🇺🇦", "🏴", "🏴\u200d☠", "1\u20e3", "1", "🧑", "🧑\u200d🚀", "🚀"),
        *("🧒", "♀", "♂", "➡", *TONES, "🫱", "🫲", "🤝", "❤", "🔥", "💋"),
    )
    assert len({emoji_names.base(sequence) for sequence in unlike}) == len(unlike)


def test_a_tenth_of_the_bases_is_held_out():
    bases = [chr(0x1F300 + i) for i in range(0x400)]
    share = np.mean([emoji_names.is_held_out(base) for base in bases])
    assert abs(share - emoji_names.TEST_FRACTION) < 4 * np.sqrt(0.1 * 0.9 / len(bases))


# Pictures.


@pytest.mark.parametrize("box", [(0, 0, 8, 4), (12, 12, 20, 16), (3, 1, 17, 13), (0, 0, 20, 16)])
def test_what_is_visible_is_in_the_middle_uncut_on_white(box):
    picture = png(3, box)
    left, top, right, bottom = box
    image = emoji.render(picture, emoji_font.WIDTH)  # its own size: nothing is resized
    around = margins(image)
    assert abs(around[0] - around[1]) <= 1 and abs(around[2] - around[3]) <= 1
    inside = image[around[0] : 20 - around[1], around[2] : 20 - around[3]]
    np.testing.assert_array_equal(inside, decoded(picture)[top:bottom, left:right, :3])
    assert (image < 255).any(-1).sum() == (right - left) * (bottom - top)


def test_half_transparent_pixels_are_mixed_with_white():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.arange(64).reshape(8, 8) * 4 + 3
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, format="png")
    alpha = pixels[..., 3:] / 255
    mixed = alpha * pixels[..., :3] + (1 - alpha) * 255
    np.testing.assert_allclose(emoji.render(buffer.getvalue(), 8), mixed, atol=1)


@pytest.mark.parametrize("size", emoji.SIZES)
def test_resizing_keeps_the_mean_and_the_middle(size):
    picture = png(4, (2, 3, 16, 15))
    image, unscaled = emoji.render(picture, size), emoji.render(picture, emoji_font.WIDTH)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert abs(image.mean() - unscaled.mean()) < 2
    weights = 255.0 - image.mean(-1)
    for axis in (0, 1):
        centre = (weights.sum(axis) * (np.arange(size) + 0.5)).sum() / weights.sum()
        assert abs(centre / size - 0.5) < 0.05


def test_lines_finer_than_a_pixel_become_grey():
    stripes = Image.fromarray(np.tile(np.asarray([0, 255], np.uint8), (128, 64)))
    buffer = io.BytesIO()
    stripes.save(buffer, format="png")
    inside = emoji.render(buffer.getvalue(), 32)[2:-2, 2:-2].astype(int)
    assert abs(inside - 127.5).max() < 10


# Preparing.


def records(data_dir: str, size: int, split: str) -> list[tuple[str, int, bytes]]:
    source = emoji.emoji(data_dir, size).open(split)
    assert isinstance(source, prepared.Prepared)
    everything = read_images(source, 0, len(source))
    rows = zip(everything["image"], everything["label"], strict=True)
    return [(source.text(i), int(y), image.tobytes()) for i, (image, y) in enumerate(rows)]


def test_preparing_keeps_names_groups_and_pictures(tmp_path, font):
    folder = emoji.prepare(font, str(tmp_path))
    assert folder == f"{tmp_path}/emoji"
    for size in emoji.SIZES:
        for split in SPLITS:
            wanted = [
                (g.text, emoji_names.group(g.sequence), emoji.render(g.picture, size).tobytes())
                for g in emoji.read_font(font)
                if emoji_names.is_held_out(g.sequence) == (split == "test")
            ]
            assert wanted and sorted(records(str(tmp_path), size, split)) == sorted(wanted)


def test_preparing_twice_gives_the_same_bytes(tmp_path, font):
    def digests(name: str) -> dict[str, str]:
        folder = pathlib.Path(emoji.prepare(font, str(tmp_path / name)))
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*.array_record*")
        }

    first = digests("a")
    assert first == digests("b") and len(first) == len(SPLITS) * len(emoji.SIZES)


def test_a_data_set_without_words_says_so(tmp_path):
    from experiments.data import digits

    source = digits.digits(str(tmp_path)).open("test")
    with pytest.raises(ValueError, match="there is no text"):
        source.text(0)


@pytest.mark.parametrize("size", [0, 31, 48, 128])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=rf"image_size = {size}: .* in 32 and 64 pixels\. Choose"):
        emoji.emoji(image_size=size)


def assert_refused(path: str, tmp_path: pathlib.Path, words: str, kind: type = ValueError) -> None:
    with pytest.raises(kind, match=f"(?s){words}"):
        emoji.prepare(path, str(tmp_path / "prepared"))
    assert prepared.find("emoji/32", str(tmp_path / "prepared")) is None


@pytest.mark.parametrize(("coloured", "tables"), [(True, "COLR"), (False, "glyf")])
def test_fonts_without_colour_bitmaps_are_refused(tmp_path, coloured, tables):
    path = emoji_font.outlines(tmp_path / "outlines.ttf", coloured)
    words = rf"outlines\.ttf has no colour bitmaps .*{tables}.*fonts-noto-color-emoji.*--from=FONT"
    assert_refused(str(path), tmp_path, words)


def test_a_missing_font_is_refused(tmp_path, monkeypatch):
    words = (
        "There is no font .*absent.*Install Debian's package fonts-noto-color-emoji.*--from=FONT"
    )
    assert_refused(str(tmp_path / "absent.ttf"), tmp_path, words, FileNotFoundError)
    monkeypatch.setattr(emoji, "DEBIAN_FONT", str(tmp_path / "absent.ttf"))
    with pytest.raises(FileNotFoundError, match=words):
        emoji.prepare(None, str(tmp_path / "prepared"))


def test_the_installed_font_is_found(tmp_path, font, monkeypatch):
    monkeypatch.setattr(emoji, "DEBIAN_FONT", font)
    emoji.prepare(None, str(tmp_path))
    assert len(records(str(tmp_path), 32, "train")) > 40


def test_unreadable_files_are_refused(tmp_path, font):
    path = pathlib.Path(font)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert_refused(
            font,
            tmp_path,
            r"small\.ttf (cannot be read as a font .*--from=FONT|is .*, and no font)",
        )
    emoji_font.write(path, {"😀": b"no picture"})
    assert_refused(font, tmp_path, "picture of 'grinning face' is no PNG")


# Noto Color Emoji itself, which .ci/run installs.


@pytest.mark.slow
def test_noto_is_named_throughout(noto):
    texts = [glyph.text for glyph in noto]
    assert len(set(texts)) == len(texts) == len({glyph.sequence for glyph in noto})
    assert not [text for text in texts if "u+" in text or text != text.lower()]
    assert len({glyph.picture for glyph in noto}) == len(noto) > 3000
    newer = 0
    for glyph in noto:
        if len(glyph.sequence) == 1 and glyph.sequence not in TONES:
            known = unicodedata.name(glyph.sequence, "").lower()  # of this Python
            assert glyph.text == known or not known
            newer += not known
    assert newer < 100
    sequences = {glyph.sequence for glyph in noto}
    assert {
        "👍",
        "👍🏿",
        "👩\u200d🚀",
        "🏴\u200d☠",
        "🇩🇪",
        "7\u20e3",
        "👩\u200d❤\u200d👨",
    } <= sequences


@pytest.mark.slow
def test_no_variant_of_a_test_emoji_of_noto_is_in_train(noto):
    bases = [
        {
            emoji_names.base(g.sequence)
            for g in noto
            if emoji_names.is_held_out(g.sequence) == held_out
        }
        for held_out in (False, True)
    ]
    assert not bases[0] & bases[1]
    assert 0.05 < len(bases[1]) / len(bases[0] | bases[1]) < 0.15
    toned = [glyph for glyph in noto if any(tone in glyph.sequence[1:] for tone in TONES)]
    assert len(toned) > 1500
    held_out = {glyph.sequence: emoji_names.is_held_out(glyph.sequence) for glyph in noto}
    for glyph in toned:
        plain = glyph.sequence.translate(dict.fromkeys(map(ord, TONES)))
        assert held_out.get(plain, held_out[glyph.sequence]) == held_out[glyph.sequence]


@pytest.mark.slow
def test_every_group_of_noto_is_there(noto):
    labels = [emoji_names.group(glyph.sequence) for glyph in noto]
    counts = np.bincount(labels, minlength=len(GROUPS))
    assert counts.min() > 50 and len(counts) == len(GROUPS)


@pytest.mark.slow
def test_noto_is_centred_and_white_around(noto):
    for glyph in noto[::40]:
        side = max(decoded(glyph.picture).shape)
        image = emoji.render(glyph.picture, side)
        top, bottom, left, right = margins(image)
        assert abs(top - bottom) <= 2 and abs(left - right) <= 2  # faintest pixels are white
        alpha = decoded(glyph.picture)[..., 3]
        assert (image < 255).any(-1).sum() <= (alpha > 0).sum()
