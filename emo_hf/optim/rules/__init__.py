"""Update rules, one a file: the formula in the docstring, the code beside it.

A rule moves tensors; it knows nothing of losses, laws or checkpoints. `rule.py` says what a rule is.
"""
