"""The Trainer's side: registration, options, parameter groups, callbacks, self-stop, checkpoints."""
