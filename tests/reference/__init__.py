"""Slow, readable implementations of every law and every rule that the fast code is compared with.

`laws.py` has the emotions, `rules.py` the updates of one parameter, `optimizer.py` puts them together, `figures.py`
reads what the published optimizers produce. None of them uses `emo_hf`; `comparison.py` runs both side by side.
"""
