"""Training. Read `loop.py` first: it is the whole procedure; the other files are what it calls."""
