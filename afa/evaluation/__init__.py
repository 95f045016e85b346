"""Counting and scores: of labels and of maps. It knows arrays and ids, no network."""
