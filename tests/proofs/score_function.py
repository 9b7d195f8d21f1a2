from proofs import Case, over_cells, unbiased

SIZES = [*(Case((0.8,), num_samples=k) for k in (None, 3)), Case((-0.9, 0.6))]
SIZES.append(Case((0.4, -1.1, 0.7)))
unbiased("ar", "reinforce", "loo", expectation=over_cells, cases=SIZES)
unbiased(
    "reinforce_baseline",
    expectation=over_cells,
    cases=[*SIZES, Case((-0.9, 0.6), seed=3), Case((-0.9, 0.6), parameters={"mean": 2.0})],
)
# The gradient is divided by the signal's deviation, which is 1 or less here.
unbiased(
    "nvil",
    expectation=over_cells,
    cases=[*SIZES, Case((-0.9, 0.6), seed=3, parameters={"mean": 2.0, "square": 4.5})],
)
