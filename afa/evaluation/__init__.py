"""Prediction on whole images, and the scores of an evaluation."""
