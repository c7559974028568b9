"""Studies: optimizers, laws and schedules compared on tasks, fairly, in one command (`emo-hf compare`).

    schema.py      what a study is, read from YAML and checked; task.py: a task in Python
    plan.py        from a study and the runs that are done to the runs that are next
    execute.py     does them, in processes that share a folder; results.py keeps the lines
    run_one.py     one run: a Trainer (trainers.py), watched, becomes one JSON line
    statistics.py  intervals; analysis.py: from the lines to what is said about them
    report.py      writes it down, figures.py draws it

Nothing here trains by itself: that is the Trainer's work, by the jobs of `emo-hf train` or on a `Task` in Python. The
tasks, faults and rivals of the published studies are in `scripts/studies`, not here.
"""
