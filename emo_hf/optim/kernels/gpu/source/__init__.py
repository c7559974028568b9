"""Kernels in Triton's language. Nothing else in the package imports it, and this is imported when a GPU needs it.

Arguments in capitals are constants of a compilation; the others are numbers and addresses of a launch. Addresses of
many tensors lie in a table of int64: `table[kind * count + i]` is that of tensor i of `count`.
"""
