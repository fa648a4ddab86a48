"""WHERE GRADIENT NORMS ARE LOGGED: what is measured, when, and where it is written (Xiong et al. 2020, section 3.3).

A matrix's norm is the Frobenius norm of its part of the gradient of *the loss per target token over the whole
update*: all micro-batches of ``--update-freq`` and all workers, before clipping. So the root of the summed squares
of all norms of an update is the ``gnorm`` that fairseq logs for it, in every precision. (The paper's figure 3 shows
the norm of the *expected* gradient, a mean over batches taken before the norm: ``fairseq-ln gradients``.)

``--grad-norm-interval N`` measures at update 1 and at each N-th; 0 is never. The trained weights do not depend on it.

* All matrices go to ``SAVE_DIR/grad_norm.tsv``, columns ``update stack layer matrix norm``. Layers count from 1, as
  in the paper, and the layer is empty for what sits in none (embeddings, final norms). A matrix without a gradient
  (LayerDrop) has no row.
* The paper's W1 and W2 of each layer also go to fairseq's own metrics, as ``gnorm_decoder_6_fc1.weight``, and so to
  progress bars, TensorBoard and wandb. (All of them, about 200, would bury everything else there.) A value printed
  is the mean over the updates measured since the last one printed, ``None`` or ``null`` if there were none: let
  ``--log-interval`` be a multiple of N.

One place in fairseq has gradients that are reduced, accumulated and not yet clipped:
:meth:`fairseq.trainer.Trainer.clip_grad_norm`. :func:`install` wraps it.
"""

import functools
import logging
import os
from itertools import chain

import torch
from fairseq.logging import metrics
from fairseq.trainer import Trainer

from fairseq_lnplugin.whole_file import write_text

logger = logging.getLogger(__name__)

FILE_NAME = "grad_norm.tsv"
HEADER = "update\tstack\tlayer\tmatrix\tnorm\n"

#: The matrices whose norms the paper shows: W1 and W2 of the FFN. Only these go to fairseq's metrics.
PAPER_MATRICES = ("fc1.weight", "fc2.weight")

#: A level that RoBERTa's encoder has in the names of its parameters and a Transformer's has not.
ROBERTAS_ENCODER = "sentence_encoder"


def install():
    """Make fairseq's trainer log gradient norms where ``--grad-norm-interval`` asks for it; again does nothing."""
    original = Trainer.clip_grad_norm
    if hasattr(original, "logs_grad_norms"):
        return

    @functools.wraps(original)
    def clip_grad_norm(trainer, clip_norm):
        """fairseq's, with the norms measured before it."""
        interval = checked_interval(trainer.cfg)
        if interval == 0 or not trainer.is_data_parallel_master:
            return original(trainer, clip_norm)
        path = os.path.join(trainer.cfg.checkpoint.save_dir, FILE_NAME)
        if not hasattr(trainer, "grad_norm_rows_kept"):  # this process's first update, of a fresh or a resumed run
            keep_rows_until(path, trainer.get_num_updates())
            trainer.grad_norm_rows_kept = True
        update = trainer.get_num_updates() + 1
        if not is_due(update, interval):
            return original(trainer, clip_norm)
        norms = measure(trainer)
        total = original(trainer, clip_norm)  # fp16 raises on overflow; the next batch is then this update again
        if torch.isfinite(total):
            append_rows(path, update, norms)
            log_paper_matrices(norms)
        return total

    clip_grad_norm.logs_grad_norms = True
    Trainer.clip_grad_norm = clip_grad_norm


def checked_interval(cfg):
    """``--grad-norm-interval`` of a run, in updates; 0 is never.

    ``cfg``: fairseq's whole configuration, of any model (one without the flag gives 0).

    Raises:
        SystemExit: it is negative, or no worker of this run ever holds the whole gradient of a matrix.

    """
    interval = getattr(cfg.model, "grad_norm_interval", 0) or 0
    if interval < 0:
        raise SystemExit(
            f"--grad-norm-interval {interval} is negative; "
            "give the number of updates from one measurement to the next, or 0 for none"
        )
    if interval > 0:
        backend = cfg.distributed_training.ddp_backend
        if backend == "fully_sharded":  # parameters are flat shards: the norm of one would be no matrix's
            raise SystemExit(
                "--grad-norm-interval does not support --ddp-backend fully_sharded (FSDP), "
                "where no worker holds a whole matrix; leave one of the two out"
            )
        if backend == "slowmo" or cfg.optimization.use_bmuf:  # workers only average their weights now and then
            flag = "--use-bmuf" if cfg.optimization.use_bmuf else "--ddp-backend slowmo"
            raise SystemExit(
                f"--grad-norm-interval does not support {flag}, "
                "where each worker has a gradient of its own; leave one of the two out"
            )
    return interval


def is_due(update, interval):
    """Whether update number ``update`` (from 1) is measured: the first, and each multiple of ``interval`` (> 0)."""
    return update == 1 or update % interval == 0


def measure(trainer):
    """Gradient norms of all parameters of model and criterion; a shared one counts once, under its first name.

    Returns:
        list: ``(stack, layer, matrix, norm)`` in the model's order, see :func:`place`; inf or NaN on an overflow.

    """
    parameters = chain(
        trainer.get_model().named_parameters(),
        ((f"criterion.{name}", parameter) for name, parameter in trainer.get_criterion().named_parameters()),
    )
    named = [(name, parameter.grad) for name, parameter in parameters if parameter.grad is not None]
    # dtype: the squares of half-precision gradients, loss scale and all, would overflow in their own type
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float32) for _, grad in named]
    norms = torch.stack(norms).tolist()  # one transfer from the device, not one a matrix
    factor = pending_factor(trainer.optimizer)
    return [(*place(name), factor * norm) for (name, _), norm in zip(named, norms, strict=True)]


def pending_factor(optimizer):
    """What ``p.grad`` still has to be multiplied by to be the gradient of the loss per target token.

    fairseq's fp16 and bf16 optimizers, whether or not they keep flat fp32 copies, leave the model's gradients as
    backward made them and apply 1 / loss scale and 1 / tokens later, as one factor. AMP applies 1 / tokens at once
    and 1 / loss scale while clipping.
    """
    if hasattr(optimizer, "_multiply_factor"):
        return float(optimizer._multiply_factor)
    if hasattr(optimizer, "scaler"):
        return 1 / optimizer.scaler.get_scale()
    return 1.0


def place(name):
    """Where the parameter of this name sits, as ``(stack, layer, matrix)``.

    The stack is all before ``layers``, or the first part of the name (``other`` where there is none); the layer counts
    from 1 and is empty outside ``layers``; the matrix is the rest of the name.

    >>> place("encoder.layers.0.fc1.weight")
    ('encoder', 1, 'fc1.weight')
    >>> place("decoder.embed_tokens.weight")
    ('decoder', '', 'embed_tokens.weight')
    """
    parts = [part for part in name.split(".") if part != ROBERTAS_ENCODER]
    for i in range(len(parts) - 2):
        if parts[i] == "layers" and parts[i + 1].isdigit():
            return ".".join(parts[:i]) or "other", int(parts[i + 1]) + 1, ".".join(parts[i + 2 :])
    if len(parts) == 1:
        return "other", "", parts[0]
    return parts[0], "", ".".join(parts[1:])


def log_paper_matrices(norms):
    """Give fairseq's metrics the norms of W1 and W2 of each layer. ``norms``: as :func:`measure` returns them."""
    for stack, layer, matrix, norm in norms:
        if layer and matrix in PAPER_MATRICES:
            metrics.log_scalar(f"gnorm_{stack}_{layer}_{matrix}", norm, priority=2000, round=5)


def append_rows(path, update, norms):
    """Add the rows of one update to the table, in one write. ``norms``: as :func:`measure` returns them.

    Raises:
        SystemExit: the file cannot be written.

    """
    rows = "".join(
        f"{update}\t{stack}\t{layer}\t{matrix}\t{norm:.9g}\n"  # 9 digits hold a float32
        for stack, layer, matrix, norm in norms
    )
    try:
        with open(path, "ab") as file:
            file.write(rows.encode())
    except OSError as error:
        raise unwritable(path, error) from error


def keep_rows_until(path, num_updates):
    """Make the table hold its header and the rows of updates 1 to ``num_updates``.

    A run that goes on from update U makes the later ones again, and a killed one may have left half a line: both go.

    Raises:
        SystemExit: the file holds something else (it is left alone), or cannot be read or written.

    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        lines = []
        if os.path.exists(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.readlines()
        if lines and lines[0] != HEADER:
            raise foreign(path, lines[0])
        rows = [line for line in lines[1:] if line.endswith("\n")]
        kept = [row for row in rows if update_of(row, path) <= num_updates]
        if len(kept) < len(rows):
            logger.info("%s: dropped the %d rows after update %d", path, len(rows) - len(kept), num_updates)
        write_text(path, "".join([HEADER, *kept]))
    except OSError as error:
        raise unwritable(path, error) from error


def update_of(line, path):
    """The update number of a row; ``path`` is for the error."""
    update = line.split("\t")[0]
    if line.count("\t") != HEADER.count("\t") or not update.isdecimal():
        raise foreign(path, line)
    return int(update)


def foreign(path, line):
    """The error for a file with a line that is none of ours."""
    return SystemExit(
        f"{path} has a line that is no row of gradient norms ({line.strip()[:60]!r}); move the file away and start again"
    )


def unwritable(path, error):
    """The error for a file system that says no."""
    return SystemExit(
        f"cannot write {path} ({error.strerror}); make room or change its permissions, or train with --grad-norm-interval 0"
    )
