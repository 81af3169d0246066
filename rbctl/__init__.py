"""Relation-aware personalised image generation: what two or more stages share."""

from pathlib import Path

__version__ = "0.1.0"

# In a source checkout ./rbctl shadows an installed wheel; the folders plugins/, kernels/ and recipes/ lie beside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout))
