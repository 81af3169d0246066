"""Judges: who answers yes or no to questions of a picture, and how often that is wrong."""
