"""What fairseq needs on today's Python and torch. Each workaround has its reason and says when it may go."""

import argparse
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


class FairseqMissingError(ImportError):
    """No usable fairseq in this environment."""


def apply():
    """Make fairseq importable and its checkpoints loadable; called once, before any other module of the package.

    Raises:
        FairseqMissingError: fairseq is not installed, or is one that cannot be imported on this Python.

    """
    for category, module, message in HOST_WARNINGS:
        warnings.filterwarnings("ignore", category=category, module=module, message=message)
    require_fairseq()
    allow_namespace_in_checkpoints()


def require_fairseq():
    """Import fairseq, or say in one sentence what to install."""
    try:
        import fairseq.models  # noqa: F401
    except Exception as error:  # Python 3.11+ with fairseq 0.12.2 ends in a ValueError, not in an ImportError
        raise FairseqMissingError(
            f"fairseq cannot be imported here ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "install fairseq-fixed==0.12.3.1 as recipes/environment.sh does"
        ) from error


def fairseq_distributions():
    """Names and versions of the installed distributions that provide the module ``fairseq``, sorted."""
    names = importlib.metadata.packages_distributions().get("fairseq", [])
    return sorted({f"{name} {importlib.metadata.version(name)}" for name in names})


def allow_namespace_in_checkpoints():
    """Let ``torch.load`` read the ``argparse.Namespace`` in a fairseq checkpoint.

    torch >= 2.6 loads with ``weights_only=True`` and fairseq 0.12 does not ask otherwise, so that every resume and every
    fairseq-generate would fail. It may go when fairseq stores plain dictionaries.
    """
    import torch

    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])


def without_tpu(args):
    """Undo fairseq's ``--bf16`` => TPU: its option parser asks for torch_xla whenever bf16 is set, on CPU and GPU too.

    ``args``: the parsed command line (argparse.Namespace), changed in place. May go when fairseq stops doing so.
    """
    if getattr(args, "bf16", False) and getattr(args, "tpu", False):
        try:
            import torch_xla  # noqa: F401
        except ImportError:
            args.tpu = False
