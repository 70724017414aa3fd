"""Pruning: weights below a threshold become exactly zero (Han et al. 2016, section 2), or whole units do.

A criterion is one function of a layer's weights, and stands in `CRITERIA`. It gives either the threshold that fits a
goal of the layer, or a score for each weight, by which all layers share one budget.
"""
import math
from itertools import pairwise

import torch
from torch import nn

from net.files import UserError

SENSITIVITY = 0.25  # standard deviations


class PruningModule(nn.Module):
    """A network whose convolutional and fully connected layers can be pruned in place, by magnitude."""

    # Percent of the weights that are KEPT in each layer (Han et al. 2016, Table 4: AlexNet).
    DEFAULT_PRUNE_RATE = {
        'conv1': 84, 'conv2': 38, 'conv3': 35, 'conv4': 37, 'conv5': 37,
        'fc1': 9, 'fc2': 9, 'fc3': 25,
    }

    def layers(self):
        """(name, layer) of every convolution and fully connected layer, in order."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]

    def check_layers(self, names):
        """Raise UserError if one of the names is not that of a layer."""
        layers = dict(self.layers())
        for name in names:
            if name not in layers:
                raise UserError(f'unknown layer {name!r}, expected one of {", ".join(layers)}')

    def prune_by_percentile(self, q=DEFAULT_PRUNE_RATE):
        """Keep, in place, the largest `q[name]` percent of the weights of every layer that `q` names.

        The threshold of a layer is the (100 - q)th percentile of its |weights|; the weights below it become zero.
        Raises UserError for an unknown layer, a percentage outside [0, 100] or a weight that is not finite; then
        nothing has been pruned.
        """
        self.check_layers(q)
        for name, percent in q.items():
            if not 0 <= percent <= 100:
                raise UserError(f'percentage of weights to keep in {name} must be 0 to 100, got {percent}')
        self._prune_to_goals('percentile', q)

    def prune_by_std(self, s=SENSITIVITY):
        """Zero, in place, the weights of every layer below `s` times the standard deviation of that layer.

        The deviation is the population's and counts zeros too. Raises UserError for a sensitivity `s` that is
        negative or not finite, or a weight that is not finite; then nothing has been pruned.
        """
        if not 0 <= s < math.inf:
            raise UserError(f'sensitivity must be a finite number, at least 0, got {s}')
        self._prune_to_goals('std', {name: s for name, _ in self.layers()})

    def prune_to_budget(self, keep, fc_cost=1, score='lamp'):
        """Keep, in place, the `keep` weights of the whole network with the highest scores, and one in each layer.

        To be kept, a weight of a fully connected layer needs a score `fc_cost` times as high as one of a convolution.
        Weights that are zero stay zero. Raises UserError unless `keep` is at least 1, or if a weight is not finite.
        """
        counts = self.shares_of_budget(keep, fc_cost, score)
        self._prune_layers({name: count_threshold(layer.weight.data, counts[name]) for name, layer in self.layers()})

    def shares_of_budget(self, keep, fc_cost=1, score='lamp'):
        """How many weights each layer has among the `keep` of the network with the highest scores: name -> count."""
        if not keep >= 1:
            raise UserError(f'number of weights to keep must be at least 1, got {keep}')
        scores = {name: CRITERIA[score](_finite_weights(name, layer)) / _cost(layer, fc_cost)
                  for name, layer in self.layers()}
        lowest = _lowest_kept(scores.values(), keep)
        return {name: int((values >= lowest).sum()) for name, values in scores.items()}

    def prune_units(self, keep, fc_cost=1):
        """Remove, in place, all hidden units but the `keep` with the highest scores: their weights and their biases.

        The size of a unit is the product of the norms of its incoming and its outgoing weights. A ReLU unit can be
        scaled up in front and down behind: neither what the network computes nor this product changes. The score is
        LAMP's, with sizes in place of weights, so that layers compare; a unit of a fully connected layer needs one
        `fc_cost` times as high to stay. Of units of equal size the first stay. Units of size 0, which receive nothing
        or are not read, go in any case; of the others, the largest of each layer stays.
        Raises UserError unless `keep` is at least the number of hidden layers, or if a weight is not finite.
        """
        pairs = list(pairwise(layer for _, layer in self.layers()))  # each layer with the one that reads its units
        if keep < len(pairs):
            raise UserError(f'number of units to keep must be at least {len(pairs)}, one for each layer, got {keep}')
        weights = [_finite_weights(name, layer) for name, layer in self.layers()]
        sizes = [_norms(incoming) * _norms(outgoing.transpose(0, 1)) for incoming, outgoing in pairwise(weights)]
        scores = [lamp_scores(size) / _cost(layer, fc_cost) for (layer, _), size in zip(pairs, sizes, strict=True)]
        for score in scores:
            score[-1:] = math.inf  # ascending, empty if no unit has a size: the largest stays whatever it costs
        lowest = _lowest_kept(scores, keep)
        for (layer, following), size, score in zip(pairs, sizes, scores, strict=True):
            removed = size.argsort(descending=True, stable=True)[int((score >= lowest).sum()):]
            layer.weight.data[removed] = 0
            layer.bias.data[removed] = 0
            following.weight.data[:, removed] = 0

    def _prune_to_goals(self, criterion, goals):
        layers = dict(self.layers())
        self._prune_layers({name: CRITERIA[criterion](_finite_weights(name, layers[name]), goal)
                            for name, goal in goals.items()})

    def _prune_layers(self, thresholds):
        layers = dict(self.layers())
        for name, threshold in thresholds.items():
            print(f'Pruning with threshold : {threshold:.4f} for layer {name}')
            self._prune(layers[name], threshold)

    def _prune(self, module, threshold):
        """Set the weights of `module` with |w| < threshold to zero, in place; leave the rest as it is."""
        weight = module.weight.data
        weight[weight.abs().double() < threshold] = 0  # against a float32 tensor the threshold would be rounded


# ---- criteria --------------------------------------------------------------------------------------------------------

def percentile_threshold(weights, percent):
    """The (100 - percent)th percentile of |weights|, float64: interpolated between its neighbours."""
    magnitudes = weights.abs().flatten()
    position = (len(magnitudes) - 1) * ((100 - percent) / 100)  # in this order, as NumPy has it
    below = min(math.floor(position), len(magnitudes) - 1)
    low, high = (_kth(magnitudes, min(k, len(magnitudes) - 1)) for k in (below, below + 1))
    return low + (high - low) * (position - below)


def std_threshold(weights, s):
    """`s` standard deviations of the population of all weights, zeros included, float64."""
    return s * weights.double().std(correction=0).item()


def count_threshold(weights, count):
    """Halfway between the `count` largest of |weights| and the one before; the largest always stays."""
    magnitudes = weights.abs().flatten()
    n_pruned = len(magnitudes) - max(count, 1)
    return (_kth(magnitudes, max(n_pruned - 1, 0)) + _kth(magnitudes, n_pruned)) / 2


def lamp_scores(weights):
    """The layer-adaptive scores of the weights that are not zero, (n,), float64, ascending.

    The score of a weight is its square over the sum of the squares of all weights of its layer that are at least as
    large, so that the largest of each layer has the score 1, and no layer ends empty (Lee et al. 2021,
    "Layer-adaptive sparsity for the magnitude-based pruning", equation 3).
    """
    squares = weights[weights != 0].abs().sort().values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0)


CRITERIA = {
    'percentile': percentile_threshold,  # weights and the layer's goal -> threshold
    'std': std_threshold,  # the same
    'lamp': lamp_scores,  # weights -> scores of those that are not zero, ascending
}


def _lowest_kept(scores, keep):
    """The lowest of the `keep` highest of all the scores, several tensors; infinite if there are none."""
    pooled = torch.cat(list(scores))
    n_pruned = len(pooled) - min(keep, len(pooled))
    return pooled.kthvalue(n_pruned + 1).values if n_pruned < len(pooled) else math.inf


def _cost(layer, fc_cost):
    """How many times the score of a convolution's weights or units those of this layer need."""
    return fc_cost if layer.weight.dim() == 2 else 1


def _norms(weights):
    """(n, ...) -> the norm of each of the n parts, (n,)."""
    return weights.flatten(1).norm(dim=1)


def _kth(values, k):
    """The value that has `k` smaller ones, a Python float."""
    return values.kthvalue(k + 1).values.item()


def _finite_weights(name, layer):
    """The weights of a layer; UserError if one is NaN or infinite."""
    weights = layer.weight.detach()
    if not torch.isfinite(weights).all():
        raise UserError(f'{name}.weight holds {weights[~torch.isfinite(weights)][0].item()}, expected finite weights')
    return weights


# ---- schedule --------------------------------------------------------------------------------------------------------

def amount_to_keep(start, goal, step, n_steps):
    """What to keep after step 1 to `n_steps`, a percentage or a number: falls fast from `start`, ever slower to `goal`.

    Its logarithm takes the cubic course that Zhu and Gupta (2017, equation 1) give to the sparsity itself. The end is
    exactly the goal, which the powers would round.
    """
    if start <= goal or step == n_steps:
        return goal
    return start * (goal / start) ** (1 - (1 - step / n_steps) ** 3)


def number_to_keep(start, goal, step, n_steps):
    """The same for whole numbers, of weights or units."""
    return int(amount_to_keep(start, goal, step, n_steps))
