"""Requests, the batches made of them, and the threads that answer: one lock, two tables."""
