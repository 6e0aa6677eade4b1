"""The one class of refusals, so that a user's mistake is told from a fault of ours or numpy's."""

from __future__ import annotations


class RefusedError(ValueError):
    """Something that was asked for cannot be done; the message says what, and what to do instead.

    The command line shows such a message in one line. Every other ``ValueError`` is a fault of the
    library or of what it calls, and keeps its traceback.
    """
