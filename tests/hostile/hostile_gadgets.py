"""Pickles that would run code, and the tricks by which they hide from scanners, one a kind."""

import base64
import bz2
import gzip
import io
import lzma
import pickle
import struct
import zipfile
import zlib

import numpy as np
from hostile.test_torch_hostile import archive, legacy_file, tensor, text, zip_file

GLOBALS = tuple(
    tuple(line.rsplit(".", 1))
    for line in """
os.system posix.system nt.system os.execv os.popen subprocess.Popen subprocess.check_output
builtins.eval builtins.exec builtins.compile builtins.open builtins.__import__ builtins.getattr
builtins.map builtins.filter builtins.breakpoint builtins.print __builtin__.execfile
importlib.import_module runpy.run_path runpy._run_code pty.spawn code.InteractiveInterpreter
webbrowser.open shutil.rmtree ctypes.CDLL ctypes.cast timeit.timeit cProfile.run profile.run
pdb.run bdb.Bdb.run trace.Trace.runctx doctest.debug_script pydoc.pipepager pydoc.locate
functools.partial functools.reduce operator.attrgetter operator.methodcaller operator.itemgetter
types.FunctionType types.CodeType marshal.loads pickle.loads _pickle.loads shelve.open
copyreg.add_extension copyreg.pickle codecs.open codecs.decode io.FileIO _io.FileIO io.open
logging.FileHandler logging.config.listen linecache.getline zipimport.zipimporter
socket.create_connection ssl.get_server_certificate http.client.HTTPSConnection
urllib.request.urlopen smtplib.SMTP ftplib.FTP imaplib.IMAP4_stream telnetlib.Telnet
asyncio.unix_events._UnixSubprocessTransport._start multiprocessing.util.spawnv_passfds
concurrent.futures.process._ExecutorManagerThread _thread.start_new_thread threading.Thread
_osx_support._find_build_tool _osx_support._read_output _aix_support._read_cmd_output
uuid._get_command_stdout _pyrepl.pager.pipe_pager test.support.script_helper.assert_python_ok
idlelib.pyshell.ModifiedInterpreter.runcode idlelib.run.Executive.runcode
idlelib.calltip.get_entity idlelib.autocomplete.AutoComplete.get_entity
lib2to3.pgen2.grammar.Grammar.loadGrammar lib2to3.pgen2.pgen.ParserGenerator.make_label
distutils.file_util.write_file distutils.spawn.spawn ensurepip._run_pip venv.create
pip.main pip._internal.main setuptools.sandbox.run_setup site.main signal.signal
sys.settrace sys.modules sys.exit atexit.register gc.get_objects inspect.getattr_static
sqlite3.connect tempfile.NamedTemporaryFile glob.glob pathlib.Path.write_text
torch.load torch.hub.load torch.storage._load_from_bytes torch.jit.load
torch.utils.collect_env.run torch.utils._config_module.load_config torch.package.PackageImporter
torch.jit.unsupported_tensor_ops.execWrapper torch._inductor.codecache.compile_file
torch._dynamo.guards.GuardBuilder.get torch.utils.bottleneck.__main__.run_cprofile
torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
torch.serialization.load torch.serialization._open_file torch._C._jit_init
torch.utils.data.datapipes.utils.decoder.basichandlers torch.multiprocessing.spawn
numpy.load numpy.fromfile numpy.memmap numpy.save numpy.f2py.crackfortran.getlincoef
numpy.f2py.crackfortran._eval_length numpy.testing._private.utils.runstring
numpy.distutils.exec_command.exec_command numpy.lib.npyio.loads
cloudpickle.cloudpickle._make_function dill.loads joblib.load pandas.read_pickle
pandas.io.parsers.readers.read_csv pandas.eval sklearn.utils.fixes.load tensorflow.io.read_file
keras.models.load_model mlflow.projects.backend.local._run_entry_point transformers.pipeline
fickling.hook.deactivate_safe_ml_environment picklescan.scanner.scan_bytes requests.get
some.library.helper
""".split()  # noqa: SIM905
)
"""What public collections of malicious pickles call, and their like."""

ARG = text("touch MARK; exit 1")


def token(module: str, name: str) -> bytes:
    """Return the opcode that pushes a global by its names."""
    return f"c{module}\n{name}\n".encode()


def calls(module: str, name: str) -> dict[str, bytes]:
    """Return the opcodes that would call a global, one way each."""
    one = ARG + b"\x85"
    return {
        "REDUCE": token(module, name) + one + b"R",
        "INST": b"(" + ARG + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + token(module, name) + ARG + b"o",
        "NEWOBJ": token(module, name) + one + b"\x81",
        "NEWOBJ_EX": token(module, name) + one + b"}\x92",
        "STACK_GLOBAL": text(module) + text(name) + b"\x93" + one + b"R",
        "BUILD": token(module, name) + b")R}" + text("__setstate__") + token(module, name) + b"sb",
    }


SYSTEM = token("os", "system") + ARG + b"\x85R"
BAD = b"\x80\x02" + SYSTEM + b"."
BAD_0 = b"cos\nsystem\n(S'touch MARK'\ntR."
BENIGN = pickle.dumps({"a": 1}, 2)


def short(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


BESIDE: dict[str, bytes] = {
    "memo stored over": b"ccollections\nOrderedDict\nqc0" + token("os", "system") + b"qc0hc"
    + ARG + b"\x85R",
    "names from the memo": text("os") + b"qa0" + text("system") + b"qb0" + text("x") * 6 + b"000000"
    + b"hahb\x93" + ARG + b"\x85R",
    "names from the long memo": text("os") + b"r\0\1\0\0000" + text("system") + b"r\1\1\0\0000"
    + b"j\0\1\0\0j\1\1\0\0\x93" + ARG + b"\x85R",
    "names by MEMOIZE": short("nothing") + b"0" + short("os") + short("system") + b"\x93"
    + ARG + b"\x85R",
    "names that are duplicates": short("os") + b"20" + short("system") + b"\x93" + ARG + b"\x85R",
    "names of eight-byte length": b"\x8d" + struct.pack("<Q", 2) + b"os" + short("system") + b"\x93"
    + ARG + b"\x85R",
    "names with escapes": b"V\\u006fs\nVsyst\\u0065m\n\x93" + ARG + b"\x85R",
    "a dotted name": short("torch") + short("os.system") + b"\x93" + ARG + b"\x85R",
    "a dotted module": short("torch.serialization.os") + short("system") + b"\x93" + ARG + b"\x85R",
    "a name with a dot at each end": short("os") + short(".system") + b"\x93" + ARG + b"\x85R",
    "a name in other letters": short("os") + short("𝓈ystem") + b"\x93" + ARG + b"\x85R",
    "dropped from the stack": SYSTEM + b"0N",
    "dropped by a mark": b"(" + SYSTEM + b"1N",
    "named and not called": token("os", "system"),
    "a partial function": token("functools", "partial") + b"(" + token("os", "system") + ARG
    + b"tR)R",
    "an attribute of a module": token("operator", "attrgetter") + text("system") + b"\x85R"
    + token("builtins", "__import__") + text("os") + b"\x85R\x85R" + ARG + b"\x85R",
    "a method by name": token("operator", "methodcaller") + text("system") + ARG + b"\x86R"
    + token("builtins", "__import__") + text("os") + b"\x85R\x85R",
    "getattr of an import": token("builtins", "getattr") + token("builtins", "__import__")
    + text("os") + b"\x85R" + text("system") + b"\x86R" + ARG + b"\x85R",
    "a dict of globals": token("builtins", "getattr") + token("os", "__dict__") + text("get")
    + b"\x86R" + text("system") + b"\x85R" + ARG + b"\x85R",
    "map over a list": token("builtins", "list") + token("builtins", "map") + token("os", "system")
    + b"](" + ARG + b"e\x86R\x85R",
    "copyreg makes it": token("copyreg", "_reconstructor") + token("subprocess", "Popen")
    + token("builtins", "object") + b"N\x87R",
    "copyreg calls it": token("copyreg", "__newobj__") + token("os", "system") + ARG + b"\x86R",
    "a factory of defaults": token("collections", "defaultdict") + token("os", "system")
    + b"\x85R",
    "a counter of it": token("collections", "Counter") + token("os", "system") + b"\x85R",
    "state of a harmless class": token("collections", "OrderedDict") + b")R}" + text("__class__")
    + token("os", "system") + b"sb",
    "items of a harmless class": token("collections", "OrderedDict") + b")R" + ARG + SYSTEM + b"s",
    "a pickle in a pickle": token("pickle", "loads") + b"C" + bytes([len(BAD)]) + BAD + b"\x85R",
    "a pickle in a storage": token("torch.storage", "_load_from_bytes") + b"C"
    + bytes([len(BAD)]) + BAD + b"\x85R",
    "a pickle in base64": token("pickle", "loads") + token("base64", "b64decode")
    + text(base64.b64encode(BAD).decode()) + b"\x85R\x85R",
    "code in base64": token("builtins", "exec") + token("base64", "b64decode")
    + text(base64.b64encode(b"import os").decode()) + b"\x85R\x85R",
    "a program by marshal": token("types", "FunctionType") + token("marshal", "loads")
    + b"C\x04\xe3\0\0\0\x85R}\x86R)R",
    "a class made on the spot": token("builtins", "type") + b"(" + text("T") + b")}"
    + text("__reduce__") + token("os", "system") + b"stR",
    "modules overridden": token("sys", "modules") + text("sys") + token("os", "system") + b"s",
    "a module with a hook": token("torch.nn.modules.linear", "Linear") + b")\x81}("
    + text("_parameters") + b"}" + text("_modules") + b"}" + text("_forward_hooks") + b"}"
    + text("h")
    + token("os", "system") + b"sub",
    "a parameter made by it": token("torch._utils", "_rebuild_parameter") + b"(" + SYSTEM
    + b"\x88}tR",
    "a type that rebuilds": token("torch._tensor", "_rebuild_from_type_v2") + b"("
    + token("os", "system") + token("torch", "Tensor") + b"(" + ARG + b"t}tR",
    "a device by eval": token("builtins", "eval") + text("__import__('os').system('x')") + b"\x85R",
    "an object array": token("numpy.core.multiarray", "_reconstruct") + token("numpy", "ndarray")
    + b"K\0\x85C\1b\x87R(K\1K\1\x85" + token("numpy", "dtype") + text("O8") + b"\x89\x88\x87R\x89]"
    + SYSTEM + b"atb",
}  # fmt: skip
"""Opcodes that would run code and leave one value; in place of a value of a sound checkpoint."""


def npy(pickled: bytes) -> bytes:
    """Return a file of an array of objects whose pickle is this."""
    out = io.BytesIO()
    shape = {"descr": "|O", "fortran_order": False, "shape": (1,)}
    np.lib.format.write_array_header_1_0(out, shape)  # type: ignore[arg-type]
    return out.getvalue() + pickled


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as target:
        for name, data in entries.items():
            target.writestr(name, data)
    return out.getvalue()


def stacked(*, bad: int, magic: bytes | None = None) -> bytes:
    """Return a legacy file in which one of the five pickles would run code."""
    heads = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    parts = [pickle.dumps(value, 2) for value in heads]
    parts += [b"\x80\x02}" + text("w") + tensor() + b"s.", pickle.dumps(["0"], 2)]
    parts[bad] = parts[bad][:2] + SYSTEM + b"0" + parts[bad][2:]
    if magic is not None:
        parts[bad] = magic
    return b"".join(parts) + (2).to_bytes(8, "little") + bytes(8)


def sound_zip(**entries: bytes) -> bytes:
    more = {name.replace("__", "/"): data for name, data in entries.items()}
    pickled = b"\x80\x02}" + text("w") + tensor() + b"s."
    return zipped({"a/data.pkl": pickled, "a/version": b"3\n", "a/data/0": bytes(8), **more})


SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24) + BAD

WHOLE: dict[str, bytes] = {
    "protocol 0": BAD_0,
    "protocol 0 with a memo": b"cos\nsystem\np1\n(Vtouch MARK\np2\ntp3\nRp4\n.",
    "protocol 0, a number first": b"I1\n0" + BAD_0,
    "protocol 0, text first": b"S'a model'\n0" + BAD_0,
    "protocol 1": b"(" + ARG + b"ios\nsystem\n.",
    **{f"protocol {n}": b"\x80" + bytes([n]) + BAD[2:] for n in (2, 3, 4, 5)},
    "in a frame": b"\x80\x04\x95" + struct.pack("<Q", len(BAD) - 2) + BAD[2:],
    "a frame of another length": b"\x80\x04\x95" + struct.pack("<Q", 5) + BAD[2:],
    "cut short after the call": BAD[:-1],
    "broken bytes after the call": BAD[:-1] + b"\xff\xfe\xfd",
    "an unknown memo after the call": BAD[:-1] + b"h\xff.",
    "an empty stack after the call": BAD[:-1] + b"00000.",
    "a text without end after the call": BAD[:-1] + b"X\xff\xff\xff\x7f",
    "behind a sound pickle": BENIGN + BAD,
    "behind ten": BENIGN * 10 + BAD,
    "persistent id": b"\x80\x02(" + text("storage") + SYSTEM + b"NNNtQ.",
    "persistent id of text": b"Pos.system\n" + BAD_0,
    "extension code": b"\x80\x02\x82\x01" + ARG + b"\x85R.",
    "a name computed": b"\x80\x04" + short("os") + token("builtins", "str") + short("system")
    + b"\x85R\x93" + ARG + b"\x85R.",
    "a name of bytes": b"\x80\x04" + short("os") + b"C\x06system\x93" + ARG + b"\x85R.",
    "a module of none": b"\x80\x04N" + short("system") + b"\x93" + ARG + b"\x85R.",
    "in torch's place": zip_file(BAD, _0=bytes(8)),
    "in torch's place, deflated": zipped({"a/data.pkl": BAD, "a/data/0": bytes(8)}, 8),
    "in torch's place, by bzip2": zipped({"a/data.pkl": BAD}, zipfile.ZIP_BZIP2),
    "in torch's place, by lzma": zipped({"a/data.pkl": BAD}, zipfile.ZIP_LZMA),
    "in an archive of any name": zipped({"weights.bin": BAD}),
    "in an archive, as text": zipped({"notes.txt": BAD_0}),
    "in an archive of an archive": zipped({"a/data.pkl": zipped({"a/data.pkl": BAD})}),
    "in the legacy container": legacy_file(BAD),
    "the magic number is computed": stacked(
        bad=0, magic=b"\x80\x02" + token("builtins", "eval") + text("119547037146038801333356")
        + b"\x85R."
    ),
    "an array of objects": npy(BAD),
    "an array of objects in an npz": zipped({"w.npy": npy(BAD)}),
    "an npz of two arrays": zipped({"a.npy": npy(BENIGN), "b.npy": npy(BAD)}),
    "packed by gzip": gzip.compress(BAD),
    "packed by bzip2": bz2.compress(BAD),
    "packed by xz": lzma.compress(BAD),
    "packed by lzma": lzma.compress(BAD, lzma.FORMAT_ALONE),
    "packed by zlib": zlib.compress(BAD),
    "packed by gzip twice": gzip.compress(gzip.compress(BAD)),
    "packed by 7-Zip": SEVEN_ZIP,
    "zip behind a pickle": BENIGN + archive({"a/data.pkl": BAD}),
    "zip behind a pickle that is bad": BAD + sound_zip(),
    "HDF5 behind a pickle": BAD + bytes(512 - len(BAD)) + b"\x89HDF\r\n\x1a\n" + bytes(600),
    "behind a comment": b"\x80\x02" + text("#!/usr/bin/python\n") + b"0" + BAD[2:],
    "password": zipped({"a/data.pkl": BAD}).replace(
        b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"
    ),
}  # fmt: skip
"""Files that are nothing but a way to run code."""

HIDDEN: dict[str, bytes] = {
    **{f"in pickle {n + 1} of the legacy five": stacked(bad=n) for n in range(1, 5)},
    "behind the storages of a legacy file": stacked(bad=3).replace(SYSTEM + b"0", b"") + BAD,
    "in an entry beside": sound_zip(a__more=BAD),
    "in an entry called like a storage": sound_zip(a__data__1=BAD),
    "in an entry with another suffix": sound_zip(**{"config.p": BAD}),
    "in an entry of protocol 0": sound_zip(**{"a__extra.pkl": BAD_0}),
    "in an entry in a folder above": sound_zip(**{"data.pkl.bak": BAD}),
    "in an entry that is cut short": sound_zip(**{"a__x.pkl": BAD[:-1]}),
    "an array of objects beside": sound_zip(**{"a__w.npy": npy(BAD)}),
    "an archive beside": sound_zip(a__more=zipped({"x": BAD})),
    "a program beside": sound_zip(**{"a__code__x.py": b"import os"}),
}
"""Sound checkpoints with a payload elsewhere, which another loader would come across."""
