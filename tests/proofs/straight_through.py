"""Straight-through estimators: their bias by enumeration, from two-class softmax functions."""

import numpy as np
import oracles

from proofs import Case, biased, f_of, run, slopes_of
from proofs.relaxation import of_one_sample, over_samples, quadrature, relaxed_slope, sigmoid


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def jacobian(probs):
    """That of a softmax with the given result."""
    return np.diag(probs) - np.outer(probs, probs)


def of_two_classes(weights):
    """What a bit's f' is weighed with, from a matrix for two classes, logits (phi, 0)."""
    change_of_sample = np.array([1.0, 0.0])  # of class 1's share, by which f' is multiplied
    return change_of_sample @ weights @ np.array([1.0, 0.0])


def reinmax_weight(b, phi, options):
    """2 J((p + D) / 2) - J(p) / 2 (Liu et al. 2023), p at the temperature in the first term."""
    classes, drawn = np.array([phi, 0.0]), np.array([b, 1 - b])
    middle = (softmax(classes / options["reinmax_temperature"]) + drawn) / 2
    return of_two_classes(2 * jacobian(middle) - jacobian(softmax(classes)) / 2)


def mve_weight(b, phi, options):
    """In proportion to 1 + t |b - p|, with the mean p (1 - p)."""
    p = sigmoid(phi)
    weight = lambda b: 1 + options["mve_t"] * abs(b - p)
    return p * (1 - p) * weight(b) / (p * weight(1) + (1 - p) * weight(0))


def gapped_weight(b, phi, options):
    """Logits moved so that the class drawn leads by the gap (Fan et al. 2022, equation 7)."""
    classes, drawn = np.array([phi, 0.0]), np.array([b, 1 - b])
    top = classes.max()
    up = (top - classes) * drawn
    down = np.maximum(classes + options["gap"] - top, 0) * (1 - drawn)
    probs = softmax((classes + up - down) / options["temperature"])
    return of_two_classes(jacobian(probs)) / options["temperature"]


def gumbel_rao_weight(b, phi, options):
    return relaxed_slope(b, phi, options["temperature"])


def reinmax_rao_weight(b, phi, options):
    middle = (sigmoid(phi) + b) / 2
    first = relaxed_slope(b, np.log(middle / (1 - middle)), options["temperature"])
    return 2 * first - sigmoid(phi) * sigmoid(-phi) / 2


WEIGHTS = {
    "reinmax": reinmax_weight,
    "mve": mve_weight,
    "gapped_st": gapped_weight,
    "st_gumbel_rao": gumbel_rao_weight,
    "reinmax_rao": reinmax_rao_weight,
}


def weighed_slopes(row, case):
    """f's value, and the mean over b of its derivative times the mean weight given b."""
    logits, gradient = np.array(case.logits), 0
    for b in oracles.binary_vectors(len(logits)):
        probability = np.prod(np.where(b == 1, sigmoid(logits), sigmoid(-logits)))
        pairs = zip(b, logits, strict=True)
        weights = [WEIGHTS[row.name](*pair, case.options) for pair in pairs]
        gradient += probability * slopes_of(b) * weights
    return oracles.expectation_and_gradient(f_of, logits)[0], gradient


def over_latents(row, case, nodes=40):
    """Expectations over u, cut where one of the equally spaced latents begins again."""
    case = of_one_sample(row, case)
    shifts = np.arange(case.options["latents"]) / case.options["latents"]
    probs = sigmoid(np.array(case.logits))
    points, weights = quadrature([[*(p * shifts), *(p + (1 - p) * shifts)] for p in probs], nodes)
    values, grads = run(row, case, points[np.newaxis])
    return weights @ values, weights @ grads


ONE, TWO = (0.8,), (-0.9, 0.6)
for _name, _options in {
    "reinmax": ({"reinmax_temperature": 1.0}, {"reinmax_temperature": 1.7}),
    "mve": ({"mve_t": 0.0}, {"mve_t": 3.0}),
    "gapped_st": ({"gap": 1.0, "temperature": 0.7}, {"gap": 0.2, "temperature": 0.5}),
}.items():
    biased(
        _name,
        expectation=over_samples,
        known=weighed_slopes,
        cases=[
            *(Case(logits, options=options) for logits in (ONE, TWO) for options in _options),
            Case(ONE, 3, _options[1]),
        ],
        atol=1e-10,
    )
for _name in ("st_gumbel_rao", "reinmax_rao"):
    biased(
        _name,
        expectation=over_latents,
        known=weighed_slopes,
        cases=[
            Case(logits, num_samples, {"temperature": 0.7, "latents": latents})
            for logits, num_samples, latents in ((ONE, 1, 1), (ONE, 3, 3), (TWO, 1, 2))
        ],
        atol=1e-9,
    )
