"""Options of ``rbctl ui``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from rbctl.defaults import BUNDLE
from rbctl.options import option


@dataclass(frozen=True, kw_only=True)
class UiConfig:
    """Where the page is served, and on what it works."""

    work: Path = option(Path("."), "Folder that the page reads and writes; nothing outside of it.", group="Page")
    bundle: str = option(BUNDLE, "Base model: a name of 'rbctl models list', or a folder.")
    host: str = option("127.0.0.1", "Address to listen on. Beyond this machine, the page demands a token.")
    port: int = option(7860, "Port to listen on.", min=1, max=65_535)
    share: bool = option(False, "Also reach the page through a public link of gradio's servers, with a token.")
    open: bool = option(True, "Open the page in the browser.")

    @property
    def on_loopback(self) -> bool:
        """Whether this machine alone reaches the page."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
