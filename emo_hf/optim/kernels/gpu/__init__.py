"""Triton kernels of the update rules, for tensors on a GPU.

`source` holds the kernels, and is the only part that imports Triton; `launch` launches them, `available` says whether
there is anything to launch, and `trust` whether that is right. Nothing in here waits for a device, but the first
comparison of `trust`.
"""
