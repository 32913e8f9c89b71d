import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import devices
from experiments.workdir.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpoint,
    crc32s,
)
from tests.experiments.meta import edit


def make(value: float = 1.0) -> dict:
    return {"w": jnp.arange(600.0).reshape(20, 30) * value, "n": jnp.asarray(3, jnp.int32)}


def abstract(make=make) -> dict:
    return devices.abstract_like(make, devices.replicated(devices.make_mesh()))


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make(step), make(-step), {"step": step, "name": "run"})
    return tmp_path


def test_what_is_saved_comes_back_bit_for_bit(saved: pathlib.Path, all_devices: None) -> None:
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 3
        state = checkpoints.restore(3, "state", abstract())
        ema = checkpoints.restore(3, "ema", abstract())
        assert checkpoints.meta(3)["name"] == "run"
    jax.tree.map(np.testing.assert_array_equal, state, make(3))
    jax.tree.map(np.testing.assert_array_equal, ema, make(-3))
    assert state["n"].dtype == jnp.int32 and len(ema["w"].sharding.device_set) == 8


def test_only_the_latest_steps_stay(saved: pathlib.Path) -> None:
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3"]


def test_saving_a_step_again_changes_nothing(saved: pathlib.Path) -> None:
    with Checkpoints(saved) as checkpoints:
        checkpoints.save(3, make(99.0), make(99.0), {})
    with Checkpoints(saved) as checkpoints:
        np.testing.assert_array_equal(
            checkpoints.restore(3, "state", abstract())["w"], make(3)["w"]
        )


def test_an_empty_directory_has_no_step(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None


def test_half_a_save_is_not_a_checkpoint(saved: pathlib.Path) -> None:
    (saved / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(saved) as checkpoints:
        assert checkpoints.latest_step() == 3


def test_another_shape_or_dtype_is_refused(saved: pathlib.Path) -> None:
    wrong = {"w": jnp.zeros((5, 5)), "n": jnp.asarray(3, jnp.int32)}
    half = {"w": jnp.zeros((20, 30), jnp.bfloat16), "n": jnp.asarray(3, jnp.int32)}
    fewer = {"w": jnp.zeros((20, 30))}
    more = {**make(), "b": jnp.zeros(2)}
    cases = {
        r"\['w'\], float32\[20,30\] in the checkpoint and float32\[5,5\]": wrong,
        r"\['w'\], float32\[20,30\] in the checkpoint and bfloat16\[20,30\]": half,
        r"\['n'\], int32\[\] in the checkpoint and absent": fewer,
        r"\['b'\], absent in the checkpoint and float32\[2\]": more,
    }
    with Checkpoints(saved) as checkpoints:
        for message, other in cases.items():
            with pytest.raises(CheckpointError, match=f"3 is of another model: 1 .*{message}"):
                checkpoints.restore(3, "state", abstract(lambda other=other: other))


def test_a_byte_changed_on_disk_is_an_error(tmp_path: pathlib.Path) -> None:
    weights = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(40, 50)), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, weights, weights, {})
    files = (tmp_path / "checkpoints" / "1" / "state").rglob("d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(CheckpointError, match="checkpoint .*1 (cannot be read|is damaged)"),
    ):
        checkpoints.restore(1, "state", abstract(lambda: weights))


def test_changed_values_are_noticed_and_older_steps_offered(saved: pathlib.Path) -> None:
    """Orbax restores wrong numbers without a word; the checksum in the JSON does not."""

    def change(meta: dict) -> None:
        digits = meta["checksums"]["state"]["['w']"]
        meta["checksums"]["state"]["['w']"] = f"{int(digits, 16) ^ 1:016x}"

    edit(saved / "checkpoints" / "3", change)
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(CheckpointError, match=r"is damaged: .*\['w'\].*older step"):
            checkpoints.restore(3, "state", abstract())
        checkpoints.restore(2, "state", abstract())


def test_every_changed_byte_of_what_a_checkpoint_says_of_itself_is_noticed(
    saved: pathlib.Path,
) -> None:
    path = saved / "checkpoints" / "3" / "meta" / "metadata"
    content = path.read_bytes()
    with Checkpoints(saved) as checkpoints:
        checkpoints.meta(3)
        for place in range(0, len(content), 3):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(DamagedCheckpoint):
                checkpoints.meta(3)


def test_the_last_steps_stay_and_every_nth_for_good(tmp_path: pathlib.Path) -> None:
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 12):
            checkpoints.save(step, make(step), make(step), {"step": step})
            checkpoints.wait()
        assert checkpoints.steps() == [4, 8, 10, 11]


def test_checkpoints_from_before_are_verified_by_the_checksums_that_they_have(
    saved: pathlib.Path,
) -> None:
    path = next((saved / "checkpoints" / "3" / "meta").glob("metadata"))
    meta = json.loads(path.read_text())
    del meta["checksum"]
    with Checkpoints(saved) as checkpoints:
        meta["checksums"]["state"] = crc32s(checkpoints.restore(3, "state", abstract()))
        meta["checksums"]["ema"] = crc32s(checkpoints.restore(3, "ema", abstract()))
        path.write_text(json.dumps(meta))
        checkpoints.restore(3, "state", abstract())
        meta["checksums"]["state"]["['w']"] ^= 1
        path.write_text(json.dumps(meta))
        with pytest.raises(CheckpointError, match=r"is damaged: .*\['w'\]"):
            checkpoints.restore(3, "state", abstract())


def test_a_missing_file_is_an_error_that_names_the_older_steps(saved: pathlib.Path) -> None:
    for path in (saved / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        Checkpoints(saved) as checkpoints,
        pytest.raises(CheckpointError, match=r"cannot be read(.|\n)*Older steps exist: \[2\]"),
    ):
        checkpoints.restore(3, "state", abstract())
