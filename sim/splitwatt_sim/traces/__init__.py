"""Requests: files of five formats, resampling, day curves, a seeded generator."""
