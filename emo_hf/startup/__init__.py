"""First on the PYTHONPATH of the children of `emo-hf run`. Nothing else may lie here: they could import it."""
