"""The optimizers, in torch. Nothing in here knows of Hugging Face.

`family.py` lists the optimizers. `rules/` holds how they move parameters, `kernels/` the same in C and for GPUs,
`precision/` how parameters and state are kept in fewer bits; `buckets.py` sorts parameters and chooses what moves
them. `optimizer.py` feeds the emotion and hands its decisions to a rule.
"""
