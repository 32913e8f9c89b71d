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


def test_unknown_words_are_told_and_left_out(capsys: pytest.CaptureFixture) -> None:
    rows = captions.prompt_rows(TOKENIZER, ["purple cat", "red apple"])
    told = " ".join(capsys.readouterr().out.split())
    assert "'purple cat': purple not known" in told and "apple" not in told
    assert rows[0].tolist() == [1, TOKENIZER.words["cat"], 0, 0, 0, 0]


def test_long_prompts_are_cut_and_say_so(capsys: pytest.CaptureFixture) -> None:
    captions.prompt_rows(TOKENIZER, ["red apple black cat face wry"])
    assert "cut after 5 words" in " ".join(capsys.readouterr().out.split())


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
