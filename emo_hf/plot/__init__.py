"""Pictures of runs, and `emo-hf plot`: from what a Trainer or a SummaryWriter has written to PNG, SVG, PDF and HTML.

`run.py` reads; `figure.py` says, as the plain data of `panels.py`, what is to be seen; `drawing.py`
(matplotlib) and `page.py` (plotly) draw it. Nothing in here trains or needs a model.
"""
