"""Programs that the benchmarks start: fairseq's commands, timed from outside, with the peak of their memory.

The benchmarks that start processes import neither torch nor fairseq, so that what is measured is the started process and
nothing else (a child's peak memory would begin at that of a large parent).
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = Path(sys.argv[0]).name

#: The line of a traceback that tells; what follows it may be many lines more.
EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Exit)\b")


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def environment(threads, **more):
    """Variables of a started process: this one's, ``threads`` threads, our checkout first, and ``more``."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **counts, "PYTHONPATH": path, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", **more}


def end_in_order():
    """Let a SIGTERM unwind the stack, so that started processes and temporary folders go with the benchmark."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def say(text):
    """Progress, on stderr."""
    print(time.strftime("%H:%M:%S"), f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def failure(sentence):
    """The exception that ends the benchmark with this sentence and exit status 1."""
    return SystemExit(f"{PROGRAM}: {sentence}")


class Process:
    """A started program; as a context manager, it does not outlive the block.

    ``command``: a list of texts. ``variables``: its whole environment. ``log``: an open file for its output, stdout and
    stderr together; without one the output is read through :meth:`lines`.

    After :meth:`wait`: ``status``, the exit status, and ``peak_gib``, the most memory (GiB, resident) that it had, or
    one of the processes that it started and waited for (fairseq's loader of data), whichever had more.
    """

    def __init__(self, command, variables, log=None):
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=variables,
            encoding="utf-8",
            errors="replace",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.popen.returncode is None:  # the benchmark stops, or was interrupted
            self.popen.kill()
            self.popen.wait()
        if self.popen.stdout:
            self.popen.stdout.close()

    def lines(self):
        """Its output as ``(seconds, line)``: when it was read, on the clock of ``time.perf_counter``, and the text."""
        for line in self.popen.stdout:
            yield time.perf_counter(), line

    def wait(self):
        """Wait for its end; returns itself."""
        _, status, usage = os.wait4(self.popen.pid, 0)
        self.status = self.popen.returncode = os.waitstatus_to_exitcode(status)
        self.peak_gib = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
        return self


def reason(log):
    """Why a program failed: the last exception in its output, else the last line. ``log``: all of it, a text."""
    lines = [line for line in log.splitlines() if line.strip()]
    exceptions = [line for line in lines if EXCEPTION.match(line)]
    return ((exceptions or lines)[-1:] or ["it printed nothing"])[0].strip()[:200]
