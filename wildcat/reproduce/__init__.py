"""What the measurements under `benchmarks/` share."""
