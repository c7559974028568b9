"""Parameters and state in fewer than 32 bits, and what becomes of them where parameters or saved states move.

Nothing in here knows an update rule.
"""
