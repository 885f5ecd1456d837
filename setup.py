"""Package description. Tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = [
    "torch==2.13.0",
    "deepspeed>=0.19.8,<0.20",
    "ninja>=1.11,<2",  # deepspeed compiles its CPU communication op
    "ray>=2.60,<2.61",
    "trl>=1.16,<1.17",
    "transformers>=5.16.1,<5.20",  # the range that vLLM 0.32 accepts too
    "accelerate>=1.15,<2",
    "tokenizers>=0.23,<0.24",
    "safetensors>=0.8,<0.9",
    "gguf>=0.19,<0.20",
    "datasets>=5.2,<6",
    "omegaconf>=2.4,<2.5",
    "PyYAML>=6,<7",
    "packaging>=24",
    "docker>=7.2,<8",
    "math-verify>=0.9,<0.10",
    "reasoning-gym>=0.1.25,<0.2",
    "numpy>=2.0,<3",
    "pyarrow>=26,<27",
    "duckdb>=2.0,<3",
    "starlette>=1.10,<2",
    "uvicorn>=0.54,<1",
    "Jinja2>=3.1.6,<4",
    "matplotlib>=3.10,<4",
    "rich>=15,<16",
    "psutil>=7,<8",
    "xxhash>=4.1,<5",
]

EXPORT = ["perfetto>=0.59,<0.60"]
FORMATS = [  # what the tests read exports with
    "nvidia-nat-atif>=1.9,<1.10",
    "opentelemetry-proto>=1.45,<2",
    "opentelemetry-semantic-conventions>=0.66b2,<0.70",
]

setup(
    name="codeworld-rl",
    version="0.1.0",
    description="Reinforcement-learning post-training of code models: tasks, sandboxed rewards, generators and a ZeRO-3 learner",
    long_description=(Path(__file__).parent / "README.md").read_text() if (Path(__file__).parent / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[f"{room}{below}" for room in ("rl", "rewards", "environments", "configs") for below in ("", ".*")]),
    package_data={
        "configs": ["*.yaml", "**/*"],
        "environments": ["traces/*.cpp", "traces/*.h"],
        "rl": ["engines/*.cpp", "view/templates/*.html", "view/static/*", "view/static/vendor/*"],
    },
    exclude_package_data={"": ["*.pyc"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "dev": [
            "pytest>=9,<10",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "jsonschema>=4.20,<5",
            "ruff>=0.17.6,<0.18",
            "mypy>=2.4,<2.5",
            "pre-commit>=4.7,<5",
            *EXPORT,
            *FORMATS,
        ],
        "cluster": ["ray[default]>=2.60,<2.61"],  # ray job submit
        "export": EXPORT,
        "trackers": ["tensorboard>=2.21,<3", "wandb>=0.22,<1"],
    },
    entry_points={
        "console_scripts": ["rl = rl.cli:main"],
        "vllm.general_plugins": ["codeworld-rl = rl.engines.vllm_weights:register"],
    },
)
