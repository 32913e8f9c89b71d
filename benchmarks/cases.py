"""The sizes that the benchmarks compare at."""

from typing import NamedTuple

from diffusion.schedules import linear

TIMESTEPS = 1000
BETAS = linear(TIMESTEPS)


class Case(NamedTuple):
    """A network on both sides, and how many images it gets at once."""

    size: int
    width: int
    batch: int
    multipliers: tuple[int, ...]
    attention: tuple[int, ...]
    dropout: float

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C): the digits' single channel at 8x8, colour elsewhere."""
        return self.size, self.size, 1 if self.size == 8 else 3

    @property
    def label(self) -> str:
        """A row's name."""
        height, width, channels = self.image_shape
        return f"{height}x{width}x{channels}, width {self.width}, batch {self.batch}"


def make_case(size: int, width: int, batch: int, dropout: float) -> Case:
    """The digits' network for 8x8 images, CIFAR-10's for the others."""
    multipliers, attention = ((1, 2, 2), (4,)) if size == 8 else ((1, 2, 2, 2), (16,))
    return Case(size, width, batch, multipliers, attention, dropout)
