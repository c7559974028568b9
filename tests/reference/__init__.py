"""Slow, readable implementations of SPEC.md that the fast code is compared with. Nothing in here uses `emo_hf`."""
