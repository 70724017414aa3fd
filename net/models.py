"""The network of the homework, and its `.ptmodel` files."""
from functools import partial

from net.errors import UserError
from net.files import COMPACT_MAGIC, begins_with, load_archive, save_archive
from net.live import live_part
from net.prune import PruningModule

import torch
import torch.nn.functional as F
from torch import nn

# What one script writes and the next one reads.
DENSE = 'saves/initial_model.ptmodel'
PRUNED = 'saves/model_after_retraining.ptmodel'
SHARED = 'saves/model_after_weight_sharing.ptmodel'
COMPACT = 'saves/compact.ptmodel'  # shared for the compact file

WIDTHS = 64, 192, 384, 256, 256, 4096, 4096  # units of the hidden layers

# (9, 16): a one in row k and column 4 * o + i if, in a 2x2 map, the output at place o reads the input at place i
# through place k of a 3x3 kernel.
PLACES = torch.eye(9).view(9, 3, 3).unfold(1, 2, 1).unfold(2, 2, 1).flip(1, 2).reshape(9, 16)


class AlexNet(PruningModule):
    """AlexNet for 3x32x32 images: five convolutions, three fully connected layers, log-probabilities out.

    `widths` are other than those of the homework only where a pruned network is to run with its live units alone.
    """

    def __init__(self, n_classes=10, widths=WIDTHS):
        super().__init__()
        conv1, conv2, conv3, conv4, conv5, fc1, fc2 = widths
        self.conv1 = nn.Conv2d(3, conv1, kernel_size=11, stride=4, padding=5)
        self.conv2 = nn.Conv2d(conv1, conv2, kernel_size=5, padding=2)
        self.conv3 = nn.Conv2d(conv2, conv3, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(conv3, conv4, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(conv4, conv5, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(conv5, fc1)
        self.fc2 = nn.Linear(fc1, fc2)
        self.fc3 = nn.Linear(fc2, n_classes)
        replace_zeros(self)

    @property
    def n_classes(self):
        return self.fc3.out_features

    def forward(self, x):
        """Images (n, 3, 32, 32), normalised, float32 -> log-probabilities (n, n_classes)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (n, 64, 4, 4)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (n, 192, 2, 2)
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 2)  # (n, 256, 1, 1)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


def narrow_alexnet(n_classes, units):
    """An AlexNet, or the narrow part of one with that many hidden units, initialised for its width (He et al. 2015)."""
    model = AlexNet(n_classes)
    if units is not None:
        model.prune_units(units)
        with live_part(model):
            for _, layer in model.layers():
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
            replace_zeros(model)
    return model


def multiply_small_maps(model):
    """Let conv3 to conv5 compute as matrix products, until their `forward` is deleted: equal up to rounding.

    Each output of a 2x2 map sees all four inputs. A convolution multiplies the padding, too: 20 of 36 products.
    """
    for layer in model.conv3, model.conv4, model.conv5:
        layer.forward = partial(_multiply, layer)


def _multiply(layer, maps):
    """(n, in, 2, 2) -> (n, out, 2, 2), as the layer's convolution."""
    if maps.is_cuda:  # where it was not measured
        return nn.Conv2d.forward(layer, maps)
    n_out, n_in = layer.weight.shape[:2]
    places = PLACES.to(layer.weight)
    kernels = (layer.weight.flatten(2) @ places).view(n_out, n_in, 4, 4).transpose(1, 2)  # (out, place, in, place)
    outputs = F.linear(maps.flatten(1), kernels.reshape(4 * n_out, 4 * n_in), layer.bias.repeat_interleave(4))
    return outputs.view(len(maps), n_out, 2, 2)


def replace_zeros(model):
    """Make, in place, zeros the smallest number: of 20 million draws some may be 0.0, which would mean pruned."""
    for param in model.parameters():
        if not param.is_meta:  # which has no values, and to ask for some takes PyTorch a second of imports
            param.data[param.data == 0] = torch.finfo(param.dtype).tiny


def save_model(model, path):
    """Write the whole module to a `.ptmodel` file, in one piece or not at all."""
    save_archive(model, path)


def load_model(path, device='cpu'):
    """Read an AlexNet from a `.ptmodel` file that need not be trusted: it cannot run code of its own.

    The file is unpickled under an allow-list, and only its parameters, each checked, are copied into a new model.
    Raises FileNotFoundError or UserError, naming the file, if it is missing or anything else than such a model.
    """
    if begins_with(path, COMPACT_MAGIC):
        raise UserError(f'{path}: a compact file, expected a .ptmodel of an AlexNet: first make one of it: '
                        f'python -m net.compact read {path} MODEL')
    with torch.serialization.safe_globals([AlexNet, nn.Conv2d, nn.Linear, set]):
        stored = load_archive(path, '.ptmodel of an AlexNet')
    if not isinstance(stored, AlexNet):
        way_out = ': load_state_dict it into one, then torch.save(model, path)' if isinstance(stored, dict) else ''
        raise UserError(f'{path}: holds a value of type {type(stored).__name__}, expected a whole net.models.AlexNet'
                        + way_out)
    try:
        model = _rebuild(_stored_parameters(stored))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f'{path}: not the inside of an AlexNet ({type(error).__name__}: {error})') from error
    return model.to(device)


def _stored_parameters(stored):
    """name -> Parameter of an unpickled module, without calling any method that the file could have replaced."""
    parameters = dict(vars(stored)['_parameters'])
    for layer_name, layer in vars(stored)['_modules'].items():
        if not isinstance(layer, nn.Module):
            raise UserError(f'{layer_name} is a {type(layer).__name__}, expected a layer')
        for name, param in vars(layer)['_parameters'].items():
            parameters[f'{layer_name}.{name}'] = param
    return parameters


def _rebuild(parameters):
    """A new AlexNet with copies of these parameters; UserError if a name, shape, type or value is wrong."""
    with torch.device('meta'):  # shapes only: no memory is taken before all of them are found right
        expected = dict(AlexNet().named_parameters())
        differ = parameters.keys() ^ expected.keys()
        if differ:
            raise UserError(f'parameters differ from those of an AlexNet: {", ".join(sorted(differ))}')
        model = AlexNet(n_classes=parameters['fc3.bias'].numel())
    for name, value in parameters.items():
        if type(value) is not nn.Parameter or value.dtype != torch.float32:
            raise UserError(f'{name} is {getattr(value, "dtype", type(value).__name__)}, expected float32')
        if value.untyped_storage().nbytes() < 4 * value.numel():  # strides of 0 make a few bytes look huge
            raise UserError(f'{name} has shape {tuple(value.shape)}, more than the values stored for it')
        if not torch.isfinite(value).all():
            raise UserError(f'{name} holds {value[~torch.isfinite(value)][0]}, expected finite values')
        shape = model.get_parameter(name).shape
        if value.shape != shape:
            raise UserError(f'{name} has shape {tuple(value.shape)}, expected {tuple(shape)}')
    model = model.float().to_empty(device='cpu')  # float32 whatever the default type is
    for name, param in model.named_parameters():
        param.data.copy_(parameters[name] + 0)  # a mask leaves -0.0 of negative weights: pruned, as +0.0 is
    return model


def check_lossless(model, decoded):
    """Raise RuntimeError unless all parameters of the two models are the same, bit for bit."""
    decoded_params = dict(decoded.named_parameters())
    for name, param in model.named_parameters():
        if not torch.equal(param.data.view(torch.int32), decoded_params[name].data.view(torch.int32)):
            raise RuntimeError(f'{name} differs after decoding: the encoding is not lossless')
