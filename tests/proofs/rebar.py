"""REBAR and its kin: expectations by quadrature."""

import numpy as np
import oracles

from proofs import Case, run, unbiased
from proofs.relaxation import ONE, TWO, of_one_sample, over_samples, quadrature, sigmoid


def over_pairs(row, case):
    """Expectations over all u and v of a sample.

    u and v enter through b and otherwise in different terms of a sum, so for each b
    E[g(u, v)] = E_u[g(u, v0)] + E_v[g(u0, v)] - g(u0, v0) for any u0 in the cell of b, and any v0.
    """
    case = of_one_sample(row, case)
    thresholds = [[p] for p in sigmoid(np.array(case.logits))]
    if len(thresholds) == 1:
        points, weights = quadrature([*thresholds, []], 60)
        values, grads = run(row, case, points.T[..., np.newaxis])
        return weights @ values, weights @ grads
    at = lambda u, v: np.column_stack(run(row, case, np.stack([u, v])))
    u, u_weights = quadrature(thresholds, 50)
    expectation = u_weights @ at(u, np.full_like(u, 0.3))
    v, v_weights = quadrature([[] for _ in thresholds], 50)
    cells, volumes = oracles.cells(thresholds)
    for u0, volume in zip(cells, volumes, strict=True):
        expectation += volume * (v_weights @ at(np.tile(u0, (len(v), 1)), v))
    expectation -= volumes @ at(cells, np.full_like(cells, 0.3))
    return expectation[0], expectation[1:]


unbiased(
    "rebar",
    "relax",
    expectation=over_pairs,
    cases=[
        *(Case(ONE, seed=seed) for seed in (None, 0, 1)),
        *(Case(TWO, seed=seed) for seed in (None, 0)),
        Case(TWO, num_samples=3, seed=0),
    ],
    atol=1e-9,
)
unbiased(
    "rebar_coupled",
    expectation=over_samples,
    cases=[
        *(Case(logits, seed=seed) for logits in (ONE, TWO) for seed in (None, 0, 1)),
        Case(ONE, num_samples=3, seed=0),
    ],
    atol=1e-9,
)
