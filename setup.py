import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
PACKAGE = (ROOT / "arm_tf" / "__init__.py").read_text(encoding="utf-8")

setup(
    name="arm_tf",
    version=re.search(r'^__version__ = "(.*)"$', PACKAGE, re.MULTILINE)[1],
    description="ARM and its rivals: gradients for stochastic binary networks in TensorFlow 2",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the arm_tf authors",
    license="MIT",
    keywords="ARM, REINFORCE, gradient estimators, binary latent variables, TensorFlow, Keras",
    project_urls={"Paper": "https://arxiv.org/abs/1807.11143"},
    packages=find_packages(include=["arm_tf", "arm_tf.*"]),
    python_requires=">=3.10,<3.14",  # which TensorFlow has wheels for
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    install_requires=[
        "absl-py>=2.0,<3",
        "filelock>=3.16,<5",
        "keras>=3.10,<4",
        "matplotlib>=3.8,<4",
        "numpy>=1.26,<3",
        "pillow>=10",
        "psutil>=5.9,<8",
        "scipy>=1.11,<2",
        "tensorboard>=2.20,<2.22",
        "tensorflow>=2.20,<2.22",
        "tensorflow-probability>=0.25,<0.26",
        "tf-keras>=2.20,<2.22",  # tensorflow-probability imports it
        "tqdm>=4.60,<5",
    ],
    extras_require={
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.5,<10",
            "mkdocstrings[python]>=1,<2",
        ],
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        "notebooks": ["jupyterlab>=4", "nbclient>=0.10", "ipykernel>=6"],
        "sweep": ["ray[default]>=2.40,<3"],
        "test": [
            "build>=1",
            "hypothesis>=6",
            "jax>=0.6.2,<0.11",
            "mypy>=1.15,<3",
            "pre-commit>=3.7",
            "pytest>=8",
            "pytest-xdist>=3",
            "ray[default]>=2.40,<3",
            "ruff>=0.5",
        ],
    },
)
