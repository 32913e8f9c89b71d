"""One store of samples: what was drawn by metrics or by --mode=sample is not drawn again."""

import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import devices, evaluate, sample
from experiments.build import build
from experiments.files.tensors import read_npz, write_npz
from experiments.metrics import sample_store
from experiments.metrics.metric import Context
from experiments.sample import Place, folder_apart
from experiments.state import load_ema
from tests.experiments import modes

COUNT = 20


class Run:
    """A copy of a run without samples; counts what metrics draw, and what --mode=sample does."""

    def __init__(self, run: tuple[ConfigDict, pathlib.Path], workdir: pathlib.Path) -> None:
        drawn = shutil.ignore_patterns("evaluation", "samples")
        self.workdir = shutil.copytree(run[1], workdir, ignore=drawn)
        self.config = ConfigDict(run[0].to_dict())
        self.config.sample.update(num_images=COUNT, batch_size=8, progress_images=2)
        self.metric_batches, self.sampled = 0, list[int]()

    @property
    def context(self) -> Context:
        experiment = build(self.config)
        loaded = load_ema(experiment, self.workdir, devices.make_mesh())
        return evaluate.context_of(experiment, self.workdir, loaded)

    @property
    def apart(self) -> pathlib.Path:
        """The folder that --mode=sample writes to."""
        experiment = build(self.config)
        loaded = load_ema(experiment, self.workdir, devices.make_mesh())
        return folder_apart(experiment, self.workdir, loaded)

    def sample(self) -> pathlib.Path:
        with pytest.MonkeyPatch.context() as patch:
            draw = sample.draw_indices

            def counted(sample_fn: Any, params: Any, indices: Any, *rest: Any, **each: Any) -> Any:
                self.sampled += indices
                return draw(sample_fn, params, indices, *rest, **each)

            patch.setattr(sample, "draw_indices", counted)
            folder = self.apart
            modes.sample(build(self.config), self.workdir, Place(None, folder))
        return folder

    def measured(self, quantize: str = "round", record: tuple[int, ...] = ()) -> np.ndarray:
        """The first COUNT samples as metrics see them."""
        make = sample_store.make_sample_fn

        def counting(*arguments: Any, **options: Any) -> Any:
            sample_fn = make(*arguments, **options)

            def call(*inputs: Any) -> Any:
                self.metric_batches += 1
                return sample_fn(*inputs)

            return call

        fields = {"num_samples": COUNT, "num_sets": 1, "quantize": quantize}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sample_store, "make_sample_fn", counting)
            found = [
                batch for _, batch, _ in sample_store.sample_batches(self.context, fields, record)
            ]
        return np.concatenate(found, axis=1 if record else 0)[..., :COUNT, :, :, :]


@pytest.fixture
def run(plain_run: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Run:
    return Run(plain_run, tmp_path / "run")


@pytest.fixture
def fresh(plain_run: tuple[ConfigDict, pathlib.Path], tmp_path: pathlib.Path) -> Run:
    return Run(plain_run, tmp_path / "fresh")


def test_metrics_draw_nothing_that_was_sampled(run: Run, fresh: Run) -> None:
    folder = run.sample()
    found = run.measured()
    assert run.metric_batches == 0
    with np.load(folder / "samples.npz") as stored:
        np.testing.assert_array_equal(found, stored["arr_0"])
    np.testing.assert_array_equal(found, fresh.measured())
    assert fresh.metric_batches == 3
    # In other levels than the files hold, they are drawn.
    for quantize in ("none", "floor"):
        np.testing.assert_array_equal(run.measured(quantize), fresh.measured(quantize))
    assert run.metric_batches == 6 and run.measured("none").dtype == np.float32


def test_pictures_that_were_sampled_are_read_again(run: Run, fresh: Run) -> None:
    """But for one that was lost, whose batch of 8 is drawn."""
    run.config.sample.format = "png"
    folder = run.sample()
    np.testing.assert_array_equal(run.measured(), fresh.measured())
    assert run.metric_batches == 0
    (folder / "images" / "00000000" / "00000009.png").unlink()
    np.testing.assert_array_equal(run.measured(), fresh.measured())
    assert run.metric_batches == 1


def test_sampling_draws_nothing_that_metrics_drew(run: Run, fresh: Run) -> None:
    run.measured()
    folder, whole = run.sample(), fresh.sample()
    assert run.sampled == [0, 1]  # of progress.png
    for name in ("samples.npz", "samples.png", "progress.png", "samples.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    run.sampled.clear()
    run.sample()
    assert not run.sampled and run.metric_batches == 3


def test_a_batch_that_lacks_a_sample_is_drawn_whole(run: Run, fresh: Run) -> None:
    """The first of three batches of 8 is there, after an interruption of either."""
    run.config.sample.num_images = 12
    run.sample()
    np.testing.assert_array_equal(run.measured(), fresh.measured())
    assert run.metric_batches == 2
    assert run.measured().shape == (COUNT, 8, 8, 1) and run.metric_batches == 2


def test_other_seeds_and_weights_are_other_samples(run: Run) -> None:
    run.sample()
    run.config.seed = 1
    run.measured()
    assert run.metric_batches == 3


def test_estimates_on_the_way_are_kept_too(run: Run) -> None:
    once, again = run.measured(record=(0,)), run.measured(record=(0,))
    assert run.metric_batches == 3 and once.shape == (1, COUNT, 8, 8, 1)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once[0], run.measured())


@pytest.mark.parametrize("record", [(), (0,)])
def test_what_an_older_program_drew_is_taken_over(run: Run, record: tuple[int, ...]) -> None:
    """Files of batches in a folder named by the protocol as it was, with no dtype."""
    before = run.measured(record=record)
    (kept,) = (run.workdir / "evaluation").glob("samples_*")
    facts = {name: value for name, value in run.context.sampling.items() if name != "dtype"}
    facts |= {"quantize": "round", "record": list(record), "batch_size": 8}
    older = run.context.folder("samples", facts)
    for path in kept.glob("parts/*/*.npz"):
        rows = read_npz(path)
        pixels = rows["arr_0"].swapaxes(0, 1) if record else rows["arr_0"]
        told = {"finite": rows["finite"], "evaluations": rows["evaluations"]}
        write_npz(older / f"{rows['indices'][0]:08d}.npz", {"samples": pixels, **told})
    shutil.rmtree(kept)
    np.testing.assert_array_equal(run.measured(record=record), before)
    assert run.metric_batches == 3


def test_a_damaged_file_is_named_with_what_can_be_done(run: Run) -> None:
    path = run.sample() / "samples.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"samples\.npz, a file of samples, is damaged; delete it"):
        run.measured()
    path.unlink()
    run.measured()
    assert run.metric_batches == 3
