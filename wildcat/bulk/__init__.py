"""Prediction of any number of pictures: sources that stream, parts that are written once, processes that share them."""
