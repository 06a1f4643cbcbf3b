"""Predictions on disk, in the forms other programs read."""

from wildcat.export.predictions import SAVE_KINDS, PredictionWriter

__all__ = ["SAVE_KINDS", "PredictionWriter"]
