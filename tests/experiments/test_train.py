import json
import pathlib
import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, hooks, train
from experiments import state as states
from experiments.build import build
from experiments.data import loader
from experiments.data.dataset import load_in_memory
from experiments.files.atomic import write_json
from experiments.state import SavedState, TrainState, init_state
from experiments.workdir import protocols, training_log
from experiments.workdir.checkpoint import Checkpoints
from experiments.workdir.config import check_same, config_to_dict, read_config
from experiments.workdir.outcome import Outcome
from experiments.workdir.protocols import TRAINING, training_fields

Make = Callable[[], ConfigDict]


def host_batches(config: ConfigDict, calls: int) -> list[dict[str, np.ndarray]]:
    source = load_in_memory(build(config).dataset.open("train"))
    stream = loader.batches(
        source,
        seed=config.seed,
        batch_size=config.train.batch_size,
        steps_per_call=config.train.steps_per_call,
    )
    batches = [next(stream) for _ in range(calls)]
    stream.close()
    return batches


def run_steps(config: ConfigDict, count: int, calls: int = 2):
    """The state after some calls on the first `count` devices, and the metrics of each."""
    experiment, mesh = build(config), devices.make_mesh(jax.devices()[:count])
    state = jax.jit(lambda: init_state(experiment), out_shardings=devices.replicated(mesh))()
    call = train.make_train_call(experiment, mesh)
    metrics = []
    for batch in host_batches(config, calls):
        state, sums = call(state, devices.put(batch, devices.sharded(mesh, axis=1)))
        metrics.append(jax.device_get(sums))
    return jax.device_get(state), metrics


def final_state(workdir: pathlib.Path, config: ConfigDict):
    experiment = build(config)
    everywhere = devices.replicated(devices.make_mesh())
    abstract = devices.abstract_like(lambda: init_state(experiment), everywhere)
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
        saved = SavedState(*abstract._replace(ema_params=()))
        state = TrainState(*checkpoints.restore(step, "state", saved))
        ema = checkpoints.restore(step, "ema", abstract.ema_params)
    return step, jax.device_get(state._replace(ema_params=ema))


def records(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("model", "clip"),
    [("plain", dict(name="global")), ("tiny", dict(name="per_core", max_norm=0.5))],
)
def test_eight_devices_train_like_one(
    model: str, clip: dict, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(model)()
    config.clip = ConfigDict(clip)
    config.timesteps = ConfigDict(dict(name="loss_second_moment", history=2))
    (one, first), (eight, second) = run_steps(config, 1), run_steps(config, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), one.params, eight.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), first, second)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        one.memory,
        eight.memory,
    )
    seen = one.memory["seen"] if model == "plain" else one.memory.seen.sum()
    assert seen == 4 * config.train.batch_size


@pytest.mark.parametrize(("limit", "share"), [(1e-3, 1.0), (1e3, 0.0)])
def test_the_log_says_how_often_the_gradient_was_clipped(
    plain: Make, limit: float, share: float
) -> None:
    config = plain()
    config.clip = ConfigDict(dict(name="per_core", max_norm=limit, num_cores=4))
    calls = run_steps(config, 1)[1]
    window = training_log.Window(4, calls, images=64, data_seconds=0.0, numbers={})
    assert window.read(num_steps=8, seconds=1.0)["clipped_share"] == share


def test_a_checkpoint_older_than_num_cores_goes_on(plain: Make, tmp_path: pathlib.Path) -> None:
    """Its clip had the images of a core where the number of cores is now."""
    config = plain()
    config.clip = ConfigDict(dict(name="per_core", max_norm=1.0, num_cores=4))
    old = config_to_dict(config)
    old["clip"] = dict(name="per_core", max_norm=1.0, images_per_core=4)  # of 16
    check_same(old, config, TRAINING, tmp_path)
    write_json(tmp_path / "config.json", old)
    assert read_config(tmp_path).clip.to_dict() == config.clip.to_dict()
    assert training_fields(old) == training_fields(config_to_dict(config))
    config.clip.num_cores = 8
    with pytest.raises(ValueError, match=r"clip.num_cores: 4 then, 8 now"):
        check_same(old, config, TRAINING, tmp_path)


def test_a_checkpoint_older_than_label_dropout_goes_on(
    tiny_unet: Make, tmp_path: pathlib.Path
) -> None:
    """No label was dropped then; a network that is not the U-Net has its fields from the start."""
    config = tiny_unet()
    config.model.class_conditional = True
    old = config_to_dict(config)
    del old["model"]["label_dropout"]
    check_same(old, config, TRAINING, tmp_path)
    write_json(tmp_path / "config.json", old)
    assert read_config(tmp_path).model.to_dict() == config.model.to_dict()
    assert training_fields(old) == training_fields(config_to_dict(config))
    config.model.label_dropout = 0.1
    with pytest.raises(ValueError, match=r"model.label_dropout: 0.0 then, 0.1 now"):
        check_same(old, config, TRAINING, tmp_path)
    mine = {"model": {"name": "mine", "width": 3}}
    assert protocols.renewed(mine)["model"] == mine["model"]


def test_a_checkpoint_older_than_the_switches_of_training_goes_on(
    plain: Make, tmp_path: pathlib.Path
) -> None:
    """The rate stayed after its warm-up, no weight decayed, the average did not warm up."""
    config = plain()
    old = config_to_dict(config)
    for name in ("cosine_steps", "final_learning_rate", "weight_decay"):
        del old["optimizer"][name]
    del old["ema_warmup"]
    check_same(old, config, TRAINING, tmp_path)
    write_json(tmp_path / "config.json", old)
    assert read_config(tmp_path).optimizer.to_dict() == config.optimizer.to_dict()
    assert training_fields(old) == training_fields(config_to_dict(config))
    config.optimizer.weight_decay, config.ema_warmup = 0.01, 1.0
    with pytest.raises(ValueError, match=r"weight_decay: 0.0 then(.|\n)*ema_warmup: 0.0 then, 1.0"):
        check_same(old, config, TRAINING, tmp_path)


def test_the_switches_of_training_train_and_go_on(plain: Make, tmp_path: pathlib.Path) -> None:
    """Stopped and continued is the same as not stopped, with all of them at once."""
    config = plain()
    config.model.dropout = 0.0
    config.optimizer.warmup_steps, config.optimizer.cosine_steps = 2, 8
    config.optimizer.weight_decay, config.ema_warmup = 0.1, 0.75
    config.train.accumulate_steps = 2
    config.clip = ConfigDict(dict(name="global", max_norm=1.0))
    whole, _ = run_steps(config, 1, calls=2)
    config.train.accumulate_steps = 1
    other, _ = run_steps(config, 1, calls=2)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    config.train.num_steps = 4
    hooks.train_with_hooks(build(config), tmp_path)
    config.train.num_steps = 8
    hooks.train_with_hooks(build(config), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] / config.optimizer.learning_rate for line in lines}
    half = {step: (1 + np.cos(np.pi * (step - 3) / 6)) / 2 for step in (4, 8)}
    assert {step: rates[step] for step in half} == pytest.approx(half, abs=1e-6)


def test_several_steps_in_one_call_are_the_same_steps(plain: Make) -> None:
    config = plain()
    four, sums = run_steps(config, 1, calls=2)
    config.train.steps_per_call = 1
    single, each = run_steps(config, 1, calls=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), four.params, single.params
    )
    assert int(four.step) == int(single.step) == 4
    assert sum(m["loss"] for m in sums) == pytest.approx(sum(m["loss"] for m in each), rel=1e-5)
    assert [m["steps"] for m in sums] == [2.0, 2.0]
    for m in sums:
        assert m["summary"]["square"][1] == 2 * config.train.batch_size


def test_ema_is_the_recursion_from_the_initial_parameters(plain: Make) -> None:
    config = plain()
    config.train.steps_per_call = 1
    states = [run_steps(config, 1, calls=n)[0] for n in range(1, 4)]
    experiment = build(config)
    initial = jax.device_get(jax.jit(lambda: init_state(experiment))())
    ema = initial.params
    for state in states:
        ema = jax.tree.map(
            lambda e, p: config.ema_decay * e + (1 - config.ema_decay) * p, ema, state.params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ema, state.ema_params
        )
    # The warm-up's first update has rate 0.
    jax.tree.map(np.testing.assert_array_equal, initial.params, states[0].params)


def test_flips_noise_and_timesteps_change_with_the_step_and_the_example(tiny: Make) -> None:
    config = tiny()
    config.train.flip = True
    experiment = build(config)
    rising = 32 * np.arange(8, dtype=np.uint8)  # to the right, in steps of two levels
    image = np.broadcast_to(rising[:, None], (64, 8, 8, 1))
    batch = {"image": jnp.asarray(image), "label": jnp.zeros(64, jnp.int32)}
    state = init_state(experiment)
    first = train.draw_examples(experiment, state, batch)
    again = train.draw_examples(experiment, state, batch)
    later = train.draw_examples(experiment, state._replace(step=state.step + 1), batch)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    flipped = np.array([x[0, 0, 0] > x[0, 1, 0] for x in np.asarray(first.x_0)])
    assert 15 < flipped.sum() < 49
    assert (np.asarray(later.t) != np.asarray(first.t)).any()
    assert np.unique(np.asarray(first.eps)[:, 0, 0, 0]).size == 64
    assert abs(float(np.corrcoef(first.eps.ravel(), later.eps.ravel())[0, 1])) < 0.1
    config.train.flip = False
    plain = train.draw_examples(build(config), state, batch).x_0
    np.testing.assert_allclose(plain[0], plain[63])


def test_a_run_learns_logs_and_stops_where_it_should(tiny: Make, tmp_path: pathlib.Path) -> None:
    config = tiny()
    config.train.num_steps, config.train.log_every = 40, 20
    config.train.checkpoint_every, config.train.preview_every = 20, 20
    config.train.preview_images, config.train.preview_num_steps = 4, 4
    config.optimizer.learning_rate = 5e-3
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [20, 40]
    assert lines[1]["loss"] < 0.9 * lines[0]["loss"]
    assert {"loss_q0", "loss_q3", "grad_norm", "images_per_second", "data_wait_share"} <= set(
        lines[0]
    )
    assert 0 <= lines[0]["clipped_share"] <= 1
    assert lines[1]["eta_seconds"] == 0 and 0 <= lines[1]["data_wait_share"] < 1
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == [
        *("00000020.png", "00000040.png")
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    # A finished run is left alone.
    before = (tmp_path / "metrics.jsonl").read_text()
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tiny: Make, tmp_path: pathlib.Path
) -> None:
    """8 steps equal 4 + 4; the log has no line twice and none missing."""
    config = tiny()
    config.timesteps = ConfigDict(dict(name="loss_second_moment", history=1))
    assert hooks.train_with_hooks(build(config), tmp_path / "whole") is Outcome.FINISHED
    config.train.num_steps = 4
    assert hooks.train_with_hooks(build(config), tmp_path / "parts") is Outcome.FINISHED
    config.train.num_steps = 8
    assert hooks.train_with_hooks(build(config), tmp_path / "parts") is Outcome.FINISHED
    whole, parts = (final_state(tmp_path / name, config) for name in ("whole", "parts"))
    assert whole[0] == parts[0] == 8
    jax.tree.map(np.testing.assert_array_equal, whole[1], parts[1])
    # The checkpoint in the middle was written while the steps after it ran in its buffers.
    experiment = build(config)
    with Checkpoints(tmp_path / "whole") as one, Checkpoints(tmp_path / "parts") as two:
        assert one.meta(4)["checksums"] == two.meta(4)["checksums"]
        abstract = devices.abstract_like(
            lambda: experiment.method.init(jax.random.key(0)),
            devices.replicated(devices.make_mesh()),
        )
        one.restore(4, "ema", abstract)
    for name in ("whole", "parts"):
        assert [line["step"] for line in records(tmp_path / name)] == [4, 8]
    assert records(tmp_path / "whole")[1]["loss"] == records(tmp_path / "parts")[1]["loss"]


@pytest.mark.usefixtures("interruptible")
def test_a_signal_saves_and_the_same_call_continues(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain()
    assert hooks.train_with_hooks(build(config), tmp_path / "whole") is Outcome.FINISHED
    advance = training_log.TrainingLog.advance

    def interrupt(self: training_log.TrainingLog, step: int) -> None:
        advance(self, step)
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training_log.TrainingLog, "advance", interrupt)
    handler = signal.getsignal(signal.SIGINT)
    assert hooks.train_with_hooks(build(config), tmp_path / "parts") is Outcome.STOPPED
    assert signal.getsignal(signal.SIGINT) is handler
    monkeypatch.setattr(training_log.TrainingLog, "advance", advance)
    assert final_state(tmp_path / "parts", config)[0] == 6
    assert hooks.train_with_hooks(build(config), tmp_path / "parts") is Outcome.FINISHED
    whole, parts = (final_state(tmp_path / name, config) for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole[1], parts[1])


def test_the_loop_compiles_once_and_transfers_nothing_unasked(
    plain: Make, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    """But for the first save of a process, in which orbax compiles how it cuts arrays."""
    config = plain()
    config.train.num_steps = config.train.checkpoint_every = 4
    hooks.train_with_hooks(build(config), tmp_path / "before")
    config.train.num_steps, config.train.log_every, config.train.checkpoint_every = 16, 4, 16
    guard = jax.transfer_guard("disallow")
    enter, leave = training_log.TrainingLog.__enter__, training_log.TrainingLog.__exit__

    def inside(self: training_log.TrainingLog):
        guard.__enter__()
        caplog.clear()
        return enter(self)

    def outside(self: training_log.TrainingLog, *error) -> None:
        guard.__exit__(*error)
        leave(self, *error)
        compiled = [r.message for r in caplog.records if "Finished XLA compilation" in r.message]
        assert not compiled, compiled

    monkeypatch.setattr(training_log.TrainingLog, "__enter__", inside)
    monkeypatch.setattr(training_log.TrainingLog, "__exit__", outside)
    with jax.log_compiles(), caplog.at_level("DEBUG", logger="jax"):
        assert hooks.train_with_hooks(build(config), tmp_path / "run") is Outcome.FINISHED


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", 12, ["train.batch_size = 12", "8 device(s)", "multiple of 8"]),
        ("num_steps", 7, ["train.num_steps = 7", "multiple of", "steps_per_call = 2"]),
        ("log_every", 3, ["train.log_every = 3"]),
        ("checkpoint_every", 3, ["train.checkpoint_every = 3"]),
        ("preview_every", 5, ["train.preview_every = 5"]),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    plain: Make, all_devices: None, tmp_path: pathlib.Path, field: str, value: int, words: list[str]
) -> None:
    config = plain()
    config.train[field] = value
    with pytest.raises(ValueError) as error:
        hooks.train_with_hooks(build(config), tmp_path)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def test_another_config_does_not_continue_a_run(plain: Make, tmp_path: pathlib.Path) -> None:
    config = plain()
    config.train.num_steps = 4
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    saved = (tmp_path / "config.json").read_text()
    config.train.num_steps = 8
    config.optimizer.learning_rate = 0.5
    config.seed = 3
    with pytest.raises(
        ValueError, match=r"seed: 0 then, 3 now(.|\n)*Choose another --workdir"
    ) as error:
        hooks.train_with_hooks(build(config), tmp_path)
    assert "optimizer.learning_rate: 0.002 then, 0.5 now" in str(error.value)
    assert (tmp_path / "config.json").read_text() == saved


def test_other_data_do_not_continue_a_run(
    plain: Make, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plain()
    config.train.num_steps = 4
    assert hooks.train_with_hooks(build(config), tmp_path) is Outcome.FINISHED
    monkeypatch.setattr(states, "fingerprint", lambda name, source: "another")
    config.train.num_steps = 8
    with pytest.raises(ValueError, match="'digits' has another now"):
        hooks.train_with_hooks(build(config), tmp_path)


def test_a_class_conditional_run_uses_the_labels(tiny: Make) -> None:
    config = tiny()
    config.model.class_conditional = True
    state, _ = run_steps(config, 1, calls=2)
    table = state.params["class_embedding"]["embedding"]
    experiment = build(config)
    initial = jax.device_get(jax.jit(lambda: init_state(experiment))())
    changed = (table != initial.params["class_embedding"]["embedding"]).any(axis=1)
    assert table.shape[0] == 11 and changed[:10].sum() >= 8 and not changed[10]
