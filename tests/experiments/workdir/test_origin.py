"""What older checkpoints say of their weights by how they were made."""

from typing import Any

import pytest

from experiments.workdir import origin

CONFIG = {"train": {"validate_with": "bpd_fast", "validate_images": 9, "preview_num_steps": 4}}


@pytest.mark.parametrize(
    ("meta", "convert", "weights"),
    [
        ({"fingerprint": "0123"}, None, "ema"),  # a training
        ({"fingerprint": "0123"}, "one set, taken for both", "ema"),  # one that began from others
        ({"fingerprint": None}, "one set, taken for both", "as published"),
        ({"fingerprint": None}, "raw and EMA", "ema"),
        ({"fingerprint": None}, None, "as published"),
        ({"fingerprint": None, "weights": "raw"}, "raw and EMA", "raw"),  # not an old one
    ],
)
def test_weights(meta: dict[str, Any], convert: str | None, weights: str) -> None:
    results = {} if convert is None else {"convert": {"weights": convert}}
    assert origin.of_checkpoint(meta, results) == (weights, "nothing", 0)


def test_what_was_held_out_is_told() -> None:
    meta = {"fingerprint": "0123", "held_out": 250}
    assert origin.of_checkpoint(meta, {}).held_out == 250


def test_what_an_older_best_was_chosen_by() -> None:
    meta = {"fingerprint": "0123", "validation": 4.5, "config": CONFIG}
    assert origin.of_checkpoint(meta, {}).selected_on == "bits/dim of the first 9 test images"
    config = {"train": CONFIG["train"] | {"validate_with": "samples"}}
    found = origin.of_checkpoint(meta | {"config": config}, {}).selected_on
    assert found == origin.sample_distance(9, 4) and "9 samples" in found and "4 steps" in found
    assert origin.of_checkpoint(meta | {"selected_on": "x"}, {}).selected_on == "x"
