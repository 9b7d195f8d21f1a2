from proofs import Case, over_cells, unbiased

SIZES = [*(Case((0.8,), num_samples=k) for k in (None, 3)), Case((-0.9, 0.6))]
SIZES.append(Case((0.4, -1.1, 0.7)))
LEARNED = [Case((-0.9, 0.6), seed=3), Case((-0.9,), num_samples=3, seed=4)]
unbiased("double_cv", "rodeo", expectation=over_cells, cases=[*SIZES, *LEARNED])
