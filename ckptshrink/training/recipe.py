"""How a model is trained: every number of it, as one value that can be kept beside the weights."""

from typing import Literal

from pydantic import Field

from ckptshrink.plan import Frozen


class Recipe(Frozen):
    """How a model is trained.

    Attributes
    ----------
    epochs : int
        Times that the text is read.
    batch : int
        Streams side by side.
    steps : int
        Mean length of a window of truncated backpropagation.
    optimizer : "adam" or "sgd"
        ``"sgd"`` turns into ASGD, whose weights are averages over all further steps, as soon as the
        validation loss was no better than its best but the last `patience` ones (NT-ASGD).
    lr : float
        Largest learning rate.
    schedule : "constant" or "cosine"
        Cosine: up from a tenth in the first `warmup` of all steps, then down to a hundredth.
    warmup : float
    weight_decay : float
    clip : float
        Largest norm of the gradient.
    patience : int
        Of NT-ASGD, in epochs.
    alpha, beta : float
        Weights of the activation penalty (mean square of the dropped output) and of the temporal
        one (mean square of its change).
    average : float
        Decay of an exponential moving average of the weights, which is what is validated and kept;
        0 keeps the weights themselves. For ``"adam"``.
    bfloat16 : bool
        Whether products run in bfloat16 under autocast; weights and losses stay in float32.
    seed : int
        Of initial weights, dropouts and windows.

    Source
    ------
    Merity, Keskar and Socher 2018, "Regularizing and Optimizing LSTM Language Models".
    """

    epochs: int = Field(20, ge=1)
    batch: int = Field(40, ge=1)
    steps: int = Field(70, ge=1)
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = Field(2e-3, gt=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(1.2e-6, ge=0)
    clip: float = Field(0.25, gt=0)
    patience: int = Field(5, ge=1)
    alpha: float = Field(2.0, ge=0)
    beta: float = Field(1.0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)
    bfloat16: bool = False
    seed: int = Field(0, ge=0)
