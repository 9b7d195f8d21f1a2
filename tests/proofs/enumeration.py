from proofs import Case, over_cells, unbiased

SIZES = [Case((0.8,)), Case((-0.9, 0.6)), Case((0.4, -1.1, 0.7))]
unbiased("legrad", "ram", "exact", expectation=over_cells, cases=SIZES)
