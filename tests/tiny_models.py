"""Untrained models of the size transformer_ln_study_tiny, fairseq's own with their weights, and a batch for them."""

from argparse import Namespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY
from fairseq.models.transformer import TransformerModel

from fairseq_lnplugin.transformer_ln_study import TransformerLNStudyModel


def dictionary(types):
    """A dictionary of so many types: fairseq's four symbols, then w0, w1 and so on."""
    made = Dictionary()
    for index in range(types - len(made)):
        made.add_symbol(f"w{index}")
    return made


#: That of every model and batch that is not told another.
DICTIONARY = dictionary(40)


def task_of(source, target=None):
    """A stand-in for the task: the two dictionaries, or one for both languages."""
    return Namespace(source_dictionary=source, target_dictionary=target or source)


def built(task=None, seed=1, **flags):
    """An untrained tiny model with the given flags, for a task's dictionaries or ``DICTIONARY``."""
    args = Namespace(**{"arch": "transformer_ln_study_tiny", **flags})
    ARCH_CONFIG_REGISTRY[args.arch](args)
    torch.manual_seed(seed)
    return TransformerLNStudyModel.build_model(args, task or task_of(DICTIONARY))


def stock_of(model):
    """Fairseq's own transformer with the settings and weights of one of our models."""
    stock = TransformerModel.build_model(model.args, task_of(model.encoder.dictionary, model.decoder.dictionary))
    stock.load_state_dict(model.state_dict())
    return stock


def batch(types=40, padded=True):
    """A batch of 5 sentences for a dictionary of so many types; with pads on both sides, or with none at all."""
    generator = torch.Generator().manual_seed(3)
    src, target = (torch.randint(4, types, (5, length), generator=generator) for length in (9, 7))
    prev = target.roll(1, 1)
    for row in range(1, 5 if padded else 0):
        src[row, :row] = target[row, -row:] = prev[row, -row:] = 1
    net_input = {"src_tokens": src, "src_lengths": src.ne(1).sum(1), "prev_output_tokens": prev}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(1).sum())}
