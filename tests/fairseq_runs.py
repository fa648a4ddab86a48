"""fairseq's commands run in this process, to save time: a training of the tiny model, decoding, and what they leave."""

import re

import torch
from fairseq import checkpoint_utils, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import generate as fairseq_generate
from fairseq_cli import train as fairseq_train

import fairseq_lnplugin  # noqa: F401  registers the architecture

#: What every training of these tests has in common; a later flag of the same name wins.
TINY = ["--arch", "transformer_ln_study_tiny", "--optimizer", "adam", "--lr", 0.003, "--max-tokens", 400, "--cpu"]
TINY += ["--required-batch-size-multiple", 1, "--num-workers", 0, "--log-format", "json", "--log-interval", 1, "--seed", 1]
SMOOTHED = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", 0.1]


def train(data, save_dir, *flags, criterion=SMOOTHED):
    """``fairseq-train DATA --save-dir SAVE_DIR TINY CRITERION FLAGS`` in this process."""
    command = [str(word) for word in (data, "--save-dir", save_dir, *TINY, *criterion, *flags)]
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=command)
    fairseq_train.main(convert_namespace_to_omegaconf(args))


def weights_in(checkpoint):
    """The parameters in a checkpoint, by name."""
    return torch.load(checkpoint)["model"]


def generate(data, checkpoint, results, *flags):
    """``fairseq-generate`` in this process; the hypotheses by sentence id."""
    command = [data, "--path", checkpoint, "--results-path", results, "--cpu", "--max-tokens", 400, "--num-workers", 0]
    command += ["--required-batch-size-multiple", 1, "--max-len-b", 12, *flags]
    args = options.parse_args_and_arch(options.get_generation_parser(), input_args=[str(word) for word in command])
    fairseq_generate.main(convert_namespace_to_omegaconf(args))
    return hypotheses_in((results / "generate-test.txt").read_text(encoding="utf-8"))


def hypotheses_in(output):
    """Text by sentence id, of what fairseq-generate or -interactive printed."""
    return {int(i): text for i, text in re.findall(r"^H-(\d+)\t[^\t]+\t(.*)$", output, re.MULTILINE)}


def load(checkpoint, data, **overrides):
    """The model in a checkpoint, as fairseq-generate loads it."""
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(data), **overrides})
    return models[0]
