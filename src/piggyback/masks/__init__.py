"""The method, on tensors alone. To be read in this order:

rule         the threshold: scores -> mask -> live weight
forms        live weights with scales and offsets besides, of task files that have them
init         where scores start
optimizer    learning the scores through the live weights
regularize   terms added to the scores' gradient
packing      masks in true bits
switch       bits and base weights -> live weights, fast
live         the masked parameters of a module, with their base weights
coding/      bits in fewer bytes, for files
"""
