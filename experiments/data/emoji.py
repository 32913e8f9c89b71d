"""Emoji: the colour pictures of a font such as Noto Color Emoji, with a name and a group each."""

import io
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from fontTools.ttLib import TTFont
from PIL import Image

from experiments import console
from experiments.data import emoji_names, prepared
from experiments.data.dataset import Dataset, open_named_split
from experiments.files.contents import refuse_other

SIZES = (32, 64)
DEBIAN_PACKAGE = "fonts-noto-color-emoji"
NOTO_SHA256 = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"  # 2.042
DEBIAN_FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
HOW_TO_GET = (
    f"Install Debian's package {DEBIAN_PACKAGE} (its font is found by itself), or name a font "
    "whose glyphs are colour bitmaps (tables CBDT and CBLC) with --from: "
)


class Glyph(NamedTuple):
    """A picture of a font.

    sequence: the characters that it stands for, without variation selectors.
    text: its name.
    picture: the bytes of a PNG.
    """

    sequence: str
    text: str
    picture: bytes


def _sequences(font: TTFont) -> dict[str, set[str]]:
    """Glyph -> the sequences that the font's cmap and its ligatures turn into it."""
    found: dict[str, set[str]] = defaultdict(set)
    for code, glyph in (font.getBestCmap() or {}).items():
        found[glyph].add(chr(code))
    spelled = {glyph: min(characters) for glyph, characters in found.items()}
    lookups = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else ()
    for subtable in (subtable for lookup in lookups for subtable in lookup.SubTable):
        ligatures = getattr(getattr(subtable, "ExtSubTable", subtable), "ligatures", {})
        for first, follow in ligatures.items():
            for ligature in follow:
                parts = (first, *ligature.Component)
                if all(part in spelled for part in parts):
                    sequence = "".join(spelled[part] for part in parts)
                    found[ligature.LigGlyph].add(sequence)
                    spelled.setdefault(ligature.LigGlyph, sequence)
    return found


def read_font(path: str) -> list[Glyph]:
    """The pictures of a font in the order of their sequences, those of its largest size.

    A picture that several glyphs share is there once, under the shortest of their sequences, then
    under the first of their names. A glyph that no sequence leads to is left out.

    Raises:
        ValueError: the file is no font, is damaged, or has no colour bitmaps.
    """
    try:
        font = TTFont(path)
        has_pictures = "CBDT" in font
        if has_pictures:
            strikes = zip(font["CBLC"].strikes, font["CBDT"].strikeData, strict=True)
            _, strike = max(strikes, key=lambda pair: pair[0].bitmapSizeTable.ppemY)
            pictures = {glyph: bytes(bitmap.imageData) for glyph, bitmap in strike.items()}
            sequences = _sequences(font)
    except Exception as error:  # whatever a damaged table can raise
        refuse_other(Path(path), "font")
        raise ValueError(
            f"{path} cannot be read as a font ({type(error).__name__}: {error}). "
            + HOW_TO_GET
            + prepared.prepare_command("emoji", source="FONT.ttf")
        ) from error
    if not has_pictures:
        raise ValueError(
            f"{path} has no colour bitmaps (it has the tables {', '.join(font.keys())}): outlines, "
            "coloured (COLR, SVG) or not, cannot be used. "
            + HOW_TO_GET
            + prepared.prepare_command("emoji", source="FONT.ttf")
        )
    distinct: dict[bytes, Glyph] = {}
    for glyph, picture in pictures.items():
        if glyph in sequences:
            found = Glyph(
                emoji_names.choose_sequence(sequences[glyph]),
                emoji_names.name_of_all(sequences[glyph]),
                picture,
            )
            known = distinct.setdefault(picture, found)
            distinct[picture] = min(known, found, key=lambda one: (len(one.sequence), one.text))
    return sorted(distinct.values())


def render(picture: bytes, image_size: int) -> np.ndarray:
    """uint8[image_size, image_size, 3]: a PNG on a white square, what is visible in its middle.

    The square's side is the PNG's longer one, so that pictures keep their relative sizes, and is
    resized (Lanczos) to image_size pixels.
    """
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGBA")
    side = max(image.size)
    visible = image.crop(image.getchannel("A").getbbox())
    square = Image.new("RGB", (side, side), "white")
    corner = ((side - visible.width) // 2, (side - visible.height) // 2)
    square.paste(visible, corner, mask=visible)
    return np.asarray(square.resize((image_size, image_size), Image.Resampling.LANCZOS))


class Emoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """The pictures of `glyphs`, set before preparing, in the size that the configuration names."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=str(size)) for size in SIZES)
    glyphs: tuple[Glyph, ...] = ()

    @property
    def image_size(self) -> int:
        """The side of the pictures in pixels."""
        return int(self.builder_config.name)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The colour pictures of an emoji font with their names and groups.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(self.image_size, self.image_size, 3)),
                    "label": tfds.features.ClassLabel(names=list(emoji_names.GROUPS)),
                    "text": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/googlefonts/noto-emoji",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "test": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[str, dict]]:
        for sequence, text, picture in self.glyphs:
            if emoji_names.is_held_out(sequence) != held_out:
                continue
            try:
                image = prepared.encode_png(render(picture, self.image_size))
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"The font's picture of {text!r} is no PNG: {error}") from error
            key = "-".join(f"{ord(character):x}" for character in sequence)
            yield key, {"image": image, "label": emoji_names.group(sequence), "text": text}


def prepare(source: str | None, data_dir: str | None) -> str:
    """Prepares the emoji of a font in every size and returns the folder that holds the sizes.

    Args:
        source: the font's file; None takes that of the Debian package.
        data_dir: where to prepare; None is the usual place.

    Raises:
        FileNotFoundError: there is no such file, or the package is not installed.
        ValueError: it cannot be read, or has no colour bitmaps.
    """
    path = os.path.expanduser(source or DEBIAN_FONT)
    if not os.path.isfile(path):
        command = prepared.prepare_command("emoji", data_dir, "FONT.ttf")
        raise FileNotFoundError(f"There is no font {path}. {HOW_TO_GET}{command}")
    glyphs = tuple(read_font(path))
    if prepared.sha256_of(path) != NOTO_SHA256:
        console.log(
            f"WARNING   {path} is not Noto Color Emoji 2.042: its {len(glyphs):,} pictures are "
            "not those that docs/emoji.md counts."
        )
    for size in SIZES:
        builder = Emoji(config=str(size), data_dir=prepared.resolve_data_dir(data_dir))
        builder.glyphs = glyphs
        folder = prepared.write(builder, f"emoji/{size}", data_dir, path, bool(source))
    return os.path.dirname(os.path.dirname(folder))


def open_split(split: str, data_dir: str | None, image_size: int) -> prepared.Prepared:
    """Opens "train" or "test", whose `text(index)` is the name of a picture."""
    shape = (image_size, image_size, 3)
    how_to_get = HOW_TO_GET + prepared.prepare_command("emoji", data_dir)
    return prepared.open_prepared(f"emoji/{image_size}", split, shape, data_dir, how_to_get)


def emoji(data_dir: str | None = None, image_size: int = 32) -> Dataset:
    """The pictures of an emoji font; about a tenth of the base emoji, in all variants, is held out.

    Args:
        data_dir: as in `digits`, or a gs:// address.
        image_size: side in pixels, one of SIZES.

    Raises:
        ValueError: for another size.
    """
    if image_size not in SIZES:
        raise ValueError(
            f"config.data.image_size = {image_size!r}: emoji are prepared in "
            f"{' and '.join(map(str, SIZES))} pixels. Choose one of them."
        )
    return Dataset(
        name="emoji",
        image_shape=(image_size, image_size, 3),
        num_classes=len(emoji_names.GROUPS),
        classes=tuple(emoji_names.GROUPS),
        has_captions=True,
        subject_of=emoji_names.subject,
        open=partial(
            open_named_split, open_split, {"data_dir": data_dir, "image_size": image_size}
        ),
        prepare=partial(prepare, data_dir=data_dir),
        prepared_from=f"a font with colour bitmaps; left out, that of Debian's {DEBIAN_PACKAGE}",
    )
