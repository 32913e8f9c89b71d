"""What the rest of the program may use of a network, whichever it is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Network(Protocol):
    """A flax module that maps x_t, t and labels to what a parameterization needs.

    Its fields are the keywords of config.model, but for `out_channels`, `num_classes` and `dtype`,
    which the program supplies.
    """

    @property
    def out_channels(self) -> int:
        """Channels of the output: those of an image, twice that where a variance is learned."""

    @property
    def num_classes(self) -> int | None:
        """Number of labels, or None for a network that takes none."""

    @property
    def label_dropout(self) -> float:
        """Share of the labels that training replaces by the null class; 0: it is not trained."""

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Refuses, with a ValueError that names the field, images [H, W, C] it cannot process."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """{"params": ...}, float32, for the arguments of `apply` behind `variables`."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """f32[B, H, W, out_channels].

        Args:
            variables: {"params": ...}.
            args: x f32[B, H, W, C], t i32[B] (f32[B] between timesteps), and, with num_classes,
                labels i32[B], where None and num_classes are the null class; or, with a text
                encoder, tokens i32[B, length] (by name).
            kwargs: the same by name; train (default False) turns dropout on, whose random numbers
                come from rngs={"dropout": key}.
        """


def check_label_dropout(label_dropout: float, num_classes: int | None) -> None:
    """Refuses to drop the labels of a network that has none.

    Raises:
        ValueError: naming the field.
    """
    if label_dropout and num_classes is None:
        raise ValueError(
            f"label_dropout = {label_dropout} is for a network that is told labels. Set "
            "class_conditional = True, or label_dropout = 0."
        )


def check_levels(
    image_shape: tuple[int, ...],
    widths: Sequence[int],
    attention_resolutions: Mapping[str, Sequence[int]],
    norm_groups: int,
) -> None:
    """Refuses images and widths that a network of levels, each of half the size, cannot process.

    Args:
        widths: channels of the levels, from the largest image to the smallest.
        attention_resolutions: name of the field -> heights of levels that it names.

    Raises:
        ValueError: saying what came, what is allowed and what to change.
    """
    height, width, _ = image_shape
    levels = len(widths)
    factor = 2 ** (levels - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"a {height}x{width} image cannot be halved {levels - 1} times: with {levels} levels "
            "(channel_multipliers) height and width must be multiples of "
            f"{factor}. Use fewer levels, or pad or resize the images."
        )
    heights = [height // 2**level for level in range(levels)]
    for name, resolutions in attention_resolutions.items():
        for resolution in resolutions:
            if resolution not in heights:
                raise ValueError(
                    f"{name} names {resolution}, which no level has: this network works at heights "
                    f"{heights}."
                )
    for features in widths:
        if features % norm_groups:
            raise ValueError(
                f"a level of {features} channels (channels times one of channel_multipliers) must "
                f"be divisible by norm_groups = {norm_groups}."
            )


def check_heads(widths: Iterable[int], num_heads: int, attention_head_dim: int = 0) -> None:
    """Refuses channels that attention cannot share out among its heads.

    Args:
        widths: channels of the levels that attend.
        attention_head_dim: channels of a head; 0 is equal shares for `num_heads`.

    Raises:
        ValueError: naming the field.
    """
    name = "attention_head_dim" if attention_head_dim else "num_heads"
    divisor = attention_head_dim or num_heads
    for features in widths:
        if features % divisor:
            raise ValueError(
                f"the attention of {features} channels (channels times one of "
                f"channel_multipliers) cannot be shared out: {name} = {divisor} must divide them."
            )
