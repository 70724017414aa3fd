"""Pruning: weights below a threshold become exactly zero (Han et al. 2016, section 2)."""
import numpy as np
from torch import nn


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
        Raises ValueError for an unknown layer, a percentage outside [0, 100] or a weight that is not finite; then
        nothing has been pruned.
        """
        layers = self._prunable_layers()
        for name, percent in q.items():
            if name not in layers:
                raise ValueError(f'unknown layer {name!r}, expected one of {", ".join(layers)}')
            if not 0 <= percent <= 100:
                raise ValueError(f'percentage of weights to keep in {name} must be 0 to 100, got {percent}')
        # np.percentile of a float32 array rounds the threshold to float32: off by one weight in 2^24.
        thresholds = {name: np.percentile(np.abs(_finite_weights(name, layers[name])).astype(np.float64), 100 - percent)
                      for name, percent in q.items()}
        self._prune_layers(thresholds)

    def prune_by_std(self, s=0.25):
        """Zero, in place, the weights of every layer below `s` times the standard deviation of that layer.

        The deviation is the population's and counts zeros too. Raises ValueError for a sensitivity `s` that is
        negative or not finite, or a weight that is not finite; then nothing has been pruned.
        """
        if not 0 <= s < np.inf:
            raise ValueError(f'sensitivity must be a finite number, at least 0, got {s}')
        self._prune_layers({name: s * np.std(_finite_weights(name, layer), dtype=np.float64)
                            for name, layer in self._prunable_layers().items()})

    def layer_adaptive_rates(self, keep, fc_cost=1):
        """Percent to keep in every layer, for `prune_by_percentile`, so that about `keep` weights are left in all.

        They are the weights with the highest LAMP scores: the square of a weight over the sum of the squares of all
        weights of its layer that are at least as large, so that no layer ends empty (Lee et al. 2021, "Layer-adaptive
        sparsity for the magnitude-based pruning", equation 3). Pruned weights have none. To be kept, a weight of a
        fully connected layer needs a score `fc_cost` times as high as one of a convolution.
        Raises ValueError unless `keep` is at least 1, or if a weight is not finite.
        """
        if not keep >= 1:
            raise ValueError(f'number of weights to keep must be at least 1, got {keep}')
        weights = {name: _finite_weights(name, layer) for name, layer in self._prunable_layers().items()}
        scores = {name: _lamp_scores(weight[weight != 0]) / (fc_cost if weight.ndim == 2 else 1)
                  for name, weight in weights.items()}
        pooled = np.concatenate(list(scores.values()))
        cut = len(pooled) - min(int(keep), len(pooled))
        lowest = np.partition(pooled, cut)[cut] if cut < len(pooled) else np.inf
        return {name: percent_to_keep(np.count_nonzero(scores[name] >= lowest), weight.size)
                for name, weight in weights.items()}

    def _prunable_layers(self):
        return {name: module for name, module in self.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}

    def _prune_layers(self, thresholds):
        layers = self._prunable_layers()
        for name, threshold in thresholds.items():
            print(f'Pruning with threshold : {threshold:.4f} for layer {name}')
            self._prune(layers[name], threshold)

    def _prune(self, module, threshold):
        """Set the weights of `module` with |w| < threshold to zero, in place; leave the rest as it is."""
        weight = module.weight.data
        weight[weight.abs().double() < threshold] = 0  # against a float32 tensor the threshold would be rounded


def fraction_to_keep(start, goal, step, n_steps):
    """The fraction of weights to keep after step 1 to `n_steps`: falls fast from `start`, then ever slower to `goal`.

    Its logarithm takes the cubic course that Zhu and Gupta (2017, equation 1) give to the sparsity itself.
    """
    if start <= goal:
        return goal
    return start * (goal / start) ** (1 - (1 - step / n_steps) ** 3)


def _finite_weights(name, layer):
    """The weights of a layer as a NumPy array that must not be changed; ValueError if one is NaN or infinite."""
    weights = layer.weight.detach().cpu().numpy()
    if not np.isfinite(weights).all():
        raise ValueError(f'{name}.weight holds {weights[~np.isfinite(weights)][0]}, expected finite weights')
    return weights


def _lamp_scores(weights):
    """Non-zero weights of one layer, (n,) -> their scores in ascending order, float64."""
    squares = np.square(np.sort(np.abs(weights)), dtype=np.float64)  # float32 sorts faster
    return squares / np.cumsum(squares[::-1])[::-1]


def percent_to_keep(n_kept, n):
    """The percentage whose threshold lies halfway between the last of `n` values that goes and the first that stays.

    At least one value stays: the threshold of 0 % is the largest value.
    """
    return float(np.clip(100 * (n_kept - 0.5) / max(n - 1, 1), 0, 100))
