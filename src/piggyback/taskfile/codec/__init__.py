"""Masks in fewer bits than one per weight: ``writer.encode`` and ``reader.decode``; docs/FORMAT.md is the description.

writer   masks -> bit strings -> bytes
reader   bytes -> bit strings -> masks, trusting nothing
rans     the entropy coder under both, in integers
"""
