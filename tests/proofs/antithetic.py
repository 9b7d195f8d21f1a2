"""Antithetic samples; of a copula, every pattern of the dependent samples with its probability."""

import itertools
import math

import numpy as np
import scipy.integrate
import scipy.stats

from proofs import Case, over_cells, run, samples_of, unbiased

SIZES = [*(Case((0.8,), num_samples=k) for k in (None, 3)), Case((-0.9, 0.6))]
SIZES.append(Case((0.4, -1.1, 0.7)))


def dirichlet_patterns(p, n):
    """Noise for each set of samples below p <= 1/2, and the set's probability.

    d_k > t = 1 - p^(1/(n-1)) for exactly the k in A; P(d_k > t for k in B) = (1 - |B| t)_+^(n-1).
    """
    t = 1 - p ** (1 / (n - 1))
    points, weights = [], []
    for bits in itertools.product([0, 1], repeat=n):
        size = sum(bits)
        weight = sum(
            (-1) ** extra * math.comb(n - size, extra) * max(0, 1 - (size + extra) * t) ** (n - 1)
            for extra in range(n - size + 1)
        )
        if weight < 1e-15:
            continue
        low = 0.1 * min(t, (1 - size * t) / n) if size else 1 / n
        high = (1 - (n - size) * low) / size if size else 0
        d = np.where(np.array(bits) == 1, high, low)
        points.append(-np.expm1(-d))  # so that -log(1 - u) = d
        weights.append(weight)
    return points, weights


def gaussian_patterns(p, n):
    """The same for three or four normal numbers that add up to zero; one is below h if z_k < h.

    All of them cannot be below h <= 0. Inclusion and exclusion give every pattern's probability
    from those that one, two or three are below.
    """
    assert n in (3, 4)
    h, rho = scipy.stats.norm.ppf(p), -1 / (n - 1)
    density, below = scipy.stats.norm.pdf, scipy.stats.norm.cdf
    two = lambda z: below((h - rho * z) / np.sqrt(1 - rho**2))  # given the first
    quad = lambda f: scipy.integrate.quad(f, -12, h, epsabs=1e-15, epsrel=1e-13)[0]
    all_of = [1.0, p, quad(lambda z: density(z) * two(z)), 0.0, 0.0]
    if n == 4:  # the third given two that are rho = -1/3 apart
        scale = np.sqrt(1 - rho**2)
        pair = lambda y, z: density(z) * density((y - rho * z) / scale) / scale
        third = lambda y, z: below((h + 0.5 * (y + z)) / np.sqrt(2 / 3))
        all_of[3] = quad(lambda z: quad(lambda y: pair(y, z) * third(y, z)))
    probabilities = [
        sum((-1) ** more * math.comb(n - size, more) * all_of[size + more]
            for more in range(n - size + 1))
        for size in range(n + 1)
    ]  # fmt: skip
    points, weights = [], []
    for bits in itertools.product([0, 1], repeat=n):
        if sum(bits) == n:
            continue
        low = h - 0.5
        high = -low * sum(bits) / (n - sum(bits))
        z = np.where(np.array(bits) == 1, low, high)
        points.append(scipy.stats.norm.cdf(z * np.sqrt((n - 1) / n)))
        weights.append(probabilities[sum(bits)])
    return points, weights


def over_patterns(patterns):
    """Expectations over all patterns of K dependent samples of each unit."""

    def expectation(row, case):
        noise, weights = pattern_noise(patterns, case.logits, samples_of(row, case))
        values, grads = run(row, case, noise)
        return weights @ values, weights @ grads

    return expectation


def pattern_noise(patterns, logits, num_samples):
    """Noise [K, cases, V] for all patterns of all units, and their probabilities."""
    units = [patterns(1 / (1 + math.exp(abs(phi))), num_samples) for phi in logits]
    noise, weights = [], []
    for unit in itertools.product(*(zip(*each, strict=True) for each in units)):
        noise.append(np.stack([u for u, _ in unit], axis=-1))
        weights.append(math.prod(weight for _, weight in unit))
    assert abs(sum(weights) - 1) < 1e-12
    return np.stack(noise, axis=1), np.array(weights)


unbiased("arm", "disarm", expectation=over_cells, cases=SIZES)
unbiased(
    "arms",
    expectation=over_patterns(dirichlet_patterns),
    cases=[Case((0.8,)), *(Case((-0.4, 1.1), num_samples=k) for k in (2, 3, 4))],
)
unbiased(
    "arms_gaussian",
    expectation=over_patterns(gaussian_patterns),
    cases=[Case((0.8,)), Case((0.8,), 4), Case((-0.4, 1.1)), Case((-3.0, 2.0, 0.7))],
)
