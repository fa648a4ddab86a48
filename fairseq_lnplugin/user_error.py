"""The error of the commands of ``fairseq-ln``: what a user can put right."""


class UserError(Exception):
    """Something the user can put right: the message is one sentence, with what, where and what to do."""
