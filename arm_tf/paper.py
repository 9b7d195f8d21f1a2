"""The settings of the authors' scripts; `python -m arm_tf.paper` writes them as flag files.

Where the scripts differ from one another, in scaling, slope, prior, Adam's decay rates, batch
or epochs, so do the settings here (see https://github.com/mingzhang-yin/ARM-gradient).
"""

import pathlib

from arm_tf import cli, config, run_folder

FOLDER = pathlib.Path("runs/paper")

_ALL = {"learning_rate": 1e-4, "epochs": 1200, "eval_every": 5}
_MNIST = {"dataset": "mnist_static", **_ALL}
_OMNIGLOT = {"dataset": "omniglot", "valid_images": 1300, "test_images": 8000, **_ALL}
_SLOW_BETAS = {"encoder_betas": (0.5, 0.99999)}

# By name of the flag file.
SETTINGS = {
    "mnist_static-linear": {
        **_MNIST,
        "input_scaling": "symmetric",
        "code_scaling": "symmetric",
    },
    "mnist_static-nonlinear": {
        **_MNIST,
        "network": "nonlinear",
        "leaky_slope": 0.1,
        "prior": "uniform",
    },
    "mnist_static-two_layers": {**_MNIST, "layers": 2},
    "omniglot-linear": {**_OMNIGLOT, **_SLOW_BETAS},
    "omniglot-nonlinear": {
        **_OMNIGLOT,
        **_SLOW_BETAS,
        "network": "nonlinear",
        "leaky_slope": 0.3,
        "learning_rate": 5e-5,
        "batch_size": 20,
        "epochs": 800,
    },
    "omniglot-two_layers": {**_OMNIGLOT, "layers": 2},
    "mnist_threshold-conditional": {
        "dataset": "mnist_threshold",
        "model": "conditional",
        "layers": 2,
        "input_scaling": "symmetric",
        "code_scaling": "symmetric",
        "learning_rate": 1e-4,
        "batch_size": 100,
        "epochs": 2000,
        "eval_every": 20,
    },
}


def flag_files():
    """The text of each flag file, by its name."""
    return {
        f"{name}.flags": f"# The authors' experiment {name}.\n" + config.flag_file(settings)
        for name, settings in SETTINGS.items()
    }


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in flag_files().items():
        run_folder.write_text(FOLDER / name, text)
        print(FOLDER / name)


if __name__ == "__main__":
    cli.run(main)
