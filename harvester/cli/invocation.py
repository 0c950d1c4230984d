"""What every command shares: the configuration, found and read when first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from harvester.config.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])


class Invocation:
    """The chosen configuration file and its settings."""

    def __init__(self) -> None:
        self.config: Path | None = None

    @functools.cached_property
    def config_path(self) -> Path | None:
        """The configuration file that is used, None when none was found."""
        from harvester.config.load import find_config

        return find_config(self.config)

    @functools.cached_property
    def settings(self) -> Settings:
        """The configuration; ``ConfigurationError`` names everything wrong with it."""
        from harvester.config.load import load

        return load(self.config_path)

    def configure_logs(self, level: str | None = None) -> None:
        """Set logging up as configured; ``level`` overrides."""
        from harvester import logs

        logs.configure(level or self.settings.log.level, self.settings.log.format)


def pass_invocation(function: F) -> F:
    """Give a command the shared context and ``--config``, before or after the command's name."""

    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Configuration file; else $HARVESTER_CONFIG, ./config.toml, "
        "/etc/harvester/config.toml.",
    )
    @click.pass_context
    @functools.wraps(function)
    def with_context(click_context: click.Context, /, *args: Any, **options: Any) -> Any:
        invocation = click_context.ensure_object(Invocation)
        config = options.pop("config")
        if config is not None:
            invocation.config = config
        return function(invocation, *args, **options)

    return cast("F", with_context)  # click hands the context in, so the signature differs


def command(name: str, short_help: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command that takes the shared context first.

    ``short_help`` is its line in the list of commands, which has room for some 50 characters.
    """

    def decorate(function: Callable[..., None]) -> click.Command:
        return click.command(name, short_help=short_help)(pass_invocation(function))

    return decorate
