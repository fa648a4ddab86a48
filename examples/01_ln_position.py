"""Why Post-LN needs warm-up and Pre-LN does not, before any training: the gradients at initialization (paper, section 3.3).

    python examples/01_ln_position.py

Builds the model twice, once for each ``--ln-position``, and prints the gradient norm of every decoder layer's W2 for one
batch of made-up sentences. Post-LN's norms grow towards the output, where they are well above Pre-LN's; Pre-LN's do not grow.
The paper's explanation is that a high rate then moves the last layers too far. Takes seconds on a CPU.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this checkout, installed or not

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY

import fairseq_lnplugin  # noqa: F401  registers the model
from fairseq_lnplugin.fused import label_smoothed_nll
from fairseq_lnplugin.transformer_ln_study import TransformerLNStudyModel

LAYERS, WORDS, SENTENCES, LENGTH = 6, 1000, 16, 20


def build(ln_position, dictionary):
    """A ``transformer_ln_study`` of 6-6 layers, small enough for an example."""
    args = Namespace(
        arch="transformer_ln_study_small",
        ln_position=ln_position,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        max_source_positions=64,
        max_target_positions=64,
        dropout=0.0,
    )
    ARCH_CONFIG_REGISTRY[args.arch](args)  # what fairseq-train does with --arch: the named size fills in the rest
    torch.manual_seed(1)
    return TransformerLNStudyModel.build_model(args, Namespace(source_dictionary=dictionary, target_dictionary=dictionary))


def gradient_norms(model, dictionary):
    """Frobenius norm of the gradient of the loss per token at W2 of each decoder layer, first layer first."""
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(dictionary.nspecial, len(dictionary), (2, SENTENCES, LENGTH), generator=generator)
    source, target = words
    previous = torch.cat([torch.full((SENTENCES, 1), dictionary.eos()), target[:, :-1]], dim=1)
    features, _ = model(source, torch.full((SENTENCES,), LENGTH), previous, features_only=True)
    loss, _ = label_smoothed_nll(
        features.flatten(0, 1), model.decoder.output_projection.weight, target.flatten(), 0.1, torch.float32
    )
    (loss.sum() / target.numel()).backward()
    return [layer.fc2.weight.grad.norm().item() for layer in model.decoder.layers]


def main():
    """Print one row a decoder layer."""
    dictionary = Dictionary()
    for word in range(WORDS):
        dictionary.add_symbol(f"word{word}")
    norms = {position: gradient_norms(build(position, dictionary), dictionary) for position in ("post", "pre")}
    print("gradient norm of W2 at initialization")
    print(f"{'decoder layer':>13}  {'Post-LN':>8}  {'Pre-LN':>8}")
    for layer, (post, pre) in enumerate(zip(norms["post"], norms["pre"], strict=True), start=1):
        print(f"{layer:>13}  {post:>8.3f}  {pre:>8.3f}")


if __name__ == "__main__":
    main()
