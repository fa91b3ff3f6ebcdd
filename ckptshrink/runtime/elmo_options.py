"""options.json of an ELMo: what its weights alone don't tell."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, ValidationError

from ckptshrink.errors import CheckpointError
from ckptshrink.io.files import SourceFile
from ckptshrink.io.safetensors_header import strict_json
from ckptshrink.plan import issues_of
from ckptshrink.runtime.characters import MAX_CHARACTERS
from ckptshrink.runtime.opened import Facts

_MAX_BYTES: Final = 1 << 20
"""A thousand times what a published file has."""

# 0 stands for no bound, as AllenNLP reads it
Clip = Annotated[PositiveFloat | None, BeforeValidator(lambda value: value or None)]


class _Part(BaseModel):
    # training writes its own settings into the same file
    model_config = ConfigDict(frozen=True, extra="ignore")


class LSTMOptions(_Part):
    """The LSTMs: H is `dim`, P is `projection_dim`."""

    dim: int
    projection_dim: int
    n_layers: int = 1
    cell_clip: Clip = None
    proj_clip: Clip = None
    use_skip_connections: bool = False


class CharacterOptions(_Part):
    """The embedding of words: `filters` are pairs of a width and a number."""

    activation: Literal["relu", "tanh"]
    filters: tuple[tuple[int, int], ...]
    n_highway: int | None = None
    max_characters_per_token: int = Field(MAX_CHARACTERS, ge=3)


class ElmoOptions(_Part):
    """What of options.json the model depends on."""

    lstm: LSTMOptions
    char_cnn: CharacterOptions | None = None


def read_options(path: Path) -> ElmoOptions:
    """Read the options of an ELMo.

    Raises
    ------
    CheckpointError
        The file can't be read, or is not the options of an ELMo.
    """
    with closing(SourceFile(path)) as file:
        if file.size > _MAX_BYTES:
            raise CheckpointError("is too large to be the options of an ELMo", path=path)
        text = bytes(file.read(0, file.size))
    try:
        return ElmoOptions.model_validate(strict_json(text, "options", path))
    except ValidationError as error:
        raise CheckpointError(
            f"is not the options of an ELMo: {'; '.join(issues_of(error))}", path=path
        ) from error


def options_path(facts: Facts, given: str | Path | None) -> Path:
    """Return the file of options: the one given, or the one that lies beside the weights.

    Raises
    ------
    CheckpointError
        There is none.
    """
    if given is not None:
        return Path(given)
    beside = [path for name, path in facts.sidecars.items() if name.endswith(".json")]
    if len(beside) != 1:
        raise CheckpointError(
            "has no options.json beside it", path=facts.path, hint="give its place as options="
        )
    return beside[0]
