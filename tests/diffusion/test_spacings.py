import inspect

import numpy as np
import pytest

from diffusion.spacings import SPACINGS, array, leading, quadratic, trailing, uniform


def spaced(name: str, num_steps: int) -> np.ndarray:
    """Of 1000 timesteps, all of which are given to what chooses from given ones."""
    spacing = SPACINGS[name]
    takes = "timesteps" in inspect.signature(spacing).parameters
    return spacing(1000, num_steps, **{"timesteps": range(1000)} if takes else {})


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 10, 50, 100, 333, 999, 1000])
def test_every_spacing_gives_so_many_rising_timesteps(name: str, num_steps: int) -> None:
    keep = spaced(name, num_steps)
    assert keep.shape == (num_steps,) and keep.dtype == np.int64
    assert keep[0] >= 0 and keep[-1] < 1000 and (np.diff(keep) > 0).all()
    if num_steps == 1000:
        np.testing.assert_array_equal(keep, np.arange(1000))


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_numbers_are_refused(name: str, num_steps: int) -> None:
    with pytest.raises(ValueError, match="choose 1 to 1000"):
        spaced(name, num_steps)


def test_uniform_covers_both_ends() -> None:
    for n in (2, 7, 999, 1000):
        keep = uniform(1000, n)
        assert keep[0] == 0 and keep[-1] == 999 and np.ptp(np.diff(keep)) <= 1
    assert uniform(1000, 1).tolist() == [999]


def test_leading_and_trailing_say_where_they_start() -> None:
    assert leading(1000, 5).tolist() == [0, 200, 400, 600, 800]
    assert leading(1000, 5, offset=1).tolist() == [1, 201, 401, 601, 801]
    assert trailing(1000, 5).tolist() == [199, 399, 599, 799, 999]
    with pytest.raises(ValueError, match="offset = 200 leads to timestep 1000.*0 to 199"):
        leading(1000, 5, offset=200)


def test_quadratic_is_ddims_but_for_repetitions() -> None:
    """With few steps no square repeats; with many, those that would are moved up."""
    squares = (np.linspace(0, np.sqrt(800), 10) ** 2).astype(int)
    np.testing.assert_array_equal(quadratic(1000, 10), squares)
    keep = quadratic(1000, 100)
    squares = (np.linspace(0, np.sqrt(800), 100) ** 2).astype(int)
    assert keep[:5].tolist() == [0, 1, 2, 3, 4] and squares[:4].tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(keep[20:], squares[20:])
    assert quadratic(1000, 10, share=1.0)[-1] == 999  # 1000 is beyond the last


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 10, 37, 1000])
@pytest.mark.parametrize("share", [1e-3, 0.3, 0.8, 0.999, 1, 1.0])
def test_quadratic_repeats_no_timestep(num_timesteps: int, share: float) -> None:
    for num_steps in range(1, num_timesteps + 1, max(1, num_timesteps // 50)):
        keep = quadratic(num_timesteps, num_steps, share=share)
        assert keep[0] >= 0 and keep[-1] < num_timesteps and (np.diff(keep) > 0).all()
        assert keep.size == num_steps


@pytest.mark.parametrize("share", [2.0, 1.001, 0.0, -0.5, np.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"share = {share} must be above 0 and at most 1"):
        quadratic(1000, 10, share=share)


def test_a_list_is_taken_or_chosen_from() -> None:
    given = [0, 3, 10, 500, 999]
    assert array(1000, 1000, timesteps=given).tolist() == given
    assert array(1000, 3, timesteps=given).tolist() == [0, 10, 999]
    for wrong in ([], [3, 3], [5, 1], [0, 1000], [-1, 3], [0.5]):
        with pytest.raises(ValueError, match=r"rising whole numbers in \[0, 1000\)"):
            array(1000, 5, timesteps=wrong)
