import numpy as np
import oracles

from proofs import Case, over_cells, run, samples_of, unbiased


def over_flips(row, case):
    """Sums over cells of the noise u, and over which unit flips."""
    units, num_samples = len(case.logits), samples_of(row, case)
    choices = [np.arange(1, units) / units] + [[]] * (units - 1)
    thresholds = list(oracles.pair_thresholds(case.logits)) * num_samples + choices * num_samples
    points, weights = oracles.cells(thresholds)
    u = points.reshape(len(weights), 2 * num_samples, units).swapaxes(0, 1)
    values, grads = run(row, case, u)
    return weights @ values, weights @ grads


SIZES = [*(Case((0.8,), num_samples=k) for k in (None, 3)), Case((-0.9, 0.6))]
SIZES.append(Case((0.4, -1.1, 0.7)))
unbiased("legrad", "ram", "psa", "exact", expectation=over_cells, cases=SIZES)
FLIPS = [*SIZES, Case((-0.9, 0.6), num_samples=2), Case((0.4, -1.1, 2.3)), Case((3.0, -2.5))]
unbiased("bitflip", "ugc", expectation=over_flips, cases=FLIPS)
FRESH = [*SIZES[:3], Case((-0.9, 0.6), num_samples=2)]
unbiased("legrad_fresh", expectation=over_cells, cases=FRESH)
