"""ARMS, Dimitriev & Zhou 2021.

Settings are those of https://github.com/alekdimi/arms, whose pairs, twice, are the evaluations.
"""

from arm_tf.experiments.dynamic import DISARM, at, experiments

_NAMES = ("disarm", "loo", "arms", "arms_gaussian")
EXPERIMENTS = experiments(
    "dimitriev_zhou_2021",
    "Dimitriev & Zhou 2021",
    DISARM,
    (*at(4, *_NAMES), *at(6, *_NAMES), *at(8, *_NAMES)),
    relax=False,
)
