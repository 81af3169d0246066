"""Import diffusers, transformers and their like without what they import besides and rbctl never runs.

They import whatever lies in the environment: xformers, peft, scipy, torch's compiler. That takes longer than a picture
of `mini`. Inside ``deferred`` these come as stand-ins, which import the real thing when it is used. It is for a process
of our own, a command: in a user's program, a notebook, libraries are what they are.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.machinery
import sys
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

DEFERRED = (
    "peft",
    "scipy",
    "sklearn",
    "timm",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "xformers",
)
# They tell torch.compile to leave a function alone; rbctl compiles none of those that they stand on.
_DECORATORS = tuple(f"torch._dynamo.{name}" for name in ("allow_in_graph", "assume_constant_result", "disable"))


class _Name:
    """What ``from MODULE import NAME`` gives: a class or function of a module that is not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        _withdraw(root for root in DEFERRED if _within(self._module, root))
        return getattr(importlib.import_module(self._module), self._name)

    def _imported(self) -> bool:
        """Whether there can be an object of this class at all."""
        return not isinstance(sys.modules.get(self._module), (_Module, type(None)))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if f"{self._module}.{self._name}" in _DECORATORS and not self._imported():
            decorated = arguments[0] if arguments else None
            return decorated if callable(decorated) else lambda function: function
        return self._real()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __mro_entries__(self, bases: Sequence[Any]) -> tuple[Any, ...]:
        return (self._real(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self._imported() and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: Any) -> bool:
        return self._imported() and issubclass(subclass, self._real())

    def __or__(self, other: Any) -> Any:
        return Any  # in an annotation

    __ror__ = __or__


class _Module(types.ModuleType):
    """Stands in for a module; its names are ``_Name``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(self.__name__, name)


class _Finder:
    """A finder of ``sys.meta_path``: stand-ins for ``roots`` that are installed, and for their submodules."""

    def __init__(self, roots: Sequence[str]) -> None:
        self.roots = [root for root in roots if root not in sys.modules]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not any(_within(name, root) for root in self.roots):
            return None
        if name in self.roots and importlib.machinery.PathFinder.find_spec(name, path) is None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _within(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def _withdraw(roots: Iterable[str]) -> None:
    """Take stand-ins back: who imports these modules from now on gets the real ones."""
    for root in roots:
        for finder in sys.meta_path:
            if isinstance(finder, _Finder):
                finder.roots = [other for other in finder.roots if other != root]
        for name in [name for name, module in sys.modules.items() if _within(name, root)]:
            if not isinstance(module := sys.modules[name], _Module):
                continue
            del sys.modules[name]
            parent = sys.modules.get(name.rpartition(".")[0])
            if parent and vars(parent).get(name.rpartition(".")[2]) is module:
                delattr(parent, name.rpartition(".")[2])


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Import foreign libraries in this block: ``DEFERRED`` wait until they are used, and nothing is printed."""
    finder, thresholds = _Finder(DEFERRED), gc.get_threshold()
    gc.set_threshold(100_000, *thresholds[1:])  # what imports make stays: to look for garbage among it takes time
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _withdraw(DEFERRED)
        sys.meta_path.remove(finder)
        gc.set_threshold(*thresholds)


@atexit.register
def _leave() -> None:
    """Spare the search for garbage that ends every Python process; libraries as triton's tell of leaks without it."""
    if "triton" not in sys.modules:
        gc.freeze()
