"""What fairseq needs on today's Python and torch. Each workaround has its reason and says when it may go."""

import argparse
import functools
import importlib.metadata
import logging
import warnings

logger = logging.getLogger(__name__)

#: fairseq prints these at every start; none is about anything a user can change.
HOST_WARNINGS = (
    (UserWarning, "hydra|omegaconf", ""),
    (UserWarning, "", r"(?s).*hydra"),
    (UserWarning, "", r".*pin_memory.*"),
    (UserWarning, "", r".*mismatched key_padding_mask and attn_mask.*"),
    (UserWarning, "", r"(?s).*lr_scheduler\.step.*"),
    (FutureWarning, "", r".*torch\.cuda\.amp.*"),
)


#: Our classes and fairseq's whose saved states are one, by name.
SAME_STATE = {"FairseqFusedAdam": "FairseqAdam", "FusedLabelSmoothedCrossEntropy": "LabelSmoothedCrossEntropyCriterion"}

#: What this process has been warned of, so that it is so once.
warned = set()


class FairseqMissingError(ImportError):
    """No usable fairseq in this environment."""


def apply():
    """Apply every workaround of this file; called once, before any other module of the package.

    Raises:
        FairseqMissingError: fairseq is not installed, or is one that cannot be imported on this Python.

    """
    for category, module, message in HOST_WARNINGS:
        warnings.filterwarnings("ignore", category=category, module=module, message=message)
    require_fairseq()
    allow_namespace_in_checkpoints()
    name_missing_dictionaries()
    tell_of_sentences_left_out()
    let_equal_states_go_on()
    keep_nan_detector_alive()


def require_fairseq():
    """Import fairseq, or say in one sentence what to install."""
    try:
        import fairseq.models  # noqa: F401
    except Exception as error:  # Python 3.11+ with fairseq 0.12.2 ends in a ValueError, not in an ImportError
        raise FairseqMissingError(
            f"fairseq cannot be imported here ({type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}); "
            "install fairseq-fixed==0.12.3.1 as recipes/environment.sh does"
        ) from error


def fairseq_distributions():
    """Names and versions of the installed distributions that provide the module ``fairseq``, sorted."""
    names = importlib.metadata.packages_distributions().get("fairseq", [])
    return sorted({f"{name} {importlib.metadata.version(name)}" for name in names})


def allow_namespace_in_checkpoints():
    """Let ``torch.load`` read the ``argparse.Namespace`` in a fairseq checkpoint.

    torch >= 2.6 loads with ``weights_only=True`` and fairseq 0.12 does not ask otherwise, so that every resume and
    every fairseq-generate would fail. It may go when fairseq stores plain dictionaries.
    """
    import torch

    torch.serialization.add_safe_globals([argparse.Namespace])


def name_missing_dictionaries():
    """Let fairseq's tasks say in a sentence that a folder is no binarized data; they end in a traceback.

    It may go when fairseq says so itself.
    """
    from fairseq.tasks.masked_lm import MaskedLMTask
    from fairseq.tasks.sentence_prediction import SentencePredictionTask
    from fairseq.tasks.translation import TranslationTask

    for task, dictionaries in (
        (TranslationTask, "dict.LANG.txt of both languages"),
        (MaskedLMTask, "dict.txt"),
        (SentencePredictionTask, "input0/dict.txt and label/dict.txt"),
    ):
        task.setup_task = classmethod(naming_missing(dictionaries, task.setup_task.__func__))


def naming_missing(dictionaries, original):
    """A task's ``setup_task`` that names what a data folder has to hold; ``original``: fairseq's."""

    @functools.wraps(original)
    def setup_task(cls, cfg, **kwargs):
        try:
            return original(cls, cfg, **kwargs)
        except Exception as error:
            # a missing folder or dictionary, and fairseq's bare Exception where no file tells the language pair
            if isinstance(error, FileNotFoundError) or type(error) is Exception:
                reason = f"no {error.filename}" if getattr(error, "filename", None) else str(error)
                raise SystemExit(
                    f"{cfg.data} is not a folder that fairseq-preprocess wrote ({reason}); "
                    f"give its --destdir, which holds {dictionaries}"
                ) from None
            raise

    return setup_task


def tell_of_sentences_left_out():
    """Warn, once, when fairseq leaves out the last batch because of its size; it does so without a word.

    It may go when fairseq keeps that batch.
    """
    import numpy
    from fairseq.data import data_utils

    original = data_utils.batch_by_size

    @functools.wraps(original)
    def batch_by_size(indices, *args, **kwargs):
        if not isinstance(indices, numpy.ndarray):  # any iterable, as in fairseq, which would use it up
            indices = numpy.fromiter(indices, dtype=numpy.int64)
        batches = original(indices, *args, **kwargs)
        missing = len(indices) - sum(map(len, batches))
        if missing and "left out" not in warned:
            warned.add("left out")
            logger.warning(
                "fairseq leaves out %d of %d sentences: its last batch, where the size of that is no multiple of "
                "--required-batch-size-multiple, in training, validation and decoding alike; give 1 to lose no sentence",
                missing,
                len(indices),
            )
        return batches

    data_utils.batch_by_size = batch_by_size


def let_equal_states_go_on():
    """Let a run that began with adam go on with fused_adam and the other way round; so too the label smoothed criteria.

    fairseq compares names of classes before it loads an optimizer's state. It may go when it compares states.
    """
    from fairseq.trainer import Trainer

    original = Trainer._build_optimizer

    @functools.wraps(original)
    def _build_optimizer(self):
        original(self)
        if self._optim_history:  # of the checkpoint that is being loaded; the names are compared next
            last = self._optim_history[-1]
            for name, now in (("optimizer_name", self.optimizer), ("criterion_name", self.get_criterion())):
                ours = type(now).__name__
                if SAME_STATE.get(ours, ours) == SAME_STATE.get(last[name], last[name]):
                    last[name] = ours

    Trainer._build_optimizer = _build_optimizer


def keep_nan_detector_alive():
    """Let fairseq's detector, which runs after a NaN gradient, survive its own transformer.

    torch's backward hooks cannot read the encoder's output, a dictionary of lists: the run would end in StopIteration
    instead of "gradients are Nan/Inf". Modules without children have no such output. It may go when fairseq's detector
    uses full backward hooks.
    """
    from fairseq.nan_detector import NanDetector

    original = NanDetector.add_hooks

    @functools.wraps(original)
    def add_hooks(self, module):
        backward, self.backward = self.backward, self.backward and not any(module.children())
        original(self, module)
        self.backward = backward

    NanDetector.add_hooks = add_hooks


def without_tpu(args):
    """Undo fairseq's ``--bf16`` => TPU: its option parser asks for torch_xla whenever bf16 is set, on CPU and GPU too.

    ``args``: the parsed command line (argparse.Namespace), changed in place. May go when fairseq stops doing so.
    """
    if getattr(args, "bf16", False) and getattr(args, "tpu", False):
        try:
            import torch_xla  # noqa: F401
        except ImportError:
            args.tpu = False
