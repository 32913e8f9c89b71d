"""Samples on disk: whatever is interrupted, asked for in pieces or out of memory, bytes are
equal."""

import json
import pathlib
import shutil
import signal
import sys
import time
import types
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import devices, drawing, images, sample, sample_files
from experiments.build import build
from experiments.files.atomic import digest
from experiments.sample import Place
from experiments.sample_files import Rows, SampleFiles, parse_indices, written_indices
from experiments.workdir.config import write_config
from experiments.workdir.results import read_results
from tests.experiments import modes
from tests.experiments.test_main import program
from tests.started import PIPE, STDOUT, started


@pytest.mark.parametrize(
    ("text", "indices"),
    [("0-3", [0, 1, 2, 3]), ("7", [7]), ("3,7,10-12", [3, 7, 10, 11, 12]), ("2, 0-2", [2, 0, 1])],
)
def test_seeds_are_read(text: str, indices: list[int]) -> None:
    assert parse_indices(text) == indices
    assert parse_indices(written_indices(indices)) == indices


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-3", "1-2-3", "0.5", "0-9999999999"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds="):
        parse_indices(text)


def without_samples(run: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Any:
    """(config, make a new copy of the run without samples)."""

    def copy(name: str) -> pathlib.Path:
        folder = shutil.copytree(run[1], tmp_path / name)
        for drawn in ("samples", "evaluation"):
            shutil.rmtree(folder / drawn, ignore_errors=True)
        return folder

    config = ConfigDict(run[0].to_dict())
    config.sample.update(num_images=40, batch_size=8)
    return config, copy


@pytest.fixture
def fresh(plain_run: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Any:
    """Of one Gaussian per pixel."""
    return without_samples(plain_run, tmp_path)


@pytest.fixture
def fresh_chain(trained: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Any:
    """Of the small network."""
    return without_samples(trained, tmp_path)


@pytest.fixture
def fresh_unet(trained_unet: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Any:
    """Of the smallest U-Net, for the program of another process."""
    return without_samples(trained_unet, tmp_path)


def pixels(folder: pathlib.Path) -> np.ndarray:
    with np.load(folder / "samples.npz") as stored:
        return stored["arr_0"]


def test_an_interrupted_sampling_goes_on_to_the_same_bytes(fresh, monkeypatch, capsys) -> None:
    config, copy = fresh
    whole, torn = copy("whole"), copy("torn")
    modes.sample(build(config), whole)
    keep, kept = SampleFiles.keep, []

    def dying(self: SampleFiles, rows: Rows, pictures: bool) -> None:
        keep(self, rows, pictures)
        kept.append(len(rows.indices))
        if len(kept) in (2, 3):
            raise KeyboardInterrupt

    monkeypatch.setattr(SampleFiles, "keep", dying)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            modes.sample(build(config), torn)
    assert not (torn / "samples" / "samples.npz").exists()
    capsys.readouterr()
    results = modes.sample(build(config), torn)
    assert "24 of 40 are there already" in capsys.readouterr().out
    assert kept == [8] * 5  # nothing was drawn twice
    for name in ("samples.npz", "samples.png", "progress.png", "samples.json"):
        assert (torn / "samples" / name).read_bytes() == (whole / "samples" / name).read_bytes()
    assert not (torn / "samples" / "parts").exists()
    assert results["indices"] == "0-39" and results["num_images"] == 40
    assert results["evaluations"] == 1.0 and results["not_finite"] == 0


@pytest.mark.parametrize("moment", ["finish", "first picture", "second picture", "results"])
def test_a_set_whose_files_were_not_all_written_is_finished(fresh, monkeypatch, moment) -> None:
    """All samples are drawn, and the disk is full, or the machine lost, while they are put down."""
    config, copy = fresh
    whole, torn = copy("whole"), copy("torn")
    modes.sample(build(config), whole)
    saved: list[pathlib.Path] = []

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def save(path: pathlib.Path, picture: np.ndarray) -> None:
        saved.append(path)
        if len(saved) == (1 if moment == "first picture" else 2):
            full()
        images.save(path, picture)

    with monkeypatch.context() as patch:
        if moment == "finish":
            patch.setattr(SampleFiles, "finish", full)
        elif moment == "results":
            patch.setattr(sample, "write_results", full)
        else:
            patch.setattr(sample, "images", types.SimpleNamespace(grid=images.grid, save=save))
        with pytest.raises(OSError, match="No space left"):
            modes.sample(build(config), torn)
    again = modes.sample(build(config), torn)
    for name in ("samples.npz", "samples.png", "progress.png", "samples.json"):
        assert (torn / "samples" / name).read_bytes() == (whole / "samples" / name).read_bytes()
    assert not (torn / "samples" / "parts").exists()
    assert read_results(torn)["sample"]["num_images"] == again["num_images"] == 40
    assert not list((torn / "samples").glob(".*"))


@pytest.mark.slow
def test_a_killed_program_goes_on_to_the_same_bytes(fresh_unet) -> None:
    """kill -9, twice, wherever it hits."""
    config, copy = fresh_unet
    whole, torn = copy("whole"), copy("torn")
    for workdir in (whole, torn):
        write_config(workdir, config)
    options = ("--mode=sample", "--config.sample.num_images=1000", "--config.sample.batch_size=8")
    program(*options, f"--workdir={whole}")
    command = [sys.executable, "-m", "experiments.main", *options, f"--workdir={torn}"]
    parts, kills = torn / "samples" / "step8_seed0_ancestral8" / "parts", 0
    for least in (3, 30):
        with started(command, stdout=PIPE, stderr=STDOUT) as running:
            until = time.monotonic() + 240
            while running.poll() is None and time.monotonic() < until:
                if len(list(parts.glob("*/*.npz"))) >= least:
                    running.send_signal(signal.SIGKILL)
                    kills += running.wait() == -signal.SIGKILL
                    break
                time.sleep(0.01)
    assert kills == 2, "the program was faster than this test"
    said = program(*options, f"--workdir={torn}").stdout
    assert "are there already" in said
    for name in ("samples.npz", "samples.png", "progress.png"):
        one, other = (run / "samples" / "step8_seed0_ancestral8" / name for run in (whole, torn))
        assert one.read_bytes() == other.read_bytes()


def test_batches_and_devices_do_not_show(fresh_chain) -> None:
    config, copy = fresh_chain
    found = []
    for size in (8, 40, 7):
        config.sample.batch_size = size
        run = copy(f"batch{size}")
        modes.sample(build(config), run)
        found.append(pixels(run / "samples").astype(int))
    for other in found[1:]:
        assert (other != found[0]).mean() < 1e-3 and abs(other - found[0]).max() <= 16


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples that are drawn, as they are."""
    found: list[int] = []
    plain = drawing.draw_indices

    def counted(sample_fn: Any, params: Any, indices: Any, *rest: Any, **each: Any) -> Any:
        found.extend(indices)
        return plain(sample_fn, params, indices, *rest, **each)

    monkeypatch.setattr(sample, "draw_indices", counted)
    return found


def test_more_of_the_same_is_added_to_what_is_there(fresh, drawn: list[int]) -> None:
    config, copy = fresh
    run, whole = copy("run"), copy("whole")
    config.sample.num_images = 16
    modes.sample(build(config), run)
    config.sample.num_images, drawn[:] = 40, []
    modes.sample(build(config), run)
    assert sorted(set(drawn) - {0, 1, 2}) == list(range(16, 40))  # 0, 1, 2: of progress.png
    modes.sample(build(config), whole)
    np.testing.assert_array_equal(pixels(run / "samples"), pixels(whole / "samples"))
    # Fewer are there already.
    config.sample.num_images, drawn[:] = 8, []
    modes.sample(build(config), run)
    assert not drawn and len(pixels(run / "samples")) == 40


def test_shards_hold_the_samples_in_order(fresh) -> None:
    config, copy = fresh
    one, several = copy("one"), copy("several")
    modes.sample(build(config), one)
    config.sample.images_per_file = 15
    results = modes.sample(build(config), several)
    names = [f"samples_{a:08d}-{b:08d}.npz" for a, b in ((0, 14), (15, 29), (30, 39))]
    assert [pathlib.Path(name).name for name in results["files"][:3]] == names
    stored = [np.load(several / "samples" / name) for name in names]
    joined = np.concatenate([shard["arr_0"] for shard in stored])
    np.testing.assert_array_equal(joined, pixels(one / "samples"))
    indices = np.concatenate([shard["indices"] for shard in stored])
    np.testing.assert_array_equal(indices, np.arange(40))
    assert all((shard["evaluations"] == 1).all() and shard["finite"].all() for shard in stored)


def test_png_files_by_number_in_any_order(fresh, tmp_path: pathlib.Path) -> None:
    config, copy = fresh
    run, out = copy("run"), tmp_path / "pictures"
    modes.sample(build(config), run)
    expected = pixels(run / "samples")
    config.sample.format = "png"
    for indices in ([30, 3, 7], [0, 1, 2, 3, 4]):
        modes.sample(build(config), run, Place(indices, out))
    there = sorted(path.name for path in out.glob("images/00000000/*.png"))
    assert there == [f"{i:08d}.png" for i in (0, 1, 2, 3, 4, 7, 30)]
    for name in there:
        picture = np.asarray(Image.open(out / "images" / "00000000" / name))
        off = abs(picture.astype(int) - expected[int(name[:8]), ..., 0])
        assert off.max() <= 16 and (off > 0).mean() < 0.02
    # A picture that was lost is drawn again, and nothing else.
    lost = out / "images" / "00000000" / "00000003.png"
    before, kept = lost.read_bytes(), (out / "images" / "00000000" / "00000007.png").stat()
    lost.unlink()
    modes.sample(build(config), run, Place([30, 3, 7], out))
    assert lost.read_bytes() == before
    assert (out / "images" / "00000000" / "00000007.png").stat().st_size == kept.st_size
    with pytest.raises(ValueError, match="holds something else"):
        other = ConfigDict(config.to_dict())
        other.seed = 1
        modes.sample(build(other), run, Place([0], out))


@pytest.mark.slow
def test_seeds_of_the_program(fresh_unet, tmp_path: pathlib.Path) -> None:
    config, copy = fresh_unet
    run, out = copy("run"), tmp_path / "out"
    write_config(run, config)
    program("--mode=sample", f"--workdir={run}", "--seeds=2,8-9", f"--out={out}")
    with np.load(out / "samples_00000002-00000009.npz") as stored:
        assert stored["indices"].tolist() == [2, 8, 9] and stored["arr_0"].shape == (3, 8, 8, 1)
    refused = program("--mode=evaluate", f"--workdir={run}", "--seeds=2", code=2)
    assert "--seeds is of --mode=sample" in refused.stderr
    refused = program("--mode=sample", f"--workdir={run}", "--seeds=9-2", code=2)
    assert "--seeds=9-2 is not understood" in refused.stderr


def test_a_set_of_before_these_files_is_known(fresh_chain) -> None:
    """samples.npz of arr_0 alone, and a samples.json that says how many and names old fields."""
    config, copy = fresh_chain
    run = copy("run")
    modes.sample(build(config), run)
    folder = run / "samples"
    about = json.loads((folder / "samples.json").read_text())
    about |= {"clip_denoised": True, "spacing": "even", "num_images": 40}
    for name in ("threshold", "guidance", "last_step", "dtype", "dataset"):
        del about[name]
    (folder / "samples.json").write_text(json.dumps(about))
    before = pixels(folder)
    np.savez_compressed(folder / "samples.npz", arr_0=before)
    modes.sample(build(config), run)
    with np.load(folder / "samples.npz") as stored:
        assert stored.files == ["arr_0"]  # nothing was drawn


def test_an_interrupted_set_that_is_older_than_a_field_goes_on(
    fresh, drawn: list[int], monkeypatch
) -> None:
    config, copy = fresh
    run = copy("run")
    with monkeypatch.context() as patch:
        patch.setattr(SampleFiles, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            modes.sample(build(config), run)
    folder = run / "samples"
    about = json.loads((folder / "samples.json").read_text())
    new = digest(about)
    del about["dtype"], about["dataset"]
    (folder / "samples.json").write_text(json.dumps(about))
    (folder / "parts" / new).rename(folder / "parts" / digest(about))
    drawn.clear()
    modes.sample(build(config), run)
    assert drawn == [0, 1, 2]  # of progress.png
    assert len(pixels(folder)) == 40 and not (folder / "parts").exists()


def test_a_batch_that_does_not_fit_is_drawn_in_halves(
    fresh_chain, monkeypatch, capsys, params
) -> None:
    config, copy = fresh_chain
    config.sample.update(num_images=8, batch_size=8, progress_images=1)
    whole, small = copy("whole"), copy("small")
    modes.sample(build(config), whole)
    needed: list[int] = []
    plain = devices.needed_bytes

    def noted(compiled: Any) -> int:
        needed.append(plain(compiled))
        return needed[-1]

    monkeypatch.setattr(devices, "needed_bytes", noted)
    monkeypatch.setattr(devices, "free_bytes", lambda: 2**62)
    other = copy("other")
    modes.sample(build(config), other)
    # Between what a quarter of the batch needs and what half of it does.
    monkeypatch.setattr(devices, "free_bytes", lambda: max(needed) // 3)
    capsys.readouterr()
    modes.sample(build(config), small)
    said = capsys.readouterr().out
    assert "a batch needs" in said and "at a time" in said
    off = abs(pixels(small / "samples").astype(int) - pixels(whole / "samples"))
    assert off.max() <= 16 and (off > 0).mean() < 1e-2
    monkeypatch.setattr(devices, "free_bytes", lambda: 10)
    with pytest.raises(devices.OutOfMemory, match="a batch needs"):
        modes.sample(build(config), copy("tiny"))


def test_every_file_of_many_is_looked_into_once(tmp_path: pathlib.Path, monkeypatch) -> None:
    """A metric reads 50,000 samples a batch at a time, from as many files as there were batches."""
    files, about = 30, {"dataset": "digits", "dtype": "float32"}
    kept = SampleFiles(tmp_path, about)
    kept.prepare()
    for first in range(0, 2 * files, 2):
        pixels, indices = np.full((2, 1, 1, 1), first, np.uint8), np.arange(first, first + 2)
        kept.keep(Rows(pixels, indices, np.ones(2, bool), np.ones(2, np.int32)), False)
    looked, plain = [], sample_files._facts
    monkeypatch.setattr(sample_files, "_facts", lambda path: looked.append(path) or plain(path))
    found = SampleFiles(tmp_path, about)
    assert found.done(pictures=False) == set(range(2 * files))
    for first in range(0, 2 * files, 2):
        assert (found.rows([first, first + 1], pictures=False).arr_0 == first).all()
    assert len(looked) == files
