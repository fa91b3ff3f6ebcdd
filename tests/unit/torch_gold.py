"""What a checkpoint holds according to torch itself: independent of the reader under test."""

import importlib.util
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REPO = Path(__file__).resolve().parent.parent.parent


def torch_models() -> types.ModuleType:
    """Return the script that makes small checkpoints, loaded from the fixtures folder."""
    name = "torch_models"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPO / "fixtures" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def load(path: Path) -> Any:
    """Load a checkpoint of the fixtures by torch, with the stand-in classes in place."""
    models = torch_models()
    if path.name.endswith(".script.pt"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated
            return torch.jit.load(path)  # type: ignore[no-untyped-call]
    is_example = path.name.startswith("word_language_model")
    others = {"RNNModel": models.WordLanguageModel} if is_example else {}
    with models.published(**others):
        return torch.load(path, weights_only=False)


def bytes_of(tensor: Tensor) -> bytes:
    """Return a tensor's row-major bytes."""
    # A clone, since an axis of one element may keep any stride and still count as contiguous.
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def tensors_of(saved: Any) -> dict[str, Tensor]:
    """Return the tensors of a loaded fixture under the names that the reader should give them."""
    if isinstance(saved, torch.jit.ScriptModule):
        return {**saved.state_dict(), "scale": saved.scale}
    if isinstance(saved, nn.Module):
        return _module(saved, "")
    if isinstance(saved, list):
        model, criterion, optimizer = saved
        names = {id(p): n for n, p in model.named_parameters()}
        found = _module(model, "") | _module(criterion, "criterion.")
        for parameter, slots in optimizer.state.items():
            prefix = f"optimizer.state.{names[id(parameter)]}"
            found |= {f"{prefix}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        return found
    if "model" in saved:
        states = saved["opt"]["state"]
        numbered = states.items() if isinstance(states, dict) else enumerate(states)
        slots = {f"opt.state.{i}.{k}": v for i, state in numbered for k, v in state.items()}
        return saved["model"] | {k: v for k, v in slots.items() if isinstance(v, Tensor)}
    if "state_dict" in saved:
        ((callback, noted),) = saved["callbacks"].items()
        ((i, slots),) = saved["optimizer_states"][0]["state"].items()
        slots = {f"optimizer_states.0.state.{i}.{k}": v for k, v in slots.items()}
        score = {f"callbacks.{callback}.best_model_score": noted["best_model_score"]}
        return saved["state_dict"] | score | slots
    return dict(saved)


def _module(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    found = {prefix + n: t for n, t in module.state_dict().items()}
    for path, part in module.named_modules():
        place = f"{prefix}{path}." if path else prefix
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                found[place + name] = value
            if name == "_flat_weights":
                found |= {f"{place}{name}.{i}": t for i, t in enumerate(value)}
    return found


class _Stub:
    """Any object: takes every argument and state, and does nothing."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update(state)


class _StubUnpickler(pickle.Unpickler):
    """Unpickles with torch's own rebuild functions and stubs for every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" or (module, name) == ("collections", "OrderedDict"):
            return super().find_class(module, name)
        if module == "torch" and name.endswith("Storage"):
            return super().find_class(module, name)
        if (module, name) in {("collections", "defaultdict"), ("builtins", "list")}:
            return super().find_class(module, name)
        return type(name, (_Stub,), {})


def load_with_stubs(path: Path) -> Any:
    """Load someone else's whole-module file by torch, running none of its classes."""
    module = types.ModuleType("stub_pickle")
    vars(module).update(vars(pickle))
    module.Unpickler = _StubUnpickler  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for the source text of the stubs
        return torch.load(path, weights_only=False, pickle_module=module)


def stub_state(stub: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the state dict of a stubbed module and its plain tensor attributes."""
    found = {prefix + n: p for n, p in stub._parameters.items() if p is not None}
    for name, child in stub._modules.items():
        found |= stub_state(child, f"{prefix}{name}.")
    for name, value in vars(stub).items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
    return found


def as_array(data: np.ndarray[Any, Any], tensor: Tensor) -> Tensor:
    """Return payload bytes as a tensor of another one's dtype and shape."""
    return torch.from_numpy(data).view(tensor.dtype).reshape(tensor.shape)
