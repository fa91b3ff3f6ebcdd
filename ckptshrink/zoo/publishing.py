"""An output in a store: how far a model is there, and how what was made of it gets there.

The manifest makes a folder an artefact, so it is removed before anything else is touched and comes
after everything else is there: whoever looks sees a whole artefact, or none. A store has no locks;
two batches at once on one output are found out by what its listing says before and after.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckptshrink.digest import file_sha256
from ckptshrink.errors import ManifestMismatchError, TransientError
from ckptshrink.io.staging import MANIFEST
from ckptshrink.manifest import Manifest, job_key_of, manifest_of
from ckptshrink.zoo.records import RECORD, Record, record_of
from ckptshrink.zoo.stores import Entry, FarFolder
from ckptshrink.zoo.urls import is_plain

if TYPE_CHECKING:
    from ckptshrink.zoo.jobs import Job

_MOST_RECORD: Final = 1 << 26
_MOST_MANIFEST: Final = 1 << 28


@dataclass(slots=True)
class FarOutput:
    """What there is of a job in a store.

    Attributes
    ----------
    store : FarFolder
        The output.
    job : Job
    fetched : dict of str to str
        Hash of each file that came from there, by its place in the output: it is not sent back
        unless it is another one.
    """

    store: FarFolder
    job: "Job"
    fetched: dict[str, str] = field(default_factory=dict)

    def record(self) -> tuple[Record | None, bytes]:
        """Return the record of the model, and its text."""
        data = self.store.read(f"{self.job.reports}/{RECORD}", _MOST_RECORD) or b""
        return (record_of(data) if data else None), data

    def manifest(self, source: Path | str, record: Record | None) -> Manifest | None:
        """Return the manifest of an artefact that is this job's and of which every file is there.

        That they are the files it lists is told by their sizes: to hash them they would have to be
        fetched.

        Parameters
        ----------
        source : Path or str
            Where it is on this machine; of one in a store, its identity.
        """
        from ckptshrink.zoo.standing import present_inputs

        data = self.store.read(f"{self.job.artefact}/{MANIFEST}", _MOST_MANIFEST)
        if data is None:
            return None
        try:
            found = manifest_of(data, self.store.shown(self.job.artefact))
        except ManifestMismatchError:
            return None
        inputs = present_inputs(found, source, record)
        if inputs is None or not found.job_key:
            return None
        if found.job_key != job_key_of(inputs, self.job.work.compression.sha256):
            return None
        sizes = {file.path: file.nbytes for file in found.files} | {MANIFEST: len(data)}
        there = self.store.tree(self.job.artefact)
        return found if {name: entry.nbytes for name, entry in there.items()} == sizes else None

    def documents(self) -> frozenset[str]:
        """Return the names of what lies beside the record."""
        return frozenset(self.store.tree(self.job.reports))

    def fetch_reports(self, folder: Path) -> Record | None:
        """Bring the record and the results that it names to this machine."""
        record, data = self.record()
        if record is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_bytes(data)
        self.fetched[f"{self.job.reports}/{RECORD}"] = file_sha256(folder / RECORD)
        named = {name for scored in record.tasks.values() for name in scored.documents}
        there = self.store.tree(self.job.reports) if named else {}
        for name in sorted(named & there.keys()):
            if is_plain(name) and name != RECORD:
                self._fetch(self.job.reports, there[name], folder)
        return record

    def fetch_artefact(self, manifest: Manifest, folder: Path) -> None:
        """Bring an artefact to this machine."""
        there = self.store.tree(self.job.artefact)  # names that stay inside, unlike a manifest's
        for name in (*(file.path for file in manifest.files), MANIFEST):
            if name not in there:
                raise TransientError("was removed meanwhile", path=self._shown(name))
            self._fetch(self.job.artefact, there[name], folder)

    def send(self, artefact: Path, reports: Path) -> None:
        """Send what is new, the manifest and the record each after everything that they speak of.

        Raises
        ------
        OutputError
            The store does not take it.
        TransientError
            It does not answer, or another run writes to the same artefact.
        """
        if (artefact / MANIFEST).is_file():
            self._send_artefact(artefact)
        for name in sorted(_files(reports), key=lambda name: (name == RECORD, name)):
            place = f"{self.job.reports}/{name}"
            if self.fetched.get(place) != file_sha256(reports / name):
                self.store.send(reports / name, place)

    def _send_artefact(self, folder: Path) -> None:
        """Replace what is in the store by what was made, unless it is that already."""
        place, store = self.job.artefact, self.store
        files = set(_files(folder))
        there = store.tree(place)
        new = {
            name
            for name in files
            if name not in there
            or self.fetched.get(f"{place}/{name}") != file_sha256(folder / name)
        }
        stale = there.keys() - files
        if not new and not stale:
            return
        if MANIFEST in there:
            store.remove(f"{place}/{MANIFEST}")
        for name in sorted(new - {MANIFEST}):
            store.send(folder / name, f"{place}/{name}")
        for name in sorted(stale):
            store.remove(f"{place}/{name}")
        before = self._listed(folder, files - {MANIFEST})
        store.send(folder / MANIFEST, f"{place}/{MANIFEST}")
        try:
            after = self._listed(folder, files)
            if any(after[name] != entry for name, entry in before.items()):
                raise self._disturbed()
        except TransientError:
            store.remove(f"{place}/{MANIFEST}")
            raise

    def _listed(self, folder: Path, files: set[str]) -> dict[str, Entry]:
        """Return what the store lists, which must be the files that were sent, whole."""
        found = self.store.tree(self.job.artefact)
        sizes = {name: (folder / name).stat().st_size for name in files}
        if {name: entry.nbytes for name, entry in found.items()} != sizes:
            raise self._disturbed()
        return found

    def _disturbed(self) -> TransientError:
        return TransientError(
            "holds something else than what was just written: does another run write to it?",
            path=self._shown(""),
        )

    def _fetch(self, place: str, entry: Entry, folder: Path) -> None:
        path = folder / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.store.fetch(f"{place}/{entry.name}", path, entry.nbytes)
        self.fetched[f"{place}/{entry.name}"] = file_sha256(path)

    def _shown(self, name: str) -> str:
        return self.store.shown("/".join(part for part in (self.job.artefact, name) if part))


def _files(folder: Path) -> Iterator[str]:
    """Yield every file below a folder by its path from there."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix()
