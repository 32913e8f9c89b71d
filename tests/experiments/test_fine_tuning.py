"""Laws of a training that begins with the weights of another run."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, fine_tuning, hooks, state, train
from experiments.build import build
from experiments.state import Start, init_state, load_ema, load_raw
from experiments.weights import importer
from experiments.workdir.checkpoint import CheckpointError, Checkpoints
from experiments.workdir.origin import BOTH, ONE, Ancestor, parse_ancestor
from experiments.workdir.outcome import Outcome
from experiments.workdir.results import read_results
from experiments.workdir.run import read_run
from tests.experiments.test_contents import write_pictures

Make = Callable[[], ConfigDict]
Run = tuple[ConfigDict, pathlib.Path]


def other(config: ConfigDict) -> ConfigDict:
    """The same model under settings that no continuation takes."""
    config = ConfigDict(config.to_dict())
    config.optimizer.learning_rate *= 2
    config.train.batch_size, config.train.num_steps = 8, 4
    config.train.checkpoint_every = 4
    return config


def begun(config: ConfigDict, workdir: pathlib.Path, ancestor: Ancestor) -> Outcome:
    return hooks.train_with_hooks(build(config), workdir, Start(ancestor=ancestor))


def same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def tuned(plain_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps from a finished one, under other settings."""
    config, workdir = other(plain_run[0]), tmp_path_factory.mktemp("tuned") / "run"
    config.train.keep_checkpoints = 9
    assert begun(config, workdir, Ancestor(str(plain_run[1]))) is Outcome.FINISHED
    return config, workdir


def test_step_0_has_both_sets_of_the_other_run_bit_for_bit(plain_run: Run, tuned: Run) -> None:
    """Training goes on from the raw weights, and the average from the average."""
    (before, old), (now, new), mesh = plain_run, tuned, devices.make_mesh()
    there, here = (
        (load_raw(build(config), run, step, mesh), load_ema(build(config), run, mesh, step).params)
        for config, run, step in ((before, old, 8), (now, new, 0))
    )
    same(there, here)
    assert not np.array_equal(there[0]["mean"], there[1]["mean"])
    with Checkpoints(new) as checkpoints:
        assert checkpoints.steps() == [0, 4]


def test_it_trains_as_from_the_parameters_alone(
    plain_run: Run, tuned: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step, rate, noise, optimizer and memory are those of a training of its own."""
    config, mesh = tuned[0], devices.make_mesh()
    experiment = build(config)
    raw = load_raw(build(plain_run[0]), plain_run[1], 8, mesh)
    average = load_ema(build(plain_run[0]), plain_run[1], mesh).params
    first = init_state(experiment)._replace(params=raw, ema_params=average)
    monkeypatch.setattr(fine_tuning, "fresh_state", lambda *_: jax.tree.map(jnp.copy, first))
    assert train.train(experiment, tmp_path) is Outcome.FINISHED
    same(load_raw(experiment, tmp_path, 4, mesh), load_raw(experiment, tuned[1], 4, mesh))
    same(*(load_ema(experiment, run, mesh).params for run in (tmp_path, tuned[1])))


def test_checkpoints_results_and_reports_say_where_it_came_from(plain_run: Run, tuned: Run) -> None:
    rate = plain_run[0].optimizer.learning_rate
    with Checkpoints(tuned[1]) as checkpoints:
        told = [checkpoints.meta(step)["origin"] for step in (0, 4)]
    assert told == [read_results(tuned[1])["train"]["origin"]] * 2
    assert told[0]["run"] == str(plain_run[1]) and told[0]["step"] == 8
    assert not told[0]["optimizer"] and told[0]["weights"] == "ema"
    assert told[0]["changed"] == {
        "optimizer.learning_rate": [rate, 2 * rate],
        "train.batch_size": [16, 8],
        "train.num_steps": [8, 4],
    }
    run, problems = read_run(tuned[1], "run")
    assert problems == [] and run.state == "finished"
    assert run.message == f"began with the weights of {plain_run[1]}, step 8"
    own = read_run(plain_run[1], "run")[0]
    assert run.training["from"] == f"{plain_run[1]}, step 8" and "from" not in own.training


def test_the_same_command_goes_on_and_does_not_begin_again(
    plain_run: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Also without the other run, and where that was trained on; to the very same parameters."""
    config, mesh = other(plain_run[0]), devices.make_mesh()
    whole, parts, ancestor = tmp_path / "whole", tmp_path / "parts", Ancestor(str(plain_run[1]))
    config.train.num_steps = 8
    assert begun(config, whole, ancestor) is Outcome.FINISHED
    config.train.num_steps = 4
    assert begun(config, parts, ancestor) is Outcome.FINISHED
    config.train.num_steps = 8
    moved = plain_run[1].rename(tmp_path / "moved")
    try:
        assert begun(config, parts, ancestor) is Outcome.FINISHED
    finally:
        moved.rename(plain_run[1])
    assert "resuming  step 4 of 8" in capsys.readouterr().out
    same(*(load_raw(build(config), run, 8, mesh) for run in (whole, parts)))
    assert read_results(parts)["train"]["origin"]["step"] == 8


def test_a_training_killed_before_its_first_step_has_what_it_began_with(
    plain_run: Run, tuned: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = other(plain_run[0])

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "compiled_step", killed)
        with pytest.raises(KeyboardInterrupt):
            begun(config, tmp_path, Ancestor(str(plain_run[1])))
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED  # and asks no more
    same(*(load_raw(build(config), run, 4, devices.make_mesh()) for run in (tmp_path, tuned[1])))


def test_a_run_from_elsewhere_is_left_alone(plain_run: Run, tuned: Run) -> None:
    """One of its own, and one that began with other weights."""
    before, old = plain_run
    now, new = tuned
    with pytest.raises(ValueError, match=r"did not begin with the weights .* --from=.* asks"):
        begun(before, old, Ancestor(str(new)))
    for ancestor in (
        Ancestor(str(new)),
        Ancestor(str(old), 4),
        Ancestor(str(old), optimizer=True),
    ):
        with pytest.raises(ValueError, match=rf"began with those of {old}, step 8, without"):
            begun(now, new, ancestor)
    assert begun(now, new, Ancestor(str(old), 8)) is Outcome.FINISHED  # which it did


def test_a_continuation_that_is_refused_says_how_it_can_be(plain_run: Run) -> None:
    config, workdir = plain_run
    with pytest.raises(ValueError, match=rf"(?s)learning_rate.*--from={workdir} and another"):
        hooks.train_with_hooks(build(other(config)), workdir)
    with pytest.raises(ValueError, match="model.channels") as refused:
        wider = ConfigDict(config.to_dict())
        wider.model.channels *= 2
        hooks.train_with_hooks(build(wider), workdir)
    assert "--from" not in str(refused.value)  # which would refuse it too


def test_the_moments_are_taken_over_and_the_rate_begins_anew(
    plain_run: Run, tmp_path: pathlib.Path
) -> None:
    config, workdir = other(plain_run[0]), plain_run[1]
    experiment, mesh = build(config), devices.make_mesh()
    config.timesteps = ConfigDict(dict(name="loss_second_moment", history=3, uniform_share=0.1))
    now = state.facts(experiment, state.training_images(experiment))
    ancestor = Ancestor(str(workdir), "latest", optimizer=True)
    found, told = fine_tuning.begin(experiment, ancestor, now, mesh)
    old = build(plain_run[0])
    with Checkpoints(workdir) as checkpoints:
        before = state.restore(
            old, checkpoints, 8, state.facts(old, state.training_images(old)), mesh
        )
    moments, rate = found.opt_state
    assert int(moments.step) == 8 and int(rate.count) == 0 and int(found.step) == 0
    same(moments, before.opt_state[0])
    assert int(before.opt_state[1].count) == 8 and told["origin"]["optimizer"]
    assert int(found.memory["seen"]) == 0
    config.optimizer = ConfigDict(dict(name="rmsprop", learning_rate=1e-3, warmup_steps=0))
    with pytest.raises(ValueError, match=r"no state of the optimizer .*\n  \[0\].* there, absent"):
        begun(config, tmp_path, ancestor)
    assert begun(config, tmp_path, ancestor._replace(optimizer=False)) is Outcome.FINISHED


def test_the_best_checkpoint_can_be_begun_with_and_says_where_it_came_from(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(hooks, "VALIDATIONS", {"samples": lambda *_: lambda p: next(scores)})
    monkeypatch.setattr(hooks, "selected_on", lambda experiment: "a number")
    config = plain()
    config.train.num_steps, config.train.validate_every = 12, 4
    config.train.validate_with = "samples"
    first, second = tmp_path / "first", tmp_path / "second"
    assert hooks.train_with_hooks(build(config), first) is Outcome.FINISHED
    config = other(config)
    assert begun(config, second, Ancestor(str(first), "best")) is Outcome.FINISHED
    assert read_results(second)["train"]["origin"]["step"] == 8
    assert read_results(second)["train"]["origin"]["selected_on"] == "a number"
    with Checkpoints(second / "best") as best:
        assert best.meta(4)["origin"]["step"] == 8
    with pytest.raises(ValueError, match="holds no best checkpoint"):
        config.train.validate_every = 0
        begun(config, tmp_path / "third", Ancestor(str(second / "best"), "best"))


def test_other_data_of_the_same_shape_are_taken(
    tiny: Make, trained: Run, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """And a chain under which the weights mean something else, with a warning."""
    folder = tmp_path / "pictures"
    write_pictures(folder)
    config = other(tiny())
    config.data = ConfigDict(
        dict(
            **dict(name="image_folder", path=str(folder), image_size=8, test_fraction=0.0),
            **dict(channels=1, background="white", num_classes=0),
        )
    )
    config.schedule.beta_end = 0.7
    assert begun(config, tmp_path / "run", Ancestor(str(trained[1]))) is Outcome.FINISHED
    said = capsys.readouterr().out
    assert "data.name digits -> image_folder" in said
    assert "WARNING   schedule.beta_end 0.8 -> 0.7: the weights are of the former" in said
    changed = read_results(tmp_path / "run")["train"]["origin"]["changed"]
    assert changed["data.name"] == ["digits", "image_folder"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c.model.update(channels=16),
            r"config.model.channels: 8 there, 16 here\n  \[.*\]: float32\[8\] there, float32",
        ),
        (
            lambda c: c.model.update(class_conditional=True),
            r"class_conditional: False there, True here\n  \[.*: absent there, float32",
        ),
        (lambda c: c.variance.update(name="learned_range"), r"\n  \['.*float32\[3,3,8,2\] here"),
        (lambda c: c.method.update(name="gaussian"), "config.method.name: diffusion there, gau"),
    ],
)
def test_another_network_is_refused_by_field_and_leaf(
    change: Any, words: str, plain: Make, tiny: Make, trained: Run, tmp_path: pathlib.Path
) -> None:
    config = other(tiny())
    change(config)
    if config.variance.name == "learned_range":
        config.loss = ConfigDict(
            dict(name="hybrid", vlb_coefficient=1e-3, weighting={"name": "uniform"})
        )
    with pytest.raises(ValueError, match=words) as refused:
        begun(config, tmp_path, Ancestor(str(trained[1])))
    assert "weights of another network" in str(refused.value)
    assert not (tmp_path / "checkpoints").exists()  # which would look like a training's


def test_what_is_no_run_is_refused(plain: Make, tmp_path: pathlib.Path, plain_run: Run) -> None:
    config, new = plain(), tmp_path / "new"
    for run, words in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, r"no working directory with a checkpoint.*convert --from="),
    ):
        with pytest.raises(ValueError, match=words):
            begun(config, new, Ancestor(str(run)))
    with pytest.raises(CheckpointError, match=r"no step 5: it has \[4, 8\]"):
        begun(config, new, Ancestor(str(plain_run[1]), 5))


def test_images_that_were_trained_on_are_not_held_out(
    tiny: Make, trained: Run, tmp_path: pathlib.Path
) -> None:
    config = other(tiny())
    config.train.validate_every, config.train.validate_images = 4, 10
    with pytest.raises(ValueError, match="on all but 0 images .* 10 are to be held out"):
        begun(config, tmp_path, Ancestor(str(trained[1])))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("runs/a", Ancestor("runs/a")),
        ("runs/a:4000", Ancestor("runs/a", 4000)),
        ("runs/a:best", Ancestor("runs/a", "best")),
        ("runs/a:latest", Ancestor("runs/a", "latest")),
    ],
)
def test_a_run_is_named_with_its_checkpoint(value: str, expected: Ancestor | None) -> None:
    assert parse_ancestor(value, False) == expected
    if expected is not None:
        assert expected.named == f"--from={value}"
        assert parse_ancestor(value, True) == expected._replace(optimizer=True)


def test_a_folder_whose_name_has_a_colon_is_meant_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a:7").mkdir()
    assert parse_ancestor(f"{tmp_path}/a:7", False) == Ancestor(f"{tmp_path}/a:7")


@pytest.mark.parametrize("value", ["runs/a:first", "runs/a:-1", ":7", "runs/a:1e3"])
def test_what_names_no_checkpoint_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=rf"--from={value} must be the working directory"):
        parse_ancestor(value, False)
    with pytest.raises(ValueError, match="--from_optimizer goes with --from"):
        parse_ancestor("", True)


@pytest.mark.parametrize("sets", [ONE, BOTH])
def test_converted_weights_are_begun_with(sets: str, plain: Make, tmp_path: pathlib.Path) -> None:
    """One set of them is both; of an optimizer they have nothing."""
    experiment, mesh = build(plain()), devices.make_mesh()
    params = jax.tree.map(np.asarray, experiment.method.init(jax.random.key(0)))
    ema = params if sets == ONE else jax.tree.map(lambda x: x + 1, params)
    facts, old, new = {"weights": "ema", "sets": sets}, tmp_path / "old", tmp_path / "new"
    importer.write_workdir(experiment, old, 6, params, ema, facts)
    with pytest.raises(ValueError, match=r"no state of the optimizer .*\n.* absent there"):
        begun(other(plain()), new, Ancestor(str(old), optimizer=True))
    assert begun(other(plain()), new, Ancestor(str(old))) is Outcome.FINISHED
    assert read_results(new)["train"]["origin"]["sets"] == sets
    same(load_raw(experiment, new, 0, mesh), params)
    same(load_ema(experiment, new, mesh, 0).params, ema)
