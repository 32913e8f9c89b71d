"""Captions as rows of numbers, and what becomes of a prompt."""

import pickle

import numpy as np
import pytest

from experiments.data import captions
from experiments.data.dataset import hold_out, load_in_memory

TEXTS = ["Red Apple", "black-cat face, with wry smile", "flag of Côte d'Ivoire", "keycap 5"]
TOKENIZER = captions.make_tokenizer(captions.vocabulary_of(TEXTS), 6)


def test_every_word_of_the_texts_is_known_once() -> None:
    words = list(TOKENIZER.words)
    assert words == sorted(set(words))
    assert {"red", "black", "cat", "côte", "d", "5"} <= set(words)
    assert TOKENIZER.size == 2 + len(words)
    assert sorted(TOKENIZER.words.values()) == list(range(2, TOKENIZER.size))


def test_a_row_is_start_words_and_padding() -> None:
    rows = TOKENIZER.rows(["apple, RED!", "", "zebra apple", "a b c red black cat face with wry"])
    number = TOKENIZER.words
    assert rows.dtype == np.int32
    assert rows[0].tolist() == [1, number["apple"], number["red"], 0, 0, 0]
    assert rows[1].tolist() == TOKENIZER.nothing(1)[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert rows[2].tolist() == [1, number["apple"], 0, 0, 0, 0]
    assert rows[3].tolist() == [1] + [number[w] for w in ("red", "black", "cat", "face", "with")]


def test_a_saved_vocabulary_gives_the_same_numbers() -> None:
    vocabulary = " ".join(TOKENIZER.words)
    assert captions.make_tokenizer(vocabulary, 6) == TOKENIZER
    assert captions.vocabulary_of(TEXTS[::-1]) == vocabulary


def test_unknown_words_are_told_and_left_out() -> None:
    prompts = ["purple cat", "red apple", "purple cat"]
    [told] = captions.prompt_remarks(TOKENIZER, prompts)
    assert told == "WARNING   the prompt 'purple cat': purple not known, and left out"
    rows = captions.prompt_rows(TOKENIZER, prompts)
    assert rows[0].tolist() == [1, TOKENIZER.words["cat"], 0, 0, 0, 0]


def test_long_prompts_are_cut_and_say_so() -> None:
    [told] = captions.prompt_remarks(TOKENIZER, ["red apple black cat face wry"])
    assert "cut after 5 words" in told


@pytest.mark.parametrize("text", ["!!!", " ", "_", "…", "\u200d"])
def test_a_prompt_without_a_word_is_refused_and_an_empty_one_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="no word in the prompt .*leave it empty"):
        captions.prompt_rows(TOKENIZER, ["red apple", text])
    rows = captions.prompt_rows(TOKENIZER, ["", "red apple"])
    np.testing.assert_array_equal(rows[:1], TOKENIZER.nothing(1))


def test_an_emoji_in_a_prompt_is_its_name() -> None:
    """Whose words separate no prompts, although a name may have commas."""
    assert captions.split_prompts("🐱,a 👩\u200d🚀") == ["cat face", "a woman, rocket"]
    rows = captions.prompt_rows(TOKENIZER, captions.split_prompts("🐱"))
    np.testing.assert_array_equal(rows, TOKENIZER.rows(["cat face"]))


@pytest.mark.parametrize("text", ["qwertz " * 10_000, "q" * 10_000, "!" * 10_000])
def test_a_message_has_the_beginning_of_a_long_prompt(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        captions.prompt_rows(TOKENIZER, [text])
    told = captions.prompt_remarks(TOKENIZER, [f"apple {text}", " ".join(map(str, range(999)))])
    assert max(map(len, [str(raised.value), *told])) < 400
    assert repr(text[:30])[:-1] in str(raised.value)


def test_of_many_prompts_a_few_are_told() -> None:
    told = captions.prompt_remarks(TOKENIZER, [f"cat {number}0" for number in range(1000)])
    assert len(told) == captions.TOLD + 1 and "990 more" in told[-1]


def test_a_prompt_without_a_known_word_is_refused_with_a_near_one() -> None:
    with pytest.raises(
        ValueError, match="no word of the prompt 'aple' is known. Did you mean 'apple'"
    ):
        captions.prompt_rows(TOKENIZER, ["aple"])
    with pytest.raises(ValueError, match="there is no prompt"):
        captions.prompt_rows(TOKENIZER, [])


def test_prompts_are_separated_by_commas_or_by_semicolons() -> None:
    assert captions.split_prompts("red apple, smiling cat,") == ["red apple", "smiling cat"]
    assert captions.split_prompts("hand, dark; red apple") == ["hand, dark", "red apple"]
    assert captions.split_prompts(" ") == []


class Pictures:
    """Four images with names."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        image = np.full((2, 2, 3), index, np.uint8)
        return {"image": image, "label": np.asarray(9, np.int32)}

    def text(self, index: int) -> str:
        return TEXTS[index]


def test_captions_take_the_place_of_labels() -> None:
    """One by one, many at once, in memory, held out, and in a reading process."""
    source = captions.Captioned(Pictures(), TOKENIZER)
    rows = TOKENIZER.rows(TEXTS)
    assert len(source) == 4
    np.testing.assert_array_equal(source[2]["label"], rows[2])
    np.testing.assert_array_equal(source.gather([3, 1])["label"], rows[[3, 1]])
    assert source.gather([3, 1])["image"][:, 0, 0, 0].tolist() == [3, 1]
    memory = load_in_memory(source)
    np.testing.assert_array_equal(memory.labels, rows)
    assert memory.labels.dtype == np.int32
    kept, held = hold_out(source, 1)
    both = [*kept.gather(range(3))["label"].tolist(), held[0]["label"].tolist()]
    assert sorted(both) == sorted(rows.tolist())
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["label"], rows[0])
