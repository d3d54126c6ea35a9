"""Masks in fewer bits than one a weight: ``codec`` is the way in, docs/FORMAT.md the description.

codec      masks <-> streams of numbers, layer by layer
classes    rows or columns of a layer that share a density
writer     streams -> bytes
reader     bytes -> streams, trusting nothing
rans       the entropy coder under both, in integers
"""
