"""All figures that a config asks for, each as a picture with its arrays, and one page of them."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from jax.sharding import Mesh
from markupsafe import Markup
from ml_collections import ConfigDict

from experiments import console, devices
from experiments.experiment import Experiment
from experiments.figures import autoencoder, coding, completions, ideas, process, samples, text
from experiments.figures.figure import Context, Figure
from experiments.files.atomic import write_text
from experiments.files.templates import environment
from experiments.files.tensors import write_npz
from experiments.lookup import suggestion
from experiments.reports.render import TEMPLATES
from experiments.workdir.checkpoint import Loaded

FIGURES: MappingProxyType[str, Callable[[Context], Figure]] = MappingProxyType(
    {
        "samples": samples.sample_grid,
        "classes": samples.classes,
        "prompts": text.prompts,
        "progressive": samples.progressive,
        "shared_latents": completions.shared_latents,
        "interpolation": completions.interpolation,
        "interpolation_by_time": completions.interpolation_by_time,
        "inpainting": completions.inpainting,
        "quality": coding.quality,
        "decoding": coding.decoding,
        "neighbours": samples.neighbours,
        "reconstructions": autoencoder.reconstructions,
        "traversals": autoencoder.traversals,
        "latent_grid": autoencoder.latent_grid,
        "latent_interpolation": autoencoder.latent_interpolation,
        "forward": process.forward,
        "schedule": process.schedule,
        "reverse": samples.reverse,
        "consistency": ideas.consistency,
        "ring": ideas.ring,
        "tangents": ideas.tangents,
        "one_step": ideas.one_step,
        "pixel_error": ideas.pixel_error,
    }
)
# Of ideas, and no part of "all".
IDEAS = frozenset(["consistency", "ring", "tangents", "one_step", "pixel_error"])
NEEDS_VAE = frozenset(["reconstructions", "traversals", "latent_grid", "latent_interpolation"])
NEEDS_CHAIN = frozenset(
    [
        *("shared_latents", "interpolation", "interpolation_by_time", "inpainting", "decoding"),
        *("forward", "schedule", "reverse", "consistency"),
    ]
)
NEEDS_PIXELS = frozenset(["inpainting", "decoding"])  # and not latents
NEEDS_DATA = frozenset(
    [
        *("interpolation", "interpolation_by_time", "inpainting", "decoding", "neighbours"),
        *("forward", "prompts", "reconstructions", "traversals", "latent_interpolation"),
        *("consistency", "pixel_error"),
    ]
)
PAGE = Path(__file__).parent / "page.jinja"


def figure_names(config: ConfigDict) -> list[str]:
    """What config.figures.names names, separated by commas; `config` is that section.

    Raises:
        ValueError: for a name that is none.
    """
    if config.names == "all":
        return [name for name in FIGURES if name not in IDEAS]
    names = [name.strip() for name in config.names.split(",")]
    for name in names:
        if name not in FIGURES:
            raise ValueError(
                f"config.figures.names: {name!r} is not known. "
                f"{suggestion(name, ['all', *FIGURES])}"
            )
    return list(dict.fromkeys(names))


def wanted(experiment: Experiment) -> tuple[list[str], str]:
    """The figures that can be made of this model, of those that are asked for, and what cannot.

    The latter says why, and is "" where nothing of it is a surprise.

    Raises:
        ValueError: for a figure that is asked for by name and that this model cannot have.
        FileNotFoundError: for one whose data are missing.
    """
    names, method = figure_names(experiment.config.figures), experiment.method
    cannot: set[str] = set()
    if method.chain is None:
        cannot |= NEEDS_CHAIN
    if method.vae is None and experiment.encoder.latents is None:
        cannot |= NEEDS_VAE
    if experiment.encoder.latents is not None:
        cannot |= NEEDS_PIXELS
    if not method.num_classes:
        cannot.add("classes")
    if method.tokenizer is None:
        cannot.add("prompts")
    possible = [name for name in names if name not in cannot]
    missing = [name for name in names if name not in possible]
    if missing and experiment.config.figures.names != "all":
        raise ValueError(
            f"config.figures.names asks for {', '.join(missing)}, which this model cannot have: "
            "`classes` needs a class-conditional model, `prompts` one that is told captions; "
            f"{', '.join(sorted(NEEDS_CHAIN))} need the method `diffusion`, of these "
            f"{', '.join(sorted(NEEDS_PIXELS))} one of pixels, and {', '.join(sorted(NEEDS_VAE))} "
            "a VAE or a model of its latents."
        )
    left_out = ""
    if not NEEDS_DATA.isdisjoint(possible):
        try:
            for split in experiment.dataset.splits:
                experiment.dataset.open(split)
        except (FileNotFoundError, ValueError) as error:
            if experiment.config.figures.names != "all":
                raise
            lacking = ", ".join(name for name in possible if name in NEEDS_DATA)
            left_out = f"without {lacking}, which need images: {error}"
            possible = [name for name in possible if name not in NEEDS_DATA]
    return possible, left_out


def check(experiment: Experiment) -> None:
    """Refuses a config that `figures` would fail on; raises as `wanted` does."""
    wanted(experiment)


def figures(experiment: Experiment, folder: Path, loaded: Loaded, mesh: Mesh) -> list[Path]:
    """Makes the figures into a folder: NAME.png or .webp, NAME.npz, and index.html of them all.

    The page shows those that were made before, too.
    """
    context = Context(experiment, loaded.params, mesh, experiment.method.chain)
    made = []
    names, left_out = wanted(experiment)
    if left_out:
        console.log(f"WARNING   {left_out}")
    for name in names:
        console.doing(f"drawing the figure {name}", console.AGAIN)
        figure = FIGURES[name](context)
        if not devices.is_main_process():
            continue
        path = folder / f"{name}{figure.suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        figure.draw(path)
        write_npz(folder / f"{name}.npz", figure.arrays, compressed=True)
        words = f"{figure.title}\n{figure.caption}\n"
        write_text(folder / f"{name}.txt", words)
        console.log(f"figure    {name}: {path}")
        made.append(path)
    if devices.is_main_process():
        console.log(f"figures   {write_page(experiment, folder, loaded)}")
    return made


def write_page(experiment: Experiment, folder: Path, loaded: Loaded) -> Path:
    """index.html of the figures in a folder, in the order of FIGURES."""
    shown = []
    for name in FIGURES:
        words = folder / f"{name}.txt"
        if not words.is_file():
            continue
        title, caption, *_ = words.read_text().splitlines()
        picture = next(folder.glob(f"{name}.[pw]*[gp]"))
        shown.append({"name": name, "title": title, "caption": caption, "file": picture.name})
    about = f"{experiment.dataset.name}, {loaded.step:,} training steps, {loaded.origin.weights}"
    body = environment(PAGE.parent, escape_html=True).get_template(PAGE.name)
    title = f"Figures of {experiment.dataset.name}"
    filled = body.render(title=title, about=about, figures=shown)
    outer = environment(TEMPLATES, escape_html=True).get_template("page.jinja")
    path = folder / "index.html"
    write_text(path, outer.render(title=title, body=Markup(filled)))
    return path
