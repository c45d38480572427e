"""The parts of tests/run_torture.py."""
