"""The index of an HDF5 file, walked with limits and without leaving the file.

HDF5 follows external links into other files, and lets a file of 447 bytes announce 4 PiB. Here
every link is looked at before it is followed, and every size before memory is asked for.
"""

from dataclasses import dataclass, field
from typing import Final

from ckptshrink.errors import CorruptCheckpointError, UnsafeCheckpointError, printable
from ckptshrink.io.files import SourceFile
from ckptshrink.io.hdf5_attributes import read_attributes
from ckptshrink.io.hdf5_dataset import is_opaque_pair, shown, storage_of, why_no_tensor
from ckptshrink.io.hdf5_index import Attribute, Dataset, Group, Index, says_bfloat16
from ckptshrink.io.hdf5_library import h5d, h5g, h5l, h5o, h5py
from ckptshrink.io.hdf5_texts import Texts

MAX_DEPTH: Final = 64
MAX_OBJECTS: Final = 100_000

_FREE_DATASET: Final = 1 << 20
_EXPANSION: Final = 64
_FREE_FILE: Final = 64 << 20
_FILE_EXPANSION: Final = 16
"""A dataset may be 64 times its storage and all together 16 times the file, or these free sizes."""


@dataclass(slots=True)
class Walk:
    """What a file holds: datasets in stored order, groups by name within each group."""

    file_size: int
    texts: Texts
    groups: list[Group] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_objects: int = 0
    nbytes: int = 0
    addresses: dict[str, int] = field(default_factory=dict)
    first_names: dict[int, str] = field(default_factory=dict)

    def attributes(self, item: h5g.GroupID | h5d.DatasetID, path: str) -> tuple[Attribute, ...]:
        """Return the attributes of an object, with a note on each that is not read."""
        kept, left_out = read_attributes(item, self.texts)
        for name in left_out:
            self.pass_over(path, f"the attribute {name}")
        return kept

    def index(self) -> Index:
        """Return what was found."""
        return Index(tuple(self.groups), tuple(self.datasets), tuple(self.notes))

    def pass_over(self, path: str, what: str) -> None:
        """Note what a file written anew will not have."""
        self.notes.append(f"{printable(path) or '/'}: {what} is not carried into a restored file")


_Link = tuple[h5g.GroupID, bytes, str]
"""Parent, name of the link, and path."""


def walk(file: h5py.File, source: SourceFile) -> Walk:
    """Return the index of an opened file.

    Parameters
    ----------
    file : h5py.File
    source : SourceFile
        The same file, to read from without the library.

    Raises
    ------
    UnsafeCheckpointError
        A link or a dataset leads out of the file, a group has two names, or depth, number or size
        are out of proportion.
    CorruptCheckpointError
        Sizes and offsets don't fit the file.
    CheckpointError
        A dataset holds what is no tensor.
    """
    found = Walk(source.size, Texts(source))
    # Depth first with a stack of its own: a chain of 3,000 groups keeps the library's own visitor
    # busy for 49 s.
    pending: list[_Link] = _enter(h5g.open(file.id, b"/"), "", found)
    while pending:
        parent, link, path = pending.pop()
        _check_link(parent, link, path)
        item = h5o.open(parent, link)
        if isinstance(item, h5g.GroupID):
            pending += _enter(item, path, found)
        elif isinstance(item, h5d.DatasetID):
            _add_dataset(item, path, found)
        else:
            found.pass_over(path, "a named type")
    # Headers lie in the order in which the datasets were made, and payloads mostly too.
    found.datasets.sort(key=lambda dataset: found.addresses[dataset.name])
    return found


def _enter(group: h5g.GroupID, path: str, found: Walk) -> list[_Link]:
    """Record a group and return its links, the first of them last."""
    # A group that holds itself never ends, and one of two names at each of 40 levels ends too late.
    first = found.first_names.setdefault(h5o.get_info(group).addr, path)
    if first != path:
        raise UnsafeCheckpointError(
            f"is another name of the group '{printable(first) or '/'}'", tensor=path
        )
    if path.count("/") >= MAX_DEPTH:
        raise UnsafeCheckpointError(f"groups are nested over {MAX_DEPTH} deep", tensor=path[:200])
    # Asked before the names are listed: a group of millions of links would fill the memory.
    found.n_objects += group.get_num_objs()
    if found.n_objects > MAX_OBJECTS:
        raise UnsafeCheckpointError(f"holds more than {MAX_OBJECTS:,} objects")
    found.groups.append(Group(path, found.attributes(group, path)))
    return [(group, link, _child_path(path, link)) for link in reversed(list(group))]


def _child_path(path: str, link: bytes) -> str:
    # A slash inside a link's name, which no writer makes, would be followed as a path: "a/b" would
    # go through an external link "a" unseen.
    if b"/" in link or link in {b"", b"."}:
        raise UnsafeCheckpointError(f"holds a link named {shown(link)}", tensor=path or None)
    try:
        name = link.decode()
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError(
            f"holds a name that is not UTF-8: {shown(link)}", tensor=path or None
        ) from error
    return f"{path}/{name}" if path else name


def _check_link(parent: h5g.GroupID, link: bytes, path: str) -> None:
    kind = parent.links.get_info(link).type
    if kind == h5l.TYPE_HARD:
        return
    if kind == h5l.TYPE_EXTERNAL:
        file, target = parent.links.get_val(link)
        what = f"an external link to {shown(target)} in the file {shown(file)}"
    elif kind == h5l.TYPE_SOFT:
        what = f"a soft link to {shown(parent.links.get_val(link))}"
    else:
        what = f"a link of the unknown kind {kind}"
    raise UnsafeCheckpointError(
        f"is {what}, and only hard links are followed",
        tensor=path,
        hint="copy the datasets themselves into one file",
    )


def _add_dataset(item: h5d.DatasetID, path: str, found: Walk) -> None:
    skipped = why_no_tensor(item, path)
    if skipped is not None:
        found.pass_over(path, skipped)
        return
    address = h5o.get_info(item).addr
    found.addresses[path] = address
    first = found.first_names.setdefault(address, path)
    storage = storage_of(
        item,
        path,
        found.file_size,
        is_bfloat16=is_opaque_pair(item) and _says_bfloat16(item, found),
    )
    if first != path:
        found.datasets.append(Dataset(path, storage, first, ()))
        return
    _check_proportion(item.get_storage_size(), storage.nbytes, path, found)
    found.datasets.append(Dataset(path, storage, None, found.attributes(item, path)))


def _says_bfloat16(item: h5d.DatasetID, found: Walk) -> bool:
    attributes, _ = read_attributes(item, found.texts)
    return says_bfloat16(attributes)


def _check_proportion(kept: int, nbytes: int, path: str, found: Walk) -> None:
    """Refuse a dataset that would unpack to far more than is stored of it, alone or with others."""
    if kept > found.file_size:
        raise CorruptCheckpointError(
            f"takes {kept} bytes, and the file has {found.file_size}", tensor=path
        )
    if nbytes > max(_FREE_DATASET, _EXPANSION * kept):
        raise UnsafeCheckpointError(
            f"announces {nbytes} bytes, and {kept} are stored: out of proportion", tensor=path
        )
    found.nbytes += nbytes
    if found.nbytes > max(_FREE_FILE, _FILE_EXPANSION * found.file_size):
        raise UnsafeCheckpointError(
            f"its datasets announce over {_FILE_EXPANSION} times the size of the file", tensor=path
        )
