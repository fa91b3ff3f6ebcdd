"""The dense tensors of a checkpoint or an artefact, for anyone's own loader."""

from pathlib import Path

from torch import Tensor

from ckptshrink.io.structure import tensors_in
from ckptshrink.runtime.opened import Facts, Opened


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return every tensor of a model, multiplied back where it was factored.

    Parameters
    ----------
    path : path
        An artefact's folder, or any checkpoint that can be read.

    Returns
    -------
    dict of str to Tensor
        By the source's names and in its order, in the source's dtypes, on the CPU. Names of tied
        tensors have the very same tensor; so has a name that held a copy of another weight, such
        as AWD-LSTM's ``weight_hh_l0`` masked by dropout beside ``weight_hh_l0_raw``. Of a pickled
        module it is what the module's own ``state_dict`` would have; a criterion's tensors have
        ``criterion.`` in front.

    Raises
    ------
    CheckpointError, ManifestMismatchError
        It can't be read.
    """
    with Opened(Path(path)) as opened:
        owners = owners_of(opened.facts)
        tensors = {owner: opened.tensor(owner) for owner in dict.fromkeys(owners.values())}
    return {name: tensors[owner] for name, owner in owners.items()}


def owners_of(facts: Facts) -> dict[str, str]:
    """Return every name of a model's state dict, in its order, and whose values it has.

    A pickled module has more tensors than its state dict: attributes that are no parameters, and
    torch's own list of a recurrent module's weights. A safetensors file that `save_model` wrote
    has fewer: it leaves tied names out, and notes them in the metadata.
    """
    structure = facts.container.get("structure")
    listed = [name for name in tensors_in(structure) if name in facts.shapes]
    names = dict.fromkeys(listed or facts.shapes)
    owners = {name: facts.owner(name) for name in names}
    for notes in (facts.container.get("metadata") or {}).values():
        for name, owner in (notes or {}).items():
            if name not in owners and owner in owners:
                owners[name] = owners[owner]
    return owners
