"""RODEO, Shi et al. 2022.

Settings are those of https://github.com/thjashin/rodeo. Some cells are Double CV's, too.
"""

from arm_tf.experiments.dynamic import DOUBLE_CV, at, experiments

EXPERIMENTS = experiments(
    "shi_2022",
    "Shi et al. 2022",
    DOUBLE_CV,
    (*at(2, "disarm", "loo", "double_cv", "rodeo"), *at(3, "loo", "arms", "double_cv", "rodeo")),
    networks=["nonlinear"],
    fashion_dynamic=3e-4,
)
