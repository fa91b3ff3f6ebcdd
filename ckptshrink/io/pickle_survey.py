"""What a pickle names and would call, found without believing that it is sound.

Unpicklers run each instruction before they see the next: a pickle that is cut short or makes no
sense after its payload has run its payload. So what was named before a fault counts too.
"""

import sys
from dataclasses import dataclass
from typing import Final, Literal

from ckptshrink.errors import CheckpointError
from ckptshrink.io.inert_pickle import run
from ckptshrink.io.pickle_machine import Machine
from ckptshrink.io.pickle_records import Made, Token, attributes, class_name

Kind = Literal["expected", "model class", "unexpected", "dangerous"]

_EXPECTED: Final = frozenset(
    """
    collections.OrderedDict collections.defaultdict collections.Counter collections.deque
    builtins.dict builtins.list builtins.tuple builtins.set builtins.frozenset builtins.int
    builtins.float builtins.complex builtins.bool builtins.str builtins.bytes builtins.bytearray
    builtins.slice builtins.range builtins.object
    copyreg._reconstructor copyreg.__newobj__ _codecs.encode argparse.Namespace
    datetime.datetime datetime.date datetime.timedelta datetime.timezone
    pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath
    torch._utils._rebuild_tensor torch._utils._rebuild_tensor_v2 torch._utils._rebuild_tensor_v3
    torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state
    torch._utils._rebuild_qtensor torch._utils._rebuild_sparse_tensor
    torch._utils._rebuild_device_tensor_from_numpy torch._utils._rebuild_meta_tensor_no_storage
    torch._utils._rebuild_nested_tensor torch._utils._rebuild_wrapper_subclass
    torch._tensor._rebuild_from_type_v2 torch.Tensor torch.nn.parameter.Parameter
    torch.nn.parameter.Buffer torch.nn.parameter.UninitializedParameter
    torch.Size torch.device torch.dtype torch.serialization._get_layout
    torch.storage.UntypedStorage torch.storage.TypedStorage torch.storage._TypedStorage
    torch.storage._UntypedStorage torch.UntypedStorage
    torch.nn.backends.thnn._get_thnn_function_backend torch._C._nn.gelu
    torch.nn.functional.relu torch.nn.functional.tanh torch.nn.functional.gelu
    numpy.ndarray numpy.dtype numpy.core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray._reconstruct numpy._core.multiarray.scalar
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.random._pickle.__randomstate_ctor numpy.random._pickle.__generator_ctor
    torch.jit._pickle.build_intlist torch.jit._pickle.build_tensorlist
    torch.jit._pickle.build_doublelist torch.jit._pickle.build_boollist
    torch.jit._pickle.build_tensor_from_id torch.jit._pickle.restore_type_tag
    fastcore.foundation.L
    """.split()  # noqa: SIM905
)
"""Names that torch.save and numpy write, none of which runs what it is given.

TorchScript's return what they are given, and fastai's list, in which an optimizer has its options,
keeps it.
"""

_DTYPES: Final = frozenset(
    """float float16 float32 float64 half double bfloat16 int int8 int16 int32 int64 uint8 uint16
    uint32 uint64 long short bool complex64 complex128 cfloat cdouble qint8 quint8 qint32
    per_tensor_affine per_channel_affine strided sparse_coo float8_e4m3fn float8_e5m2""".split()  # noqa: SIM905
)
_CLASS_FOLDERS: Final = ("torch.nn.modules.", "torch.optim.")

_DANGEROUS: Final = frozenset(
    """os posix nt subprocess sys runpy pty shutil socket ctypes code codeop timeit pdb bdb trace
    importlib imp pkgutil webbrowser multiprocessing asyncio pickle _pickle marshal shelve dill
    cloudpickle joblib types functools operator _operator builtins io _io commands popen2 site
    zipimport pip ensurepip venv setuptools distutils idlelib doctest cProfile profile pydoc
    lib2to3 ftplib smtplib http urllib urllib2 httplib requests aiohttp telnetlib xmlrpc
    antigravity signal threading _thread concurrent tempfile glob fileinput linecache tkinter
    unittest test sqlite3 ssl logging configparser inspect gc atexit weakref platform
    nturl2path posixpath compileall py_compile zipfile tarfile turtle sched readline rlcompleter
    paramiko fabric pexpect sh plumbum pandas keras tensorflow""".split()  # noqa: SIM905
)
_CONSTRUCTORS: Final = frozenset({"copyreg._reconstructor", "copyreg.__newobj__"})


@dataclass(frozen=True, slots=True)
class Survey:
    """What a pickle names.

    Attributes
    ----------
    names : dict of str to Kind
        Every global, by its dotted name, in the order in which they come.
    end : int
        Where it ends; where it was given up, if it has no proper end.
    fault : CheckpointError or None
        Why it was given up.
    calls : bool
        Whether anything would have been called by then.
    """

    names: dict[str, Kind]
    end: int
    fault: CheckpointError | None
    calls: bool


def survey(data: bytes, start: int = 0) -> Survey:
    r"""Return what the pickle at `start` names, up to its end or its first fault.

    Examples
    --------
    >>> survey(b"cposix\nsystem\n(S'ls'\ntR").names
    {'posix.system': 'dangerous'}
    """
    machine = Machine(data, start, None)
    tokens: list[Token] = []
    made: list[Made] = []
    machine.tokens, machine.made = tokens, made
    fault: CheckpointError | None = None
    try:
        run(machine)
    except CheckpointError as error:
        fault = error
    classes = _model_classes(made)
    names: dict[str, Kind] = {}
    if _binds_methods_only(made, classes):
        names["builtins.getattr"] = "expected"
    for token in tokens:
        names.setdefault(token.qualified, kind_of(token, token.qualified in classes))
    return Survey(names, machine.pos, fault, bool(made))


def kind_of(token: Token, is_model_class: bool = False) -> Kind:
    """Return what a name is in a checkpoint.

    Parameters
    ----------
    token : Token
    is_model_class : bool
        Whether nothing but modules are made of it, without arguments.
    """
    name = token.qualified
    module, _, last = name.rpartition(".")
    if name in _EXPECTED or (module == "torch" and last in _DTYPES):
        return "expected"
    # "module", "a.b" names an attribute of an attribute, which no checkpoint needs
    if "." not in token.name:
        if module in {"torch", "torch.cuda"} and last.endswith(("Storage", "Tensor")):
            return "expected"
        if name.startswith(_CLASS_FOLDERS) and last[:1].isupper():
            return "expected"
        if module == "numpy.dtypes" and last.endswith("DType"):
            return "expected"
    top = name.partition(".")[0]
    known = top in sys.stdlib_module_names or top in _DANGEROUS
    if known or top in {"torch", "numpy", "scipy", "nt", "posix"} or not top:
        return "dangerous"
    if is_model_class and "." not in token.name and last[:1].isupper():
        return "model class"
    return "unexpected"


def _model_classes(made: list[Made]) -> set[str]:
    """Return the names of which nothing but modules are made, and those with no arguments."""
    good: set[str] = set()
    bad: set[str] = set()
    for one in made:
        target = one.target
        if isinstance(target, Token) and target.qualified in _CONSTRUCTORS:
            has_arguments = False
        else:
            has_arguments = bool(one.args) or one.kwargs is not None
        name = class_name(one)
        state = {key for key, _ in attributes(one) or ()}
        is_module = {"_parameters", "_modules"} <= state and not has_arguments
        (good if is_module else bad).add(name)
    return good - bad


def _binds_methods_only(made: list[Made], classes: set[str]) -> bool:
    """Tell whether getattr makes nothing but bound methods of modules, which nothing calls.

    It is how pickle writes a bound method down, and an AWD-LSTM holds one in place of the LSTM's
    own ``flatten_parameters``.
    """
    calls = [one for one in made if class_name(one) == "builtins.getattr"]
    for one in calls:
        owner, name = one.args if len(one.args) == 2 else (None, None)
        if not isinstance(owner, Made) or not isinstance(name, str) or name.startswith("_"):
            return False
        if class_name(owner) not in classes and not class_name(owner).startswith(_CLASS_FOLDERS):
            return False
        if one.state is not None or one.items is not None or one.pairs is not None:
            return False
    bound = {id(one) for one in calls}
    return bool(calls) and not any(id(one.target) in bound for one in made)
