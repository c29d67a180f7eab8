"""Random networks, and what must hold of every one of them. `benchmarks/fuzz.py` runs it."""
