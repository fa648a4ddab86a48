"""The file of measurements of ``fairseq-ln gradients``, measurements.jsonl: one line of JSON for each model and seed.

A line holds ``shared``, the settings that all lines of a file have in common; ``unit``, what tells it from the others; the
results of :func:`~fairseq_lnplugin.analysis.expected_gradient.measure`; ``seconds`` and ``measured_with``. Several commands may
read and add lines at once.
"""

import errno
import fcntl
import json
import os

from fairseq_lnplugin.user_error import UserError

FILE_NAME = "measurements.jsonl"
#: Of each of its lines.
BEGINNING = b'{"shared":'


def load(path, shared):
    """The records in ``path``; makes its folder, and cuts off a line that a kill left unfinished.

    Raises:
        UserError: it holds something else, or measurements with other settings than ``shared``.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return []
        with open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, no other command reads or writes it
            lines = file.read().split(b"\n")
            records = [parsed(line, number, path, shared) for number, line in enumerate(lines[:-1], 1)]
            if lines[-1] and not lines[-1].startswith(BEGINNING[: len(lines[-1])]):
                raise foreign(path, len(lines))
            file.truncate(file.tell() - len(lines[-1]))
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}); give another --out") from None
    return records


def parsed(line, number, path, shared):
    """The record in a line of ``path``; errors as :func:`load`."""
    try:
        record = json.loads(line)
        there = record["shared"]
        _ = record["unit"], record["matrices"], record["hidden"]
    except (ValueError, KeyError, TypeError):
        raise foreign(path, number) from None
    for name, value in shared.items():
        if there.get(name) != value:
            raise UserError(
                f"{path.parent} holds measurements with {name.replace('_', '-')} {there.get(name)}, and now it is {value}; "
                "give another --out"
            )
    return record


def foreign(path, number):
    """The error for a line that is none of ours."""
    return UserError(f"line {number} of {path} is no measurement; move the file away and start again")


def append(path, record):
    """Add one record to ``path``, in one write.

    Raises:
        UserError: it cannot be written; the file is then as it was.

    """
    line = (json.dumps(record) + "\n").encode()
    try:
        with open(path, "ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):  # a disk may take a part of it
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room and start again to go on") from None
