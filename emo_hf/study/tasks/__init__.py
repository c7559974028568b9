"""The tasks of the published studies: small models on real data, seconds a run on one core.

The data lie in the folder `data`, or in another that `EMO_HF_DATA` names; `scripts/get_study_data.py` fetches them. A
twin of a task has `noise`, the share of training labels that are drawn anew, or `shift`: half-way the data change.
"""
