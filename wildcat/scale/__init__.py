"""Prediction of any number of images: sources that stream, parts that are written once, processes that share them."""
