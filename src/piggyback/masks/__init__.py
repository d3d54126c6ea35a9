"""The method, on tensors alone. To be read in this order:

rule         the threshold: scores -> mask -> live weight; where scores start, and how fast they move
optimizer    learning the scores through the live weights
regularize   terms added to the scores' gradient
bits         masks at one bit per weight
switch       bits and base weights -> live weights, fast
"""
