"""The proof of every estimator: its exact expectation over the noise, against what it should be.

A module for each family says how the expectation is found and, of a biased estimator, what it is
known to be:

  unbiased("mine", expectation=over_cells, cases=[Case((0.8,), 3), Case((-0.9, 0.6))])
  biased("mine", expectation=…, known=…, cases=…)

What it should be for an unbiased one is not for a proof to say: `prove` enumerates it. Tests run
`prove` for every row of the table, and see every proof refuse wrong copies of its estimator.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
import oracles
import tensorflow as tf

from arm_tf import bernoulli, estimators

PROOFS = {}
WEIGHTS = {size: np.random.default_rng(size).normal(size=(2, size)) for size in (1, 2, 3)}


@dataclasses.dataclass(frozen=True)
class Case:
    """What an estimator is run at.

    Attributes:
      logits: V floats.
      num_samples: K; None for the estimator's own number.
      options: of the estimator.
      seed: of learned parameters around the first ones; None for those.
      parameters: some of them, by name.
      num_layers: of the model, for a training rule.
    """

    logits: tuple = ()
    num_samples: int | None = None
    options: dict = dataclasses.field(default_factory=dict)
    seed: int | None = None
    parameters: dict = dataclasses.field(default_factory=dict)
    num_layers: int = 1


@dataclasses.dataclass(frozen=True)
class Proof:
    """How an estimator is proved.

    Attributes:
      expectation: function of (row, case) that gives the exact expectations over the noise of
        value and gradient of the row at the case.
      cases: of type `Case`.
      known: of a biased estimator, function of (row, case) that gives what value and gradient are
        known to be in expectation, found without the estimator; None for a proof of exactness.
      exact: of a training rule alone, function of (row, case) in place of enumeration.
      atol: tolerance.
    """

    expectation: Callable
    cases: tuple
    known: Callable | None = None
    exact: Callable | None = None
    atol: float = 1e-12


def unbiased(*names, **proof):
    """Registers the proof that estimators are exact in expectation; arguments of `Proof`."""
    PROOFS.update(dict.fromkeys(names, Proof(**proof)))


def biased(*names, known, **proof):
    """Registers the proof that estimators have the bias that they are known to have."""
    PROOFS.update(dict.fromkeys(names, Proof(known=known, **proof)))


def prove(row, proof):
    """Raises AssertionError unless the proof holds for a row of the table."""
    assert proof is not None, f"{row.name!r} has no proof in tests/proofs/."
    assert proof.cases, f"The proof of {row.name!r} has no cases."
    assert row.biased == (proof.known is not None), (
        f"{row.name!r} is called {'biased' if row.biased else 'unbiased'}, "
        f"its proof is one of {'a known bias' if proof.known else 'exactness'}."
    )
    assert row.rule or not proof.exact, f"Of {row.name!r}, what is exact follows by enumeration."
    bias = 0.0
    for case in proof.cases:
        exact = (proof.exact or enumerate_exactly)(row, case)
        expected = proof.known(row, case) if proof.known else exact
        found = proof.expectation(row, case)
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=proof.atol, err_msg=str(case))
        bias = max(bias, np.abs(expected[1] - exact[1]).max())
    assert not row.biased or bias > 1e-3, f"{row.name!r} is called biased, but is exact."


def f_of(b, sample=None):
    """exp(w b) + (m b)^3, in no unit linear or quadratic."""
    w, m = (tf.constant(weights, b.dtype) for weights in WEIGHTS[b.shape[-1]])
    return tf.exp(tf.linalg.matvec(b, w)) + tf.linalg.matvec(b, m) ** 3


def slopes_of(b):
    """Derivative of `f_of`, by hand in NumPy."""
    w, m = WEIGHTS[b.shape[-1]]
    return np.exp(b @ w)[..., None] * w + 3 * (b @ m)[..., None] ** 2 * m


def log_weight(logits):
    """f of a bound at a layer's logits: log w = log p(x, b) - log q(b), log p being `f_of`."""
    logits = tf.stop_gradient(logits)
    return lambda b, sample=None: f_of(b) - bernoulli.log_prob(b, logits)


def parameters_of(row, units, seed=None, dtype="float64", **given):
    """The first parameters, or random ones around them, and given ones."""
    rng = np.random.default_rng(seed)
    scale = 0.0 if seed is None else 0.3
    values = {
        key: np.asarray(value) + scale * rng.normal(size=np.shape(value))
        for key, value in row.initial_parameters(units).items()
    }
    return {key: tf.constant(value, dtype) for key, value in {**values, **given}.items()}


def samples_of(row, case):
    """The number of samples of a case."""
    return case.num_samples or row.default_samples or row.min_samples


def run(row, case, u):
    """What the row's function makes of cases of noise u [rows, cases, V].

    Returns:
      float64 [cases] and [cases, V].
    """
    units = len(case.logits)
    logits = tf.constant(np.broadcast_to(case.logits, [u.shape[1], units]), tf.float64)
    f = f_of if row.objective == "elbo" else log_weight(logits)
    parameters = parameters_of(row, units, case.seed, **case.parameters)
    arguments = [parameters] if parameters else []
    estimate = row(f, logits, tf.constant(u), *arguments, **case.options)
    return estimate.value.numpy(), estimate.grad_logits.numpy()


def over_cells(row, case):
    """Sums over cells of noise, exact for what is linear in the noise within a cell."""
    units = len(case.logits)
    rows = row.rows(samples_of(row, case), units)
    thresholds = list(oracles.pair_thresholds(case.logits)) * rows
    points, weights = oracles.cells(thresholds)
    u = points.reshape(len(weights), rows, units).swapaxes(0, 1)
    values, grads = run(row, case, u)
    return weights @ values, weights @ grads


def enumerate_exactly(row, case):
    """The objective and its gradient by enumeration; f's own log q of a bound included."""
    logits = np.array(case.logits)
    if row.objective == "elbo":
        return oracles.expectation_and_gradient(f_of, logits)
    return oracles.bound_and_gradient(f_of, logits, samples_of(row, case))


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

LINEAR_IN_CELLS = sorted(  # unbiased through layers too, expectations of one sample's objective
    name
    for name, proof in PROOFS.items()
    if proof.expectation is over_cells
    and estimators.get(name).objective == "elbo"
    and not estimators.get(name).through_layers
)
