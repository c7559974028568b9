"""The names of everything that lies in `optimizer.state[param]`, as they are in checkpoints."""

EXP_AVG = "exp_avg"  # m
EXP_AVG_SQ = "exp_avg_sq"  # v
ROW_RMS = "row_rms"  # r
COLUMN_RMS = "column_rms"  # k

SHADOW = "shadow"
COMPENSATION = "compensation"
AVERAGE = "emo_average"  # also in the state of other optimizers
