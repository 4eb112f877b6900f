"""Quality: what a candidate lost against its reference, how sure that is, and what a policy makes of it.

1. `scores` turns answers and labels into one number a row: the row is what is sampled, so it is what intervals count.
2. `intervals` gives 95 % confidence intervals of shares, of means and of what is computed from them, and of paired
   differences: reference and candidate answer the same rows, so most of what makes rows hard cancels out.
3. `compare` puts both together: `labelled` where there are labels, `unlabelled` against the reference's answers.
4. `policy` decides: `verdict` of a loss, `problem` of a candidate, the Pareto set, and the best by objective.

Pure functions of numpy arrays: no model runs here, no file is read, all randomness comes from a seed. The first axis
of every array holds the rows, the last one of scores the classes.
"""
