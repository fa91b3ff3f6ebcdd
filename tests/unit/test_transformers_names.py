"""Names that transformers and f-lm write: which family, which orientation, what is no weight."""

import dataclasses

import pytest
from indexes import Shapes, by_key, index_of

from ckptshrink.gates import Part
from ckptshrink.layouts import load_layouts, recognise
from ckptshrink.plan import NOT_TARGETED
from ckptshrink.planning.planner import make_plan
from ckptshrink.planning.request import Request, Size, Target

WEIGHTS = {
    "bert": "bert.encoder.layer.0.attention.self.query.weight",
    "roberta": "roberta.encoder.layer.0.attention.self.query.weight",
    "electra": "electra.encoder.layer.0.attention.self.query.weight",
    "distilbert": "distilbert.transformer.layer.0.attention.q_lin.weight",
    "albert": "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight",
    "mpnet": "mpnet.encoder.layer.0.attention.attn.q.weight",
    "deberta": "deberta.encoder.layer.0.attention.self.query_proj.weight",
    "bart": "model.decoder.layers.0.encoder_attn.q_proj.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "opt": "model.decoder.layers.0.self_attn.out_proj.weight",
    "gpt-neox": "gpt_neox.layers.0.attention.query_key_value.weight",
    "gpt-neo": "transformer.h.0.attn.attention.q_proj.weight",
    "llama": "model.layers.0.self_attn.o_proj.weight",
}


@pytest.mark.parametrize("family", WEIGHTS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.base."])
def test_one_name_of_a_layer_tells_the_family(family: str, prefix: str) -> None:
    recognition = recognise(index_of({prefix + WEIGHTS[family]: (8, 8), "x.bias": (8,)}))
    assert recognition.family == family
    assert [(m.role, m.layout.transposed) for m in recognition.matrices] == [("linear", False)]


@pytest.mark.parametrize(
    ("family", "model_type", "shown", "noted"),
    [
        ("bert", "xlm-roberta", "xlm-roberta", False),
        ("llama", "qwen2", "qwen2", False),
        ("llama", "gpt2", "llama", True),
        ("bert", "unheard-of", "bert", True),
    ],
)
def test_config_json_has_the_last_word_where_names_allow_it(
    family: str, model_type: str, shown: str, noted: bool
) -> None:
    checkpoint = index_of({WEIGHTS[family]: (8, 8)})
    recognition = recognise(dataclasses.replace(checkpoint, model_type=model_type))
    assert recognition.family == shown
    assert bool(recognition.notes) is noted


def test_model_types_and_families_are_not_mistaken_for_those_of_recurrent_models() -> None:
    layouts = load_layouts()
    families = {layout.family for layout in layouts}
    types = {t for layout in layouts for t in layout.model_types}
    assert {"elmo", "awd-lstm", "awd-qrnn", "fastai", "torch-rnn", "generic"} <= families
    assert not types & {"elmo", "awd-lstm", "awd-qrnn", "fastai", "torch-rnn", "generic", "flm"}


def gpt2(d: int, *, conv1d: bool, prefix: str = "transformer.") -> Shapes:
    outputs = {"attn.c_attn": 3 * d, "attn.c_proj": d, "mlp.c_fc": 4 * d}
    inputs = {"attn.c_attn": d, "attn.c_proj": d, "mlp.c_fc": d}
    outputs["mlp.c_proj"], inputs["mlp.c_proj"] = d, 4 * d
    shapes: Shapes = {f"{prefix}wte.weight": (50, d), f"{prefix}wpe.weight": (20, d)}
    for name in outputs:
        pair = (inputs[name], outputs[name]) if conv1d else (outputs[name], inputs[name])
        shapes[f"{prefix}h.0.{name}.weight"] = pair
    return shapes


@pytest.mark.parametrize("prefix", ["transformer.", "", "decoder.transformer."])
@pytest.mark.parametrize("conv1d", [True, False])
def test_conv1d_is_told_from_a_linear_of_the_same_name(prefix: str, conv1d: bool) -> None:
    recognition = recognise(index_of(gpt2(8, conv1d=conv1d, prefix=prefix)))
    assert recognition.family == ("gpt2" if conv1d else "generic")
    inner = [m for m in recognition.matrices if ".c_" in m.source]
    assert len(inner) == 4
    assert {m.layout.transposed for m in inner} == {conv1d}
    assert {m.layout.axis for m in inner} == {int(conv1d)}
    assert {m.role for m in inner} == {"linear"}
    outer = {m.role for m in recognition.matrices if m not in inner}
    assert outer == {"embedding"}


def test_cross_attention_of_gpt2_is_conv1d_and_its_heads_are_linear() -> None:
    shapes = gpt2(8, conv1d=True) | {
        "transformer.h.0.crossattention.q_attn.weight": (8, 8),
        "transformer.h.0.crossattention.c_attn.weight": (8, 16),
        "score.weight": (3, 8),
        "lm_head.weight": (50, 8),
    }
    found = by_key(recognise(index_of(shapes)))
    assert found["transformer.h.0.crossattention.q_attn.weight"].layout.transposed
    assert not found["score.weight"].layout.transposed
    assert found["lm_head.weight"].role == "softmax"


@pytest.mark.parametrize(
    "name",
    [
        "cls.predictions.decoder.weight", "lm_head.weight", "lm_head.decoder.weight",
        "embed_out.weight", "generator_lm_head.weight", "predictions.decoder.weight",
    ],
)  # fmt: skip
def test_output_layers_are_softmax_and_tied_ones_are_the_embedding(name: str) -> None:
    words = "bert.embeddings.word_embeddings.weight"
    shapes = {WEIGHTS["bert"]: (8, 8), words: (50, 8), name: (50, 8)}
    assert by_key(recognise(index_of(shapes)))[name].role == "softmax"
    tied = recognise(index_of(shapes, shares={name: words}))
    assert tied.roles_of_aliases == {name: "softmax"}
    assert [m.source for m in tied.matrices] == [WEIGHTS["bert"], words]


def test_what_is_no_weight_stays_with_its_reason() -> None:
    shapes = {
        WEIGHTS["t5"]: (8, 8),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
        "shared.weight": (50, 8),
    }
    recognition = recognise(index_of(shapes))
    assert {m.source: m.role for m in recognition.matrices} == {
        WEIGHTS["t5"]: "linear",
        "shared.weight": "embedding",
    }
    assert "no weight" in next(iter(recognition.kept.values()))
    bart = recognise(index_of({WEIGHTS["bart"]: (8, 8), "final_logits_bias": (1, 50)}))
    assert bart.kept == {"final_logits_bias": "a bias, no weight"}


def test_scores_of_movement_pruning_are_kept_and_said_to_be() -> None:
    weight = WEIGHTS["bert"]
    scores = weight.replace("weight", "mask_scores")
    checkpoint = index_of({weight: (16, 16), scores: (16, 16)})
    recognition = recognise(checkpoint)
    assert [m.source for m in recognition.matrices] == [weight]
    assert "movement pruning" in recognition.kept[scores]
    assert len(recognition.notes) == 1
    assert "without their masks" in recognition.notes[0]
    plan = make_plan(checkpoint, recognition, Request((Target("all"),), size=Size(rank=3)))
    rows = {item.name: item for item in plan.items}
    assert rows[weight].action == "factorize"
    assert rows[scores].action == "keep"
    assert rows[scores].reason not in {"", NOT_TARGETED, "kept as asked"}


# f-lm


def flm(kind: str, *, p: int = 4, n: int = 12, ema: bool = True, leaf: str = "kernel") -> Shapes:
    shapes: Shapes = {"model/emb_0": (5, p), "model/softmax_w_0": (5, p)}
    stem = "model/lstm_0/"
    if kind == "lstmp":
        shapes |= {f"{stem}lstm_cell/{leaf}": (2 * p, 4 * n)}
        shapes |= {f"{stem}lstm_cell/projection/{leaf}": (n, p)}
    elif kind == "flstm":
        shapes |= {f"{stem}flstm_cell/first_gemm/{leaf}": (2 * p, 3)}
        shapes |= {f"{stem}flstm_cell/second_gemm/{leaf}": (3, 4 * n)}
        shapes |= {f"{stem}flstm_cell/projection/{leaf}": (n, p)}
    else:
        for g in range(2):
            shapes[f"{stem}glstm_cell/group{g}/{leaf}"] = (p, 2 * n)
        shapes |= {f"{stem}glstm_cell/projection/{leaf}": (n, p)}
    if ema:
        more = {f"{k}/ExponentialMovingAverage": s for k, s in shapes.items() if "lstm" in k}
        shapes = {**shapes, **more}
    return shapes


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("leaf", ["kernel", "weights"])
def test_lstmp_of_flm(ema: bool, leaf: str) -> None:
    recognition = recognise(index_of(flm("lstmp", ema=ema, leaf=leaf)))
    assert recognition.family == "flm"
    assert not recognition.unrecognised
    end = "/ExponentialMovingAverage" if ema else ""
    kernel = f"model/lstm_0/lstm_cell/{leaf}{end}"
    found = by_key(recognition)
    additive, recurrent = found[f"{kernel}.Wi"], found[f"{kernel}.Wh"]
    projection = found[f"model/lstm_0/lstm_cell/projection/{leaf}{end}"]
    assert (additive.part, recurrent.part) == (Part(0, 0, 4), Part(0, 4, 8))
    layout = additive.layout
    assert (layout.gates, layout.transposed, layout.joint_input, layout.forget_bias) == (
        "ijfo", True, True, 1.0,
    )  # fmt: skip
    assert (projection.role, projection.layer, projection.shape) == ("P", 0, (12, 4))
    assert projection.direction == "forward"
    assert found["model/emb_0"].role == "embedding"
    assert found["model/softmax_w_0"].role == "softmax"
    if ema:
        assert recognition.copies[f"model/lstm_0/lstm_cell/{leaf}"] == kernel


def test_the_factors_of_an_f_lstm_are_kept() -> None:
    recognition = recognise(index_of(flm("flstm")))
    assert len(recognition.kept) == 4
    assert all("factorized already" in why for why in recognition.kept.values())
    assert not recognition.unrecognised
    assert [m.role for m in recognition.matrices] == ["embedding", "softmax", "P"]


def test_every_group_of_a_g_lstm_is_a_joint_weight() -> None:
    recognition = recognise(index_of(flm("glstm")))
    assert not recognition.unrecognised
    parts = [(m.source, m.role, m.part) for m in recognition.matrices if m.part]
    assert parts == [
        (f"model/lstm_0/glstm_cell/group{g}/kernel/ExponentialMovingAverage", role, part)
        for g in range(2)
        for role, part in (("Wi", Part(0, 0, 2)), ("Wh", Part(0, 2, 4)))
    ]
    assert len(recognition.copies) == 3


def test_keras_names_are_not_taken_for_flm_s() -> None:
    shapes = {"lstm_1/lstm_cell/kernel": (4, 16), "lstm_1/lstm_cell/recurrent_kernel": (4, 16)}
    assert recognise(index_of(shapes), strict=False).family != "flm"


@pytest.mark.parametrize("shape", [(8, 47), (3, 48), (4, 48), (0, 48)])
def test_shapes_that_are_no_lstmp_are_named(shape: tuple[int, int]) -> None:
    shapes = flm("lstmp", ema=False) | {"model/lstm_0/lstm_cell/kernel": shape}
    recognition = recognise(index_of(shapes), strict=False)
    assert "model/lstm_0/lstm_cell/kernel" in dict(recognition.unrecognised)
