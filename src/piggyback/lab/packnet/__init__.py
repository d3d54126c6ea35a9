"""PackNet: several tasks in one network, one after the other (Mallya & Lazebnik, CVPR 2018).

Reading order: sequence.py, network.py.
"""

from piggyback.lab.packnet.sequence import epochs_after_pruning, train_packnet

__all__ = ["epochs_after_pruning", "train_packnet"]
