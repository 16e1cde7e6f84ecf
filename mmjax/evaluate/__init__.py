"""Evaluation and prediction with the model of a run."""
