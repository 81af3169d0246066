"""rbctl called within this process, and what a refusal looks like."""

from __future__ import annotations

from click.testing import CliRunner, Result

from rbctl.cli import main


def call(*arguments: object) -> Result:
    """``rbctl ARGUMENTS``."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(result: Result, *words: str) -> str:
    """The error of a call that was refused: exit code 2, no traceback, few lines, and each of the words among them."""
    assert result.exit_code == 2, (result.output[:500], result.exception)
    assert isinstance(result.exception, SystemExit)
    assert len(result.output) < 1000
    for word in words:
        assert word in result.output
    return result.stderr
