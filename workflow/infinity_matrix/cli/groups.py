"""Groups of commands about one noun, which list what there is when nothing else is asked."""

from typing import Any

from typer.core import TyperGroup

LISTING = "ls"


class ListingGroup(TyperGroup):
    """`imx nouns` is `imx nouns ls`; its options may follow at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the listing where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [LISTING, *args]
        return super().parse_args(ctx, args)
