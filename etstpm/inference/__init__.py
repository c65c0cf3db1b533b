"""Scoring images that were in no run: with a published student, without its dataset."""
