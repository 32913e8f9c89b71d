"""The one way from a name in a config to code."""

import contextlib
import difflib
import functools
import inspect
import shlex
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

# What others call a choice: field -> our name, or how it is written -> theirs, in small letters.
ELSEWHERE: MappingProxyType[str, Mapping[str, str]] = MappingProxyType(
    {
        "sample.sampler": {
            "ancestral": "ddpm",
            "dpm_solver_pp": "dpm_solver dpm_solver++ dpmsolver++ dpm++ dpmpp dpmpp_2m dpm++_2m",
            "dpm_solver_pp(order=3)": "dpmpp_3m dpm++_3m",
            "heun": "edm",
            "heun_churn": "edm_stochastic stochastic_heun",
            "flow": "ode probability_flow rk45",
            "annealed_langevin": "langevin ncsn",
            "predictor_corrector": "pc",
        },
        "sample.spacing": {"uniform": "linspace linear", "quadratic": "quad"},
        "sample.threshold": {"percentile": "dynamic", "clip": "static clip_sample"},
        "parameterization": {
            "eps": "epsilon noise",
            "x_0": "sample x0 x_start start_x",
            "v": "v_prediction",
            "velocity": "flow flow_prediction",
            "mu": "mean previous_x xprev",
        },
        "variance": {
            "fixed_small": "fixedsmall small fixed_small_log",
            "fixed_large": "fixedlarge large fixed_large_log",
        },
        "schedule": {
            "cosine": "squaredcos_cap_v2",
            "quadratic": "scaled_linear quad",
            "constant": "const",
        },
        "path": {
            "straight": "flow rectified_flow flow_matching ot linear cond_ot",
            "edm": "ve karras",
            "vp": "vpsde score_sde",
            "linear_snr": "vdm",
        },
        "loss": {"simple": "mse l2 l_simple", "vlb": "kl elbo l_vlb", "hybrid": "l_hybrid"},
        "loss.weighting": {"uniform": "none", "min_snr": "min_snr_gamma"},
        "timesteps": {"loss_second_moment": "importance"},
        "model": {"unet": "ddpm unet2d unet2dmodel"},
        "optimizer": {"adam(weight_decay=...)": "adamw"},
        "clip": {"global": "norm global_norm"},
    }
)


def choose(table: Mapping[str, Any], name: Any, where: str) -> Any:
    """The entry of `table` called `name`.

    Raises:
        ValueError: saying what came, what is accepted, and where in the config.
    """
    if name not in table:
        theirs = str(name).lower().replace("-", "_").replace(" ", "_")
        here = ELSEWHERE.get(where.removesuffix(".name"), {}).items()
        called = [f"It is called {ours} here. " for ours, names in here if theirs in names.split()]
        hint = suggestion("" if called else name, table)
        raise ValueError(f"config.{where} = {name!r} is not known. {''.join(called)}{hint}")
    return table[name]


def _parameters(entry: Any, supplied: tuple[str, ...]) -> list[inspect.Parameter]:
    """Those of a table's entry that a config may set."""
    if not callable(entry):
        return []
    return [
        parameter
        for parameter in inspect.signature(entry).parameters.values()
        if parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name not in supplied
    ]


def keywords(entry: Any, supplied: tuple[str, ...] = ()) -> list[str]:
    """The parameters of a table's entry that a config may set.

    Those that are positional-only, or listed in `supplied`, belong to the program.
    """
    return [parameter.name for parameter in _parameters(entry, supplied)]


def required(entry: Any, supplied: tuple[str, ...] = ()) -> list[str]:
    """Those of `keywords` that a config must set."""
    found = _parameters(entry, supplied)
    return [parameter.name for parameter in found if parameter.default is parameter.empty]


def lookup(
    table: Mapping[str, Any],
    spec: Mapping[str, Any],
    where: str,
    supplied: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> Any:
    """The entry of `table` that `spec` = {name, **keywords} asks for, its keywords bound.

    Every keyword that the config sets must be one of the entry's `keywords`, and all of its
    `required` ones must be set.

    Args:
        supplied: keywords that the program sets.
        beside: fields of the same section that are no keywords of the entry.

    Raises:
        ValueError: saying what came, what is accepted, where in the config, and how the whole
            choice is written on the command line.
    """
    others = {field: spec[field] for field in beside if field in spec}
    given = {field: value for field, value in spec.items() if field not in others}
    name = given.pop("name", None)
    entry = choose(table, name, f"{where}.name")
    accepted = keywords(entry, supplied)
    unknown = [keyword for keyword in given if keyword not in accepted]
    missing = [keyword for keyword in required(entry, supplied) if keyword not in given]
    if unknown or missing:
        kept = {keyword: given[keyword] for keyword in accepted if keyword in given}
        whole = written(where, name, kept | others, missing)
        if unknown:
            taken = ", ".join([*accepted, *beside]) or "no keyword"
            raise ValueError(
                f"config.{where} has {', '.join(map(repr, unknown))}, which {name!r} does not "
                f"take. It accepts: {taken}. To replace the whole choice: {whole}"
            )
        raise ValueError(
            f"config.{where}.name = {name!r} needs {', '.join(missing)}, which the config does not "
            f"have: {whole}"
        )
    return functools.partial(entry, **given) if callable(entry) else entry


def written(where: str, name: str, options: Mapping[str, Any], missing: Iterable[str] = ()) -> str:
    """A choice as the command line takes it, "..." for what has to be filled in."""
    told = [f"{keyword}={value!r}" for keyword, value in options.items()]
    told += [f"{keyword}=..." for keyword in missing]
    return f"--config.{where}=" + shlex.quote(f"{name}({', '.join(told)})")


@contextlib.contextmanager
def naming_field(where: str) -> Iterator[None]:
    """Puts the config's field in front of the message of a ValueError that does not name it."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("config."):
            raise
        raise ValueError(f"config.{where}: {error}") from error


def suggestion(name: object, known: Iterable[str]) -> str:
    """What ends the message of an error where `name` is none of those that are known."""
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return f"{hint}Choose one of: {', '.join(names)}."
