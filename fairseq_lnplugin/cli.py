"""The command ``fairseq-ln``: one table of commands, each a module with ``add_arguments(parser)`` and ``run(args)``.

Only the module of the command that was asked for is imported. ``run`` returns the exit status (None is 0) and raises
``SystemExit("fairseq-ln COMMAND: sentence")`` on what a user can put right.
"""

import argparse
import importlib
import os
import re
import sys

#: Command -> module and its one line of help, which stands here so that ``fairseq-ln --help`` imports none of them.
COMMANDS = {
    "report": ("fairseq_lnplugin.study.report", "tables and figures of a study's run folders"),
    "score": ("fairseq_lnplugin.study.score", "BLEU of translations, as a row of a run's scores.tsv"),
    "average": ("fairseq_lnplugin.study.average", "average the parameters of several checkpoints into one"),
    "environment": ("fairseq_lnplugin.study.environment", "code, versions and device of this machine, as JSON"),
    "gradients": ("fairseq_lnplugin.analysis.expected_gradient", "expected gradients by layer and depth (figure 3)"),
    "theory": ("fairseq_lnplugin.analysis.theory_report", "checks of the lemmas, theorem 1 and appendix F"),
    "map": ("fairseq_lnplugin.analysis.norm_map", "where every layer normalization of a model sits"),
}


def main(argv=None):
    """Run one command and return its exit status.

    ``argv``: what follows ``fairseq-ln`` on the command line; default: this process's.

    Raises:
        SystemExit: after --help (0), on an unknown command or flag (2), or with the command's own sentence (1).

    """
    try:
        try:
            return run(sys.argv[1:] if argv is None else argv) or 0
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit fails again
        return 141
    except KeyboardInterrupt:
        return 130


def run(argv):
    """Import the command's module, parse ``argv`` with its flags and run it; returns what it returns."""
    parser = argparse.ArgumentParser(
        prog="fairseq-ln", description="Study of Pre-LN and Post-LN Transformers in fairseq.", allow_abbrev=False
    )
    parsers = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((argument for argument in argv if not argument.startswith("-")), None)
    for name, (path, line) in COMMANDS.items():
        command = parsers.add_parser(name, help=line, allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(path)
            command.description = module.__doc__
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            command.set_defaults(run=module.run)
            module.add_arguments(command)
    args = parser.parse_args(argv)
    return args.run(args)


def whole_number(least):
    """The type of a flag that takes a whole number from ``least`` on, for argparse."""

    def parse(text):
        if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return parse


if __name__ == "__main__":
    sys.exit(main())
