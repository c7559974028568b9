"""The optimizers, in torch. Nothing in here knows of Hugging Face.

`family.py` lists the optimizers, `rules/` holds how they move parameters, `kernels/` the same in C, `tensors/` what
every rule needs. `optimizer.py` feeds the emotion and hands its decisions to a rule.
"""
