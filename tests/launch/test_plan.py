"""Which runs a sweep has, and what it refuses before any of them starts."""

import itertools
import pathlib

import pytest

from experiments.command_line import load_config
from experiments.files.atomic import read_json
from experiments.workdir import status
from launch import plan

DIGITS = "experiments/configs/digits.py"


def make(ablations=("eps_simple",), seeds=(0,), grid=None, settings=None, config=DIGITS):
    return plan.make_runs(config, ablations, seeds, grid or {}, settings or {})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,2e-4", ["1e-4", "2e-4"]),
        ("(1,2),(1,2,2)", ["(1,2)", "(1,2,2)"]),
        ("[1,(2,3)], {4,5}", ["[1,(2,3)]", "{4,5}"]),
        ("one", ["one"]),
    ],
)
def test_commas_inside_brackets_separate_nothing(text: str, values: list[str]) -> None:
    assert plan.split(text) == values


def test_the_runs_are_the_product_with_the_first_seed_first() -> None:
    grid = {"optimizer.learning_rate": ["1e-4", "2e-4"], "model.channel_multipliers": ["(1,)"]}
    runs = make(("eps_simple", "mu_mse"), (3, 1), grid)
    assert len(runs) == len({run.name for run in runs}) == 2 * 2 * 2
    assert [run.seed for run in runs] == [3] * 4 + [1] * 4
    expected = itertools.product((3, 1), ("eps_simple", "mu_mse"), ("1e-4", "2e-4"))
    found = [(r.seed, r.ablation, r.overrides["optimizer.learning_rate"]) for r in runs]
    assert found == list(expected)
    assert not set(runs[0].name) & set("/(), ")


def test_the_command_gives_the_config_that_was_planned() -> None:
    """Read back through the flags that experiments.main reads."""
    settings = {"train.num_steps": "40", "optimizer.learning_rate": "3e-4"}
    grid = {"model.channel_multipliers": ["(1,)", "(1,2,2)"]}
    for run in make(("mu_vlb_learned",), (5,), grid, settings):
        config = load_config(run.command(pathlib.Path("runs/a"))[3:])
        assert (config.seed, config.train.num_steps) == (5, 40)
        assert config.optimizer.learning_rate == 3e-4
        assert config.parameterization.name == "mu" and config.variance.name == "learned"
        assert (
            str(config.model.channel_multipliers).replace(" ", "")
            in (run.overrides["model.channel_multipliers"])
        )
        assert run.num_steps == 40


def test_without_an_ablation_a_run_bears_the_config_s_name() -> None:
    (run,) = make(("",))
    assert run.name == "digits-seed0"
    assert f"--config={DIGITS}" in run.config_arguments()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(grid={"optimizer.lr": ["1"]}), ["no field", "lr"]),
        (dict(grid={"train.num_steps": ["many"]}), ["many"]),
        (dict(settings={"optimizer.rate": "1"}), ["no field", "rate"]),
        (dict(grid={"ema_decay": ["0.9", "1"]}), ["config.ema_decay = 1.0", "below 1"]),
        (dict(settings={"seed": "1"}), ["--seeds"]),
        (dict(grid={"seed": ["1", "2"]}), ["--seeds"]),
        (dict(grid={"ema_decay": ["0.9"]}, settings={"ema_decay": "0.9"}), ["both", "ema_decay"]),
        (dict(ablations=("eps_simpel",)), ["eps_simpel", "eps_simple"]),
        (dict(ablations=("eps_simple", "eps_simple")), ["eps_simple-seed0", "repeated"]),
        (dict(seeds=(1, 1)), ["eps_simple-seed1", "repeated"]),
        (dict(config="experiments/configs/none.py"), ["none.py"]),
        (dict(config=f"{DIGITS}:mu_mse"), ["file alone", "--ablations"]),
        (dict(grid={"model.channel_multipliers": ["(1,2)", "(1 2)"]}), ["two runs", "signs"]),
        (dict(grid={"data.data_dir": ["x" * 300]}), ["200 bytes", "fewer fields"]),
    ],
)
def test_what_cannot_run_is_refused_with_its_reason(change: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make(**change)
    for word in words:
        assert word in str(error.value), error.value


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (["optimizer.learning_rate"], "FIELD=VALUE"),
        (["=1"], "FIELD=VALUE"),
        (["ema_decay=0.9,"], "every value"),
        (["ema_decay=0.9,0.9"], "every value"),
        (["ema_decay=0.9", "ema_decay=0.99"], "twice"),
    ],
)
def test_a_grid_that_is_none_is_refused(lines: list[str], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        plan.parse_grid(lines)


def test_a_sweep_json_of_another_program_is_refused_and_kept(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sweep.json").write_text('{"method": "grid"}')
    with pytest.raises(ValueError, match=r"sweep\.json is no list of runs"):
        plan.write(tmp_path, make())
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]


def test_a_sweep_grows_and_refuses_other_settings(tmp_path: pathlib.Path) -> None:
    plan.write(tmp_path, make(seeds=(0,)))
    plan.write(tmp_path, make(seeds=(0, 1)))
    assert read_json(tmp_path / "sweep.json") == {"runs": ["eps_simple-seed0", "eps_simple-seed1"]}
    record = read_json(tmp_path / "runs" / "eps_simple-seed1" / "run.json")
    assert record["ablation"] == "eps_simple" and record["seed"] == 1
    assert record["command"][:2] == ["-m", "experiments.main"]
    other = make(seeds=(2, 1), settings={"train.num_steps": "10"})
    log = tmp_path / "runs" / "eps_simple-seed1" / "metrics.jsonl"
    log.write_text('{"step": 5, "loss": 1.0}\n')
    with pytest.raises(ValueError) as error:
        plan.write(tmp_path, other)
    for word in ("eps_simple-seed1", "num_steps: 4000 then, 10 now", "--workdir"):
        assert word in str(error.value)
    assert not (tmp_path / "runs" / "eps_simple-seed2").exists()  # nothing was written


def test_a_run_that_never_took_a_step_begins_under_other_settings(tmp_path: pathlib.Path) -> None:
    """And one that did, or that is at work, keeps its own."""
    first, other = make(seeds=(0,)), make(seeds=(0,), settings={"train.num_steps": "10"})
    folder = tmp_path / "runs" / "eps_simple-seed0"
    plan.write(tmp_path, first)
    status.write(folder, status.Status("failed", ({"exit_status": 2},), "exit status 2"))
    plan.write(tmp_path, other)
    assert read_json(folder / "run.json")["settings"] == {"train.num_steps": "10"}
    assert status.read(folder) == status.Status()
    with status.lock(folder), pytest.raises(ValueError, match="holds a run of the same name"):
        plan.write(tmp_path, first)
    (folder / "metrics.jsonl").write_text('{"step": 5, "loss": 1.0}\n')
    with pytest.raises(ValueError, match="num_steps: 10 then, 4000 now"):
        plan.write(tmp_path, first)


@pytest.mark.slow
def test_what_cannot_be_built_is_told_before_anything_starts() -> None:
    """All of it at once, each message once however many seeds it is of."""
    plan.check(make(seeds=(0, 1)))
    wrong = [
        *make(seeds=(0, 1), settings={"model.channels": "20"}),
        *make(seeds=(2,), settings={"train.num_steps": "4001"}),
    ]
    with pytest.raises(ValueError, match="nothing was started") as error:
        plan.check(wrong)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2
    assert lines[0].startswith("eps_simple-seed0: config.model: a level of 20 channels")
    assert lines[1].startswith("eps_simple-seed2: config.train.num_steps = 4001 must be a multiple")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0,1,2", [0, 1, 2]), ("0-3", [0, 1, 2, 3]), ("7,2-3", [7, 2, 3])],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list) -> None:
    assert plan.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "-1", "0..3", "1.5", "²"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"--seeds=.*such as 0,1,2 or 0-2"):
        plan.parse_seeds(text)
