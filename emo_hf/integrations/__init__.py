"""How losses reach the optimizers in other people's training loops: one file per home."""
