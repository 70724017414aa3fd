"""Stage 2 of Deep Compression: the weights of each layer share the few values of a codebook."""
import argparse

import util
from net.models import load_model, save_model
from net.quantization import apply_weight_sharing


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--load-model-path', default='saves/model_after_retraining.ptmodel', help='pruned model')
    parser.add_argument('--save-model-path', default='saves/model_after_weight_sharing.ptmodel', help='shared model')
    parser.add_argument('--bits', type=util.number(int, 1, 8), default=5, help='each layer keeps 2^BITS shared values')
    util.add_common_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    device = util.pick_device(args.no_cuda)
    model = load_model(args.load_model_path, device)
    test_images = util.load_images(args.data, train=False).to(device)

    def report(key):
        util.log(f'{key} {util.test(model, device.type == "cuda", test_images)}', args.log)

    print('--- Accuracy before weight sharing ---')
    report('Accuracy_before_quantization')
    print('--- Weight sharing ---')
    apply_weight_sharing(model, args.bits)
    save_model(model, args.save_model_path)
    print('--- Accuracy after weight sharing ---')
    report('Accuracy_after_quantization')


if __name__ == '__main__':
    util.run(main)
