"""Relation-aware personalised image generation: what two or more stages share."""

from pathlib import Path

TYPE_CHECKING = False  # as of typing, whose import takes as long as all else here
if TYPE_CHECKING:
    from rbctl.pipeline import RelationPipeline

__version__ = "0.2.0"
__all__ = ["RelationPipeline", "__version__"]

# In a source checkout ./rbctl shadows an installed wheel; the folders plugins/, kernels/ and recipes/ lie beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> object:
    """The public Python API, imported when it is asked for: torch and diffusers take seconds."""
    if name == "RelationPipeline":
        import logging

        # diffusers imports xformers, which warns of C++ operators that we do not use.
        logging.getLogger("xformers").setLevel(logging.ERROR)
        from rbctl.pipeline import RelationPipeline

        return RelationPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
