"""Rules as C kernels for tensors in main memory: their sources, how they are built, how they are called."""
