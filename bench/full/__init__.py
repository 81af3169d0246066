"""The parts of bench/fullsize.py."""
