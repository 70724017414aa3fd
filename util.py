"""What the scaffold's util.py has: the log, the printed tables, and the test."""
from net.data import load_images, normalize
from net.errors import UserError

import torch
import torch.nn.functional as F


def log(content, filename='log.txt'):
    """Append one line to the log file; OSError, naming the file, if that fails."""
    try:
        with open(filename, 'a', encoding='utf-8', errors='replace') as file:
            file.write(f'{content}\n')
    except OSError as error:
        raise OSError(f'{filename}: cannot be written ({error.strerror})') from error


def print_model_parameters(model, with_values=False):
    """Print name, shape and type of every parameter, and on request its values."""
    print(f'{"Param name":20} {"Shape":30} {"Type":15}')
    print('-' * 70)
    for name, param in model.named_parameters():
        print(f'{name:20} {str(param.shape):30} {str(param.dtype):15}')
        if with_values:
            print(param)


def print_nonzeros(model, filename='log.txt'):
    """Print and log how many values of every parameter are not zero, and the sums over the model."""
    lines, alive, total = [], 0, 0
    for name, param in model.named_parameters():
        n, nonzeros = param.numel(), int(torch.count_nonzero(param))
        lines.append(f'{name:20} | nonzeros = {nonzeros:7} / {n:7} ({100 * nonzeros / n:6.2f}%) | '
                     f'total_pruned = {n - nonzeros:7} | shape = {tuple(param.shape)}')
        alive, total = alive + nonzeros, total + n
    rate = total / alive if alive else float('inf')
    lines.append(f'alive: {alive}, pruned : {total - alive}, total: {total}, '
                 f'Compression rate : {rate:10.2f}x  ({100 * (total - alive) / total:6.2f}% pruned)')
    print('\n'.join(lines))
    log('\n'.join(lines), filename)


def test(model, use_cuda=True, images=None, title='Test set', batch_size=1000):
    """Print the average loss and the accuracy of the model, and return the accuracy in percent.

    Takes the test split of `data` unless other `images` are given, and moves them to the model's device; `use_cuda`
    is there because the scaffold's callers pass it.
    """
    device = next(model.parameters()).device
    images = (load_images(train=False) if images is None else images).to(device)
    n_classes = getattr(model, 'n_classes', len(images.classes))  # which networks of others do not have
    if n_classes != len(images.classes):
        raise UserError(f'the model tells {n_classes} classes apart, the data has {len(images.classes)}')
    loss, correct = evaluate(model, images, batch_size)
    n = len(images.labels)
    print(f'{title}: Average loss: {loss / n:.4f}, Accuracy: {correct}/{n} ({100 * correct / n:.2f}%)')
    return 100 * correct / n


def evaluate(model, images, batch_size=1000):
    """The sum of the losses of all images, and how many the model gets right; leaves the model in evaluation mode."""
    loss, correct = 0.0, 0
    model.eval()
    with torch.no_grad():
        for pixels, labels in zip(images.pixels.split(batch_size), images.labels.split(batch_size), strict=True):
            output = model(normalize(pixels))
            loss += F.nll_loss(output, labels, reduction='sum').item()
            correct += (output.argmax(1) == labels).sum().item()
    return loss, correct
