"""DisARM, Dong et al. 2020.

Settings are those of https://github.com/google-research/google-research/tree/master/disarm/binary.
"""

from arm_tf.experiments.dynamic import DISARM, at, experiments

EXPERIMENTS = experiments("dong_2020", "Dong et al. 2020", DISARM, at(2, "arm", "disarm", "loo"))
