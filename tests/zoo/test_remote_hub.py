"""Models of a Hugging Face hub, by the real huggingface_hub and a hub on this machine."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_hub import Hub, hub

from ckptshrink.zoo import remote
from ckptshrink.zoo.jobs import Job, jobs_of
from ckptshrink.zoo.settings import Zoo
from ckptshrink.zoo.standing import Hashes
from ckptshrink.zoo.work import Order, work

TOKEN = "hf_thisIsTheTokenOfATest"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Yield a hub, and have huggingface_hub take it for the one there is.

    For as long as the module: older versions of it keep what they found at their import.
    """
    huggingface_hub = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    with hub() as found, pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            patch.delenv(name, raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))
        yield found
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.fixture
def server(serving: Hub, monkeypatch: pytest.MonkeyPatch, fixtures: Path) -> Hub:
    """Return the hub with the models of the fixtures."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    importlib.import_module("huggingface_hub").HfFileSystem.clear_instance_cache()
    serving.private.clear()
    serving.broken = False
    for name in ("gpt2", "t5", "bert"):
        folder = fixtures / "transformers" / name
        serving.repositories[f"org/{name}"] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.iterdir()
            if path.is_file()
        }
    serving.repositories["org/gpt2"] |= {"README.md": b"a card", "onnx/model.onnx": b"no"}
    serving.asked.clear()
    return serving


def jobs(path: str, out: Path) -> list[Job]:
    zoo = {"defaults": {"target": "linear", "rank": 1}, "model": [{"path": path}]}
    return jobs_of(Zoo.model_validate(zoo), out, str(out))


def is_finished(job: Job, out: Path) -> bool:
    with remote.looking(job, str(out), Hashes()) as look:
        return look.standing.finished(job.work)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("hf://org/t5", "t5"),
        ("hf://org/bert@main/model.safetensors.index.json", "bert"),
        ("hf://org/gpt2", "gpt2"),
    ],
)
def test_a_model_of_the_hub_is_fetched_once(
    url: str, model: str, server: Hub, fixtures: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    (job,) = jobs(url, out)
    answer = work(Order(job, str(out)))
    assert answer.status == "done", answer
    assert capfd.readouterr() == ("", "")  # no bars
    kept = set(server.repositories[f"org/{model}"]) - {"README.md", "onnx/model.onnx"}
    assert {line.rpartition("/")[2] for line in server.downloads()} == kept
    (near,) = jobs(str(fixtures / "transformers" / model), tmp_path / "near")
    assert work(Order(near, str(tmp_path / "near"))).status == "done"
    far = tree(out / job.artefact)
    for name, data in tree(tmp_path / "near" / near.artefact).items():
        if name not in {"manifest.json", "README.md"}:  # which name what they were made from
            assert far[name] == data
    server.asked.clear()
    assert is_finished(job, out)
    assert server.downloads() == []
    changed = server.repositories[f"org/{model}"]
    changed["config.json"] = changed["config.json"] + b" "
    assert not is_finished(job, out)


def test_a_glob_finds_models_of_a_repository(server: Hub, tmp_path: Path) -> None:
    assert remote.matching("hf://org/bert/*.safetensors") == [
        "hf://org/bert/model.safetensors.index.json"
    ]
    assert remote.matching("hf://org/gpt2/**/*.onnx") == ["hf://org/gpt2/onnx/model.onnx"]
    assert remote.matching("hf://org/gpt2") == ["hf://org/gpt2"]
    server.broken = True
    assert remote.matching("hf://org/gpt2/model.bin") == ["hf://org/gpt2/model.bin"]


def test_what_the_hub_refuses_is_said_in_a_line(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (gone,) = jobs("hf://org/none", out)
    answer = work(Order(gone, str(out)))
    assert answer.message == "read: hf://org/none: there is no such file or folder"
    (gone,) = jobs("hf://org/gpt2/none.bin", out)
    answer = work(Order(gone, str(out)))
    assert answer.message == "read: hf://org/gpt2/none.bin: there is no such file or folder"
    server.private["org/gpt2"] = TOKEN
    (private,) = jobs("hf://org/gpt2", out)
    answer = work(Order(private, str(out)))
    assert answer.status == "failed"
    assert answer.message.startswith("read: hf://org/gpt2: ")
    record = (out / private.reports / "job.json").read_text()
    assert "HF_TOKEN" in record
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert work(Order(private, str(out))).status == "done"
    assert TOKEN not in "".join(map(repr, tree(out).values()))


def test_a_hub_that_is_down_may_be_up_the_next_time(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (job,) = jobs("hf://org/gpt2", tmp_path / "out")
    server.broken = True
    answer = work(Order(job, str(tmp_path / "out")))
    assert answer.status == "again", answer
    assert answer.message.startswith("hf://org/gpt2: can't be read: ")
    assert not is_finished(job, tmp_path / "out")
