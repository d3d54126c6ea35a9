"""Comparisons: experiments, tables, other methods, the paper's sets."""
