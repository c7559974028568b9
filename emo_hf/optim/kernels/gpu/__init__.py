"""Triton kernels of the update rules, for tensors on a GPU.

`source` holds the kernels, and is the only part that imports Triton; `elementwise` and `fact` launch them, `tables`
says where tensors lie in a form that one launch can read, `kept` checks what belongs to tensors in fewer bits,
`available` says whether there is anything to launch.
Nothing in here waits for a device.
"""
