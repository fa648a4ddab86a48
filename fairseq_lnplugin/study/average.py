"""Average the parameters of several checkpoints of one run into a checkpoint that fairseq-generate reads.

    fairseq-ln average --out FILE CHECKPOINT [CHECKPOINT ...]
    fairseq-ln average --out FILE --last N --dir FOLDER [--up-to EPOCH]

Sums run in float64. All else (settings, task state) is the last file's. The optimizer's state is left
out: the result is for decoding, not for further training.
"""

import os
import re
from collections import OrderedDict

import torch
from omegaconf import OmegaConf

from fairseq_lnplugin.checkpoint import read_checkpoint
from fairseq_lnplugin.cli import whole_number
from fairseq_lnplugin.user_error import UserError
from fairseq_lnplugin.whole_file import replacing

#: Settings of a model that change what it computes, some without changing the shape of any parameter.
SETTINGS = (
    *("arch", "ln_position", "activation_fn", "no_decoder_final_norm", "layernorm_embedding", "no_scale_embedding"),
    *("no_token_positional_embeddings", "share_all_embeddings", "share_decoder_input_output_embed"),
    *("encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads"),
    *("decoder_layers", "decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_attention_heads"),
    *("encoder_normalize_before", "encoder_learned_pos", "decoder_normalize_before", "decoder_learned_pos"),
)


def add_arguments(parser):
    """The flags of ``fairseq-ln average``."""
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="files to average")
    parser.add_argument("--out", required=True, metavar="FILE", help="the checkpoint to write")
    parser.add_argument("--last", type=whole_number(1), metavar="N", help="the last N epochs' checkpoint<epoch>.pt in --dir")
    parser.add_argument("--dir", metavar="FOLDER", help="folder of the checkpoints, with --last")
    parser.add_argument("--up-to", type=whole_number(1), metavar="EPOCH", help="with --last: leave out later epochs")


def run(args):
    """Average, write ``args.out`` and name the files used on standard output.

    Raises:
        SystemExit: flags that do not go together, too few files, or files that cannot be averaged.

    """
    try:
        paths = chosen(args)
        for path in paths:
            if os.path.realpath(path) == os.path.realpath(args.out):
                raise UserError(f"--out {args.out} is one of the files to average; give another name")
        save(average(paths), args.out)
    except UserError as error:
        raise SystemExit(f"fairseq-ln average: {error}") from None
    print(f"{args.out}: the average of {len(paths)} checkpoints: {', '.join(os.path.basename(path) for path in paths)}")


def chosen(args):
    """The files that the command line names, as a list of paths."""
    if (args.last is None) != (args.dir is None) or (args.last is None and args.up_to is not None):
        raise UserError("--last N and --dir FOLDER go together, and --up-to EPOCH with both")
    if bool(args.checkpoints) == (args.last is not None):
        raise UserError("give either the files to average or --last N --dir FOLDER")
    paths = args.checkpoints or last_epochs(args.dir, args.last, args.up_to)
    seen = {}
    for path in paths:
        if os.path.realpath(path) in seen:
            raise UserError(f"{path} is given twice")
        seen[os.path.realpath(path)] = path
    return paths


def last_epochs(folder, number, up_to=None):
    """Paths of the ``number`` latest ``checkpoint<epoch>.pt`` in ``folder``, none after epoch ``up_to``, by epoch."""
    try:
        matches = [re.fullmatch(r"checkpoint(\d+)\.pt", name) for name in os.listdir(folder)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None
    epochs = sorted(int(match[1]) for match in matches if match)
    epochs = [epoch for epoch in epochs if up_to is None or epoch <= up_to]
    if len(epochs) < number:
        bound = "" if up_to is None else f" up to epoch {up_to}"
        found = f"{len(epochs)} ({', '.join(map(str, epochs))})" if epochs else "none"
        raise UserError(
            f"{folder} has {found} of the {number} checkpoint<epoch>.pt files asked for{bound}; ask for fewer, "
            "or train with --keep-last-epochs at least that high and without --no-epoch-checkpoints"
        )
    return [os.path.join(folder, f"checkpoint{epoch}.pt") for epoch in epochs[-number:]]


def average(paths):
    """The checkpoint whose parameters are the means of those in ``paths``, as a dict in fairseq's format.

    A parameter keeps its dtype, and parameters that are one in every file (tied embeddings) stay one. Whole numbers
    are the last file's.

    Raises:
        UserError: a file cannot be read, or belongs to another model than the first.

    """
    sums, first, shared, dictionaries = {}, None, set(), {}
    for path in paths:
        state = read_checkpoint(path)
        parameters = state["model"]
        facts = (settings_of(state), {name: tuple(parameter.shape) for name, parameter in parameters.items()})
        if first is None:
            first, shared = facts, ties(parameters)
        same_model(paths[0], first, path, facts)
        for stack, types in dictionaries_of(state).items():
            if dictionaries.setdefault(stack, types) != types:
                raise UserError(f"{path} knows other types in its {stack} than files before; average checkpoints of one run")
        shared &= ties(parameters)
        for name, parameter in parameters.items():
            if parameter.is_floating_point():
                sums[name] = sums[name] + parameter.double() if name in sums else parameter.double()
    means = {name: (sums[name] / len(paths)).to(value.dtype) if name in sums else value for name, value in parameters.items()}
    for name, owner in shared:
        means[name] = means[owner]
    means = OrderedDict(means)
    means._metadata = getattr(parameters, "_metadata", {})  # torch's, and which dictionaries the model knows
    extra = {name: value for name, value in state["extra_state"].items() if not name.startswith("ema")}
    return {
        "args": state.get("args"),
        "cfg": OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True),
        "model": means,
        "criterion": state.get("criterion"),
        "optimizer_history": state["optimizer_history"],
        "task_state": state.get("task_state", {}),
        "extra_state": {**extra, "average_of": [os.path.basename(path) for path in paths]},
    }


def settings_of(state):
    """Those of :data:`SETTINGS` that a checkpoint's model has, by name; ``arch`` always."""
    model = state["cfg"].model
    values = dict(model.items()) if OmegaConf.is_dict(model) else vars(model)
    settings = {name: values[name] for name in SETTINGS if name in values}
    return {"arch": values.get("_name"), **settings}


def dictionaries_of(state):
    """Hashes of the dictionaries by stack, as far as the checkpoint tells them; those of earlier versions do not."""
    told = getattr(state["model"], "_metadata", {})
    return {stack: facts["types"] for stack, facts in told.items() if "types" in facts}


def same_model(path, facts, other_path, other_facts):
    """Refuse two checkpoints whose settings, or whose parameters' names or shapes, differ.

    ``facts``: a dict of settings and one of shapes by parameter name.
    """
    for kind, ours, theirs in zip(("setting", "parameter"), facts, other_facts, strict=True):
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                raise UserError(
                    f"{path} and {other_path} are different models: {kind} {name} is {ours.get(name, 'missing')} in "
                    f"the one and {theirs.get(name, 'missing')} in the other; average checkpoints of one run"
                )


def ties(parameters):
    """Pairs (name, name of an earlier parameter that is the same tensor)."""
    owners = {}
    places = {name: (value.data_ptr(), tuple(value.shape), value.stride()) for name, value in parameters.items()}
    return {(name, owners[place]) for name, place in places.items() if owners.setdefault(place, name) != name}


def save(state, path):
    """Write a checkpoint whole or not at all.

    Raises:
        UserError: it cannot be written.

    """
    try:
        with replacing(path) as new, open(new, "wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise UserError(f"{path} cannot be written ({getattr(error, 'strerror', None) or error})") from None
