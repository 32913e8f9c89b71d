"""Every ablation fits every data set's config, and changes there what it names and nothing else."""

import importlib
import inspect
import itertools
import pathlib
import re

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from diffusion import schedules
from diffusion.paths import levels_of
from experiments.build import build
from experiments.configs import ablations, published
from experiments.configs.ablations import ABLATIONS, GROUPS
from experiments.data.datasets import DATASETS
from experiments.lookup import lookup
from experiments.methods.end_of_chain import largest_prior_term
from experiments.optimizers import OPTIMIZERS
from tests.experiments.catalog import (
    DATA,
    OTHER_NETWORKS,
    build_once,
    changed,
    covers,
    flat,
    get,
)
from tests.experiments.test_main import program

ROOT = pathlib.Path(__file__).parents[3]
# What has to fit each other; a network of one level fits all images.
FITTING = (
    ("model",),
    ("schedule", "path", "timesteps", "sample", "train.preview_num_steps"),
    ("parameterization", "variance", "loss"),
)
every_ablation = pytest.mark.parametrize("ablation", ABLATIONS)


# --- Every data set and every ablation ---


@every_ablation
def test_an_ablation_changes_what_it_names_and_nothing_else(ablation: str) -> None:
    keys = ABLATIONS[ablation].keys
    found = set().union(*(changed(get(name), get(name, ablation)) for name in DATA))
    assert not [field for field in found if not any(covers(key, field) for key in keys)]
    assert not [key for key in keys if not any(covers(key, field) for field in found)]


def small(config: ConfigDict, keys: tuple[str, ...]) -> ConfigDict:
    """The config with a network of one level, at a small width, but for the keys of an ablation."""
    sizes = dict(
        **dict(num_blocks=1, channel_multipliers=(1,), channels=32, num_heads=1, norm_groups=32),
        **dict(attention_resolutions=(), depth=1, hidden_size=24, dropout=0.1),
    )
    for name in set(sizes) & set(config.model):
        if f"model.{name}" not in keys:
            config.model[name] = sizes[name]
    return config


@every_ablation
def test_every_data_set_and_ablation_builds(ablation: str) -> None:
    """Each of the choices that it then makes, on one level of the network."""
    for name in DATA:
        build_once(small(get(name, ablation), ABLATIONS[ablation].keys), FITTING)


@every_ablation
def test_every_ablation_goes_with_another_network(ablation: str) -> None:
    """But for `large`, which is a width of the U-Net."""
    keys = ABLATIONS[ablation].keys
    for name in OTHER_NETWORKS:
        if ablation == "large":
            with pytest.raises(ValueError, match="`large` widens the U-Net.*model.name = "):
                get(name, ablation)
            continue
        config = get(name, ablation)
        assert all(any(covers(key, field) for key in keys) for field in changed(get(name), config))
        build_once(small(config, keys), FITTING)


def test_a_combination_without_meaning_does_not_build() -> None:
    """What the tests above rely on."""
    config = get("digits", "eps_simple")
    config.variance = ConfigDict(dict(name="learned_range"))
    with pytest.raises(ValueError, match="gives a learned variance no gradient"):
        build_once(small(config, ()), FITTING)
    config.optimizer = ConfigDict(dict(name="adam", decay=0.9))
    with pytest.raises(ValueError, match="config.optimizer has 'decay'"):
        build_once(config)


@every_ablation
def test_the_names_serve_on_the_command_line_and_as_folders(ablation: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*", ablation)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    values(["program", f"--config={ROOT}/experiments/configs/digits.py:{ablation}"])
    assert values["config"].value.to_dict() == get("digits", ablation).to_dict()


# --- What single ones mean ---

OBJECTIVES = dict.fromkeys(
    name for group in ("table2", "variances", "parameterizations") for name in GROUPS[group]
)


@pytest.mark.parametrize("ablation", OBJECTIVES)
def test_objectives_do_not_depend_on_the_data_sets_own(ablation: str) -> None:
    prediction, loss, variance = re.fullmatch(
        r"(mu|x_0|eps|v)_(vlb|simple|mse)_?(learned|fixed_small|fixed|)", ablation
    ).groups()
    expected = (
        prediction,
        loss.replace("mse", "simple"),
        {"": "fixed_large", "fixed": "fixed_large"}.get(variance, variance),
    )
    for name in DATA:
        config = get(name, ablation)
        assert (config.parameterization.name, config.loss.name, config.variance.name) == expected


def test_the_papers_method_is_the_config_of_cifar10() -> None:
    assert changed(get("cifar10"), get("cifar10", "eps_simple")) == set()
    assert changed(get("cifar10"), get("cifar10", "faithful")) == set()
    assert changed(get("celebahq256"), get("celebahq256", "faithful")) == set()
    assert changed(get("celebahq256"), get("celebahq256", "eps_simple")) == {"variance.name"}


@pytest.mark.parametrize("ablation", GROUPS["schedules"])
def test_every_schedule_ends_in_noise(ablation: str) -> None:
    shape, length = ablation.split("_")
    config = get("digits", ablation)
    betas = lookup(schedules.BETAS, config.schedule, "schedule")()
    assert config.schedule.name == shape and len(betas) == int(length)
    assert ((betas > 0) & (betas < 1)).all()
    assert largest_prior_term(levels_of(schedules.from_betas(betas))) < 1e-3


def test_betas_of_a_short_chain_add_up_to_those_of_the_long_one() -> None:
    """The sum of beta, which to first order is -log alpha_bar_T, is kept by the factor 1000 / T."""
    for shape in dict.fromkeys(name.rpartition("_")[0] for name in GROUPS["schedules"]):
        short, long = (
            lookup(schedules.BETAS, get("digits", f"{shape}_{length}").schedule, "schedule")()
            for length in (100, 1000)
        )
        if set(get("digits", f"{shape}_100").schedule) == {"name", "num_timesteps"}:
            continue  # of a shape that depends on t / T
        np.testing.assert_allclose(short.sum(), long.sum(), rtol=0.01)


def test_iddpm_takes_one_step_at_a_time() -> None:
    for name in DATA:
        hybrid, drawn, bound = (
            get(name, ablation) for ablation in ("iddpm", "iddpm_importance", "iddpm_vlb")
        )
        assert changed(hybrid, drawn) == {"timesteps.name"}
        assert all(field.startswith("loss.") for field in changed(drawn, bound))
        assert (hybrid.loss.name, bound.loss.name) == ("hybrid", "vlb")
        assert hybrid.schedule.name == "cosine" and hybrid.variance.name == "learned_range"
        assert hybrid.schedule.num_timesteps == get(name).schedule.num_timesteps


@pytest.mark.parametrize("ablation", [name for name in ABLATIONS if name.startswith("iddpm")])
def test_iddpm_does_not_clip_and_says_which_values_stay(ablation: str) -> None:
    values = ("optimizer.learning_rate", "model.dropout", "ema_decay", "train.batch_size")
    for name in DATA:
        own, config = flat(get(name).to_dict()), flat(get(name, ablation).to_dict())
        assert config["clip.name"] == "none"
        if ablation == "iddpm_cifar10":  # IDDPM App. A
            assert [config[value] for value in values] == [1e-4, 0.3, 0.9999, 128]
            assert (config["schedule.num_timesteps"], config["train.num_steps"]) == (4000, 500_000)
        else:
            assert [config[value] for value in values] == [own[value] for value in values]


def test_rmsprop_keeps_the_rate_and_takes_the_optimizers_own_defaults() -> None:
    defaults = inspect.signature(OPTIMIZERS["rmsprop"]).parameters
    for name in DATA:
        own, other = get(name).optimizer, get(name, "rmsprop").optimizer
        assert (other.learning_rate, other.warmup_steps) == (own.learning_rate, own.warmup_steps)
        for field in ("decay", "momentum", "eps"):
            assert other[field] == defaults[field].default


def test_only_what_is_symmetric_is_mirrored() -> None:
    mirrored = {name for name in DATA if get(name).train.flip}
    assert {"cifar10", "celebahq256", "lsun_church", "lsun_cat"} <= mirrored
    assert mirrored.isdisjoint({"digits", "fashion_mnist", "emoji", "lsun_bedroom"})
    for name in DATA:
        assert get(name, "flip").train.flip and not get(name, "no_flip").train.flip


def test_the_256_models_train_on_every_image_and_are_measured_on_them() -> None:
    for name in ("celebahq256", "lsun_bedroom", "lsun_church", "lsun_cat"):
        config = get(name)
        assert config.data.test_fraction == 0 and config.evaluate.split == "train"
        assert lookup(DATASETS, config.data, "data")().splits == ("train",)


def test_weights_and_updates_are_changed_alone() -> None:
    for name in DATA:
        assert get(name, "min_snr").loss.name == get(name).loss.name
        old, new = get(name, "faithful"), get(name, "modern")
        assert old.clip.num_cores == 8
        assert changed(old, new) == {
            *("clip.name", "clip.num_cores", "optimizer.epsilon_hat", "model.dtype")
        }


def test_the_large_network_has_the_papers_256_million_parameters() -> None:
    config = get("lsun_bedroom", "large")
    params = jax.eval_shape(build(config).method.init, jax.random.key(0))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == 256
    assert config.train.num_steps == 1_150_000
    assert get("digits", "large").train.num_steps == get("digits").train.num_steps


# --- Names and groups ---


def test_groups_expand_in_order_and_once() -> None:
    assert ablations.names("table2,cosine") == (*GROUPS["table2"], "cosine_100", "cosine_1000")
    assert ablations.names("eps_simple, table1") == ("eps_simple", "eps_vlb_fixed")
    assert ablations.names("table1,table2") == (
        *("eps_vlb_fixed", "eps_simple"),
        *("mu_vlb_learned", "mu_vlb_fixed", "mu_mse", "eps_vlb_learned"),
    )
    assert ablations.names("") == ("",)
    assert not set(GROUPS) & set(ABLATIONS)
    for members in GROUPS.values():
        assert set(members) <= set(ABLATIONS) and len(set(members)) == len(members)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("table3", ["no group or ablation 'table3'", "Did you mean 'table", "eps_simple"]),
        ("table2,eps_simpel", ["no group or ablation 'eps_simpel'", "Did you mean 'eps_simple'"]),
        ("table2,", ["no group or ablation ''", "Choose one of: table1, table2"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        ablations.names(text)
    assert all(word in str(error.value) for word in words), error.value


def test_the_program_lists_them_without_a_config() -> None:
    lines = program("--list_ablations").stdout.splitlines()
    first = [line.split()[0] for line in lines if line.startswith("  ")]
    assert first == [*GROUPS, *ABLATIONS]
    assert any(ABLATIONS["mu_mse"].summary in line for line in lines)


def test_one_line_is_one_line() -> None:
    for ablation in ABLATIONS.values():
        assert ablation.summary and "\n" not in ablation.summary and len(ablation.summary) < 100


def test_the_page_is_the_generated_one() -> None:
    """Otherwise: python -m experiments.configs.ablations > docs/ablations.md."""
    assert (ROOT / "docs" / "ablations.md").read_text() == ablations.page()


# --- Published numbers ---

ROWS = [(table, row) for table in published.TABLES.values() for row in table.rows]


def test_published_rows_can_be_run_here() -> None:
    for name, table in published.TABLES.items():
        assert table.name == name and table.rows
    for table, row in ROWS:
        importlib.import_module(f"experiments.configs.{row.config}")
        assert row.config in DATA and row.ablation in ("", *ABLATIONS)
        assert row.cells and set(row.cells) <= set(table.columns)


def test_what_the_paper_quotes_is_no_row_of_ours() -> None:
    for table in published.TABLES.values():
        labels = [row.label for row in (*table.rows, *table.quoted)]
        assert len(set(labels)) == len(labels)
        for row in table.quoted:
            assert row.cells and set(row.cells) <= set(table.columns)
    assert [len(table.quoted) for table in published.TABLES.values()] == [14, 0, 8, 0]


def test_a_cell_says_its_value() -> None:
    quoted = [row for table in published.TABLES.values() for row in table.quoted]
    for row in (*(row for _, row in ROWS), *quoted):
        for text, value in row.cells.values():
            number = re.fullmatch(r"(?:≤ )?([\d.]+)(?: ± [\d.]+|\*)?", text)
            assert (float(number[1]) == value) if number else (text, value) == ("unstable", None)


def test_expected_numbers_are_the_published_ones() -> None:
    for table, row in ROWS:
        if row.ablation and table.name != "table4":
            expected = ABLATIONS[row.ablation].expected
            assert expected.startswith(f"{table.dataset}: ")
            assert all(cell.text in expected for cell in row.cells.values())
            assert table.name.removeprefix("table") in ABLATIONS[row.ablation].source


def test_the_tables_agree_with_each_other() -> None:
    """The paper prints some numbers twice; the less is sent, the larger the error."""
    *sent, total = published.TABLES["table4"].rows
    rate, rmse = ([row.cells[name].value for row in sent] for name in ("rate", "rmse"))
    assert rate == sorted(rate, reverse=True) and rmse == sorted(rmse) and len(sent) == 10
    values = {name: cell.value for name, cell in total.cells.items()}
    assert (round(rate[0], 2), round(rmse[0], 2)) == (values["rate"], values["rmse"])
    simple = next(row for row in published.TABLES["table1"].rows if row.label == "L_simple")
    bits = simple.cells["bits_per_dim_test"].value
    assert round(values["rate"] + values["distortion"], 2) == bits
    second = {row.ablation: row.cells for row in published.TABLES["table2"].rows}
    for row in published.TABLES["table1"].rows:
        assert row.cells.items() >= second[row.ablation].items()


def test_fourier_features_of_an_ablation_are_of_the_levels_of_the_data() -> None:
    """The finest has as many periods in [-1, 1] as there are levels, the next half as many."""
    keyed = [name for name, each in ABLATIONS.items() if "model.fourier_features" in each.keys]
    assert keyed
    for name, ablation in itertools.product(DATA, keyed):
        config = get(name, ablation)
        finest = np.log2(lookup(DATASETS, config.data, "data")().num_levels - 1)
        assert config.model.fourier_features == (round(finest) - 1, round(finest)), name
