"""From loss tensors to one float per step, the same on every rank.

`accumulation.py` sums micro-batches, `step_loss.py` tells which losses belong to the next step, `rank_mean.py` takes
the mean over ranks, once `same_options.py` has found them alike, `micro_batches.py` says where the number of
micro-batches makes the loss jump. Nothing in here knows what is made of the loss.
"""
