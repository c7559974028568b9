"""The tasks of the published studies: small models on real data, seconds a run on one core.

The data lie in a folder that `EMO_HF_DATA` names, `data` if it does not; docs/evidence says where each is from. A
twin of a task has `noise`, the share of training labels that are drawn anew, or `shift`: half-way the data change.
"""
