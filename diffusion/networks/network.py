"""What the rest of the program may use of a network, whichever it is."""

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
                labels i32[B], where None and num_classes are the null class.
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
