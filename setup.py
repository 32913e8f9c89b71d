"""Packaging. Lower bounds here; the exact versions that CI runs are in constraints.txt."""

import setuptools

DATA = [
    "tensorflow-datasets>=4.9.9",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "array_record>=0.8",
    "grain>=0.2.15",
    "etils>=1.9",
    "protobuf>=5",
    "pillow>=10",
    "fonttools>=4.50",  # reads the emoji of a font
    "unicodedata2>=15.1",  # their names, whatever Unicode this Python knows
    "scikit-learn>=1.5",  # carries the digits, the data set that needs no network
]

NOTEBOOK = ["jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6.29"]

setuptools.setup(
    name="ddpm-jax",
    version="0.1.0",
    description="Denoising Diffusion Probabilistic Models in JAX/Flax, for research",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["diffusion*", "experiments*", "launch*"]),
    package_data={
        "experiments.configs": ["*.jinja"],
        "experiments.figures": ["*.jinja"],
        "experiments.reports": ["templates/*.jinja"],
        "experiments.weights": ["*.jinja"],
    },
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.30",
        "jaxtyping>=0.3",
        "diffrax>=0.6",  # adaptive ODE solvers, for the likelihood of the probability flow
        "numpy>=2",
        "scipy>=1.13",
        "absl-py>=2.1",
        "ml_collections>=1.0",
        "rich>=13",
        "filelock>=3.12",  # bounds the cache of compiled functions
        "tensorboardX>=2.6.2",
        "safetensors>=0.4",
        "matplotlib>=3.8",
        "pandas>=2.2",
        "jinja2>=3.1",
        *DATA,
    ],
    extras_require={
        "cuda": ["jax[cuda12]>=0.10,<0.13"],  # the same as cuda12
        "cuda12": ["jax[cuda12]>=0.10,<0.13"],
        "cuda13": ["jax[cuda13]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "gcs": ["gcsfs>=2024.6"],  # data sets and checkpoints in gs:// buckets
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",  # a process of tests for each core
            "submitit>=1.5.2",  # so that the tests of the extra `launch` run
            "beartype>=0.19",
            *("gcsfs>=2024.6", "gcp-storage-emulator>=2026.7"),  # a bucket for the tests
            "tensorboard>=2.18",
            "ruff>=0.9",
            "mypy>=1.14",
            "huggingface_hub>=0.25",  # so that the tests of the extra `hub` run
            "datasets>=3",  # so that the tests of the extra `datasets` run
            "wandb>=0.19",  # so that the tests of the extra `wandb` run
            *NOTEBOOK,  # so that the notebook of docs/notebooks is run as a test
        ],
        "hub": ["huggingface_hub>=0.25"],  # python -m experiments.convert --from=hf:...
        "datasets": ["datasets>=3"],  # config.data.path = "hf:..."
        "parity": ["torch>=2.6", "diffusers>=0.32"],  # and torch-fidelity, see .ci/run
        "launch": ["submitit>=1.5.2"],
        "notebook": NOTEBOOK,
        "wandb": ["wandb>=0.19"],  # config.train.log_to = "wandb"
    },
)
