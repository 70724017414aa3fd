"""Networks that tests prune."""
from net.prune import PruningModule

from torch import nn


class Sequential(PruningModule, nn.Sequential):
    """Layers one after the other, which can be pruned."""
