"""Ranks and nodes that train by themselves and share weights now and then, or at the end."""
