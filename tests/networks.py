"""Networks that tests prune."""
from torch import nn

from net.prune import PruningModule


class Sequential(PruningModule, nn.Sequential):
    """Layers one after the other, which can be pruned."""
