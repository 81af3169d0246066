"""What may differ between a run that was killed and one that was not; docs/formats.md shows the same list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """A difference that is no fault.

    Attributes:
        files: pattern of their paths below the folder that the command ran in.
        fields: of JSON, anywhere in it, or of a safetensors file's metadata; none: the whole file.
        reason: why it may differ.
    """

    files: str
    fields: tuple[str, ...]
    reason: str


DOCUMENTED: Sequence[Difference] = (
    Difference(
        "*metrics.jsonl", ("seconds", "images_per_second", "samples_per_second"), "how long a step took, on a clock"
    ),
    Difference("*gates*.json", ("date", "seconds"), "when a section was measured, and how long its LoRAs took"),
    Difference("*made.json", ("seconds",), "how long a stage took, on a clock"),
    Difference("*log.txt", (), "what a stage printed, with how fast it was"),
    Difference(
        "*features/*.partial", (), "a kill leaves one; evaluations share the folder, and a later one removes it"
    ),
    Difference("*responses/*.json", (), "an answer whose picture a kill lost is asked for and paid again"),
)
