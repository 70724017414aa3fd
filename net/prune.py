"""Pruning: weights below a threshold become exactly zero (Han et al. 2016, section 2), or whole units do.

The class begins with the functions of the homework. Below them stands what goes beyond: one budget for all layers.
"""
import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

try:
    from net.errors import UserError
except ImportError:  # alone, in the homework's own net/
    UserError = ValueError


class PruningModule(nn.Module):
    """A network whose convolutional and fully connected layers can be pruned in place, by magnitude."""

    # Percent of the weights that are KEPT in each layer (Han et al. 2016, Table 4: AlexNet).
    DEFAULT_PRUNE_RATE = {
        'conv1': 84, 'conv2': 38, 'conv3': 35, 'conv4': 37, 'conv5': 37,
        'fc1': 9, 'fc2': 9, 'fc3': 25,
    }

    def prune_by_percentile(self, q=DEFAULT_PRUNE_RATE):
        """Keep, in place, the largest `q[name]` percent of the weights of every layer that `q` names.

        The threshold of a layer is the (100 - q)th percentile of its |weights|; the weights below it become zero.
        Raises UserError for an unknown layer, a percentage outside [0, 100] or a weight that is not finite; then
        nothing has been pruned.
        """
        self._check_percentages(q)
        self._check_finite()
        for name, module in self.layers():
            if name in q:
                threshold = np.percentile(np.abs(_float64(module.weight)), 100 - q[name])
                print(f'Pruning with threshold : {threshold:.4f} for layer {name}')
                self._prune(module, threshold)

    def prune_by_std(self, s=0.25):
        """Zero, in place, the weights of every layer below `s` times the standard deviation of that layer.

        The deviation is the population's and counts zeros too. Raises UserError for a sensitivity `s` that is
        negative or not finite, or a weight that is not finite; then nothing has been pruned.
        """
        if not 0 <= s < math.inf:
            raise UserError(f'sensitivity must be a finite number, at least 0, got {s}')
        self._check_finite()
        for name, module in self.layers():
            threshold = np.std(_float64(module.weight)) * s
            print(f'Pruning with threshold : {threshold:.4f} for layer {name}')
            self._prune(module, threshold)

    def _prune(self, module, threshold):
        """Set the weights of `module` with |w| < threshold to zero, in place; leave the rest as it is."""
        weight = module.weight.data
        weight[weight.abs().double() < threshold] = 0  # against a float32 tensor the threshold would be rounded

    def layers(self):
        """(name, layer) of every convolution and fully connected layer, in order."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]

    def _check_percentages(self, q):
        layers = dict(self.layers())
        for name, percent in q.items():
            if name not in layers:
                raise UserError(f'unknown layer {name!r}, expected one of {", ".join(layers)}')
            if not 0 <= percent <= 100:
                raise UserError(f'percentage of weights to keep in {name} must be 0 to 100, got {percent}')

    def _check_finite(self):
        for name, layer in self.layers():
            weight = layer.weight.data
            if not torch.isfinite(weight).all():
                raise UserError(f'{name}.weight holds {weight[~torch.isfinite(weight)][0]}, expected finite weights')

    # ---- beyond the homework: one budget for all layers --------------------------------------------------------------

    def prune_to_budget(self, keep, fc_cost=1, score='lamp'):
        """Keep, in place, exactly the `keep` weights of the whole network with the highest scores, one in each layer.

        To be kept, a weight of a fully connected layer needs a score `fc_cost` times as high as one of a convolution.
        Of equal weights the first stay. Weights that are zero stay zero. Raises UserError unless `keep` is at least
        the number of layers, or if a weight is not finite.
        """
        self.prune_to_counts(self.shares_of_budget(keep, fc_cost, score))

    def prune_to_counts(self, counts):
        """Keep, in place, the `counts[name]` largest weights of every layer; of equal ones the first stay.

        Weights that are zero stay zero. What is given must be finite, and name every layer.
        """
        for name, module in self.layers():
            weight, count = module.weight.data, counts[name]
            sizes = weight.abs().flatten()
            order = sizes.argsort(descending=True, stable=True)
            print(f'Pruning with threshold : {sizes[order[count - 1]]:.4f} for layer {name}')
            pruned = torch.ones_like(sizes, dtype=torch.bool)
            pruned[order[:count]] = False
            weight[pruned.view(weight.shape)] = 0

    def shares_of_budget(self, keep, fc_cost=1, score='lamp'):
        """How many weights each layer has among the `keep` of the network with the highest scores: name -> count.

        Raises UserError as `prune_to_budget` does.
        """
        layers = self.layers()
        if not keep >= len(layers):
            raise UserError(f'number of weights to keep must be at least {len(layers)}, one for each layer, got {keep}')
        self._check_finite()
        scores = [SCORES[score](layer.weight.data) / _cost(layer, fc_cost) for _, layer in layers]
        return dict(zip(dict(layers), _shares(scores, keep), strict=True))

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
        self._check_finite()
        sizes = [_norms(layer.weight.data) * _norms(following.weight.data.transpose(0, 1))
                 for layer, following in pairs]
        scores = [lamp_scores(size) / _cost(layer, fc_cost) for (layer, _), size in zip(pairs, sizes, strict=True)]
        for (layer, following), size, count in zip(pairs, sizes, _shares(scores, keep), strict=True):
            removed = size.argsort(descending=True, stable=True)[count:]
            layer.weight.data[removed] = 0
            following.weight.data[:, removed] = 0
            if layer.bias is not None:
                layer.bias.data[removed] = 0


def lamp_scores(weights):
    """The layer-adaptive scores of the weights that are not zero, (n,), float64, ascending.

    The score of a weight is its square over the sum of the squares of all weights of its layer that are at least as
    large (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning", equation 3).
    """
    squares = weights[weights != 0].abs().sort().values.double().square()
    return squares / squares.flip(0).cumsum(0).flip(0)


SCORES = {'lamp': lamp_scores}  # weights of a layer -> the scores of those that are not zero, ascending


def _shares(scores, keep):
    """How many of the `keep` highest scores each of several ascending tensors has; the highest of each is one of them.

    Of equal scores the first tensors' are taken.
    """
    for layer_scores in scores:
        layer_scores[-1:] = math.inf  # whatever it costs; nothing if the tensor is empty
    owners = torch.cat([torch.full_like(layer_scores, i, dtype=torch.uint8) for i, layer_scores in enumerate(scores)])
    highest = torch.cat(scores).argsort(descending=True, stable=True)[:keep]
    return owners[highest].bincount(minlength=len(scores)).tolist()


def _cost(layer, fc_cost):
    """How many times the score of a convolution's weights or units those of this layer need."""
    return fc_cost if layer.weight.dim() == 2 else 1


def _norms(weights):
    """(n, ...) -> the norm of each of the n parts, (n,)."""
    return weights.flatten(1).norm(dim=1)


def _float64(param):
    return param.data.double().cpu().numpy()


# ---- schedule --------------------------------------------------------------------------------------------------------

def amount_to_keep(start, goal, step, n_steps):
    """What to keep after step 1 to `n_steps`, a percentage or a number: falls fast from `start`, ever slower to `goal`.

    For the sparsity Zhu and Gupta (2017, equation 1) have a cubic course. Here the logarithm of what is kept takes it.
    After the last step it is the goal itself, without rounding.
    """
    if start <= goal or step == n_steps:
        return goal
    return start * (goal / start) ** (1 - (1 - step / n_steps) ** 3)


def number_to_keep(start, goal, step, n_steps):
    """The same for whole numbers, of weights or units."""
    return int(amount_to_keep(start, goal, step, n_steps))


def part_to_regrow(n_before, n_kept, least):
    """What part of the weights that a step keeps are others, which come back: as many as the step takes for good.

    So half of what it prunes comes back (Liu et al. 2021, "Sparse training via boosting pruning plasticity with
    neuroregeneration"); but `least` of what it keeps, and no more than half.
    """
    return min(max(n_before / n_kept - 1, least), 0.5)


if __name__ == '__main__':
    raise SystemExit('This is a library: run pruning.py in the folder above.')
