"""Many runs: comparisons, advice, joint pruning and the papers' tables."""
