"""Scores of binary segmentations.

Pure functions take counts of pixels and give scores (``overlap``); a thin ``torchmetrics.Metric`` gathers the counts
over steps and processes (``gather``).
"""
