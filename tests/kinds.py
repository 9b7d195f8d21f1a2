"""One estimator of each kind, for tests of what is the same for all estimators of the kind.

Proofs are of every row of the table (`tests/proofs`). What else a test claims of estimators depends
on how they are called, not on which they are: it runs for these, and for all the others under
`slow` where that tells something, by `each_kind(names)`.
"""

import pytest

KINDS = {
    "reinforce": "samples, and nothing else",
    "arm": "antithetic pairs",
    "bitflip": "several rows of noise for a sample",
    "double_cv": "learns, from the derivative of f",
    "reinforce_baseline": "keeps moving averages",
    "muprop": "the derivative of f, in the mean of later layers",
    "relax": "f at relaxed samples, a network that learns",
    "concrete": "samples that are relaxed",
    "st_annealed": "a derivative of sampling, which changes with the calls",
    "exact": "few units alone",
    "vimco": "a bound, judged by whole paths",
    "disarm_local": "a bound, layer by layer",
    "wake_sleep": "a rule of training",
}


def each_kind(names):
    """These names, those that are none of `KINDS` marked as slow; a list for `parametrize`."""
    assert not set(KINDS).isdisjoint(names)
    return [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in names]
