"""Which checkpoints a zoo file is about, and where what is made of them goes."""

import os
from pathlib import Path

import pytest
from zoo_helpers import HEAD, Zoo, lstm

from ckptshrink.errors import NothingMatchedError, PlanError
from ckptshrink.zoo.jobs import in_shard, matching


def names(zoo: Zoo) -> list[str]:
    return [job.name for job in zoo.jobs()]


def test_the_output_mirrors_the_input(zoo: Zoo) -> None:
    assert names(zoo) == [
        "zoo/a.safetensors", "zoo/c.safetensors", "zoo/deep/er/b.safetensors",
    ]  # fmt: skip
    assert zoo.jobs()[2].artefact == "zoo/deep/er/b.safetensors.shrunk"
    assert zoo.jobs()[2].reports == "reports/zoo/deep/er/b.safetensors"


def test_the_last_entry_that_names_a_model_holds(zoo: Zoo) -> None:
    zoo.text += '[[model]]\npath = "zoo/a*"\nrank = 5\n'
    sizes = {job.name: job.work.compression.request.size for job in zoo.jobs()}
    ranks = [size.rank for size in sizes.values() if size is not None]
    assert ranks == [5, 3, 3]


def test_another_folder_of_the_output_is_another_job(zoo: Zoo) -> None:
    zoo.text += '[[model]]\npath = "zoo/a*"\nrank = 5\ninto = "r5"\n'
    assert len(names(zoo)) == 4
    assert "r5/zoo/a.safetensors" in names(zoo)


def test_what_matches_nothing_is_an_error_all_of_it_at_once(zoo: Zoo) -> None:
    zoo.text += '[[model]]\npath = ["no/*.pt", "zoo/*.pt"]\n'
    with pytest.raises(NothingMatchedError, match=r"'no/\*\.pt', 'zoo/\*\.pt' match nothing"):
        zoo.jobs()


def test_a_path_that_is_gone_is_a_job_that_will_fail(zoo: Zoo) -> None:
    zoo.text = HEAD + '[[model]]\npath = "gone.pt"\n'
    assert names(zoo) == ["gone.pt"]


def test_excluded_names_and_the_output_itself_are_left_out(zoo: Zoo) -> None:
    lstm(zoo.out / "x.safetensors")
    zoo.text = HEAD + '[[model]]\npath = "**/*.safetensors"\nexclude = ["c.*", "*/er/*"]\n'
    assert names(zoo) == ["zoo/a.safetensors"]


def test_shards_are_one_model(zoo: Zoo) -> None:
    folder = zoo.folder / "zoo" / "big"
    for number in (1, 2):
        lstm(folder / f"model-{number:05}-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "zoo/big/model.safetensors.index.json" in names(zoo)
    assert len(names(zoo)) == 4


def test_folders_are_matched_by_a_slash(zoo: Zoo) -> None:
    zoo.text = HEAD + '[[model]]\npath = "zoo/*/"\n'
    assert names(zoo) == ["zoo/deep"]


def test_a_model_from_elsewhere_keeps_its_whole_path(
    zoo: Zoo, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = lstm(tmp_path_factory.mktemp("other") / "x.safetensors")
    zoo.text = HEAD + f'[[model]]\npath = "{other}"\n'
    assert names(zoo) == [str(other).lstrip("/")]


def test_an_artefact_in_an_artefact_is_refused(zoo: Zoo) -> None:
    lstm(zoo.folder / "zoo" / "a.safetensors.shrunk" / "model.safetensors")
    with pytest.raises(PlanError, match=r"would be put into zoo/a\.safetensors\.shrunk"):
        zoo.jobs()


def test_shards_of_the_work_are_apart_and_whole_and_stay_where_they_are(zoo: Zoo) -> None:
    for number in range(40):
        (zoo.folder / "zoo" / f"{number}.safetensors").touch()
    jobs = zoo.jobs()
    parts = [[job.name for job in in_shard(jobs, i, 4)] for i in range(1, 5)]
    assert sorted(name for part in parts for name in part) == names(zoo)
    assert all(parts)
    fewer = [job.name for job in in_shard(jobs[::2], 2, 4)]
    assert fewer == [name for name in parts[1] if name in {job.name for job in jobs[::2]}]


def test_only_some(zoo: Zoo) -> None:
    jobs = zoo.jobs()
    assert [job.name for job in matching(jobs, ["*er*", "zoo/a.safetensors"])] == [
        "zoo/a.safetensors", "zoo/deep/er/b.safetensors",
    ]  # fmt: skip
    with pytest.raises(NothingMatchedError, match="no model is called") as caught:
        matching(jobs, ["zoo/a.safetensor"])
    assert caught.value.hint == "did you mean 'zoo/a.safetensors'?"


def test_a_name_that_is_no_text_is_shown_as_one(zoo: Zoo) -> None:
    lstm(zoo.folder / "zoo" / "x.safetensors")
    hostile = Path(os.fsdecode(os.fsencode(zoo.folder / "zoo") + b"/\xff\n.safetensors"))
    (zoo.folder / "zoo" / "x.safetensors").rename(hostile)
    shown = [job.shown for job in zoo.jobs()]
    assert "zoo/�\\n.safetensors" in shown
