"""Experiments as data: the tables of the paper, run cell by cell, beside its numbers."""
