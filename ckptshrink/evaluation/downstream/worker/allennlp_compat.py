"""Import allennlp 2.10.1 and its task models, beside packages of its time or of today.

It was last released for torch 1.12. What of it runs BCN, ESIM and BiDAF over ELMo runs beside a
current torch as well, but it doesn't import there: at the top of its modules stand packages that
have dropped the names it asks for, and others that these models never call. While it is imported,
such packages are lenient stubs. Nothing in site-packages is changed, and after the import
`sys.modules` is as before: the rest of the process never meets a stub.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from pathlib import Path
from typing import Any, Final, Iterator, Sequence  # noqa: UP035 - Python 3.8 has no others

ALWAYS_STUBBED: Final = frozenset(
    {"cached_path", "fairscale", "huggingface_hub", "torchvision", "transformers", "wandb"}
)
"""Current versions lack names that allennlp imports, or are large, and none is called here."""

STUBBED_IF_MISSING: Final = (
    "base58", "conllu", "dill", "ftfy", "lmdb", "more_itertools", "rouge", "scipy", "sklearn",
    "spacy", "tensorboardX", "termcolor", "word2number",
)  # fmt: skip
"""Imported at the top of some module of allennlp, and used if they are there."""

MODULES: Final = (
    "allennlp.common", "allennlp.data", "allennlp.modules.elmo", "allennlp.models",
    "allennlp.training", "allennlp.evaluation", "allennlp.commands.train",
    "allennlp_models.classification", "allennlp_models.pair_classification", "allennlp_models.rc",
)  # fmt: skip
"""Importing them registers the readers and the models of the three tasks."""

_LAST_TORCH: Final = (1, 12)
"""Allennlp 2.10.1 asks for torch below 1.13; with such a one everything is of its time."""


def import_allennlp() -> tuple[str, ...]:
    """Import allennlp and the models of the tasks, once; return the packages that were stubbed.

    A second call does nothing and returns what the first did.

    Raises
    ------
    ImportError
        Allennlp, or a package that it can't run without, is not there.
    """
    if _done:
        return _done[0]
    # The real ones come first: torch looks for optional packages such as dill when it is imported,
    # and called a stub of it.
    torch = importlib.import_module("torch")
    for name in ("h5py", "numpy", "nltk.tree", "tqdm"):
        importlib.import_module(name)
    if _version(torch.__version__) > _LAST_TORCH:
        missing = [name for name in STUBBED_IF_MISSING if not _importable(name)]
        stubbed = ALWAYS_STUBBED.union(missing)
        with _stubs(stubbed):
            _import_modules()
        _take_verbose(torch)
    else:
        stubbed = frozenset()
        _import_modules()
        _keep_local()
    _done.append(tuple(sorted(stubbed)))
    return _done[0]


_done: list[tuple[str, ...]] = []


def _import_modules() -> None:
    for name in MODULES:
        importlib.import_module(name)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a package that is there and broken raises anything
        return False
    return True


# -- stubs ---------------------------------------------------------------------------------------


class _StubType(type):
    """Type of the stub classes: any attribute of one is another."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stub(name)


class _Stub(metaclass=_StubType):
    """Stands for whatever is imported from a stubbed package: a base class, a decorator, a name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError(
            f"{type(self).__name__} is of a package that allennlp is run without here"
        )


def _stub(name: str) -> Any:
    return _StubType(name, (_Stub,), {})


class _StubModule(types.ModuleType):
    """A module in which every name is there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _stub(name)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: frozenset[str]) -> None:
        self.roots = roots

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.roots:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module: Any = _StubModule(spec.name)
        module.__path__ = []
        module.__version__ = "0.0.0"
        if spec.name.partition(".")[0] == "cached_path":
            module.cached_path = local_path
            module.is_url_or_existing_file = _exists
            module.FileLock = _NoLock
        return module  # type: ignore[no-any-return]

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: every name is made when it is asked for."""


@contextlib.contextmanager
def _stubs(roots: frozenset[str]) -> Iterator[None]:
    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in roots]

    before = {name: sys.modules.pop(name) for name in ours()}
    finder = _Finder(roots)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


# -- what little of those packages is called -----------------------------------------------------


def local_path(url_or_filename: Any, *args: Any, **kwargs: Any) -> str:
    """Return the path of a local file; in place of `cached_path`, which would download others."""
    path = Path(url_or_filename).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{url_or_filename}: there is no such file here, and none is downloaded"
        )
    return str(path)


def _exists(path: Any) -> bool:
    return path is not None and Path(path).expanduser().exists()


class _NoLock(contextlib.AbstractContextManager):  # type: ignore[type-arg]
    """In place of the lock on a vocabulary's folder: no other process has this one's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __exit__(self, *args: Any) -> None:
        pass

    def acquire(self, *args: Any, **kwargs: Any) -> _NoLock:
        return self

    def release(self, *args: Any, **kwargs: Any) -> None:
        pass


def _keep_local() -> None:
    """Have the real `cached_path` refuse what it would download."""
    package: Any = importlib.import_module("cached_path")
    real = package.cached_path

    def local_only(url_or_filename: Any, *args: Any, **kwargs: Any) -> Any:
        if "://" in str(url_or_filename):
            local_path(url_or_filename)
        return real(url_or_filename, *args, **kwargs)

    package.cached_path = local_only


def _take_verbose(torch: Any) -> None:
    """Let allennlp pass `verbose` to a scheduler that no longer takes it; only training does."""
    schedulers = torch.optim.lr_scheduler
    if "verbose" in inspect.signature(schedulers.ReduceLROnPlateau).parameters:
        return

    def reduce_on_plateau(*args: Any, verbose: bool = False, **kwargs: Any) -> Any:
        return schedulers.ReduceLROnPlateau(*args, **kwargs)

    taken = types.SimpleNamespace(
        StepLR=schedulers.StepLR,
        MultiStepLR=schedulers.MultiStepLR,
        ExponentialLR=schedulers.ExponentialLR,
        ReduceLROnPlateau=reduce_on_plateau,
    )
    module: Any = importlib.import_module(
        "allennlp.training.learning_rate_schedulers.pytorch_lr_schedulers"
    )
    module.torch = types.SimpleNamespace(optim=types.SimpleNamespace(lr_scheduler=taken))
