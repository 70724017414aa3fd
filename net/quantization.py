"""Weight sharing: the weights of a layer take the values of a small codebook (Han et al. 2016, section 3)."""
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

try:
    from net.errors import UserError
except ImportError:  # alone, in the homework's own net/
    UserError = ValueError


def apply_weight_sharing(model, bits=5, fc_bits=None, layer_bits=None, bias_bits=None):
    """Replace, in place, every non-zero weight of each layer by one of at most 2^bits centroids; zeros stay zero.

    Fully connected layers take `fc_bits` instead, if it is given, and a layer that `layer_bits` names takes
    `layer_bits[name]`. Biases stay as they are, unless `bias_bits` is given. A layer ends with min(2^bits, distinct
    non-zero weights) distinct non-zero values. Prints a line per layer. Raises UserError unless the layers exist, the
    bits are 1 to 8 and what is shared is finite.
    """
    fc_bits, layer_bits = bits if fc_bits is None else fc_bits, layer_bits or {}
    _check_bits(model, bits, fc_bits, layer_bits, bias_bits)
    for name, module in _layers(model):
        weight = module.weight.data
        if weight.dim() == 2:  # Fully connected layers
            quan_range = 2 ** layer_bits.get(name, fc_bits)
        elif weight.dim() == 4:  # Convolution layers
            quan_range = 2 ** layer_bits.get(name, bits)
        _share(name, weight, quan_range)
    if bias_bits is not None:
        for name, module in _layers(model):
            if module.bias is not None:
                _share(f'{name}.bias', module.bias.data, 2 ** bias_bits)


def _layers(model):
    return [(name, module) for name, module in model.named_children() if isinstance(module, (nn.Conv2d, nn.Linear))]


def _share(name, weight, quan_range):
    shared = weight.cpu().numpy().copy()
    alive = shared != 0  # 1. the unpruned weights
    centroids, labels = kmeans(shared[alive], quan_range)  # 2. cluster them: `cluster_starts` has the KMeans
    shared[alive] = centroids[labels]  # 3. each takes the centroid of its cluster, in its old place
    shared[~alive] = 0  # +0.0, also where a weight was -0.0
    weight.copy_(torch.from_numpy(shared))  # 4. back into the model
    print(f'{name:20} | {str(weight.size()):35} | => Quantize to {len(centroids)} indices')


def _check_bits(model, bits, fc_bits, layer_bits, bias_bits):
    layers = dict(_layers(model))
    for name in layer_bits:
        if name not in layers:
            raise UserError(f'unknown layer {name!r}, expected one of {", ".join(layers)}')
    for value in [bits, fc_bits, *layer_bits.values()] + ([] if bias_bits is None else [bias_bits]):
        if not isinstance(value, (int, np.integer)) or value not in range(1, 9):
            raise UserError(f'bits must be 1 to 8, got {value}')


# ---- k-means, and what guards its odd cases --------------------------------------------------------------------------

def kmeans(weights, n_clusters):
    """Non-zero weights (n,), float32 -> centroids, float32, ascending, none of them zero; the label of each weight.

    There are `n_clusters` centroids, or all distinct weights if these are fewer. UserError if a weight is not finite.
    """
    if not np.isfinite(weights).all():
        raise UserError(f'weights to share must be finite, got {weights[~np.isfinite(weights)][0]}')
    values, labels, counts = np.unique(weights, return_inverse=True, return_counts=True)
    if len(values) <= n_clusters:
        return values, labels
    starts = cluster_starts(values, counts, n_clusters)
    cluster_of_value = np.searchsorted(starts, np.arange(len(values)), side='right') - 1
    return interval_centroids(values, counts, starts), cluster_of_value[labels]


def cluster_starts(values, counts, n_clusters):
    """Sorted distinct values and how often each occurs -> where each cluster starts in `values`, (n_clusters,), int.

    Clusters of numbers are intervals. K-means starts from centroids that are evenly spaced over [min, max], which
    keeps the few large weights well represented (Han et al. 2016, section 3.2).
    """
    from sklearn.cluster import KMeans  # takes a second to import
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits
    scaled = values / np.abs(values).max().astype(np.float64)  # scikit-learn's tolerance underflows for tiny weights
    init = np.linspace(scaled[0], scaled[-1], n_clusters).reshape(-1, 1)
    clusters = KMeans(n_clusters, init=init, n_init=1, algorithm='lloyd')
    with threadpool_limits(1), warnings.catch_warnings():  # one thread: with more, the sums depend on their order
        warnings.simplefilter('ignore', ConvergenceWarning)  # fewer clusters than asked for: mended below
        clusters.fit(scaled.reshape(-1, 1), sample_weight=counts)
    centers = np.sort(clusters.cluster_centers_.ravel())
    starts = np.searchsorted(scaled, (centers[:-1] + centers[1:]) / 2, side='right')
    starts = np.unique(np.concatenate([[0], starts[starts < len(values)]]))
    return split_widest(scaled, starts, n_clusters)


def split_widest(values, starts, n_clusters):
    """Split the widest interval of the sorted `values` at its largest gap until there are `n_clusters` intervals."""
    while len(starts) < n_clusters:
        ends = np.append(starts[1:], len(values))
        widest = np.argmax(values[ends - 1] - values[starts])
        gaps = np.diff(values[starts[widest]:ends[widest]])
        starts = np.insert(starts, widest + 1, starts[widest] + 1 + np.argmax(gaps))
    return starts


def interval_centroids(values, counts, starts):
    """The mean of each interval, float32: inside its interval, so all differ, and never zero.

    A mean that rounds to zero gives way to the value of its interval that is nearest to zero.
    """
    sums = np.add.reduceat(values * counts.astype(np.float64), starts)
    centroids = (sums / np.add.reduceat(counts, starts)).astype(np.float32)
    ends = np.append(starts[1:], len(values))
    centroids = np.clip(centroids, values[starts], values[ends - 1])
    for i in np.flatnonzero(centroids == 0):
        interval = values[starts[i]:ends[i]]
        centroids[i] = interval[np.argmin(np.abs(interval))]
    return centroids


class Codebook(nn.Module):
    """Parametrization of a shared weight by its distinct non-zero values, so that these are what is trained.

    The gradient of a centroid is then the sum of the gradients of its weights (Han et al. 2016, section 3.3); zeros
    are no parameters and stay zero.
    """

    def __init__(self, weight):
        super().__init__()
        self.shape = weight.shape
        self.register_buffer('positions', weight.flatten().nonzero()[:, 0])
        self.register_buffer('indices', torch.unique(weight[weight != 0], return_inverse=True)[1])

    def right_inverse(self, weight):
        """The codebook of the weight: (n_values,), ascending."""
        return torch.unique(weight[weight != 0])

    def forward(self, centroids):
        """The weight that these centroids, (n_values,), make."""
        return self.place(centroids[self.indices])

    def place(self, values):
        """The weight with these values, (n_weights,), where it is not zero."""
        return values.new_zeros(self.shape.numel()).scatter(0, self.positions, values).view(self.shape)


class MovingCodebook(Codebook):
    """A codebook whose weights may move to another of its centroids while both are trained.

    Each weight has a value of its own, and shares the centroid that is nearest to it. The gradient of a weight is also
    that of its own value, as if the step to the centroid were not there (the straight-through estimator of Bengio et
    al. 2013).
    """

    def right_inverse(self, weight):
        """The own values of the weights, (n_weights,), and the codebook, (n_values,)."""
        return weight[weight != 0], super().right_inverse(weight)

    def forward(self, own, centroids):
        """The weight that these own values and centroids make."""
        codebook = centroids.sort().values
        nearest = torch.bucketize(own.detach(), (codebook[:-1] + codebook[1:]).detach() / 2)
        return self.place(codebook[nearest] + (own - own.detach()))


@contextmanager
def codebooks_as_parameters(model, shared_biases=False, moving=False):
    """Within this context the parameters of the model are the codebooks of its shared weights, and the biases.

    With `shared_biases` these are codebooks, too. With `moving` the weights' own values are parameters as well, see
    `MovingCodebook`.
    """
    names = ['weight', 'bias'] if shared_biases else ['weight']
    params = [(layer, name, getattr(layer, name)) for name in names for _, layer in model.layers()
              if getattr(layer, name) is not None]
    for layer, name, param in params:
        parametrize.register_parametrization(layer, name, (MovingCodebook if moving else Codebook)(param.data))
    try:
        yield
    finally:
        for layer, name, param in params:  # back to the very same parameters
            value = getattr(layer, name).detach()
            parametrize.remove_parametrizations(layer, name)
            param.data, param.grad = value, None
            setattr(layer, name, param)
        for _, layer in model.layers():
            layer.register_parameter('bias', layer._parameters.pop('bias'))  # after the weight again


if __name__ == '__main__':
    raise SystemExit('This is a library: run weight_share.py in the folder above.')
