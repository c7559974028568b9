"""`emo-hf doctor`: the versions here, whether a script's loss is felt (a tiny one of ours for a start), checkpoints.

`script.py`, `checkpoint.py` and `versions.py` each give a `Report`, which `main.py` prints.
"""
