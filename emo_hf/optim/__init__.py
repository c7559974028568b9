"""The optimizers, in torch. Nothing in here knows of Hugging Face.

`engine.py` makes one decision per step of the losses that come in. `optimizer.py` hands it to an update rule,
`attach.py` to any other optimizer, and `has_emotion.py` is what both offer; `backward.py` takes the step one parameter
at a time. `family.py` lists the optimizers, `options.py` their options, `saving.py` reads and writes their state.
`rules/` holds how they move parameters, `kernels/` the same in C and for GPUs, `precision/` how parameters and state
are kept in fewer bits; `buckets.py` sorts parameters and chooses what moves them.
"""
