"""Sequences of emoji: their names, their groups, what they are variants of, and the split."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from types import MappingProxyType

import unicodedata2 as unicodedata  # the same names under every version of Python

from experiments.data.image_folder import is_test

TEST_FRACTION = 0.1  # of the bases, expected
# The code points at which a range of each group begins; it ends where the next of any begins. The
# groups of Unicode's emoji-test.txt 15.0, but hearts, bubbles and the like are symbols here.
GROUPS: MappingProxyType[str, tuple[int, ...]] = MappingProxyType(
    {
        name: tuple(int(start, 16) for start in starts.split())
        for name, starts in {
            "faces": (
                "2639 1F479 1F47D 1F4A9 1F600 1F648 1F910 1F920 1F927 1F970 1F978 1F9D0 1FAE0 1FAE8"
            ),
            "people and body": (
                "261D 26F7 26F9 270A 1F385 1F3C2 1F3C7 1F3CA 1F3FB 1F440 1F463 1F47C 1F481 1F485 "
                "1F48F 1F491 1F4AA 1F574 1F57A 1F590 1F5E3 1F645 1F64B 1F6A3 1F6B4 1F6C0 1F6CC "
                "1F90C 1F90F 1F918 1F926 1F930 1F977 1F9B0 1F9BB 1F9BE 1F9CC 1F9D1 1FAC0 1FAE6 "
                "1FAF0"
            ),
            "animals and nature": (
                "2618 1F331 1F337 1F33E 1F3F5 1F400 1F490 1F4AE 1F54A 1F577 1F940 1F981 1F992 "
                "1F99F 1F9AB 1FAB0 1FAB6 1FACE"
            ),
            "food and drink": (
                "2615 1F32D 1F336 1F33D 1F345 1F382 1F3FA 1F52A 1F942 1F950 1F980 1F990 1F99E "
                "1F9AA 1F9C0 1FAD0"
            ),
            "flags": ("1F38C 1F3C1 1F3F3 1F6A9"),
            "symbols": (
                "23 23CF 23F8 2611 2620 2640 267B 2695 269B 26A7 26CE 26D4 2705 2714 2733 2747 "
                "2B55 1F170 1F201 1F3A6 1F3E7 1F48B 1F493 1F4A2 1F4A4 1F4A8 1F4AB 1F4AF 1F4B1 "
                "1F4DB 1F4F3 1F500 1F518 1F52F 1F54E 1F573 1F5A4 1F5E8 1F6AB 1F6AD 1F6B3 1F6B7 "
                "1F6BE 1F6C2 1F6D0 1F6DC 1F7E0 1F90D 1F9E1 1FA75 1FAAF 1FB00"
            ),
            "objects": (
                "2328 260E 2692 2694 2696 26B0 26CF 2702 2709 270F 1F392 1F399 1F3A4 1F3A7 1F3A9 "
                "1F3AC 1F3B5 1F3EE 1F3F7 1F3F9 1F451 1F484 1F489 1F48D 1F4A1 1F4A3 1F4B0 1F4B3 "
                "1F4BB 1F4DC 1F4F7 1F507 1F526 1F52C 1F56F 1F576 1F587 1F5A5 1F5C2 1F5F3 1F5FF "
                "1F6AA 1F6AC 1F6BD 1F6BF 1F6C1 1F6CB 1F6CD 1F6CF 1F6D2 1F6D7 1F6E0 1F941 1F97B "
                "1F9AF 1F9BA 1F9E2 1F9EA 1F9EE 1F9F2 1F9F4 1F9F7 1F9F9 1FA78 1FA83 1FA87 1FA91 "
                "1FAA3 1FAAA 1FAE7"
            ),
            "activities": (
                "265F 26BD 26F3 26F8 2728 1F004 1F380 1F383 1F386 1F38D 1F396 1F39F 1F3A3 1F3A8 "
                "1F3AB 1F3AD 1F3BD 1F3C5 1F3C8 1F3CF 1F3F8 1F52B 1F52E 1F579 1F5BC 1F6F7 1F93F "
                "1F945 1F9E7 1F9F5 1F9F8 1FA80 1FA84 1FAA1 1FAA9"
            ),
            "travel and places": (
                "231A 23F0 2600 2614 2668 2693 26A1 26C4 26E9 26F4 26FA 2708 2744 2B50 1F300 "
                "1F3A0 1F3AA 1F3CD 1F3D4 1F3E8 1F3EF 1F488 1F492 1F4A7 1F4BA 1F525 1F54B 1F550 "
                "1F570 1F5FA 1F680 1F6A4 1F6B2 1F6CE 1F6D1 1F6D5 1F6DD 1F6E2 1F6F8 1F9BC 1F9ED "
                "1F9F1 1F9F3 1FA82 1FA90 1FAA8 1FAB5"
            ),
        }.items()
    }
)
NUM_CLASSES = len(GROUPS)
_STARTS = tuple(sorted((start, i) for i, starts in enumerate(GROUPS.values()) for start in starts))

JOINER, KEYCAP, CANCEL_TAG = "\u200d", "\u20e3", "\U000e007f"
PICTURE_SELECTOR = "\ufe0f"  # asks for the coloured form of the character before it
TONES = MappingProxyType(
    {
        "\U0001f3fb": "light skin tone",
        "\U0001f3fc": "medium-light skin tone",
        "\U0001f3fd": "medium skin tone",
        "\U0001f3fe": "medium-dark skin tone",
        "\U0001f3ff": "dark skin tone",
    }
)
# What can begin an emoji, or be joined to one.
_PICTURE = "[©®‼⁉™ℹ\u2190-\u2bff〰〽㊗㊙\U0001f000-\U0001faff]"
# A flag, a region's flag, a keycap, or pictures with tones and joiners: one emoji of a text.
_EMOJI = re.compile(
    f"[🇦-🇿]{{2}}|🏴[\U000e0020-\U000e007f]+|[0-9#*]{PICTURE_SELECTOR}?{KEYCAP}|"
    f"{_PICTURE}(?:[{PICTURE_SELECTOR}{''.join(TONES)}]|{JOINER}{_PICTURE})*"
)
# What changes the character before it: the words for it in a name. A base has none of them.
MODIFIERS = MappingProxyType(
    {
        **TONES,
        "\U0001f9b0": "red hair",
        "\U0001f9b1": "curly hair",
        "\U0001f9b2": "bald",
        "\U0001f9b3": "white hair",
        "♀": "woman",
        "♂": "man",
        "➡": "facing right",
    }
)
_OF_VARIANTS = frozenset((*MODIFIERS.values(), "adult"))  # 🧑 is neither woman nor man
# What stands for each character in a base. Couples and the family are spelled out.
_NEUTRAL = str.maketrans(
    {
        **dict.fromkeys((*MODIFIERS, JOINER, PICTURE_SELECTOR), ""),
        **dict.fromkeys("👨👩", "🧑"),
        **dict.fromkeys("👦👧", "🧒"),
        **dict.fromkeys("👴👵", "🧓"),
        **dict.fromkeys("🎅🤶", "🧑🎄"),
        **dict.fromkeys("🤴👸", "🫅"),
        **dict.fromkeys("🤰🫃", "🫄"),
        **dict.fromkeys("👫👬👭", "🧑🤝"),
        **{"🕺": "💃", "💏": "🧑❤💋", "💑": "🧑❤", "👪": "🧑🧒"},
    }
)


def region(sequence: str) -> str | None:
    """The "de" or "gb-eng" of a flag; "" of tags that name no region; None of what is no flag."""
    if len(sequence) == 2 and all("🇦" <= letter <= "🇿" for letter in sequence):
        return "".join(chr(ord(letter) - ord("🇦") + ord("a")) for letter in sequence)
    if sequence.startswith("🏴") and sequence.endswith(CANCEL_TAG):
        tags = "".join(chr(ord(tag) - 0xE0000) for tag in sequence[1:-1])
        return f"{tags[:2]}-{tags[2:]}" if tags else ""
    return None


def group(sequence: str) -> int:
    """The place in GROUPS of a sequence, which its first character decides; a region has a flag."""
    if region(sequence) is not None:
        return list(GROUPS).index("flags")
    return _STARTS[max(bisect_right(_STARTS, (ord(sequence[0]), NUM_CLASSES)) - 1, 0)][1]


def base(sequence: str) -> str:
    """The sequence without tone, hair, gender, direction and joiners: what the split hashes.

    The characters that remain stand sorted and once each, so that couples of any tones and
    families of any size share a base. A flag is its own, and so is a modifier that stands alone.
    """
    if region(sequence) is not None:
        return sequence
    neutral = sequence.translate(_NEUTRAL).replace("🫱🫲", "🤝")
    return "".join(sorted(set(neutral))) or sequence


def is_held_out(sequence: str) -> bool:
    """Whether a picture belongs to the test split: a hash of its base decides."""
    return is_test(base(sequence), TEST_FRACTION)


def character_name(character: str) -> str:
    """Unicode's name in lower case; "u+fe4e5" of a code point that has none."""
    return unicodedata.name(character, f"u+{ord(character):04x}").lower()


def name(sequence: str) -> str:
    """The name of a sequence, in lower case, with a comma between its parts."""
    place = region(sequence)
    if place is not None:
        return f"flag of {place}" if place else "unknown flag"
    first, *rest = list(sequence.replace(PICTURE_SELECTOR, "").replace(JOINER, ""))
    if rest == [KEYCAP]:
        return f"keycap {character_name(first)}"
    others = (MODIFIERS.get(character) or character_name(character) for character in rest)
    return ", ".join([character_name(first), *others])


def spelled(text: str) -> str:
    """A text in which each emoji is its `name`; one without emoji is left as it is."""
    if not _EMOJI.search(text):
        return text
    return " ".join(_EMOJI.sub(lambda found: f" {name(found[0])} ", text).split())


def subject(text: str) -> str:
    """A `name` without tone, hair, gender and direction, which are all that tell its variants.

    A person alone, such as "woman, curly hair", is a subject by that word.
    """
    parts = text.split(", ")
    return ", ".join(sorted(set(parts) - _OF_VARIANTS)) or parts[0]


def choose_sequence(sequences: Iterable[str]) -> str:
    """The one of several sequences of a glyph that is no private code point, and in reading order.

    Fonts have sequences backwards too, for lines from right to left. Of two, the one that does not
    begin with a modifier, then the one whose first character is of the earlier group, then the one
    of the earlier characters; a woman before a man, as Unicode has couples.
    """

    def rank(sequence: str) -> tuple:
        private = any(unicodedata.category(character) == "Co" for character in sequence)
        broken = sequence[0] in MODIFIERS or any(JOINER + tone in sequence for tone in TONES)
        neutral = sequence.translate(_NEUTRAL)
        return private, broken, group(sequence), neutral, sequence[::-1]

    return min((sequence.replace(PICTURE_SELECTOR, "") for sequence in sequences), key=rank)


def name_of_all(sequences: Iterable[str]) -> str:
    """The name of a glyph; of a flag that several regions share, with all of them."""
    places = sorted({place for place in map(region, sequences) if place})
    return f"flag of {' or '.join(places)}" if places else name(choose_sequence(sequences))
