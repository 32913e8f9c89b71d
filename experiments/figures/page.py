"""All figures that a config asks for, each as a picture with its arrays, and one page of them."""

from pathlib import Path
from types import MappingProxyType

from jax.sharding import Mesh
from markupsafe import Markup
from ml_collections import ConfigDict

from experiments import console, devices
from experiments.data.captions import stands_for_split
from experiments.drawing import requested
from experiments.experiment import Experiment
from experiments.figures import autoencoder, coding, completions, ideas, process, samples, text
from experiments.figures.figure import (
    AUTOENCODER,
    CAPTIONS,
    CHAIN,
    CLASSES,
    PIXELS,
    Context,
    Maker,
)
from experiments.files.atomic import write_text
from experiments.files.templates import environment
from experiments.files.tensors import write_npz
from experiments.lookup import suggestion
from experiments.reports.render import TEMPLATES
from experiments.workdir.origin import Loaded

FIGURES: MappingProxyType[str, Maker] = MappingProxyType(
    {
        "samples": Maker(samples.sample_grid),
        "classes": Maker(samples.classes, (CLASSES,)),
        "prompts": Maker(text.prompts, (CAPTIONS,), of_images=True),
        "progressive": Maker(samples.progressive, (CHAIN,)),
        "shared_latents": Maker(completions.shared_latents, (CHAIN,)),
        "interpolation": Maker(completions.interpolation, (CHAIN,), of_images=True),
        "interpolation_by_time": Maker(completions.interpolation_by_time, (CHAIN,), of_images=True),
        "inpainting": Maker(completions.inpainting, (CHAIN, PIXELS), of_images=True),
        "quality": Maker(coding.quality, (CHAIN,)),
        "decoding": Maker(coding.decoding, (CHAIN, PIXELS), of_images=True),
        "neighbours": Maker(samples.neighbours, of_images=True),
        "reconstructions": Maker(autoencoder.reconstructions, (AUTOENCODER,), of_images=True),
        "traversals": Maker(autoencoder.traversals, (AUTOENCODER,), of_images=True),
        "latent_grid": Maker(autoencoder.latent_grid, (AUTOENCODER,)),
        "latent_interpolation": Maker(
            autoencoder.latent_interpolation, (AUTOENCODER,), of_images=True
        ),
        "forward": Maker(process.forward, (CHAIN,), of_images=True),
        "schedule": Maker(process.schedule, (CHAIN,)),
        "reverse": Maker(samples.reverse, (CHAIN,)),
        "consistency": Maker(ideas.consistency, (CHAIN,), of_images=True, idea=True),
        "ring": Maker(ideas.ring, idea=True),
        "tangents": Maker(ideas.tangents, idea=True),
        "one_step": Maker(ideas.one_step, idea=True),
        "pixel_error": Maker(ideas.pixel_error, of_images=True, idea=True),
    }
)
PAGE = Path(__file__).parent / "page.jinja"


def figure_names(config: ConfigDict) -> list[str]:
    """What config.figures.names names, separated by commas; `config` is that section.

    Raises:
        ValueError: for a name that is none.
    """
    if config.names == "all":
        return [name for name in FIGURES if not FIGURES[name].idea]
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
    names = figure_names(experiment.config.figures)
    unmet = {
        name: [need.words for need in FIGURES[name].needs if not need.met(experiment)]
        for name in names
    }
    possible = [name for name in names if not unmet[name]]
    missing = [name for name in names if unmet[name]]
    if missing and experiment.config.figures.names != "all":
        there = [n for n, m in FIGURES.items() if all(need.met(experiment) for need in m.needs)]
        needs = [f"`{name}` needs {' and '.join(unmet[name])}" for name in missing]
        raise ValueError(
            f"config.figures.names asks for {', '.join(missing)}, which this model cannot have: "
            f"{'; '.join(needs)}. Leave them out; it can have all, or of them {', '.join(there)}."
        )
    left_out = ""
    of_images = [name for name in possible if FIGURES[name].of_images]
    if of_images:
        try:
            for split in experiment.dataset.splits:
                experiment.dataset.open(split)
        except (FileNotFoundError, ValueError) as error:
            if experiment.config.figures.names != "all":
                raise
            left_out = f"without {', '.join(of_images)}, which need images: {error}"
            possible = [name for name in possible if name not in of_images]
    return possible, left_out


def check(experiment: Experiment) -> None:
    """Refuses a config that `figures` would fail on; raises as `wanted` and `requested` do."""
    wanted(experiment)
    prompts = experiment.config.sample.prompts
    if prompts and not stands_for_split(prompts):  # which may be missing where none is drawn
        requested(experiment)


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
        figure = FIGURES[name].make(context)
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
