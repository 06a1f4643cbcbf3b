"""Batch prediction of any number of images: streamed sources, output in shards, Ray Data for several processes."""
