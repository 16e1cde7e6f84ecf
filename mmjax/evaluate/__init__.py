"""Evaluation and prediction with what a run has learned."""
