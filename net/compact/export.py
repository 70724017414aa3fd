"""The live network for other programs: ONNX, or PyTorch's own format, which loads without this repository.

Both take pixels, uint8 (n, 3, 32, 32), RGB, 0 to 255, any n, and give log-probabilities, float32 (n, classes). The file
says so itself, and names the classes.
"""
import argparse
import importlib.util
import io
import json
from pathlib import Path

from net.arguments import output_file
from net.data import SIZE, normalize
from net.files import replace_file

import torch
from torch import nn

CONTRACT = {'input': 'pixels: uint8 (n, 3, 32, 32), RGB, 0 to 255', 'output': 'log-probabilities: float32 (n, classes)'}


class FromPixels(nn.Module):
    """A network that takes pixels as they are in an image file."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, pixels):
        """uint8 (n, 3, 32, 32) -> log-probabilities (n, n_classes), float32."""
        return self.network(normalize(pixels))


def export_file(path):
    """An argparse type: a file in a format that can be written with the packages that are installed."""
    if Path(path).suffix not in ('.onnx', '.pt2'):
        raise argparse.ArgumentTypeError(f'must end in .onnx or .pt2, got {path}')
    missing = [name for name in ('onnx', 'onnxscript') if importlib.util.find_spec(name) is None]
    if Path(path).suffix == '.onnx' and missing:
        raise argparse.ArgumentTypeError(f'{path} needs packages: pip install {" ".join(missing)}')
    return output_file(path)


def export(network, classes, path):
    """Write a network, on the CPU, in the format that the name ends in, with its contract and its classes' names."""
    example = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    program = torch.export.export(FromPixels(network).eval(), (example,),
                                  dynamic_shapes={'pixels': {0: torch.export.Dim('n', min=1)}})
    contract, data = {**CONTRACT, 'classes': json.dumps(list(classes))}, io.BytesIO()
    if Path(path).suffix == '.pt2':
        torch.export.save(program, data, extra_files=contract)
    else:
        onnx_model = torch.onnx.export(program, input_names=['pixels'], output_names=['log_probabilities'], dynamo=True,
                                       verbose=False).model_proto
        for name, text in contract.items():
            onnx_model.metadata_props.add(key=name, value=text)
        data.write(onnx_model.SerializeToString())
    with replace_file(path) as file:
        file.write(data.getbuffer())
