"""Checkpoints in a bucket: the same run as in a folder, taken up elsewhere, by one at a time."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import console, devices, hooks
from experiments.build import build
from experiments.state import load_ema
from experiments.workdir import remote
from experiments.workdir.checkpoint import CheckpointError, Checkpoints, folder_of
from experiments.workdir.outcome import USER_ERROR, Outcome

for needed in ("gcsfs", "gcp_storage_emulator"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"a bucket on this machine needs {needed}", allow_module_level=True)
from benchmarks.bucket import Bucket  # noqa: E402
from tests.experiments.test_main import TINY, program  # noqa: E402
from tests.started import PIPE, started  # noqa: E402

Make = Callable[[], ConfigDict]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    server = Bucket()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        import gcsfs  # which reads some of that

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield server
    gcsfs.GCSFileSystem.clear_instance_cache()
    server.close()


def trained(make: Make, workdir: pathlib.Path, steps: int, address: str = "") -> dict[str, str]:
    """The checksums of the last checkpoint after training up to a step."""
    config = make()
    config.train.num_steps, config.train.validate_every = steps, 4
    config.train.validate_images = 16
    workdir.mkdir(exist_ok=True)
    if address:
        remote.keep_at(workdir, address)
    assert hooks.train_with_hooks(build(config), workdir) is Outcome.FINISHED
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest_step() == steps
        return checkpoints.meta(steps)["checksums"]


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_in_a_folder_and_goes_on_elsewhere(
    bucket: Bucket, tiny: Make, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    trained(tiny, tmp_path / "one", 8, "gs://bucket/runs/a/")
    capsys.readouterr()
    elsewhere = trained(tiny, tmp_path / "two", 16, "gs://bucket/runs/a")
    assert "resuming  step 8 of 16" in capsys.readouterr().out
    assert elsewhere == trained(tiny, tmp_path / "local", 16)
    roots = {tuple(name.split("/")[:4]) for name in bucket.names("runs/a/checkpoints/")}
    assert roots == {("runs", "a", "checkpoints", step) for step in ("12", "16")}  # two stay
    assert bucket.names("runs/a/best/checkpoints/")
    assert (tmp_path / "one/checkpoints").is_file() and not (tmp_path / "one/set_aside").exists()
    for workdir in (tmp_path / "one", tmp_path / "local"):
        config = tiny()
        config.checkpoint = "best"
        load_ema(build(config), workdir, devices.make_mesh())


@pytest.mark.slow
def test_the_program_takes_an_address(
    bucket: Bucket, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    options = ["--config=experiments/configs/digits.py", f"--config.data.data_dir={data_dir}"]
    options += [f"--{name}={value}" for name, value in TINY.items()]
    options += ["--checkpoints=gs://bucket/main", "--config.train.finish_with=()"]
    program(f"--workdir={tmp_path / 'one'}", *options)
    again = program(f"--workdir={tmp_path / 'two'}", *options)
    assert "trained   8 steps before" in again.stdout
    drawn = program(f"--workdir={tmp_path / 'three'}", "--mode=sample", *options)
    assert "sampled   6 images" in drawn.stdout
    refused = program(f"--workdir={tmp_path / 'four'}", *options[:-2], "--checkpoints=s", code=2)
    assert "--checkpoints=s must be gs://BUCKET/FOLDER" in refused.stderr


def make(value: float) -> dict[str, jax.Array]:
    return {"w": jnp.arange(600.0).reshape(20, 30) * value}


def saved(workdir: pathlib.Path, address: str) -> pathlib.Path:
    """A working directory with steps 1 and 2 in a bucket."""
    workdir.mkdir()
    remote.keep_at(workdir, address)
    with Checkpoints(workdir) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make(step), make(-step), {"step": step})
    return workdir


def restore(workdir: pathlib.Path) -> tuple[int, Any]:
    """The newest sound step, and its state."""
    everywhere = devices.replicated(devices.make_mesh())
    abstract = devices.abstract_like(lambda: make(1), everywhere)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.newest(lambda step: checkpoints.restore(step, "state", abstract))


@pytest.mark.slow
def test_a_damaged_step_in_a_bucket_is_set_aside_there(
    bucket: Bucket, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    workdir = saved(tmp_path / "run", "gs://bucket/damaged")
    bucket.flip("damaged/checkpoints/2/state/")
    step, state = restore(workdir)
    np.testing.assert_array_equal(state["w"], make(1)["w"])
    with Checkpoints(workdir) as checkpoints:
        checkpoints.set_aside(step)
        assert checkpoints.steps() == [1]
        checkpoints.save(2, make(3), make(4), {})
    assert bucket.names("damaged/set_aside/2/state/")
    assert restore(workdir)[0] == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "using step 1, the newest that is sound" in said
    assert "set aside step 2: gs://bucket/damaged/set_aside/2" in said


@pytest.mark.slow
def test_a_save_that_was_cut_off_is_no_step(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    workdir = saved(tmp_path / "run", "gs://bucket/cut")
    for name in bucket.names("cut/checkpoints/2/"):
        if "commit_success" in name:
            bucket.storage.delete_file("bucket", name)
    step, state = restore(workdir)
    np.testing.assert_array_equal(state["w"], make(1)["w"])
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(2, make(5), make(6), {})
    step, state = restore(workdir)
    assert step == 2
    np.testing.assert_array_equal(state["w"], make(5)["w"])


@pytest.mark.slow
def test_the_writer_before_ends(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    code = (
        "import pathlib, time\n"
        "from experiments.workdir import remote\n"
        "remote.LOOK = 0.1\n"
        f"workdir = pathlib.Path({str(tmp_path)!r})\n"
        "remote.keep_at(workdir, 'gs://bucket/two')\n"
        "with remote.latest_writer(workdir):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(120)\n"
    )
    environ = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code]
    with started(command, env=environ, stdout=PIPE, stderr=PIPE) as first:
        assert first.stdout.readline() == "in\n"
        with remote.latest_writer(tmp_path):
            assert first.wait(30) == USER_ERROR
        said = first.stderr.read()
    assert f"process {os.getpid()} on " in said and "gs://bucket/two" in said


@pytest.mark.parametrize("address", ["gs://bucket", "gs://", "s3://bucket/run", "/tmp/run", "run"])
def test_no_address_is_refused(bucket: Bucket, tmp_path: pathlib.Path, address: str) -> None:
    with pytest.raises(ValueError, match="must be gs://BUCKET/FOLDER"):
        remote.keep_at(tmp_path, address)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_checkpoints_that_are_elsewhere_are_not_left(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "local/checkpoints/3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"would leave the checkpoints .* in .*local/checkpoints"):
        remote.keep_at(tmp_path / "local", "gs://bucket/b")
    saved(tmp_path / "far", "gs://bucket/b")
    remote.keep_at(tmp_path / "far", "gs://bucket/b/")  # the same
    with pytest.raises(ValueError, match="would leave .* in gs://bucket/b/checkpoints"):
        remote.keep_at(tmp_path / "far", "gs://bucket/c")


def test_an_address_at_which_nothing_was_saved_can_be_mended(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for address in ("gs://nowhere/run", "gs://bucket/typo", "gs://bucket/right"):
        remote.keep_at(tmp_path, address)
        assert str(folder_of(tmp_path)) == f"{address}/checkpoints"
        assert str(folder_of(tmp_path / "best")) == f"{address}/best/checkpoints"


def test_a_file_that_is_no_address_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "checkpoints").write_text("what is this?\n")
    with pytest.raises(CheckpointError, match="is a file and holds no address"):
        folder_of(tmp_path)


def test_a_bucket_that_is_gone_is_told_from_other_errors() -> None:
    measured = "ABORTED: Error writing gs://b/m: All 32 retry attempts failed: CURL error"
    try:
        try:
            raise ValueError(measured)
        except ValueError as error:
            raise RuntimeError("a checkpoint was not written") from error
    except RuntimeError as error:
        assert remote.is_unreachable(error)
    assert not remote.is_unreachable(ValueError("gs://nowhere: no such bucket"))


def test_no_bucket_is_named(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    remote.keep_at(tmp_path, "gs://nowhere/run")
    with (
        pytest.raises(ValueError, match=r"gs://nowhere/run/writer.json cannot be written: "),
        remote.latest_writer(tmp_path),
    ):
        pass


@pytest.mark.slow
def test_a_bucket_that_stalls_is_told_and_waited_for(
    bucket: Bucket,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = console.told_when_slow
    monkeypatch.setattr(console, "told_when_slow", lambda what: told(what, seconds=0.2))
    bucket.slow = 0.1
    try:
        workdir = saved(tmp_path / "run", "gs://bucket/slow")
    finally:
        bucket.slow = 0.0
    said = " ".join(capsys.readouterr().out.split())
    assert "for a checkpoint to be written to gs://bucket/slow/checkpoints" in said
    assert restore(workdir)[0] == 2
