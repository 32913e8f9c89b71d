"""How a training ends: finished, stopped on request, or diverged.

Launchers read this without jax, which is imported where it is used.
"""

import enum
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ml_collections import ConfigDict

from experiments.console import STOPPED
from experiments.workdir.metrics_file import read_records, windows
from experiments.workdir.results import read_results

if TYPE_CHECKING:
    import jax


class Outcome(enum.Enum):
    """The end of a training; its value is the `state` in the section "train" of results.json."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal, after saving; the same command continues
    DIVERGED = "diverged"  # and the same command would do so again


# STOPPED is sysexits' EX_TEMPFAIL; the next number is free for programs.
EXIT_STATUS = MappingProxyType(
    {Outcome.FINISHED: 0, Outcome.STOPPED: STOPPED, Outcome.DIVERGED: 76}
)
USER_ERROR = 2  # the exit status where the same command would fail in the same way
FINAL = (Outcome.FINISHED, Outcome.DIVERGED)  # which starting the same command leaves as they are


def outcome_of(exit_status: int) -> Outcome | None:
    """How a training ended whose program ended with `exit_status`; None: it crashed."""
    return next((end for end, code in EXIT_STATUS.items() if code == exit_status), None)


class Divergence(NamedTuple):
    """When, why, and what was last seen before.

    step: of the window of the log that ended it.
    metrics: of the last window whose loss was finite and allowed, with its "step"; empty where
        there was none.
    """

    step: int
    reason: str
    metrics: dict[str, float]


class Watch:
    """Looks at every window of the log and says when the training has diverged.

    A loss that is not finite ends it at once. A loss above `above` (where that is not 0) ends it
    when it has stayed there for `steps` steps, counted between the ends of windows.
    """

    def __init__(self, config: ConfigDict) -> None:
        self.above, self.steps = config.diverged_above, config.diverged_for
        self._since: int | None = None
        self._last: dict[str, float] = {}

    def remember(self, log: Path) -> None:
        """Takes the last finite and allowed window of an interrupted training's metrics.jsonl.

        It is for the record alone, which the main process writes: how long a loss has been too
        high is counted anew.
        """
        found = [w for w in windows(read_records(log)[0]) if self._in_order(w["loss"])]
        self._last = found[-1] if found else {}

    def _in_order(self, loss: float) -> bool:
        return math.isfinite(loss) and (not self.above or loss <= self.above)

    def check_window(self, step: int, metrics: dict[str, float]) -> Divergence | None:
        """What is wrong with the window that ended at `step`, or None."""
        loss = metrics["loss"]
        if not math.isfinite(loss):
            return Divergence(step, f"the loss is {loss}", self._last)
        if self._in_order(loss):
            self._since, self._last = None, {"step": step} | metrics
            return None
        if self._since is None:
            self._since = step
        if step - self._since < self.steps:
            return None
        reason = (
            f"the loss is {loss:.4g}, and was above {self.above:g} (config.train.diverged_above) "
            f"for {step - self._since:,} steps"
        )
        return Divergence(step, reason, self._last)

    @property
    def in_doubt(self) -> bool:
        """Whether the last window's loss was above the bound, but not yet for long enough."""
        return self._since is not None

    def check_state(self, step: int, finite: dict[str, Any]) -> Divergence | None:
        """What is wrong with the state of a step, from what `finite_fields` found of it."""
        broken = [name for name, is_finite in finite.items() if not is_finite]
        if not broken:
            return None
        reason = f"numbers that are not finite in the state's {', '.join(broken)}"
        return Divergence(step, reason, self._last)


def finite_fields(state: Any) -> dict[str, "jax.Array"]:
    """Whether every number of a field is finite, bool[] by the field's name; to be compiled.

    Args:
        state: a NamedTuple of pytrees, such as a training's state.
    """

    import jax
    import jax.numpy as jnp

    def finite(tree: Any) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in floats], bool))

    return {name: finite(tree) for name, tree in state._asdict().items()}


def diverged_before(workdir: Path) -> dict[str, Any] | None:
    """The section "train" of results.json, of a training that it records as diverged."""
    section = read_results(workdir).get("train", {})
    return section if section.get("state") == Outcome.DIVERGED.value else None


def why_not_on(workdir: Path, section: Mapping[str, Any]) -> str:
    """What to say instead of training on after the divergence in `section`."""
    from experiments.workdir.checkpoint import Checkpoints  # needs jax

    step = section["step"]
    with Checkpoints(workdir) as checkpoints:
        sound = [saved for saved in checkpoints.steps() if saved < step]
    if sound:
        last = f"The last sound checkpoint is of step {sound[-1]:,}, in {workdir / 'checkpoints'}"
        on = "go on from that checkpoint"
    else:
        last, on = "Of sound checkpoints it left none at all", "here"
    return (
        f"DIVERGED  at step {step:,} when it was last trained: {section['reason']}. {last}. The "
        "same settings would diverge again: begin anew with others in another --workdir, or "
        f"{on} with others, such as --continue_diverged --config.optimizer.learning_rate=..., "
        "which is recorded."
    )


def describe_continuation(past: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    """That a training goes on after the divergence in `section`, and what is other now.

    Args:
        past: what its checkpoints keep of that, "continued"; without, where it begins anew.
    """
    after = f"continued after it diverged at step {section['step']:,}"
    if "continued" not in past:
        return f"{after}, before anything was saved: anew"
    changes = [each for each in past["continued"] if "changed" in each][-1]["changed"].items()
    listed = ", ".join(f"{name} {then} -> {now}" for name, (then, now) in changes)
    return f"{after}, with {listed or 'the same settings'}"
