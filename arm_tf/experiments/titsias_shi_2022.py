"""Double CV, Titsias & Shi 2022.

Settings are those of https://github.com/thjashin/double-cv.
"""

from arm_tf.experiments.dynamic import DOUBLE_CV, at, experiments

EXPERIMENTS = experiments(
    "titsias_shi_2022",
    "Titsias & Shi 2022",
    DOUBLE_CV,
    (*at(2, "disarm", "loo", "double_cv"), *at(4, "disarm", "loo", "arms", "double_cv")),
)
