"""The JSON Schemas in the package are those of the code, and hold for what the code writes."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel

from ckptshrink import Request, Size, Target, compress, plan_checkpoint
from ckptshrink.manifest import Manifest
from ckptshrink.plan import Plan
from ckptshrink.zoo.settings import Zoo

REPO = Path(__file__).resolve().parents[2]
ELMO = REPO / "fixtures" / "elmo" / "elmo.hdf5"
SCHEMAS: dict[str, type[BaseModel]] = {"manifest": Manifest, "plan": Plan, "zoo": Zoo}


def _stored(name: str) -> Path:
    return REPO / "ckptshrink" / "schema" / f"{name}.schema.json"


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_current(name: str, request: pytest.FixtureRequest) -> None:
    # what is read by hand is as it is read, what is written as it is written
    schema = SCHEMAS[name].model_json_schema(
        mode="validation" if name == "zoo" else "serialization"
    )
    text = json.dumps(schema, indent=1, sort_keys=True) + "\n"
    if request.config.getoption("--regen"):
        _stored(name).write_text(text)
    assert json.loads(_stored(name).read_text()) == schema


def test_what_is_written_fits(tmp_path: Path) -> None:
    request = Request((Target("Wh"),), size=Size(rank=4))
    plan = plan_checkpoint(ELMO, request)
    jsonschema.validate(json.loads(plan.to_json()), json.loads(_stored("plan").read_text()))
    compress(ELMO, tmp_path / "out", request)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads(_stored("manifest").read_text()))
    broken = {**manifest, "surprise": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads(_stored("manifest").read_text()))
