"""Small fonts with colour bitmaps, made with fontTools."""

import io
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.misc import sstruct
from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables._g_l_y_f import Glyph
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from fontTools.ttLib.tables.C_B_D_T_ import cbdt_bitmap_format_17
from fontTools.ttLib.tables.E_B_L_C_ import (
    BitmapSizeTable,
    SbitLineMetrics,
    Strike,
    eblc_index_sub_table_1,
    sbitLineMetricsFormat,
)
from PIL import Image

WIDTH, HEIGHT = 20, 16  # of the pictures
TONES = "🏻🏼🏽🏾🏿"
FACES = [chr(0x1F600 + i) for i in range(40)]
HANDS = ["👍", *("👍" + tone for tone in TONES)]
OTHERS = ["👩‍🚀", "👩🏿‍🚀", "🇩🇪", "🇫🇷", "1⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️‍🔥"]
SEQUENCES = [*FACES, *HANDS, *OTHERS]


def png(seed: int, box: tuple[int, int, int, int] = (1, 2, 12, 14)) -> bytes:
    """A transparent picture with a box (left, top, right, bottom) of random dark colours."""
    left, top, right, bottom = box
    pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rng = np.random.default_rng(seed)
    pixels[top:bottom, left:right, :3] = rng.integers(0, 200, (bottom - top, right - left, 3))
    pixels[top:bottom, left:right, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, format="png")
    return buffer.getvalue()


def _strike(font: TTFont, pictures: Mapping[str, bytes], size: int) -> tuple[Strike, dict]:
    glyphs = {}
    for name, picture in pictures.items():
        glyph = cbdt_bitmap_format_17(b"", font)
        glyph.metrics = SmallGlyphMetrics()
        glyph.metrics.__dict__.update(
            height=HEIGHT, width=WIDTH, BearingX=0, BearingY=HEIGHT, Advance=WIDTH
        )
        glyph.imageData = picture
        glyphs[name] = glyph
    table = BitmapSizeTable()
    for direction in ("hori", "vert"):
        metrics = SbitLineMetrics()
        _, fields, _ = sstruct.getformat(sbitLineMetricsFormat)
        metrics.__dict__.update(dict.fromkeys(fields, 0))
        setattr(table, direction, metrics)
    table.__dict__.update(colorRef=0, ppemX=size, ppemY=size, bitDepth=32, flags=1)
    index = eblc_index_sub_table_1(b"", font)
    index.__dict__.update(names=list(pictures), indexFormat=1, imageFormat=17)
    strike = Strike()
    strike.bitmapSizeTable, strike.indexSubTables = table, [index]
    return strike, glyphs


def write(
    path: pathlib.Path,
    pictures: Mapping[str, bytes],
    *,
    same: Mapping[str, str] | None = None,
    strikes: Sequence[int] = (109,),
) -> pathlib.Path:
    """Writes a font that draws each sequence of `pictures` as its picture.

    Args:
        pictures: a sequence of characters to the bytes of its picture.
        same: further sequences to those whose glyph they get.
        strikes: sizes that the font has its pictures in; all but the largest show another.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    same = same or {}
    glyph = {sequence: f"g{i}" for i, sequence in enumerate(pictures)}
    glyph |= {sequence: glyph[other] for sequence, other in same.items()}
    cmap = {ord(sequence): name for sequence, name in glyph.items() if len(sequence) == 1}
    for character in sorted({c for sequence in glyph if len(sequence) > 1 for c in sequence}):
        cmap.setdefault(ord(character), f"part{ord(character):x}")
    names = list(dict.fromkeys([".notdef", *glyph.values(), *cmap.values()]))
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(cmap)
    builder.setupHorizontalMetrics({name: (1024, 0) for name in names})
    builder.setupHorizontalHeader()
    builder.setupPost()
    font = builder.font
    rules = "".join(
        f"sub {' '.join(cmap[ord(character)] for character in sequence)} by {name};\n"
        for sequence, name in sorted(glyph.items(), key=lambda item: -len(item[0]))
        if len(sequence) > 1
    )
    if rules:
        addOpenTypeFeaturesFromString(font, f"feature ccmp {{\n{rules}}} ccmp;")
    font["CBDT"], font["CBLC"] = newTable("CBDT"), newTable("CBLC")
    font["CBDT"].version = font["CBLC"].version = 3.0
    own = {glyph[sequence]: picture for sequence, picture in pictures.items()}
    decoys = {name: png(10_000 + i) for i, name in enumerate(own)}
    made = [_strike(font, own if s == max(strikes) else decoys, s) for s in strikes]
    font["CBLC"].strikes = [strike for strike, _ in made]
    font["CBDT"].strikeData = [glyphs for _, glyphs in made]
    font.save(path)
    return path


def small(path: pathlib.Path) -> pathlib.Path:
    """A font of SEQUENCES, each with a picture of its own."""
    return write(path, {sequence: png(i) for i, sequence in enumerate(SEQUENCES)})


def outlines(path: pathlib.Path, coloured: bool) -> pathlib.Path:
    """A font without bitmaps, of plain outlines or with layers of colour (COLRv1)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    builder = FontBuilder(1024, isTTF=True)
    builder.setupGlyphOrder([".notdef", "face"])
    builder.setupCharacterMap({0x1F600: "face"})
    builder.setupGlyf({name: Glyph() for name in (".notdef", "face")})
    builder.setupHorizontalMetrics({".notdef": (1024, 0), "face": (1024, 0)})
    builder.setupHorizontalHeader()
    builder.setupPost()
    if coloured:
        builder.setupCOLR({"face": {"Format": 2, "PaletteIndex": 0, "Alpha": 1.0}})
        builder.setupCPAL([[(1.0, 0.0, 0.0, 1.0)]])
    builder.save(path)
    return path
