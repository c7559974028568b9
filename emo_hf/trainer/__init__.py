"""The Trainer's side: names, options, parameter groups, one callback, self-stop, checkpoints, the console.

`registry.py` makes the names known, `factory.py` makes optimizers of them, `callbacks.py` is what a run has of us, and
`patches.py` what stands around methods of transformers meanwhile. Nothing here moves a tensor or decides
anything: that is `optim` and `laws`. Only `callbacks.py` and `registry.py` import transformers, so that
`create_optimizer` and `build_param_groups` work without it.
"""
