"""Relaxations: expectations by quadrature; the straight-through ones' bias by enumeration."""

import dataclasses

import numpy as np
import oracles
import scipy.integrate
import tensorflow as tf

from proofs import Case, biased, f_of, over_cells, run, samples_of, slopes_of, unbiased


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def quadrature(thresholds, nodes):
    """Double-exponential (tanh-sinh) nodes in the cells that thresholds cut, and their weights.

    They converge also where an integrand has singular derivatives at the ends of cells, as
    sigmoid(z / temperature) has in u.
    """
    t, step = np.linspace(-3.1, 3.1, nodes, retstep=True)
    unit = sigmoid(np.pi * np.sinh(t))
    unit_weights = step * np.pi * np.cosh(t) * unit * sigmoid(-np.pi * np.sinh(t))
    axes = []
    for axis in thresholds:
        edges = np.unique(np.concatenate([[0.0, 1.0], np.ravel(axis)]))
        lengths = np.diff(edges)[:, None]
        axes.append(((edges[:-1, None] + lengths * unit).ravel(), (lengths * unit_weights).ravel()))
    points = np.stack(np.meshgrid(*(p for p, _ in axes), indexing="ij"), -1)
    weights = np.stack(np.meshgrid(*(w for _, w in axes), indexing="ij"), -1).prod(-1)
    return points.reshape(-1, len(axes)), weights.ravel()


def of_one_sample(row, case):
    """The case with K = 1, after a check that K samples give the mean of what each alone does."""
    one = dataclasses.replace(case, num_samples=1)
    count, units = samples_of(row, case), len(case.logits)
    u = np.random.default_rng(0).uniform(size=(row.rows(1, units), count, 20, units))
    alone = [run(row, one, u[:, k]) for k in range(count)]
    means = [np.mean(values, axis=0) for values in zip(*alone, strict=True)]
    together = run(row, case, u.reshape(-1, 20, units))
    for got, mean in zip(together, means, strict=True):
        np.testing.assert_allclose(got, mean, rtol=0, atol=1e-12)
    return one


def over_samples(row, case):
    """Expectations of an estimator with a row of noise a sample, which relaxes samples."""
    case = of_one_sample(row, case)
    points, weights = quadrature([[p] for p in sigmoid(np.array(case.logits))], 60)
    values, grads = run(row, case, points[np.newaxis])
    return weights @ values, weights @ grads


def straight_slopes(name, b, logits):
    """What a straight-through estimator takes for the derivative of a sample; for given b."""
    if name == "darn":
        return (b - 0.5) * (b - sigmoid(logits))
    slope = 2.5 if name == "st_annealed" else 1.0
    p = sigmoid(slope * logits)
    return slope * p * (1 - p) + 0 * b


def relaxed_slope(b, logits, temperature):
    """E[x (1 - x) / temperature given b] of one unit, by adaptive quadrature over its latent."""

    def integrand(z):
        x, p = sigmoid(z / temperature), sigmoid(z - logits)
        return x * (1 - x) / temperature * p * (1 - p)

    low, high = (0, 40) if b else (-40, 0)
    probability = sigmoid(logits) if b else sigmoid(-logits)
    return scipy.integrate.quad(integrand, low, high, epsabs=1e-13)[0] / probability


def latent_grid(dimensions):
    """Points t of a logistic variable with location 0, weights, and those of d/d location."""
    t, step = np.linspace(-40, 40, 1201, retstep=True)
    weights = step * sigmoid(t) * sigmoid(-t)
    grid = np.stack(np.meshgrid(*[t] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    weights = np.array(np.meshgrid(*[weights] * dimensions, indexing="ij")).prod(0).ravel()
    return grid, weights, weights[:, None] * (2 * sigmoid(grid) - 1)


def straight_through(row, case):
    """f's value, and the mean over b of its derivative times that of a sample given b."""
    logits, gradient = np.array(case.logits), 0
    for b in oracles.binary_vectors(len(logits)):
        probability = np.prod(np.where(b == 1, sigmoid(logits), sigmoid(-logits)))
        if row.name == "st_gumbel":
            slopes = [relaxed_slope(*pair, 0.7) for pair in zip(b, logits, strict=True)]
        else:
            slopes = straight_slopes(row.name, b, logits)
        gradient += probability * slopes_of(b) * slopes
    return oracles.expectation_and_gradient(f_of, logits)[0], gradient


def relaxed(row, case):
    """E[f(x)] and its gradient, which weighs f(x) by the derivative of the density of z."""
    t, weights, derivative = latent_grid(len(case.logits))
    values = f_of(tf.constant(sigmoid((t + np.array(case.logits)) / 0.7))).numpy()
    return values @ weights, values @ derivative


ONE, TWO, THREE = (0.8,), (-0.9, 0.6), (0.4, -1.1, 0.7)
unbiased(
    "muprop",
    expectation=over_cells,
    cases=[
        *(Case(phi, parameters={"mean": m}) for phi in (ONE, TWO, THREE) for m in (0.0, 2.0)),
        Case(ONE, num_samples=3),
    ],
)
for _name, _settings in {
    "st": {},
    "st_annealed": {"parameters": {"slope": 2.5}},
    "st_gumbel": {"options": {"temperature": 0.7}},
    "darn": {},
}.items():
    biased(
        _name,
        expectation=over_samples,
        known=straight_through,
        cases=[Case(ONE, 3, **_settings), Case(TWO, **_settings)],
        atol=1e-10,
    )
biased(
    "concrete",
    expectation=over_samples,
    known=relaxed,
    cases=[Case(ONE, 3, {"temperature": 0.7}), Case(TWO, options={"temperature": 0.7})],
    atol=1e-9,
)
