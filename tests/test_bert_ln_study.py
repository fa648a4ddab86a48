"""bert_ln_study.py: BERT of figure 5, equal to plain torch and to fairseq's RoBERTa; what fairseq's commands do with it.

Dropout is 0 where two implementations are compared, since they draw other masks. Weights are the start's plus noise, so that
no bias is 0 and no gain 1, and one that is left out shows.
"""

import json
import math
import re
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils, options
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model
from fairseq_cli import preprocess as fairseq_preprocess
from fairseq_cli import train as fairseq_train_here
from fairseq_cli import validate as fairseq_validate
from omegaconf import OmegaConf
from reference import assert_equal_gradients, bert_features, masked_lm_logits
from tiny_models import dictionary

from fairseq_lnplugin import cli
from fairseq_lnplugin.ln_position import LN_POSITIONS, PostLN, PreLN

DICTIONARY = dictionary(99)
MASK, PAD = DICTIONARY.add_symbol("<mask>"), DICTIONARY.pad()
TASK = Namespace(source_dictionary=DICTIONARY, target_dictionary=DICTIONARY, max_positions=lambda: 16)

#: fairseq's own models of the two positions, at the tiny size.
STOCK = {"post": "roberta", "pre": "roberta_prenorm"}
TINY = {"encoder_layers": 2, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 256, "encoder_attention_heads": 2}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}

both_positions = pytest.mark.parametrize("position", ["pre", "post"])


def build(position, arch="bert_ln_study_tiny", **flags):
    """Our tiny model, as fairseq builds it, from seed 7."""
    torch.manual_seed(7)
    return build_model(Namespace(arch=arch, ln_position=position, **{**NO_DROPOUT, **flags}), TASK)


def build_stock(position):
    """Fairseq's RoBERTa of the same size, from seed 7."""
    torch.manual_seed(7)
    return build_model(Namespace(arch=STOCK[position], **TINY, **NO_DROPOUT), TASK)


def with_noise(model):
    """The model with N(0, 0.1^2) added to every parameter."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def sample():
    """Five sentences of 12 to 4 tokens, padded, some of them masked."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, 99, (5, 12), generator=generator)
    for row in range(5):
        tokens[row, 12 - 2 * row :] = PAD
    masked = (torch.rand(tokens.shape, generator=generator) < 0.3) & tokens.ne(PAD)
    net_input = {"src_tokens": tokens.masked_fill(masked, MASK), "src_lengths": tokens.ne(PAD).sum(1)}
    target = tokens.masked_fill(~masked, PAD)
    return {"net_input": net_input, "target": target, "ntokens": int(tokens.ne(PAD).sum()), "nsentences": 5}


def masked_lm(model, sample):
    """Loss and gradients by fairseq's criterion, in train mode."""
    model.zero_grad()
    loss, sample_size, _ = MaskedLmLoss(Namespace(tpu=False), TASK)(model.train(), sample)
    assert sample_size == sample["target"].ne(PAD).sum()
    loss.backward()
    return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# Against plain torch


def of_the_reference(model, sample, position):
    """Features at real positions, logits at masked ones, loss and gradients by tests/reference.py in float64."""
    p = {name: parameter.detach().double().requires_grad_() for name, parameter in model.named_parameters()}
    tokens, target = sample["net_input"]["src_tokens"], sample["target"]
    features = bert_features(p, tokens, 2, 2, position, PAD)
    logits = masked_lm_logits(features[target.ne(PAD)], p)
    loss = F.cross_entropy(logits, target[target.ne(PAD)], reduction="sum")
    loss.backward()
    return features[tokens.ne(PAD)], logits, loss, {name: parameter.grad for name, parameter in p.items()}


def assert_equal_to_reference(model, sample, expected):
    """``expected``: as :func:`of_the_reference` returns it."""
    features, logits, loss, gradients = expected
    tokens, masked = sample["net_input"]["src_tokens"], sample["target"].ne(PAD)
    found = model(tokens, features_only=True)[0][tokens.ne(PAD)]
    torch.testing.assert_close(found.double(), features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(tokens, masked_tokens=masked)[0].double(), logits, rtol=1e-5, atol=2e-5)
    found, found_gradients = masked_lm(model, sample)
    torch.testing.assert_close(found.double(), loss, rtol=1e-6, atol=0)
    assert_equal_gradients(found_gradients, gradients)


@both_positions
def test_forward_loss_and_every_gradient_equal_plain_torch(position, sample):
    """Table 1 with GELU and learned positions, the LM head at masked positions; pads; float32 to 1e-5."""
    model = with_noise(build(position))
    assert_equal_to_reference(model, sample, of_the_reference(model, sample, position))


def moved(name):
    """The LN of one sub-layer of layer 1 sits on the other side."""

    def plant(model):
        norm = getattr(model.encoder.sentence_encoder.layers[1], name)
        norm.__class__ = PreLN if isinstance(norm, PostLN) else PostLN

    return plant


def replaced(stack_attribute, value):
    return lambda model: setattr(model.encoder.sentence_encoder, stack_attribute, value)


def with_activation(function):
    return lambda model: setattr(model.encoder.sentence_encoder.layers[0], "activation_fn", function)


def with_shifted_mask(model):
    head = model.encoder.lm_head
    model.encoder.output_layer = lambda features, masked_tokens: head(features, masked_tokens.roll(1, 1))


ERRORS = {
    "attention's LN moved": (("pre", "post"), moved("self_attn_layer_norm")),
    "FFN's LN moved": (("pre", "post"), moved("final_layer_norm")),
    "no LN on the embeddings": (("post",), replaced("layernorm_embedding", None)),
    "no final LN": (("pre",), replaced("layer_norm", None)),
    "pads attended to": (("pre", "post"), replaced("padding_idx", MASK)),
    "ReLU": (("pre", "post"), with_activation(F.relu)),
    "GELU by tanh": (("pre", "post"), with_activation(lambda x: F.gelu(x, approximate="tanh"))),
    "logits beside the masked positions": (("pre", "post"), with_shifted_mask),
}


@pytest.mark.parametrize("error, position", [(error, position) for error in ERRORS for position in ERRORS[error][0]])
def test_the_comparison_with_plain_torch_finds_a_planted_error(error, position, sample):
    """Each of the mistakes that one may make here."""
    model = with_noise(build(position))
    expected = of_the_reference(model, sample, position)
    ERRORS[error][1](model)
    with pytest.raises(AssertionError):
        assert_equal_to_reference(model, sample, expected)


@both_positions
def test_a_layer_whose_branches_are_zero_is_the_identity_or_normalizes(position):
    """Table 1: Pre-LN returns its input, Post-LN an output of mean 0 and variance 1."""
    layer = build(position).encoder.sentence_encoder.layers[0]
    with torch.no_grad():
        for linear in (layer.self_attn.out_proj, layer.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    x = 3 + 2 * torch.randn(7, 2, 64)
    y = layer(x, None)
    if position == "pre":
        assert torch.equal(y, x)
    else:
        torch.testing.assert_close(y.mean(-1), torch.zeros(7, 2), rtol=0, atol=1e-5)
        torch.testing.assert_close(y.var(-1, correction=0), torch.ones(7, 2), rtol=0, atol=1e-4)


# Against fairseq's own RoBERTa


@both_positions
def test_a_seed_gives_the_weights_of_fairseqs_roberta(position):
    """--weight-init fairseq, the default here: names, their order and every number."""
    ours, theirs = (model.state_dict() for model in (build(position), build_stock(position)))
    assert list(ours) == list(theirs)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@both_positions
def test_loss_and_every_gradient_equal_fairseqs_roberta(position, sample):
    """Its weights loaded strictly; float32, the loss to 1e-6."""
    model, stock = build(position), with_noise(build_stock(position))
    model.load_state_dict(stock.state_dict())
    (ours, our_gradients), (theirs, their_gradients) = masked_lm(model, sample), masked_lm(stock, sample)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert_equal_gradients(our_gradients, their_gradients)


@both_positions
def test_our_weights_compute_the_same_in_fairseqs_roberta(position, sample):
    """Loaded strictly the other way; logits at all positions, in eval mode."""
    model, stock = with_noise(build(position)).eval(), build_stock(position).eval()
    stock.load_state_dict(model.state_dict())
    tokens, real = sample["net_input"]["src_tokens"], sample["net_input"]["src_tokens"].ne(PAD)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0][real], stock(tokens)[0][real], rtol=1e-5, atol=2e-5)


@both_positions
def test_bfloat16_products_are_as_near_to_float32_as_torchs_autocast(position, sample):
    """The loss to 0.5 %; all gradients together at most 1.25 times as far away as fairseq's under autocast."""
    stock, model = with_noise(build_stock(position)), build(position, compute_dtype="bfloat16")
    model.load_state_dict(stock.state_dict())
    (loss, exact), (ours, gradients) = masked_lm(stock, sample), masked_lm(model, sample)
    with torch.autocast("cpu", torch.bfloat16):
        _, autocast = masked_lm(stock, sample)
    torch.testing.assert_close(ours, loss, rtol=5e-3, atol=0)
    distances = [math.hypot(*((found[name] - exact[name]).norm() for name in exact)) for found in (gradients, autocast)]
    assert distances[0] <= 1.25 * distances[1]
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_fairseqs(dtype):
    """No copy in float32. To the bit, but for the last bit and tails of bfloat16 gradients, which depend on the CPU."""
    activations = [model.encoder.sentence_encoder.layers[0].activation_fn for model in (build("pre"), build_stock("pre"))]
    inputs = [torch.linspace(-6, 6, 1001).to(dtype).requires_grad_() for _ in activations]
    outputs = [activation(x) for activation, x in zip(activations, inputs, strict=True)]
    torch.stack(outputs).sum().backward()
    assert torch.equal(*outputs)
    rtol, atol = (2**-8, 1e-7) if dtype == torch.bfloat16 else (0, 0)
    torch.testing.assert_close(*(x.grad for x in inputs), rtol=rtol, atol=atol)


# Masked positions, pads, dropout


@both_positions
def test_training_projects_masked_positions_only(position, sample):
    """The head's rows are the masked tokens, in both of its products; the logits are those of the full projection."""
    model, rows = build(position), []
    model.encoder.lm_head.layer_norm.register_forward_hook(lambda _, inputs, output: rows.append(inputs[0].shape))
    model.encoder.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(output.shape))
    masked_lm(model, sample)
    masked = sample["target"].ne(PAD)
    assert rows == [(masked.sum(), 64), (masked.sum(), len(DICTIONARY))]
    tokens = sample["net_input"]["src_tokens"]
    torch.testing.assert_close(model(tokens, masked_tokens=masked)[0], model(tokens)[0][masked], rtol=1e-5, atol=1e-6)


@both_positions
def test_pads_change_nothing(position, sample):
    """Features of a sentence alone and of the same in a padded batch."""
    model, tokens = with_noise(build(position)).eval(), sample["net_input"]["src_tokens"]
    batch = model(tokens, features_only=True)[0]
    for row, sentence in enumerate(tokens):
        alone = model(sentence[None, : 12 - 2 * row], features_only=True)[0][0]
        torch.testing.assert_close(batch[row, : len(alone)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@both_positions
def test_training_is_random_through_dropout_only(position, dtype, sample):
    """Loss and gradients twice from the same weights: bit-equal without dropout, other ones with it."""
    for rate in (0.0, 0.1):
        model = build(position, dropout=rate, compute_dtype=dtype)
        (first, gradients), (second, others) = masked_lm(model, sample), masked_lm(model, sample)
        same = [torch.equal(gradients[name], others[name]) for name in gradients]
        assert (first == second and all(same)) == (rate == 0)


@pytest.mark.parametrize("flag", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_rate_of_dropout_makes_a_layer_random(flag):
    """Two passes over one input in training, the other two rates being 0."""
    model = build("pre", **{flag: 0.3}).train()
    layer = model.encoder.sentence_encoder.layers[1]
    x = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert not torch.equal(layer(x, None), layer(x, None))


# Sizes, start, flags


@pytest.mark.parametrize(
    "arch, sizes",
    [
        ("bert_ln_study", (12, 768, 3072, 12)),
        ("bert_ln_study_base", (12, 768, 3072, 12)),
        ("bert_ln_study_small", (6, 256, 1024, 4)),
        ("bert_ln_study_tiny", (2, 64, 256, 2)),
    ],
)
def test_the_named_sizes(arch, sizes):
    """Layers, width, FFN and heads; GELU, Post-LN and BERT's start are the defaults, and a flag wins."""
    args = Namespace(encoder_layers=None)
    ARCH_CONFIG_REGISTRY[arch](args)
    assert tuple(getattr(args, name) for name in TINY) == sizes
    assert (args.activation_fn, args.ln_position, args.weight_init) == ("gelu", "post", "fairseq")
    given = Namespace(encoder_layers=3)
    ARCH_CONFIG_REGISTRY[arch](given)
    assert given.encoder_layers == 3


def test_a_yaml_file_builds_the_same_model():
    """fairseq-hydra-train gives its settings as an OmegaConf: our flags are kept, the task tells the positions."""
    torch.manual_seed(7)
    model = build_model(OmegaConf.create({"_name": "bert_ln_study_tiny", "ln_position": "pre"}), TASK)
    assert model.max_positions() == 16
    ours, theirs = model.state_dict(), build("pre").state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("scheme", ["fairseq", "xavier_uniform", "xavier_normal"])
def test_weights_start_as_the_scheme_says(scheme):
    """Standard deviations within 5 standard errors: BERT's 0.02, or Xavier's in the FFN, or in all of a layer."""
    for name, parameter in build("post", weight_init=scheme).named_parameters():
        xavier = {"fairseq": r"^$", "xavier_uniform": r"\.fc[12]\.weight", "xavier_normal": r"layers.*\.weight"}[scheme]
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, name.endswith("weight"))), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            drawn = parameter[parameter.any(dim=1)]  # not the row of pads
            std = (2 / sum(parameter.shape)) ** 0.5 if re.search(xavier, name) else 0.02
            assert drawn.std().item() == pytest.approx(std, rel=5 / (2 * drawn.numel()) ** 0.5), name


@pytest.mark.parametrize("layerdrop", [0.0, 0.9])
def test_the_scheme_starts_every_layer_also_under_layerdrop(layerdrop):
    """Xavier's bound sqrt(6 / (64 + 256)) of W1 in each of eight layers, of which training drops nine of ten."""
    layers = build(
        "pre", weight_init="xavier_uniform", encoder_layers=8, encoder_layerdrop=layerdrop
    ).encoder.sentence_encoder.layers
    bound = (6 / 320) ** 0.5
    largest = [layers[number].fc1.weight.abs().max().item() for number in range(8)]
    assert [0.99 * bound < value <= bound for value in largest] == [True] * 8


def test_a_norm_is_told_that_there_is_no_decoder(monkeypatch):
    """For arrangements whose factors depend on the depths; layers count from 1."""
    places = []

    class Noted(PostLN):
        def __init__(self, place):
            super().__init__(place)
            places.append((place.stack, place.layer, place.sublayer, place.encoder_layers, place.decoder_layers))

    monkeypatch.setitem(LN_POSITIONS, "noted", Noted)
    build("noted")
    assert places == [("encoder", layer, sublayer, 2, 0) for layer in (1, 2) for sublayer in ("self_attn", "ffn")]


@pytest.mark.parametrize(
    "position, flags, sentence",
    [
        ("post", {"encoder_normalize_before": True}, "--encoder-normalize-before contradicts --ln-position post"),
        ("pre", {"layernorm_embedding": True}, "--layernorm-embedding contradicts --ln-position pre"),
        ("sandwich", {}, "--ln-position sandwich: no such choice; take one of post, pre"),
        ("pre", {"encoder_attention_heads": 3}, "--encoder-attention-heads 3 does not divide --encoder-embed-dim 64"),
        ("pre", {"pooler_dropout": 1.5}, "--pooler-dropout 1.5: give a rate from 0 to below 1"),
        ("pre", {"quant_noise_pq": 0.1}, "--quant-noise-pq does nothing in this model"),
        ("pre", {"fp16": True, "compute_dtype": "bfloat16"}, "--compute-dtype bfloat16 would do nothing"),
    ],
)
def test_flags_that_the_model_cannot_follow_are_refused_in_a_sentence(position, flags, sentence):
    """Contradictions, impossible sizes, flags that our layers do not have."""
    with pytest.raises(SystemExit, match=sentence):
        build(position, **flags)


@pytest.mark.parametrize(
    "position, told", [("pre", "Pre-LN; final norms: .* yes; 6 norms"), ("post", "Post-LN; final norms: .* no; 6 norms")]
)
def test_map_shows_where_its_norms_sit(position, told, capsys):
    """Two a layer and the LM head's; a final one in Pre-LN, in Post-LN one on the embeddings."""
    assert cli.main(["map", "--arch", "bert_ln_study_tiny", "--ln-position", position]) == 0
    output = capsys.readouterr().out
    assert re.search(told, output)
    assert ("layernorm_embedding" in output) == (position == "post")


# fairseq's commands

#: What every training of these tests has in common; a later flag of the same name wins.
COMMON = ["--arch", "bert_ln_study_tiny", "--optimizer", "adam", "--lr", 0.003, "--batch-size", 32, "--cpu", "--seed", 1]
COMMON += ["--required-batch-size-multiple", 1, "--num-workers", 0, "--log-format", "json", "--log-interval", 1]
PRETRAIN = [*COMMON, "--task", "masked_lm", "--criterion", "masked_lm", "--tokens-per-sample", 24, "--max-epoch", 2]
PRETRAIN += ["--sample-break-mode", "complete", "--grad-norm-interval", 5]
FINETUNE = [*COMMON, "--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", 2]
FINETUNE += ["--init-token", 0, "--separator-token", 2, "--max-positions", 24, "--max-epoch", 3, "--reset-optimizer"]
FINETUNE += ["--reset-dataloader", "--reset-meters", "--reset-lr-scheduler"]


def train(data, save_dir, *flags):
    """``fairseq-train`` in this process."""
    command = [str(word) for word in (data, "--save-dir", save_dir, *flags)]
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=command)
    fairseq_train_here.main(convert_namespace_to_omegaconf(args))


def validate(data, checkpoint, task, caplog, monkeypatch):
    """The loss that ``fairseq-validate`` finds, in this process."""
    command = [data, "--path", checkpoint, "--task", task, "--criterion", task, "--cpu", "--batch-size", 32, "--seed", 1]
    command += ["--required-batch-size-multiple", 1, "--num-workers", 0, "--log-format", "json"]
    given, args = (
        options.parse_args_and_arch(
            options.get_validation_parser(), input_args=[str(word) for word in command], suppress_defaults=suppressed
        )
        for suppressed in (True, False)
    )
    monkeypatch.setattr(fairseq_validate, "reset_logging", lambda: None)  # it takes pytest's handlers away
    caplog.clear()
    fairseq_validate.main(convert_namespace_to_omegaconf(args), override_args=given)
    (found,) = [json.loads(record.message) for record in caplog.records if record.name == "valid"]
    return next(float(value) for name, value in found.items() if name.endswith("valid_loss") or name == "loss")


def binarize(source, destdir, *flags):
    """``fairseq-preprocess --only-source`` in this process, of the files ``SOURCE.train`` and ``SOURCE.valid``."""
    command = ["--only-source", "--trainpref", f"{source}.train", "--validpref", f"{source}.valid", "--destdir", destdir, *flags]
    fairseq_preprocess.main(options.get_preprocessing_parser().parse_args([str(word) for word in command]))


@pytest.fixture(scope="module")
def data(text_corpus, tmp_path_factory):
    """``bin``: the English side for masked LM; ``pairs``: two sentences, and whether the first has more words."""
    folder = tmp_path_factory.mktemp("bert")
    for split in ("train", "valid"):
        lines = (text_corpus / f"{split}.en").read_text(encoding="utf-8").splitlines()
        others = lines[1:] + lines[:1]
        labels = ["more" if len(a.split()) > len(b.split()) else "less" for a, b in zip(lines, others, strict=True)]
        for name, column in (("input0", lines), ("input1", others), ("label", labels)):
            (folder / f"{name}.{split}").write_text("\n".join(column) + "\n", encoding="utf-8")
    binarize(folder / "input0", folder / "bin")
    for name in ("input0", "input1"):
        binarize(folder / name, folder / "pairs" / name, "--srcdict", folder / "bin/dict.txt")
    binarize(folder / "label", folder / "pairs/label")
    return folder


@pytest.fixture(scope="module", params=["pre", "post"])
def pretrained(request, data, fairseq_train, tmp_path_factory):
    """Position, save folder and log of the real fairseq-train, two epochs of masked LM; Pre-LN in bfloat16."""
    save_dir = tmp_path_factory.mktemp(request.param)
    dtype = "bfloat16" if request.param == "pre" else "float32"
    flags = [*PRETRAIN, "--ln-position", request.param, "--compute-dtype", dtype]
    run = fairseq_train([data / "bin", "--save-dir", save_dir, *flags])
    assert run.rc == 0, run.log
    return request.param, save_dir, run.log


def values(log, name):
    """Fairseq's JSON lines of this name in a log."""
    return [json.loads(line.split(f"| {name} | ")[1]) for line in log.splitlines() if f"| {name} | " in line]


def test_pretraining_learns(pretrained):
    """Validation loss (bits a masked token) falls from epoch to epoch, and the log says what was built."""
    position, _, log = pretrained
    first, second = (float(line["valid_loss"]) for line in values(log, "valid"))
    assert second < first < 2 * math.log2(49)
    final, embeddings = ("yes", "no") if position == "pre" else ("no", "yes")
    told = f"{position.capitalize()}-LN: norms a layer: encoder 2; final norms: encoder {final}; norms on embeddings: "
    assert told + f"encoder {embeddings}; layers: encoder 2; weight init fairseq" in log


def test_gradient_norms_of_a_run_are_those_of_its_layers(pretrained):
    """grad_norm.tsv: stack encoder, layers 1 and 2; the root of the summed squares is fairseq's gnorm."""
    _, save_dir, log = pretrained
    rows = [line.split("\t") for line in (save_dir / "grad_norm.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    first = [row[1:] for row in rows if row[0] == "1"]
    assert {(stack, layer) for stack, layer, matrix, _ in first if matrix == "fc2.weight"} == {("encoder", "1"), ("encoder", "2")}
    assert "lm_head.dense.weight" in {matrix for stack, layer, matrix, _ in first if (stack, layer) == ("encoder", "")}
    total = math.hypot(*(float(norm) for *_, norm in first))
    assert total == pytest.approx(float(values(log, "train_inner")[0]["gnorm"]), abs=2e-3)


def test_a_checkpoint_is_finetuned_reloaded_and_validated(pretrained, data, tmp_path, caplog, monkeypatch):
    """--restore-file with a new head: pre-trained weights to begin with, fairseq-validate finds the logged loss."""
    position, save_dir, _ = pretrained
    restore = ["--restore-file", save_dir / "checkpoint_last.pt", "--ln-position", position]
    train(data / "pairs", tmp_path / "start", *FINETUNE, *restore, "--lr", 0, "--max-update", 1)
    began, was = (torch.load(folder / "checkpoint_last.pt")["model"] for folder in (tmp_path / "start", save_dir))
    assert [name for name in was if not torch.equal(began[name], was[name])] == []
    assert "classification_heads.sentence_classification_head.out_proj.weight" in began.keys() - was.keys()

    caplog.set_level("INFO")
    train(data / "pairs", tmp_path / "tuned", *FINETUNE, *restore)
    logged = [json.loads(record.message) for record in caplog.records if record.name == "valid"][-1]
    found = validate(data / "pairs", tmp_path / "tuned/checkpoint_last.pt", "sentence_prediction", caplog, monkeypatch)
    assert found == pytest.approx(float(logged["valid_loss"]), abs=2e-3)


def test_validate_finds_the_masked_lm_loss_that_training_logged(pretrained, data, caplog, monkeypatch):
    """The same masks: they depend on the seed, the epoch and the line."""
    _, save_dir, log = pretrained
    caplog.set_level("INFO")
    found = validate(data / "bin", save_dir / "checkpoint_last.pt", "masked_lm", caplog, monkeypatch)
    assert found == pytest.approx(float(values(log, "valid")[-1]["valid_loss"]), abs=2e-3)


def test_map_reads_a_checkpoint(pretrained, capsys):
    """Its settings tell the position; with all of its parameters."""
    position, save_dir, _ = pretrained
    assert cli.main(["map", "--checkpoint", str(save_dir / "checkpoint_last.pt")]) == 0
    assert f"bert_ln_study_tiny: {position.capitalize()}-LN; " in capsys.readouterr().out


def test_a_checkpoint_needs_no_flags_to_be_loaded(pretrained):
    """The position comes from its settings, and every number in it is in the model."""
    position, save_dir, _ = pretrained
    (model,), args, _ = checkpoint_utils.load_model_ensemble_and_task([str(save_dir / "checkpoint_last.pt")])
    assert args.model.ln_position == position
    state = torch.load(save_dir / "checkpoint_last.pt")["model"]
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])] == []


def test_a_checkpoint_of_the_other_position_is_refused_in_a_sentence(pretrained, data, tmp_path):
    """It names both positions, and nothing is trained."""
    position, save_dir, _ = pretrained
    other = "post" if position == "pre" else "pre"
    sentence = rf"ends in .*\({position.capitalize()}-LN\) and this model is --ln-position {other}: give the position"
    with pytest.raises(SystemExit, match=sentence):
        flags = [*FINETUNE, "--restore-file", save_dir / "checkpoint_last.pt", "--ln-position", other]
        train(data / "pairs", tmp_path, *flags)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--max-positions", 20], "knows 24 positions and this model 20: give --max-positions 24"),
        (["--encoder-embed-dim", 32], "does not fit this model's flags: size mismatch for encoder"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused_in_a_sentence(pretrained, flags, sentence, data, tmp_path):
    """What differs, and what to give."""
    position, save_dir, _ = pretrained
    restore = ["--restore-file", save_dir / "checkpoint_last.pt", "--ln-position", position]
    with pytest.raises(SystemExit, match=sentence):
        train(data / "pairs", tmp_path, *FINETUNE, *restore, *flags)


def test_a_checkpoint_of_another_dictionary_is_refused_in_a_sentence(pretrained, data, tmp_path):
    """Both numbers of types, <mask> included."""
    position, save_dir, _ = pretrained
    binarize(data / "label", tmp_path / "bin")
    with pytest.raises(SystemExit, match=r"the checkpoint's encoder knows 49 types .* dictionary has 9: binarize with"):
        restore = ["--restore-file", save_dir / "checkpoint_last.pt", "--ln-position", position]
        train(tmp_path / "bin", tmp_path, *PRETRAIN, *restore)


@pytest.mark.parametrize(
    "flags, sentence", [(PRETRAIN, r"no .*dict\.txt\); .* which holds dict\.txt"), (FINETUNE, "holds input0/dict.txt and label/")]
)
def test_a_missing_data_folder_is_named(flags, sentence, tmp_path):
    """And what it has to hold."""
    with pytest.raises(SystemExit, match=f"nowhere is not a folder that fairseq-preprocess wrote .*{sentence}"):
        train(tmp_path / "nowhere", tmp_path / "save", *flags)
