"""Texts as the network takes them: the tokenizer, and what travels of it with a task."""
