"""Stage 2 of Deep Compression: the weights of each layer share the few values of a codebook."""
from pathlib import Path

import torch

import util
from net.checkpoint import PATH, Checkpoint
from net.live import live_part, remove_dead_weights, sort_units
from net.models import load_model, save_model
from net.quantization import apply_weight_sharing, codebooks_as_parameters
from pruning import fit


def parse_args(argv=None):
    parser = util.Parser(__doc__)
    util.add_common_arguments(parser)
    util.add_training_arguments(parser)
    parser.add_argument('--load-model-path', default='saves/model_after_retraining.ptmodel', help='pruned model')
    parser.add_argument('--save-model-path', default='saves/model_after_weight_sharing.ptmodel', help='shared model')
    parser.add_argument('--bits', type=util.number(int, 1, 8), default=5,
                        help='each convolution keeps 2^BITS shared values')
    parser.add_argument('--fc-bits', type=util.number(int, 1, 8), metavar='BITS', default=2,
                        help='the same for the fully connected layers, whose few values training makes up for')
    parser.add_argument('--bias-bits', type=util.number(int, 1, 8), metavar='BITS',
                        help='share the biases of each layer as well, which the compact file makes use of')
    parser.add_argument('--sort-units', action='store_true',
                        help='renumber the hidden units, so that the compact file says shorter where weights lie')
    parser.add_argument('--bfloat16', action='store_true',
                        help='round all values to bfloat16 in the end: the compact file takes 16 bits for each')
    parser.add_argument('--epochs', type=util.number(int, 0), default=6,
                        help='epochs of training the shared values, and the biases')
    parser.add_argument('--moving', action='store_true',
                        help='let a weight move to another shared value of its layer while these are trained')
    parser.add_argument('--lr', type=util.number(float, 0), default=1e-3, help='highest learning rate')
    return parser.parse_args(argv)


def weights_of(model):
    """Layer -> a copy of its weights, float32."""
    return {name: layer.weight.detach().cpu().numpy().copy() for name, layer in model.named_children()}


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
    checkpoint = Checkpoint('weight_share.py', ['training'], args)
    torch.manual_seed(args.seed)
    device = util.pick_device(args.no_cuda)
    model = load_model(args.load_model_path, device)
    if Path(args.save_model_path).is_dir():  # better now than after the training
        raise ValueError(f'--save-model-path must be a file, got the folder {args.save_model_path}')
    Path(args.save_model_path).parent.mkdir(parents=True, exist_ok=True)
    images, test_images, title = util.load_splits(args, device)

    def report(key):
        accuracy = util.test(model, device.type == 'cuda', test_images, title, args.test_batch_size)
        util.log(f'{key} {accuracy}', args.log)

    print('--- Accuracy before weight sharing ---')
    report('Accuracy_before_quantization')
    print('--- Weight sharing ---')
    remove_dead_weights(model)  # what is dead would not be trained with the rest, and keep values of its own
    if args.sort_units:
        sort_units(model)
    pruned = weights_of(model) if args.figures else None
    apply_weight_sharing(model, args.bits, args.fc_bits, args.bias_bits)
    clustered = weights_of(model) if args.figures else None
    checkpoint.enter('training', model)
    if args.epochs:
        print('--- Training the shared values ---')
        util.test(model, device.type == 'cuda', test_images, title, args.test_batch_size)
        with live_part(model), codebooks_as_parameters(model, args.bias_bits is not None, args.moving):
            fit(model, images, args.epochs, args.lr, args, crop=False, checkpoint=checkpoint)
    if args.bfloat16:
        for param in model.parameters():
            param.data = param.data.bfloat16().float()
    save_model(model, args.save_model_path)
    checkpoint.finish()
    print('--- Accuracy after weight sharing ---')
    report('Accuracy_after_quantization')
    if args.figures:
        draw_figures(pruned, clustered, weights_of(model), args.figures)


if __name__ == '__main__':
    util.run(main, PATH)
