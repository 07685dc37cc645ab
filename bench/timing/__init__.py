"""The parts of `bench/speed.py`: what is measured, the workers that do it, and the results."""
