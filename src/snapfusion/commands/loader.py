"""What stands for a command until it is asked for."""

from collections.abc import Callable

from tyro.conf import UseAppendAction

Command = Callable[..., None]
Loader = Callable[[], Command]
"""Imports what a command needs and no more, and returns its function; its docstring is the command's line of help."""
Loras = UseAppendAction[tuple[str, ...]]
