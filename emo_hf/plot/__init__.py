"""Pictures of runs, and `emo-hf plot`: from what a Trainer or a SummaryWriter has written to PNG, SVG, PDF and HTML.

`run.py` and `events.py` read, `figure.py` draws one run and `several.py` several, `page.py` writes a page that zooms,
`follow.py` draws again while a run is going. Nothing in here trains or needs a model.
"""
