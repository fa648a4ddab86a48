"""Where every layer normalization (LN) of a model sits: one line a norm, with its number of parameters.

    fairseq-ln map --checkpoint FILE
    fairseq-ln map --arch transformer_ln_study --ln-position pre --encoder-layers 12
    fairseq-ln map --arch bert_ln_study --ln-position pre
    fairseq-ln map --arch transformer --encoder-normalize-before

The model is built and looked at; a checkpoint has to fit the model that its settings describe. Works for fairseq's own
Transformers too. "before" is Pre-LN and "after" Post-LN (Xiong et al. 2020, Table 1); layers count from 1 as there.
"""

import argparse
import difflib
import re
from types import SimpleNamespace

import torch.nn as nn
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, build_model
from fairseq.modules import TransformerSentenceEncoderLayer

from fairseq_lnplugin.analysis import quiet
from fairseq_lnplugin.checkpoint import read_checkpoint
from fairseq_lnplugin.cli import whole_number
from fairseq_lnplugin.ln_position import LN_POSITIONS, PostLN, PreLN, SublayerNorm
from fairseq_lnplugin.transformer_ln_study import as_flag
from fairseq_lnplugin.user_error import UserError

COLUMNS = ("stack", "layer", "sub-layer", "norm", "parameters", "equation", "name")
#: fairseq's names mislead: ``final_layer_norm`` is the FFN's.
SUBLAYERS = {
    "self_attn_layer_norm": "self-attention",
    "encoder_attn_layer_norm": "encoder-decoder attention",
    "final_layer_norm": "FFN",
}
PLACES = {PreLN: "before", PostLN: "after"}
#: Flags of the models themselves, handed on to them.
SIZES = [
    f"{stack}_{size}" for stack in ("encoder", "decoder") for size in ("layers", "embed_dim", "ffn_embed_dim", "attention_heads")
]
#: Flags of fairseq's tasks that some models read; no norm depends on them.
LENGTHS = {"tokens_per_sample": 512, "max_positions": 512, "max_source_positions": 512, "max_target_positions": 512}
SWITCHES = ["encoder_normalize_before", "decoder_normalize_before"]


def add_arguments(parser):
    """The flags of ``fairseq-ln map``."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="look at the model in a checkpoint")
    source.add_argument("--arch", metavar="NAME", help="look at a model of this name, with its flags:")
    parser.add_argument("--ln-position", choices=sorted(LN_POSITIONS), help="of this plug-in's models (default: post)")
    for name in SWITCHES:
        parser.add_argument(as_flag(name), action="store_true", default=None, help="of fairseq's own models")
    for name in SIZES:
        parser.add_argument(as_flag(name), type=whole_number(1), metavar="N", help="another size than the architecture's")


def run(args):
    """Print one sentence on the model and the table of its norms.

    Raises:
        SystemExit: flags that do not go together, an unknown architecture, or a model that cannot be built or read.

    """
    flags = {name: getattr(args, name) for name in ("ln_position", *SWITCHES, *SIZES)}
    flags = {name: value for name, value in flags.items() if value is not None}
    try:
        if args.checkpoint and flags:
            raise UserError(f"{as_flag(next(iter(flags)))} goes with --arch; a checkpoint has its own settings")
        with quiet():
            name, model = from_checkpoint(args.checkpoint) if args.checkpoint else (args.arch, from_arch(args.arch, flags))
        rows = norm_map(model)
        if not rows:
            raise UserError(f"{name} has no layer normalization")
    except UserError as error:
        raise SystemExit(f"fairseq-ln map: {error}") from None
    # an architecture alone has no vocabulary, and so no number of parameters
    total = sum(parameter.numel() for parameter in model.parameters()) if args.checkpoint else None
    print(summary(name, rows, total))
    print()
    for line in aligned([COLUMNS, *([str(row[column]) for column in COLUMNS] for row in rows)]):
        print(line)


def from_checkpoint(path):
    """Name of the architecture, and the model with the checkpoint's parameters in it."""
    state = read_checkpoint(path)
    cfg = state["cfg"].model
    name = getattr(cfg, "arch", None) or getattr(cfg, "_name", None)
    model = build(cfg, name, *(words_of(state["model"], stack) for stack in ("encoder", "decoder")))
    try:
        # the parameters alone: what a checkpoint tells of its dictionaries is not true of the stand-ins
        model.load_state_dict(dict(state["model"]), strict=True, model_cfg=cfg)
    except (RuntimeError, SystemExit) as error:  # torch's list of differences, or our models' own sentence
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(
            f"the parameters in {path} do not fit the {name} that its settings describe: {' '.join(lines[:2])[:300]}"
        ) from None
    return name, model


def words_of(parameters, stack):
    """The size of a stack's dictionary; where it embeds no words, that of an empty one."""
    names = (f"{stack}.embed_tokens.weight", f"{stack}.sentence_encoder.embed_tokens.weight")  # the second: RoBERTa's
    return next((len(parameters[name]) for name in names if name in parameters), len(Dictionary()))


def from_arch(arch, flags):
    """A model of a named architecture; ``flags``: values of its flags by name."""
    if arch not in ARCH_MODEL_REGISTRY:
        near = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"there is no architecture {arch}{hint}")
    # as fairseq-train does: the architecture fills in what has no default of its own
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS, add_help=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    unknown = set(flags) - {action.dest for action in parser._actions}
    if unknown:
        raise UserError(f"{arch} has no flag {as_flag(min(unknown))}")
    args = argparse.Namespace(**{**LENGTHS, **vars(parser.parse_args([])), **flags}, arch=arch)
    try:
        ARCH_CONFIG_REGISTRY[arch](args)
    except SystemExit as error:
        raise UserError(error.code) from None  # our models' own sentences
    return build(args, arch, len(Dictionary()), len(Dictionary()))


def build(cfg, name, source_words, target_words):
    """The model of these settings over stand-in dictionaries of the given sizes."""
    for path in ("encoder_embed_path", "decoder_embed_path"):  # pretrained embeddings: files of another machine
        if getattr(cfg, path, None):
            setattr(cfg, path, None)
    source, target = dictionary(source_words), dictionary(target_words)
    task = SimpleNamespace(source_dictionary=source, target_dictionary=target, dictionary=target, max_positions=lambda: 512)
    try:
        return build_model(cfg, task)
    except SystemExit as error:
        raise UserError(error.code) from None
    except Exception as error:  # models outside this plug-in may want more of their task
        raise UserError(f"{name} cannot be built here ({type(error).__name__}: {error})") from None


def dictionary(words):
    """A dictionary of ``words`` symbols, the special ones among them."""
    made = Dictionary()
    for number in range(words - len(made)):
        made.add_symbol(f"word{number}")
    return made


def norm_map(model):
    """One dict with the keys :data:`COLUMNS` for each LN of a model, in the order of its modules.

    ``layer`` counts from 1, "-" outside of layers; ``norm`` is before, after, final (at the end of a stack), inside (a
    sub-layer) or elsewhere; ``parameters``: how many; ``name``: in the state dict.
    """
    norms = [(name, module) for name, module in model.named_modules() if is_norm(module, name.rpartition(".")[2])]
    stacks = {match[1] for match in (re.match(r"(.*)\.layers\.\d+\.", name) for name, _ in norms) if match}
    return [
        {
            **dict(zip(COLUMNS, place(model, name, norm, stacks), strict=False)),
            "parameters": sum(parameter.numel() for parameter in norm.parameters(recurse=False)),
            "name": name,
        }
        for name, norm in norms
    ]


def is_norm(module, own_name):
    """Whether a module is an LN, apex's fused one included, or an arrangement's own norm at the end of a stack."""
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("LayerNorm") or own_name == "layer_norm"


def place(model, name, norm, stacks):
    """The cells stack, layer, sub-layer, norm, (parameters), equation of one LN."""
    match = re.fullmatch(r"(.*)\.layers\.(\d+)\.(.*)", name)
    if match and match[3] in SUBLAYERS:
        arrangement = arrangement_of(norm, model.get_submodule(f"{match[1]}.layers.{match[2]}"))
        where = PLACES.get(arrangement, arrangement.__name__)
        return match[1], int(match[2]) + 1, SUBLAYERS[match[3]], where, None, arrangement.equation
    if match:
        return match[1], int(match[2]) + 1, match[3], "inside", None, "-"
    stack, _, own_name = name.rpartition(".")
    if stack in stacks and own_name == "layer_norm":
        return stack, "-", "end of stack", "final", None, getattr(norm, "equation", "x = LN(x)")
    return stack, "-", own_name, "elsewhere", None, "-"


def arrangement_of(norm, layer):
    """The class of :mod:`~fairseq_lnplugin.ln_position` that a sub-layer's LN is, or acts as in fairseq's layers."""
    if isinstance(norm, SublayerNorm):
        return type(norm)
    if hasattr(layer, "normalize_before"):
        return PreLN if layer.normalize_before else PostLN
    if isinstance(layer, TransformerSentenceEncoderLayer):
        return PostLN
    raise UserError(f"the layers of this model ({type(layer).__name__}) do not tell where their norms sit")


def summary(name, rows, parameters=None):
    """One sentence: position, final norms, numbers; ``parameters``: of the whole model, if known."""
    stacks = dict.fromkeys(row["stack"] for row in rows if row["layer"] != "-")
    known = [row for row in rows if row["sub-layer"] in SUBLAYERS.values()]
    places = {row["norm"] for row in known}
    positions = {"before": "Pre-LN", "after": "Post-LN"}
    position = positions.get(places.pop(), "another LN position") if len(places) == 1 else "mixed LN positions"
    if not stacks or {row["stack"] for row in known} != set(stacks):
        position = "an LN position that this command does not know"
    ended = {row["stack"] for row in rows if row["norm"] == "final"}
    final = ", ".join(f"{stack} {'yes' if stack in ended else 'no'}" for stack in stacks)
    of_norms = sum(row["parameters"] for row in rows)
    of_all = f" of {parameters:,}" if parameters else ""
    return f"{name}: {position}; final norms: {final or 'no'}; {len(rows)} norms with {of_norms:,} parameters{of_all}"


def aligned(rows):
    """Lines of a table, columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
