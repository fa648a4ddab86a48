"""Figure 3 of the paper on the model that trains: gradient norms of the FFN matrices W1 and W2, layer by layer.

    fairseq-ln gradients data-bin/iwslt14 --ln-position post pre --layers 6 8 10 12 14 --seeds 1 2 3 --out gradients
    fairseq-ln gradients data-bin/iwslt14 --checkpoint post/checkpoint_last.pt pre/checkpoint_last.pt --out gradients

For one model and N mini-batches b = 1..N, with g_b the gradient of the loss per target token of mini-batch b (label smoothed,
in nats, dropout as in training, sum over the mini-batch's target tokens divided by their number):

    expected_gradient   || (g_1 + ... + g_N) / N ||_F, element-wise mean first, every mini-batch weighing the same
    batch_gradient      (||g_1||_F + ... + ||g_N||_F) / N, what --grad-norm-interval logs, on average

A seed makes the initial weights and the order of mini-batches as fairseq-train --seed does, and mini-batch b is run with the
random numbers of update b, so that g_1 is the gradient of that training's first update. The weights are held still. A checkpoint
has its weights already: seeds then differ in mini-batches and dropout only. Each model's result is a line of measurements.jsonl;
the same command goes on where it was killed, and several commands with different seeds may write to one folder at once.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_lnplugin import fused
from fairseq_lnplugin.analysis import MAX_SEED, gradient_report, gradient_tables, measurements, paper, quiet
from fairseq_lnplugin.checkpoint import read_checkpoint
from fairseq_lnplugin.fused import COMPUTE_DTYPES
from fairseq_lnplugin.grad_norm import PAPER_MATRICES, place
from fairseq_lnplugin.ln_position import LN_POSITIONS
from fairseq_lnplugin.study.environment import environment
from fairseq_lnplugin.study.wording import duration
from fairseq_lnplugin.transformer_ln_study import STACKS, TransformerLNStudyModel, as_flag
from fairseq_lnplugin.user_error import UserError
from fairseq_lnplugin.weight_init import WEIGHT_INITS

#: Hidden states are looked at in a run's first mini-batches only, so that memory does not grow with their number.
HIDDEN_BATCHES = 4
#: Of the Adam whose first updates are predicted (appendix A.1; epsilon is fairseq's default, and fairseq adds it to the root of
#: the second moment before the correction of its bias).
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.98, 1e-8
#: What all models of one folder have in common.
SHARED = tuple(paper.SETTINGS)


def add_arguments(parser):
    """The flags of ``fairseq-ln gradients``."""
    parser.add_argument("data", metavar="DATA", help="folder made by fairseq-preprocess")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="folder of measurements and report; made, or gone on with")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--arch", metavar="NAME", help=f"a named size of this plug-in (default: {paper.SETTINGS['arch']}, the paper's)"
    )
    models.add_argument("--ln-position", nargs="+", choices=sorted(LN_POSITIONS), help="(default: post pre)")
    models.add_argument("--weight-init", nargs="+", choices=sorted(WEIGHT_INITS), help=f"(default: {paper.INIT})")
    models.add_argument("--layers", nargs="+", type=int, metavar="N", help="layers of each stack (default: 6)")
    models.add_argument(
        "--checkpoint", nargs="+", metavar="FILE", help="measure these models in the place of new ones, their settings as trained"
    )
    models.add_argument("--dropout", type=float, metavar="P", help="(default: as trained; 0.1 for new models)")
    models.add_argument("--label-smoothing", type=float, metavar="E", help="(default: as trained; 0.1 for new models)")
    models.add_argument(
        "--compute-dtype",
        choices=sorted(COMPUTE_DTYPES),
        help="type of the matrix products (default: as trained; float32 for new models)",
    )
    batches = parser.add_argument_group("mini-batches")
    batches.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="(default: 1)")
    batches.add_argument(
        "--batches",
        type=int,
        default=gradient_report.DEFAULT_BATCHES,
        metavar="N",
        help="mini-batches a model (default: %(default)s)",
    )
    batches.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="tokens a mini-batch (default: %(default)s)")
    batches.add_argument("--subset", default="train", metavar="NAME", help="part of DATA (default: %(default)s)")
    batches.add_argument("--data-name", metavar="NAME", help="what the report calls DATA (default: as its corpus.json or folder)")
    batches.add_argument("--source-lang", metavar="LANG", help="(default: as the files of DATA are named)")
    batches.add_argument("--target-lang", metavar="LANG")
    report = parser.add_argument_group("predicted size of an update, in the report")
    report.add_argument("--lr-adam", type=float, default=5e-4, metavar="LR", help="lr_max of Adam (default: %(default)s)")
    report.add_argument("--lr-sgd", type=float, default=5e-3, metavar="LR", help="lr_max of SGD (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")


def run(args):
    """Measure what is not measured yet, and write the report.

    Raises:
        SystemExit: bad flags, data or checkpoints, a loss that is no number, or a folder with other settings.

    """
    try:
        with quiet():
            measure_all(args)
    except UserError as error:
        raise SystemExit(f"fairseq-ln gradients: {error}") from None


def measure_all(args):
    """What :func:`run` does, with errors as exceptions."""
    check(args)
    languages = (args.source_lang, args.target_lang) if args.source_lang else None
    data = Data(args.data, args.subset, languages, args.data_name)
    sources = trained_models(args, data.task) if args.checkpoint else initial_models(args)
    shared = {"data": data.fingerprint, "subset": args.subset, "max_tokens": args.max_tokens, "batches": args.batches}
    shared |= common(sources)
    out = Path(args.out)
    path = out / measurements.FILE_NAME
    done = {gradient_tables.identity(record["unit"]) for record in measurements.load(path, shared)}
    todo = [(source, seed) for seed in args.seeds for source in sources]
    left = [(source, seed) for source, seed in todo if gradient_tables.identity(source.unit(seed)) not in done]
    say(f"{len(todo)} models (with seeds), {len(todo) - len(left)} measured before; {args.batches} mini-batches each")
    device = torch.device("cuda" if torch.cuda.is_available() and not args.cpu else "cpu")
    clock, made_with = Clock(sum(source.layers + 3 for source, _ in left)), environment()
    for number, (source, seed) in enumerate(left, 1):
        title = f"{number} of {len(left)}, {source.title}, seed {seed}"
        utils.set_torch_seed(seed)
        np.random.seed(seed)
        model, criterion = source.build(data.task)
        batches = data.batches(args.batches, args.max_tokens, seed, model)
        began = time.monotonic()
        result = measure(model.to(device), criterion, batches, seed, functools.partial(clock.show, title))
        record = {"shared": shared, "unit": source.unit(seed), **result, "seconds": round(time.monotonic() - began, 3)}
        record["measured_with"] = {name: made_with[name] for name in ("commit", "dirty", "torch", "device")}
        measurements.append(path, record)
        clock.finish(source.layers + 3)
        say(f"{title}: last W2 {headline(record)}, {record['seconds']:.0f} s{clock.left()}")
        del model, criterion
    facts = {"data": data.facts, "lr_adam": args.lr_adam, "lr_sgd": args.lr_sgd, "environment": made_with}
    records = measurements.load(path, shared)  # with what other commands measured meanwhile
    try:
        gradient_report.write(out, records, facts)
    except OSError as error:
        raise UserError(
            f"the report in {out} cannot be written ({error.strerror}); make room and start again, what is measured stays"
        ) from None
    say(f"wrote {out / 'RESULTS.md'}")


def common(sources):
    """The settings :data:`SHARED` of models to be measured into one folder.

    Raises:
        UserError: two models differ in one.

    """
    first, *others = sources
    for other in others:
        for name in SHARED:
            if getattr(other, name) != getattr(first, name):
                raise UserError(
                    f"{other.title} has {as_flag(name)} {getattr(other, name)} and {first.title} has "
                    f"{getattr(first, name)}; measure them into two folders"
                )
    return {name: getattr(first, name) for name in SHARED}


def check(args):
    """Refuse flags that make no sense, before any work."""
    for name in ("layers", "batches", "max_tokens"):
        values = getattr(args, name)
        for value in [] if values is None else np.atleast_1d(values):
            if value < 1:
                raise UserError(f"{as_flag(name)} {value} is none; give a number from 1 on")
    for name in ("seeds", "layers", "ln_position", "weight_init", "checkpoint"):
        values = getattr(args, name) or []
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UserError(f"{as_flag(name)} has {twice[0]} twice; give each once")
    if min(args.seeds) < 0:
        raise UserError(f"--seeds {min(args.seeds)} is negative; give whole numbers from 0 on")
    if max(args.seeds) > MAX_SEED:
        raise UserError(f"--seeds {max(args.seeds)} is too large; give whole numbers up to {MAX_SEED}")
    for name in ("dropout", "label_smoothing"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"{as_flag(name)} {value} is not in [0, 1); give a share such as 0.1")
    for name in ("lr_adam", "lr_sgd"):
        if not getattr(args, name) > 0:
            raise UserError(f"{as_flag(name)} must be above 0")
    if (args.source_lang is None) != (args.target_lang is None):
        raise UserError("--source-lang and --target-lang go together; give both or none")
    if args.arch is not None:
        check_arch(args.arch)


def check_arch(arch):
    """Refuse the name of an architecture that is no Transformer of this plug-in.

    Raises:
        UserError: it is none.

    """
    if not is_ours(arch):
        names = ", ".join(sorted(filter(is_ours, ARCH_MODEL_REGISTRY)))
        raise UserError(f"--arch {arch} is no Transformer of this plug-in; choose from {names}")


def is_ours(arch):
    """Whether an architecture is a Transformer of this plug-in."""
    return issubclass(ARCH_MODEL_REGISTRY.get(arch, object), TransformerLNStudyModel)


def initial_models(args):
    """The grid of ``--weight-init``, ``--ln-position`` and ``--layers``; the paper's settings where a flag is left out."""
    given = {name: getattr(args, name) for name in SHARED if getattr(args, name) is not None}
    return [
        InitialModel(weight_init, ln_position, layers, **paper.SETTINGS | given)
        for weight_init in args.weight_init or [paper.INIT]
        for layers in args.layers or [6]
        for ln_position in args.ln_position or ["post", "pre"]
    ]


def trained_models(args, task):
    """The models of ``--checkpoint``, each built once, so that one that does not fit stops the command before any work.

    Raises:
        UserError: one cannot be measured, or is not what another flag asks for.

    """
    models = [TrainedModel(path, args.dropout, args.label_smoothing, args.compute_dtype) for path in args.checkpoint]
    for model in models:
        for name in ("arch", "weight_init", "ln_position", "layers"):
            asked = getattr(args, name)
            if asked is not None and getattr(model, name) not in np.atleast_1d(asked):
                raise UserError(
                    f"{model.path} has {as_flag(name)} {getattr(model, name)}, which is not what was asked for; leave "
                    "the flag out, a checkpoint has its own"
                )
        model.build(task)
    return models


# -- Data --


class Data:
    """A folder of fairseq-preprocess: its task, and the mini-batches that fairseq-train makes of it.

    ``subset``: the part of it to take; ``languages``: the pair (source, target), default: as its files are named; ``name``: what
    a report calls it, default: :func:`name_of`.

    Raises:
        UserError: it cannot be read, or has no sentence.

    """

    def __init__(self, folder, subset, languages=None, name=None):
        self.folder = folder
        if not os.path.isdir(folder):
            raise UserError(f"there is no folder {folder}; give the output folder of fairseq-preprocess")
        flags = [f"--source-lang={languages[0]}", f"--target-lang={languages[1]}"] if languages else []
        try:
            self.task = tasks.setup_task(configuration([folder, *flags]).task)
            self.task.load_dataset(subset)
            self.dataset = self.task.dataset(subset)
        except Exception as error:  # whatever fairseq raises on files that are missing or no data
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{folder} has no part {subset!r} that can be read ({text}); see fairseq-preprocess") from None
        if len(self.dataset) == 0:
            raise UserError(f"the part {subset!r} of {folder} has no sentence; give another --subset or folder")
        cfg = self.task.cfg
        files = sorted(Path(folder).glob(f"{subset}.*.idx"))
        files += [Path(folder) / f"dict.{lang}.txt" for lang in (cfg.source_lang, cfg.target_lang)]
        self.fingerprint = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
        self.facts = {
            "name": name or name_of(Path(folder).resolve()),
            "subset": subset,
            "pairs": len(self.dataset),
            "languages": f"{cfg.source_lang}-{cfg.target_lang}",
            "types": [len(self.task.source_dictionary), len(self.task.target_dictionary)],
            "sha256": self.fingerprint,
        }

    def batches(self, count, max_tokens, seed, model):
        """The first ``count`` mini-batches of the first epoch of ``fairseq-train --seed``, as an iterator.

        ``max_tokens``: in a mini-batch at most; ``model``: no sentence is longer than it can take.

        Raises:
            UserError: an epoch has fewer.

        """
        with contextlib.redirect_stdout(sys.stderr):
            epoch = self.task.get_batch_iterator(
                self.dataset,
                max_tokens=max_tokens,
                max_positions=utils.resolve_max_positions(self.task.max_positions(), model.max_positions(), max_tokens),
                ignore_invalid_inputs=True,
                seed=seed,
                disable_iterator_cache=True,
            ).next_epoch_itr(shuffle=True)
        if len(epoch) < count:
            raise UserError(
                f"{self.folder} has {len(epoch)} mini-batches of {max_tokens} tokens and --batches is {count}; ask for fewer, or "
                "lower --max-tokens"
            )
        return (next(epoch) for _ in range(count))


def name_of(folder):
    """What a data folder is called: as the corpus.json in it or above it says, else its own name, or that above a ``bin``."""
    for there in (folder, folder.parent):
        try:
            return str(json.loads((there / "corpus.json").read_text(encoding="utf-8"))["name"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return folder.parent.name if folder.name == "bin" else folder.name


def configuration(argv):
    """Fairseq's configuration of a training with these arguments (the first is the data folder)."""
    parser = options.get_training_parser()
    arguments = ["--task=translation", "--arch=transformer_ln_study_tiny", *argv]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, arguments))


# -- Models --


class InitialModel:
    """A model as fairseq-train starts it: init, position, layers of each stack, and the settings :data:`SHARED`."""

    def __init__(self, weight_init, ln_position, layers, arch, dropout, label_smoothing, compute_dtype):
        self.weight_init, self.ln_position, self.layers, self.arch = weight_init, ln_position, layers, arch
        self.dropout, self.label_smoothing, self.compute_dtype = dropout, label_smoothing, compute_dtype
        self.title = f"{ln_position}, {layers}-{layers}, {weight_init}"

    def unit(self, seed):
        """What tells this measurement from the others of its folder."""
        return {
            "weight_init": self.weight_init,
            "ln_position": self.ln_position,
            "layers": self.layers,
            "checkpoint": None,
            "seed": seed,
        }

    def build(self, task):
        """The model with new weights, from torch's random numbers as they stand, and its criterion."""
        cfg = configuration(
            [
                task.cfg.data,
                f"--arch={self.arch}",
                f"--ln-position={self.ln_position}",
                f"--weight-init={self.weight_init}",
                f"--encoder-layers={self.layers}",
                f"--decoder-layers={self.layers}",
                f"--dropout={self.dropout}",
                f"--compute-dtype={self.compute_dtype}",
                "--criterion=fused_label_smoothed_cross_entropy",
                f"--label-smoothing={self.label_smoothing}",
            ]
        )
        return task.build_model(cfg.model), task.build_criterion(cfg.criterion)


class TrainedModel:
    """A model of a checkpoint, with the settings that it was trained with but for those that are given here.

    Raises:
        UserError: the file cannot be read, is no Transformer of this plug-in, or its stacks differ in depth.

    """

    def __init__(self, path, dropout=None, label_smoothing=None, compute_dtype=None):
        self.path = path
        state = read_checkpoint(path)
        cfg = state["cfg"].model
        self.arch = getattr(cfg, "arch", None) or getattr(cfg, "_name", None)
        if not is_ours(self.arch):
            raise UserError(f"{path} holds a model of architecture {self.arch}; give a checkpoint of this plug-in's Transformer")
        if cfg.encoder_layers != cfg.decoder_layers:
            raise UserError(
                f"{path} has {cfg.encoder_layers} encoder and {cfg.decoder_layers} decoder layers; give one with as many of both"
            )
        if any(getattr(cfg, f"{stack}_layerdrop", 0) for stack in STACKS):
            raise UserError(f"{path} was trained with LayerDrop, and a layer that is dropped has no gradient; give one without")
        self.weight_init, self.ln_position, self.layers = cfg.weight_init, cfg.ln_position, cfg.encoder_layers
        trained = getattr(state["cfg"].criterion, "label_smoothing", None)
        smoothings = (label_smoothing, trained, paper.SETTINGS["label_smoothing"])
        self.label_smoothing = next(value for value in smoothings if value is not None)
        self.dropout = cfg.dropout if dropout is None else dropout
        self.compute_dtype = compute_dtype or cfg.compute_dtype
        history = state.get("optimizer_history") or [{}]
        self.updates = history[-1].get("num_updates", 0)
        self.training = training_facts(state["cfg"])
        with open(path, "rb") as file:
            self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.title = f"{self.ln_position}, {self.layers}-{self.layers}, after {self.updates} updates"

    def unit(self, seed):
        """As :meth:`InitialModel.unit`."""
        return {
            "weight_init": self.weight_init,
            "ln_position": self.ln_position,
            "layers": self.layers,
            "checkpoint": {"updates": self.updates, "sha256": self.sha256, "training": self.training},
            "seed": seed,
        }

    def build(self, task):
        """The model with the checkpoint's weights, and its criterion.

        Raises:
            UserError: the weights do not fit the data's dictionaries.

        """
        state = read_checkpoint(self.path)
        cfg = state["cfg"].model
        cfg.dropout, cfg.compute_dtype = self.dropout, self.compute_dtype
        # it would need gradients of the inputs, which nothing here has; what is computed is the same without it
        cfg.checkpoint_activations = cfg.offload_activations = False
        smoothing = f"--label-smoothing={self.label_smoothing}"
        flags = configuration([task.cfg.data, "--criterion=fused_label_smoothed_cross_entropy", smoothing])
        try:
            model = task.build_model(cfg)
            model.load_state_dict(state["model"], strict=True, model_cfg=cfg)
        except (SystemExit, RuntimeError) as error:
            raise UserError(f"{self.path} does not fit the data: {str(error).splitlines()[0]}") from None
        return model, task.build_criterion(flags.criterion)


def training_facts(cfg):
    """How a checkpoint was trained, for its report, as ``{name: value}``: what of it the checkpoint's configuration says."""
    schedule, optimizer = cfg.lr_scheduler, cfg.optimizer
    found = {
        "optimizer": getattr(optimizer, "_name", None),
        "lr": max(cfg.optimization.lr),
        "lr_scheduler": getattr(schedule, "_name", None),
        "warmup_updates": getattr(schedule, "warmup_updates", None),
        "tokens_an_update": cfg.dataset.max_tokens
        and cfg.dataset.max_tokens * max(cfg.optimization.update_freq) * cfg.distributed_training.distributed_world_size,
    }
    return {name: value for name, value in found.items() if value is not None}


# -- One model --


def measure(model, criterion, batches, seed, progress=lambda batches_done: None):
    """Gradient norms and hidden-state norms of one model.

    ``batches``: an iterator over fairseq's samples; ``seed``: mini-batch b (from 0) is run with the random numbers of
    ``seed + b``; ``progress``: called with the number of mini-batches done. Memory beside the model: the gradients of W1 and W2
    of one mini-batch, and two sums of their size, whatever the number of mini-batches.

    Returns:
        dict: ``matrices``, of :meth:`Sums.norms`; ``hidden``, of :func:`hidden_states`; ``loss``, per target token in nats.

    Raises:
        UserError: a loss or gradient is not finite.

    """
    device = next(model.parameters()).device
    model.train()
    matrices = paper_matrices(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in matrices.values():
        parameter.requires_grad_(True)
    sums = Sums(matrices)
    squared_norms, loss_sum = [], 0.0
    for number, sample in enumerate(batches):
        if device.type == "cuda":
            sample = utils.move_to_cuda(sample)
        utils.set_torch_seed(seed + number)
        with recorded_sums() if number < HIDDEN_BATCHES else contextlib.nullcontext() as recorded:
            loss, sample_size, _ = criterion(model, sample)
        if recorded is not None:
            squared_norms.append(squared_norms_of(recorded, model, sample))
        loss_per_token = loss.item() / sample_size
        if not math.isfinite(loss_per_token):
            raise UserError(
                f"the loss of mini-batch {number + 1} (seed {seed}) is {loss_per_token}; the model cannot be measured, look for "
                "what overflows in it"
            )
        loss.backward()
        sums.add(1 / sample_size)
        loss_sum += loss_per_token
        progress(number + 1)
    result = sums.norms()
    if not all(math.isfinite(row["expected_gradient"]) for row in result):
        raise UserError(f"a gradient (seed {seed}) is not finite; the model cannot be measured, look for what overflows in it")
    return {"matrices": result, "hidden": hidden_states(squared_norms, model), "loss": loss_sum / sums.count}


def paper_matrices(model):
    """W1 and W2 of every layer, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if name.endswith(PAPER_MATRICES)}


class Sums:
    """Running sums, over mini-batches, of the gradients of some matrices, of their element-wise squares, and of their norms."""

    def __init__(self, matrices):
        self.matrices = matrices
        self.count = 0
        self.gradient = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        self.square = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        self.norm = dict.fromkeys(matrices, 0.0)
        self.first_adam = {}

    def add(self, factor):
        """Add the gradients in ``.grad``, times ``factor``, and drop them."""
        self.count += 1
        for name, matrix in self.matrices.items():
            gradient = matrix.grad.mul_(factor)
            self.gradient[name] += gradient
            self.square[name].addcmul_(gradient, gradient)
            self.norm[name] += gradient.norm().item()
            if self.count == 1:
                self.first_adam[name] = (gradient / (gradient.abs() + ADAM_EPSILON / math.sqrt(1 - ADAM_BETA2))).norm().item()
            matrix.grad = None

    def norms(self):
        """One dict a matrix, with Frobenius norms.

        ``stack``, ``layer`` (from 1), ``matrix``; ``expected_gradient``, ``batch_gradient`` as at the top of this file;
        ``unbiased_gradient``, the root of an unbiased estimate of the squared norm of what the expected gradient tends to with
        ever more mini-batches; ``weight``, the matrix's own; and of an Adam update divided by its rate: ``adam_first``, the very
        first one, ``adam_still``, a later one if the weights stood still (root of the mean square over its random first moment).
        """
        rows = []
        for name, matrix in self.matrices.items():
            mean = self.gradient[name] / self.count
            square = self.square[name] / self.count
            stack, layer, short = place(name)
            row = {"stack": stack, "layer": layer, "matrix": short}
            row["expected_gradient"] = mean.norm().item()
            row["batch_gradient"] = self.norm[name] / self.count
            row["weight"] = matrix.detach().norm().item()
            row["adam_first"] = self.first_adam[name]
            row["unbiased_gradient"] = row["adam_still"] = None
            if self.count > 1:
                variance = (square - mean * mean).mul_(self.count / (self.count - 1))
                true_square = mean * mean - variance / self.count
                row["unbiased_gradient"] = math.sqrt(max(true_square.sum().item(), 0.0))
                # m is a sum of gradients with weights (1 - b) b^k, whose squares sum to (1 - b) / (1 + b)
                first_moment = true_square + variance * ((1 - ADAM_BETA1) / (1 + ADAM_BETA1))
                row["adam_still"] = math.sqrt(max((first_moment / (square + ADAM_EPSILON**2)).sum().item(), 0.0))
            rows.append(row)
        return rows


@contextlib.contextmanager
def recorded_sums():
    """Inside, every residual sum ``x + dropout(f)`` of the models of this plug-in is kept; gives the list of them, in order."""
    original, kept = fused.dropout_add, []

    def dropout_add(x, y, p):
        kept.append(original(x, y, p))
        return kept[-1]

    fused.dropout_add = dropout_add
    try:
        yield kept
    finally:
        fused.dropout_add = original


def squared_norms_of(recorded, model, sample):
    """``||x||^2 / d`` of the sums after each layer's FFN, at real tokens: a list, layer by layer, encoder first.

    For Post-LN that is x^{post,5}, just before the layer's last LN; for Pre-LN the stream as it leaves the layer (lemma 2).
    """
    layers = [(len(model.encoder.layers), 2, sample["net_input"]["src_tokens"])]
    layers.append((len(model.decoder.layers), 3, sample["net_input"]["prev_output_tokens"]))
    result, at = [], 0
    for count, sublayers, tokens in layers:
        real = tokens.ne(model.encoder.padding_idx).t()
        for _ in range(count):
            at += sublayers
            x = recorded[at - 1].detach().float()
            result.append(x.pow(2).mean(dim=-1)[real].cpu())
    return result


def hidden_states(squared_norms, model):
    """The spread of the hidden states' squared norms Z at each layer (paper, definition 1).

    ``squared_norms``: a list of :func:`squared_norms_of`. Returns a list of dicts: ``stack``, ``layer``, ``mean`` (of Z / d),
    ``epsilon`` (the smallest with P[(Z - EZ) / EZ <= epsilon] >= 1 - paper.DELTA), ``delta`` (the share of Z above
    (1 + paper.EPSILON) EZ), ``tokens``.
    """
    names = [(stack, layer + 1) for stack in STACKS for layer in range(len(getattr(model, stack).layers))]
    rows = []
    for (stack, layer), parts in zip(names, zip(*squared_norms, strict=True), strict=True):
        epsilon, delta, mean = bounded(torch.cat(parts))
        rows.append(
            {"stack": stack, "layer": layer, "mean": mean, "epsilon": epsilon, "delta": delta, "tokens": sum(map(len, parts))}
        )
    return rows


def bounded(z):
    """Smallest epsilon at ``paper.DELTA``, delta at ``paper.EPSILON``, and the mean, of samples ``z`` of a positive variable."""
    z = z.double()
    mean = z.mean().item()
    at = max(math.ceil((1 - paper.DELTA) * len(z)), 1)
    epsilon = z.kthvalue(at).values.item() / mean - 1
    return epsilon, (z > (1 + paper.EPSILON) * mean).double().mean().item(), mean


# -- Progress --


def say(text):
    """A line for the user, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} gradients: {text}", file=sys.stderr, flush=True)


def headline(record):
    """Expected and batch gradient of the last decoder layer's W2."""
    row = record["matrices"][-1]
    return f"expected {row['expected_gradient']:.3f}, batch {row['batch_gradient']:.3f}"


class Clock:
    """Time left, from the work done so far; work is counted in layers and their surroundings."""

    def __init__(self, work):
        self.work, self.done = work, 0
        self.began = self.shown = time.monotonic()

    def show(self, title, batches_done):
        """A line of progress within one model, if there was none for half a minute."""
        if time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            say(f"{title}: {batches_done} mini-batches done{self.left()}")

    def finish(self, work):
        """So much work is done."""
        self.done += work
        self.shown = time.monotonic()

    def left(self):
        """``, about 12 min left``, or nothing where that is not known."""
        if not 0 < self.done < self.work:
            return ""
        seconds = (time.monotonic() - self.began) / self.done * (self.work - self.done)
        return f", about {duration(seconds)} left"
