"""What every rule needs of tensors: chunks, shards, low precision, the shadow, state that follows its parameter."""
