"""A command that has commands below it as well, as `emask bench` and `emask bench report`."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperGroup


class CommandGroup(TyperGroup):
    """A group whose callback is a command of its own, with required options, where no sub-command is named.

    Typer would ask for the callback's required options before each sub-command, and run the callback then too. Here the
    first word decides: a sub-command's name (or what may be a misspelt one) makes this a group like any other,
    anything else the command.
    """

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """As Typer's; the context's command is a copy without options and callback when `args` begin with a word."""
        if args and not args[0].startswith("-") and self.callback is not None:
            plain = copy.copy(self)
            plain.params, plain.callback = [], None
            return plain.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The sub-command that `args` begin with; a usage error of Typer's where the command's options stand before."""
        if self.callback is not None and not ctx.resilient_parsing:  # completion asks with half a line
            where = f"; it is a command of its own: {ctx.command_path} {args[0]}" if args[0] in self.commands else ""
            ctx.fail(f"Got unexpected argument {args[0]!r}{where}")
        return super().resolve_command(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Options or a sub-command, not both."""
        return ["[OPTIONS] | COMMAND [ARGS]..."]
