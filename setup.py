from setuptools import find_packages, setup

setup(
    name="arm_tf",
    version="0.1.0",
    description="ARM and its rivals: gradients for stochastic binary networks in TensorFlow 2",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["arm_tf", "arm_tf.*"]),
    python_requires=">=3.10,<3.14",  # which TensorFlow has wheels for
    classifiers=[
        "Operating System :: MacOS",
        "Operating System :: Microsoft :: Windows",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
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
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        "notebooks": ["jupyterlab>=4", "nbclient>=0.10", "ipykernel>=6"],
        "sweep": ["ray[default]>=2.40,<3"],
        "test": [
            "build>=1",
            "hypothesis>=6",
            "jax>=0.6.2,<0.11",
            "pytest>=8",
            "pytest-xdist>=3",
            "ray[default]>=2.40,<3",
            "ruff>=0.5",
        ],
    },
)
