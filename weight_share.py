"""Stage 2 of Deep Compression: the weights of each layer share the few values of a codebook."""
from net.command_line import catch_ctrl_c

if __name__ == '__main__':
    catch_ctrl_c()  # before the imports that take seconds

from functools import partial
from pathlib import Path

import torch

import util
from net import command_line
from net.checkpoint import PATH, Checkpoint
from net.command_line import PRUNED, SHARED, by_layer, number
from net.files import UserError, one_run_per_folder
from net.live import live_network, live_part, remove_dead_weights, sort_units
from net.models import save_model
from net.quantization import apply_weight_sharing, codebooks_as_parameters
from pruning import fit, loss_of_batch

DEFAULTS = {'optimizer': 'adam', 'schedule': 'one-cycle', 'weight_decay': 0, 'batch_size': 256}

EXAMPLES = (
    '  python weight_share.py --fc-bits 5\n'
    '  python weight_share.py --bits 3 --fc-bits 3 --bias-bits 3 --sort-units --bfloat16 --moving '
    '--save-model-path small.ptmodel')


def parse_args(argv=None):
    parser = command_line.Parser(__doc__, ['data', 'training', 'weight sharing', 'output'], EXAMPLES)
    command_line.add_common_arguments(parser)
    command_line.add_training_arguments(parser, DEFAULTS)
    parser.groups['data'].add_argument('--load-model-path', metavar='FILE', default=PRUNED, help='pruned model')
    add = parser.groups['training'].add_argument
    add('--epochs', type=number(int, 0), metavar='N', default=6,
        help='epochs of training the shared values, and the biases')
    add('--moving', action='store_true',
        help='let a weight move to another shared value of its layer while these are trained')
    add('--lr', type=number(float, 0), metavar='X', default=1e-3, help='highest learning rate')
    add('--crop', choices=['always', 'never'], default='never', help='random crops of the images')
    add('--distill', type=number(float, 0, 1), metavar='X', default=0,
        help='share of the loss that is the distance to the answers of the network before sharing')
    add = parser.groups['weight sharing'].add_argument
    add('--bits', type=number(int, 1, 8), metavar='BITS', default=5, help='each convolution keeps 2^BITS shared values')
    add('--fc-bits', type=number(int, 1, 8), metavar='BITS', default=2,
        help='the same for the fully connected layers, whose few values training makes up for')
    add('--layer-bits', type=by_layer('bits', int, 1, 8), metavar='LAYER=BITS,...',
        help='2^BITS shared values in these layers, whatever --bits and --fc-bits say')
    add('--bias-bits', type=number(int, 1, 8), metavar='BITS',
        help='share the biases of each layer as well, which the compact file makes use of')
    add('--sort-units', action='store_true',
        help='renumber the hidden units, so that the compact file says shorter where weights lie')
    add('--bfloat16', action='store_true',
        help='round all values to bfloat16 in the end: the compact file takes 16 bits for each')
    parser.groups['output'].add_argument('--save-model-path', metavar='FILE', help='shared model',
                                        default=SHARED)
    args = parser.parse_args(argv)
    if args.epochs == 0:
        for name in 'optimizer', 'schedule', 'weight_decay', 'batch_size', 'moving', 'lr', 'crop', 'distill':
            if getattr(args, name) != parser.get_default(name):
                parser.error(f'{command_line.flag(name)} goes with a training of the shared values, got --epochs 0')
    return args


def weights_of(model):
    """Layer -> a copy of its weights, float32."""
    return {name: layer.weight.detach().cpu().numpy().copy() for name, layer in model.layers()}


def draw_figures(pruned, clustered, trained, folder):
    from net import figures
    layers = {}
    for name, weights in pruned.items():
        alive = weights != 0
        layers[name] = figures.SharedLayer(weights[alive], clustered[name][alive], trained[name][alive])
    print('Wrote', figures.draw_centroids(layers, folder))
    print('Wrote', figures.draw_sharing(layers, folder))


def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, command_line.header('weight_share.py', argv))


def run_stage(args, header):
    """From the pruned model to the one at --save-model-path."""
    checkpoint = Checkpoint(PATH, 'weight_share.py', ['training'], command_line.arguments_of_run(args),
                            args.resume, args.restart)
    torch.manual_seed(args.seed)
    device = command_line.pick_device(args.no_cuda)
    model = command_line.load_input(args.load_model_path, PRUNED, 'pruning.py', device)
    if Path(args.save_model_path).is_dir():  # better now than after the training
        raise UserError(f'--save-model-path must be a file, got the folder {args.save_model_path}')
    Path(args.save_model_path).parent.mkdir(parents=True, exist_ok=True)
    images, report_images, title = command_line.load_splits(args, device)
    report = partial(command_line.report, images=report_images, log=args.log, title=title,
                     batch_size=args.test_batch_size)
    util.log(header, args.log)
    print('--- Accuracy before weight sharing ---')
    report('Accuracy_before_quantization', model)
    teacher = live_network(model).eval() if args.distill else None
    pruned, clustered = share(model, args)
    checkpoint.enter('training', model)
    if args.epochs:
        print('--- Training the shared values ---')
        util.test(model, images=report_images, title=title, batch_size=args.test_batch_size)
        with live_part(model), codebooks_as_parameters(model, args.bias_bits is not None, args.moving):
            fit(model, images, args.epochs, args.lr, args.weight_decay, args, args.crop == 'always', checkpoint,
                partial(loss_of_batch, teacher=teacher, share=args.distill))
    if args.bfloat16:
        for param in model.parameters():
            param.data = param.data.bfloat16().float()
    save_model(model, args.save_model_path)
    with command_line.already_written(args.save_model_path):
        print('--- Accuracy after weight sharing ---')
        report('Accuracy_after_quantization', model)
        if args.figures:
            draw_figures(pruned, clustered, weights_of(model), args.figures)
        checkpoint.finish()


def share(model, args):
    """Share the weights in place; return those before and after, each None if no figures are to be drawn."""
    print('--- Weight sharing ---')
    remove_dead_weights(model)  # what is dead would not be trained with the rest, and keep values of its own
    if args.sort_units:
        sort_units(model)
    pruned = weights_of(model) if args.figures else None
    apply_weight_sharing(model, args.bits, args.fc_bits, args.bias_bits, args.layer_bits)
    return pruned, weights_of(model) if args.figures else None


if __name__ == '__main__':
    command_line.run(main, PATH)
