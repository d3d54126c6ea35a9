"""How one stage of PackNet trains: fine-tuning in which most weights stand still."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from piggyback.lab.packnet.prune import hold
from piggyback.network.backbone import Backbone
from piggyback.train.learners import FinetuneLearner
from piggyback.train.methods import Setup


class PackNetLearner(FinetuneLearner):
    """Trains a head and, of a copy of the backbone, only what it is told to.

    ``trainable`` says by name which values of the packed weights may move. ``shared``: whether
    biases, normalisation and the rest may too, which the recipe's ``finetune_norm`` can still
    forbid for normalisation. ``head`` is the classifier to start from; by default a new one.
    """

    def __init__(
        self,
        backbone: Backbone,
        setup: Setup,
        *,
        trainable: Mapping[str, Tensor],
        shared: bool,
        head: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(backbone, setup)
        if head is not None:
            self.network.get_submodule(self._head).load_state_dict(dict(head))
        for name, param in self.network.named_parameters():
            if not (shared or name in trainable or name.startswith(f"{self._head}.")):
                param.requires_grad_(False)  # without a gradient, optimizers pass it over
        hold(self.network, self.optimizer, trainable)
