"""What runs on each rank of a test with several processes; `tests.ranks` starts it."""
