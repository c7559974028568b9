"""Studies: optimizers, laws and schedules compared on tasks, fairly, in one command (`emo-hf compare`).

    study.py       what a study is, read from YAML (values.py) and checked
    plan.py        from a study to runs: learning rates are tuned first, then fresh seeds are run
    execute.py     runs in processes of their own, resumable; results.py keeps them, estimate.py says how long
    run_one.py     one run: a Trainer (trainers.py), watched (recorder.py), becomes one JSON line (outcome.py)
    faults.py      what goes wrong in a run on purpose (fault_spec.py); guards.py: what an arm has against it
    statistics.py  intervals, Holm, profiles, widths; stopping.py judges rules of stopping
    analysis.py    from the runs to tables, with fault_analysis.py and decisions.py; report.py and its parts,
                   figures.py, markdown.py and html.py write them down

Nothing here trains by itself: that is the Trainer's work, by the recipes of `emo-hf train` or on a `Task` in Python.
"""
