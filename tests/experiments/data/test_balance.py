"""Laws of drawing groups of images evenly."""

import itertools
import pathlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import hooks, state
from experiments.build import build
from experiments.configs.ranges import FIELDS, Word
from experiments.data import emoji_names, loader
from experiments.data.dataset import InMemory, Subset, hold_out
from experiments.data.datasets import DATASETS
from experiments.files.atomic import write_json
from experiments.workdir.config import check_same, config_to_dict, read_config
from experiments.workdir.protocols import TRAINING, training_fields
from tests.experiments import synthetic

SIZES = np.tile((1, 2, 3, 10, 40), 100)  # of 500 groups: grain is slow to shuffle a few
LABELS = np.repeat(np.arange(500, dtype=np.int32), SIZES)
RANKS = np.concatenate([np.arange(size) for size in SIZES])  # of each image in its group


def images() -> InMemory:
    """Image i carries the number i in two bytes, in another order than that of the labels."""
    order = np.random.default_rng(0).permutation(len(LABELS)).astype(np.uint16)
    return InMemory(order.view(np.uint8).reshape(-1, 1, 1, 2), LABELS)


def take(count: int, **kwargs: int) -> dict[str, np.ndarray]:
    """The first items, joined along steps: labels, and the rank of each image in its group."""
    source = images()
    iterator = loader.batches(source, groups=loader.grouped(source.labels), **kwargs)
    items = list(itertools.islice(iterator, count))
    iterator.close()
    found = {key: np.concatenate([item[key] for item in items]) for key in ("image", "label")}
    place = np.argsort(source.images.view(np.uint16).ravel())  # of the image with each number
    index = place[found["image"].view(np.uint16)[..., 0, 0, 0]]
    assert np.array_equal(LABELS[index], found["label"])
    return {"label": found["label"], "rank": RANKS[index]}


def test_an_epoch_has_every_group_once_and_another_member_of_it() -> None:
    found = take(40, seed=1, batch_size=500)
    assert np.array_equal(np.sort(found["label"], axis=1), np.tile(np.arange(500), (40, 1)))
    assert len({epoch.tobytes() for epoch in found["label"]}) == 40
    for size in set(SIZES):
        ranks = found["rank"][SIZES[found["label"]] == size]
        assert len(ranks) == 4_000
        shares = np.bincount(ranks, minlength=size) / 4_000
        assert (abs(shares - 1 / size) <= 4.5 * np.sqrt((size - 1) / 4_000) / size).all()


def test_members_are_drawn_without_regard_to_those_before() -> None:
    """Pairs of successive draws of a group of two: each of the four as often."""
    found = take(40, seed=2, batch_size=500)
    pairs: Counter = Counter()
    for label in np.flatnonzero(SIZES == 2):
        pairs.update(itertools.pairwise(found["rank"][found["label"] == label].tolist()))
    assert len(pairs) == 4 and all(abs(count - 975) < 130 for count in pairs.values())


@pytest.mark.parametrize("start_step", [1, 7])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_restart_and_more_processes_draw_the_same(start_step: int, processes: int) -> None:
    whole = take(12, seed=3, batch_size=200)  # not a divisor of the epoch
    options = dict(seed=3, batch_size=200, start_step=start_step, process_count=processes)
    parts = [take(12 - start_step, **options, process_index=i) for i in range(processes)]
    for key, value in whole.items():
        joined = np.concatenate([part[key] for part in parts], axis=1)
        assert np.array_equal(joined, value[start_step:])
    other = take(12, seed=4, batch_size=200)
    assert not np.array_equal(other["label"], whole["label"])


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (("runner", "runner, dark skin tone, woman", "runner, facing right"), "runner"),
        (("woman, rocket", "man, light skin tone, rocket", "adult, rocket"), "rocket"),
        (("woman, curly hair",), "woman"),
        (("red hair",), "red hair"),
        (("flag of de",), "flag of de"),
        (("man, heavy black heart, kiss mark, man",), "heavy black heart, kiss mark"),
    ],
)
def test_variants_of_a_name_have_one_subject(names: tuple[str, ...], subject: str) -> None:
    assert {emoji_names.subject(name) for name in names} == {subject}


def test_every_choice_is_drawn_or_refused_by_the_data_set(tmp_path, monkeypatch) -> None:
    arguments = synthetic.prepare_all(tmp_path, monkeypatch)
    rule = FIELDS["train.balance"]
    assert isinstance(rule, Word)
    found: dict[str, set[str]] = {name: set() for name in rule.names}
    for name, make in DATASETS.items():
        dataset = make(**arguments[name])
        source = dataset.open("train")
        for balance in rule.names:
            has = {"labels": dataset.num_classes, "subjects": dataset.subject_of}
            if has.get(balance, "all") is None:
                continue
            groups = loader.groups_of(balance, dataset, source)
            found[balance].add(name)
            if groups is None:
                assert balance == "images"
                continue
            assert np.array_equal(np.sort(groups.order), np.arange(len(source)))
            for first, last in itertools.pairwise(groups.starts):
                members = groups.order[first:last].tolist()
                names = {
                    dataset.subject_of(source.text(i)) if balance == "subjects"
                    else int(source[i]["label"])
                    for i in members
                }  # fmt: skip
                assert len(names) == 1
    assert found["images"] == set(DATASETS) and "emoji" in found["subjects"]
    assert {"digits", "emoji", "cifar10"} <= found["labels"]


def test_what_a_data_set_does_not_have_is_refused(plain: Callable[..., ConfigDict]) -> None:
    config = plain()
    config.train.balance = "subjects"
    with pytest.raises(ValueError, match=r"balance = 'subjects': .*'digits' have no subjects. "
                       r"Choose 'images' or 'labels'"):  # fmt: skip
        build(config)


def test_a_run_tells_what_it_draws_and_keeps_to_it(
    plain: Callable[..., ConfigDict], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    config = plain()
    config.train.balance, config.train.num_steps = "labels", 4
    hooks.train_with_hooks(build(config), tmp_path)
    assert "balance   10 labels evenly" in capsys.readouterr().out
    old = config_to_dict(config)
    check_same(old, config, TRAINING, tmp_path)
    config.train.balance = "images"
    with pytest.raises(ValueError, match=r"train.balance: labels then, images now"):
        check_same(old, config, TRAINING, tmp_path)
    del old["train"]["balance"]
    check_same(old, config, TRAINING, tmp_path)
    assert training_fields(old) == training_fields(config_to_dict(config))
    write_json(tmp_path / "config.json", old)
    assert read_config(tmp_path).train.balance == "images"


def test_what_is_held_out_is_in_no_group(tiny: Callable[..., ConfigDict]) -> None:
    config = tiny()
    config.train.balance = "labels"
    config.train.validate_every, config.train.validate_images = 4, 10
    experiment = build(config)
    source = state.training_images(experiment, experiment.dataset.open)
    kept, _ = hold_out(experiment.dataset.open("train"), 10)
    assert isinstance(source, Subset) and np.array_equal(source.indices, kept.indices)
    groups = loader.groups_of("labels", experiment.dataset, source)
    assert groups is not None and len(groups.order) == len(kept)
