"""The experiments of the paper: what they vary, a runner, and tables beside the paper's numbers."""
