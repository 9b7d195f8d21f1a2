"""Every row of the table is proved, and no proof holds for a wrong estimator."""

import dataclasses

import numpy as np
import proofs
import pytest

from arm_tf import estimators

FAULTS = {
    "scaled": lambda gradient: 2.0 * gradient,
    "wrong sign in one unit": lambda gradient: (
        gradient * np.r_[-1.0, np.ones(gradient.shape[-1] - 1)]
    ),
    "off by a constant": lambda gradient: gradient + 0.01,
}
MORE_SAMPLES = "too large by the number of samples over the least"


def planted(row, fault):
    """The row with a wrong function; of a training rule, what the encoder ascends is wrong."""

    def function(*args, **kwargs):
        result = row.function(*args, **kwargs)
        if row.rule:
            return FAULTS[fault](result)
        if fault == MORE_SAMPLES:
            _, logits, u, *_ = args
            least = row.default_samples or row.min_samples
            factor = u.shape[0] / row.rows(least, logits.shape[-1])
            return result._replace(grad_logits=factor * result.grad_logits)
        return result._replace(grad_logits=FAULTS[fault](result.grad_logits))

    return dataclasses.replace(row, function=function)


@pytest.mark.parametrize("name", estimators.TABLE)
def test_estimator_is_proved(name):
    proofs.prove(estimators.TABLE[name], proofs.PROOFS.get(name))


def test_proofs_are_of_the_table():
    assert set(proofs.PROOFS) == set(estimators.TABLE)


@pytest.mark.parametrize("fault", [*FAULTS, MORE_SAMPLES])
@pytest.mark.parametrize("name", estimators.TABLE)
def test_proof_refuses_a_wrong_estimator(name, fault):
    row = estimators.TABLE[name]
    if row.rule and fault in ("off by a constant", MORE_SAMPLES):
        return  # the first has no gradient; the second's expectation takes too many terms
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        proofs.prove(planted(row, fault), proofs.PROOFS[name])


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_estimator_without_a_proof_fails(fault):
    row = estimators.TABLE["loo"]
    with pytest.raises(AssertionError, match="'loo' has no proof"):
        proofs.prove(planted(row, fault) if fault else row, None)


def test_unbiased_takes_a_proof_of_exactness_and_biased_one_of_the_bias():
    for name, proof in proofs.PROOFS.items():
        row = estimators.TABLE[name]
        with pytest.raises(AssertionError, match="is called (un)?biased, its proof is one of"):
            proofs.prove(dataclasses.replace(row, biased=not row.biased), proof)


def test_proof_says_not_itself_what_is_exact():
    row, proof = estimators.TABLE["loo"], proofs.PROOFS["loo"]
    own = dataclasses.replace(proof, exact=lambda row, case: proof.expectation(row, case))
    with pytest.raises(AssertionError, match="follows by enumeration"):
        proofs.prove(planted(row, "scaled"), own)
    with pytest.raises(AssertionError, match="no cases"):
        proofs.prove(planted(row, "scaled"), dataclasses.replace(proof, cases=()))


def test_bias_that_is_none_fails():
    row, proof = estimators.TABLE["loo"], proofs.PROOFS["loo"]
    known = dataclasses.replace(proof, known=proofs.enumerate_exactly)
    with pytest.raises(AssertionError, match="called biased, but is exact"):
        proofs.prove(dataclasses.replace(row, biased=True), known)
