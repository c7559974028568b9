"""`emo-hf doctor`: whether this installation, a checkpoint, or a script is as it should be.

`environment.py` says what is here, `probe.py` trains for 20 steps, `checkpoint.py` reads what was saved, `script.py`
runs a script in a process of its own, in which `watch.py` looks at its losses. All give findings; `main.py` prints.
"""
