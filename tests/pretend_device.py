"""A pretend accelerator, the device `pretend`: its tensors are computed on the CPU, but must not meet those of the CPU.

It stands in for CUDA where there is no GPU: an operation on tensors of two devices is an error, and so is `.numpy()`.
It is stricter than CUDA in one thing: positions on the CPU do not index its tensors. Random numbers come from the
generator of the CPU, so that a run ends in the same bits as on the CPU. Saved tensors are ordinary ones.

Importing this file registers the device for the whole process. It must come before the first backward pass, when
PyTorch starts a thread for each device.
"""
import torch
from torch import library, nn
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register_device

aten = torch.ops.aten
register_device('pretend')
DEVICE = torch.device('pretend')
CPU = torch.device('cpu')


class PretendTensor(torch.Tensor):
    """Shape and type for PyTorch; the values are in `on_cpu`, an ordinary tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # what is moved to the CPU is no PretendTensor

    @staticmethod
    def __new__(cls, on_cpu):
        self = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, on_cpu.stride(), on_cpu.storage_offset(), dtype=on_cpu.dtype, device='pretend:0')
        self.on_cpu = on_cpu
        return self

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return compute(operation, *args, **(kwargs or {}))

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)  # which refuses a tensor of the CPU
        self.on_cpu = other.on_cpu.detach()

    def numpy(self, *, force=False):
        raise TypeError('a tensor of the pretend device has no array: use .cpu() first')

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.on_cpu, spec)

    def __repr__(self):
        return f'pretend {self.on_cpu!r}'

    def __reduce_ex__(self, protocol):
        ordinary = nn.Parameter(self.on_cpu, self.requires_grad) if isinstance(self, nn.Parameter) else self.on_cpu
        return ordinary.__reduce_ex__(protocol)


def compute(operation, *args, **kwargs):
    """Do on the CPU what was asked of the pretend device."""
    check_devices(operation, args, kwargs)
    given = {}  # id of a tensor on the CPU -> the argument it belongs to

    def to_cpu(value):
        if isinstance(value, torch.Tensor):
            on_cpu = value.on_cpu if isinstance(value, PretendTensor) else value
            given[id(on_cpu)] = value
            return on_cpu
        return CPU if isinstance(value, torch.device) else value

    def from_cpu(value):
        if not isinstance(value, torch.Tensor) or kwargs.get('device') == CPU:
            return value
        return given[id(value)] if id(value) in given else PretendTensor(value)

    result = operation(*tree_map(to_cpu, args), **tree_map(to_cpu, kwargs))
    for value in given.values():
        if isinstance(value, PretendTensor):
            follow_in_shape(value)
    return tree_map(from_cpu, result)


def follow_in_shape(tensor):
    """Nothing to do, unless the operation was one that resizes its argument, or makes it another tensor (`set_`)."""
    if (tensor.shape, tensor.stride()) != (tensor.on_cpu.shape, tensor.on_cpu.stride()):
        tensor.data = PretendTensor(tensor.on_cpu)


def check_devices(operation, args, kwargs):
    """RuntimeError if an operation has tensors of two devices.

    Copies may, and what is read from the CPU may have 0 dimensions, as on CUDA.
    """
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    written = args[0] if args and operation._schema.is_mutable else None
    devices = {str(value.device) for value in tensors
               if isinstance(value, PretendTensor) or value.dim() > 0 or value is written}
    if len(devices) > 1 and operation != aten.copy_.default:
        raise RuntimeError(f'{operation}: expected tensors of one device, found {" and ".join(sorted(devices))}')


# What is asked of the device before there is a tensor on it, such as `empty`: nearly all other factories call that one.
any_operation = library.Library('_', 'IMPL')  # registered for as long as this object lives
any_operation.fallback(compute, 'PrivateUse1')


@library.impl('aten::_copy_from', 'PrivateUse1')
def copy_from(source, target, non_blocking=False):
    """How `torch.tensor` fills a tensor of another device."""
    return compute(aten.copy_.default, target, source)
