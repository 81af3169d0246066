"""The group ``rbctl``. It knows no stage by name: stages come from the entry-point group ``rbctl.plugins``."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import IO, Any

import click

from rbctl import __version__
from rbctl.errors import NO_ROOM, InputError, abridged, nearest, shortened
from rbctl.options import Number
from rbctl.processes import first_to_tell

GROUP = "rbctl.plugins"


class _Shown(click.ClickException):
    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        if first_to_tell(f"Error: {self.message}"):
            super().show(file)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """An error that the user can mend becomes one line on stderr and exit code 2, without Click's usage block."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # shows the help
    except click.UsageError as error:
        raise _Shown(_printable(shortened(" ".join(error.format_message().split())))) from error
    except InputError as error:
        raise _Shown(_printable(str(error))) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise _Shown(f"{abridged(error.filename)}: the name is too long for a file; give a shorter one") from error


def _printable(text: str) -> str:
    """Without control codes for the terminal and halves of characters, which text from data may hold."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# Options that a stage may have, and what they are for when the memory is used up.
_SAVES_MEMORY = {
    "batch_size": "lower --batch-size",
    "micro_batch_size": "lower --micro-batch-size",
    "gradient_checkpointing": "take --gradient-checkpointing",
    "zero_stage": "raise --zero-stage",
    "offload": "take --offload cpu",
    "lowvram": "take --lowvram",
    "resolution": "lower --resolution",
    "image_size": "lower --image-size",
    "width": "make smaller pictures (--width, --height)",
    "estimate": "ask --estimate what it needs",
}
_ON_A_GPU_ALONE = {"lowvram"}
_NO_MEMORY = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")  # torch's words on the CPU


def _full(error: Exception) -> str | None:
    """What is used up by this error of Python or torch: a memory or the disk; None for any other error."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for that
        return "the device's memory"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "the machine's memory"
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY):
        return "the machine's memory"
    return "the disk" if getattr(error, "errno", None) in NO_ROOM else None


@functools.cache  # a look through all installed packages takes 12 ms, and the help asks once for each stage
def stages() -> dict[str, list[EntryPoint]]:
    """All installed stages by name; more than one entry point under a name is a conflict."""
    by_name: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        by_name.setdefault(entry.name, []).append(entry)
    return by_name


def load_stage(name: str, offered: list[EntryPoint]) -> click.Command:
    """Import one stage's command.

    Raises:
        InputError: two distributions offer the name, or the import fails; both are named.
    """
    if len({entry.value for entry in offered}) > 1:
        who = " and ".join(f"{e.dist.name if e.dist else '?'} ({e.value})" for e in offered)
        raise InputError(f"stage {name!r} is offered twice, by {who}; uninstall one of them")
    try:
        command = offered[0].load()
    except (Exception, SystemExit) as error:  # a third party's import may fail in any way; the others must go on
        distribution = offered[0].dist.name if offered[0].dist else offered[0].value
        raise InputError(f"stage {name!r} from {distribution} does not load: {error!r}") from error
    if not isinstance(command, click.Command):
        raise InputError(f"stage {name!r}: {offered[0].value} is not a Click command")
    return command


class Stages(click.Group):
    """A Click group whose commands are entry points, imported only when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *stages()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        offered = stages().get(cmd_name, [])
        if command or not offered:
            return command
        try:
            return load_stage(cmd_name, offered)
        except InputError:
            if ctx.resilient_parsing:  # shell completion
                return None
            raise

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not ctx.resilient_parsing and args[0] not in self.list_commands(ctx):
            raise InputError(f"no stage {abridged(args[0])}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            try:
                command = self.get_command(ctx, name)
                rows.append((name, command.get_short_help_str(90) if command else ""))
            except InputError as error:
                rows.append((name, f"(unusable) {error}"))
        with formatter.section("Stages"):
            formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _in_one_line():
                return super().invoke(ctx)
        except (RuntimeError, MemoryError, OSError) as error:
            full = _full(error)
            if full is None:
                raise
            if full == "the disk":  # what rbctl.files does not write itself
                where = getattr(error, "filename", None) or full
                raise _Shown(f"{where}: no space left on the disk; free some and run the same command again") from error
            stage: Any = self.get_command(ctx, ctx.invoked_subcommand or "")
            options = {parameter.name for parameter in stage.params} if stage else set()
            options -= _ON_A_GPU_ALONE if full == "the machine's memory" else set()
            mends = [mend for name, mend in _SAVES_MEMORY.items() if name in options]
            raise _Shown(f"{full} is used up; {', '.join(mends) or 'take one with more'}") from error
        except KeyboardInterrupt:
            click.echo("interrupted; the same command again goes on from what was saved", err=True)
            ctx.exit(130)


@click.group(cls=Stages, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="rbctl")
# deepspeed's launcher adds it.
@click.option("--local_rank", type=click.IntRange(-1, 65_535), hidden=True, expose_value=False)
def main() -> None:
    """Relation-aware personalised image generation.

    From pictures of two things of yours, it makes a new picture of both in a given relation.

    \b
      rbctl finetune --relation hug --data triplets/hug
      rbctl sample prompts.txt

    Completion: eval "$(_RBCTL_COMPLETE=bash_source rbctl)" (zsh_source, fish_source likewise).
    """
    # diffusers imports xformers, which warns of C++ operators that we do not use.
    logging.getLogger("xformers").setLevel(logging.ERROR)


@main.command()
@click.option("--rehearse", is_flag=True, help="Run the whole road with random weights of full size; see above.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="runs/rehearsal",
    show_default=True,
    help="Folder of the rehearsal's files.",
)
@click.option("--keep", is_flag=True, help="Leave the rehearsal's random weights in --folder for the next one.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to rehearse."
)
@click.option(
    "--plan",
    "cards",
    type=Number(float, 1, 1000),
    multiple=True,
    metavar="GB",
    help="Print which flags fit a base into a GPU of so many GB; may be given several times.",
)
@click.option(
    "--base",
    type=click.Choice(["sdxl", "flux2-klein-4b", "flux2-klein-9b", "qwen-image-edit"]),
    default="sdxl",
    show_default=True,
    help="Base of the --plan.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
def doctor(
    rehearse: bool, folder: Path, keep: bool, device: str, cards: tuple[float, ...], base: str, as_json: bool
) -> None:
    """Show versions, devices, attention backends with why each is or is not usable, bundles and stages.

    --rehearse shows what SDXL needs here, before anything is downloaded. It writes a bundle of random weights (16 GB),
    runs 'rbctl finetune' for two steps at 256 pixels in bf16 and 'rbctl sample' for two steps with its LoRA, and prints
    seconds and the most memory of each part.

    --plan counts what the networks hold for 'rbctl sample' and 'rbctl finetune', from their shapes alone. It takes half
    a minute, needs no GPU and loads nothing.
    """
    import json

    if cards:
        from rbctl import memory_plan

        title, memory = memory_plan.of_base(base)
        plans = memory_plan.fitting(memory, cards)
        if as_json:
            click.echo(json.dumps([vars(plan) for plan in plans], indent=2))
        else:
            memory_plan.print_plans(title, plans)
        return
    if base != "sdxl":
        raise click.UsageError("--base: is of the plan; give --plan GB too")

    if rehearse:
        from rbctl import rehearsal
        from rbctl.bundle.random_weights import full_size

        def show(*row: Any) -> None:
            click.echo(rehearsal.line(*row), err=as_json)

        click.echo(rehearsal.HEADER, err=as_json)
        content = rehearsal.rehearse(full_size(), 256, folder, device, keep, show)
        click.echo(json.dumps(content, indent=2) if as_json else rehearsal.summary(content))
        return
    from rbctl.doctor import examine, print_report

    report = examine(stages())
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        print_report(report)
