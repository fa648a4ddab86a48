"""Read a fairseq checkpoint, or say in one sentence why it cannot be read."""

import os
import pickle

from fairseq import checkpoint_utils

from fairseq_lnplugin.user_error import UserError


def read_checkpoint(path):
    """A checkpoint as fairseq-generate reads it, on the CPU.

    Raises:
        UserError: there is no such file, or fairseq cannot read it.

    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
        if state["cfg"].model is None or not state["model"]:
            raise ValueError("no model in it")
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        if isinstance(error, pickle.UnpicklingError):  # torch's text is a page on weights_only
            reason = "not a checkpoint, or one damaged or made by other programs"
        raise UserError(f"{path} cannot be read as a fairseq checkpoint ({type(error).__name__}: {reason})") from None
    return state
