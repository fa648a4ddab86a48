"""transformer_ln_study.py, compat.py: what fairseq's commands do with ``transformer``, they do with our model.

Commands that a user starts once run as such; variants of them run fairseq's ``main`` in this process, by fairseq_runs.py.
"""

import math
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import validate as fairseq_validate
from fairseq_runs import SMOOTHED, TINY, generate, hypotheses_in, load, train, weights_in
from tiny_models import built, stock_of

from fairseq_lnplugin.beam_search import ShortlistGenerator
from fairseq_lnplugin.transformer_ln_study import TransformerLNStudyModel

#: fairseq's own, whose place in fairseq ours takes.
SequenceGenerator = ShortlistGenerator.__bases__[0]
GENERATORS = pytest.mark.parametrize("generator_class", [SequenceGenerator, ShortlistGenerator])


def run_command(repo_root, name, *arguments, text=None):
    """``fairseq-NAME ARGUMENTS``; its standard output, after it ended with status 0."""
    command = [sys.executable, "-m", f"fairseq_cli.{name}", *(str(argument) for argument in arguments)]
    run = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=repo_root, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module", params=["pre", "post"])
def trained(request, data_bin, tmp_path_factory):
    """Save folder of a model of three epochs, for both positions."""
    save_dir = tmp_path_factory.mktemp(request.param)
    train(data_bin, save_dir, "--ln-position", request.param, "--max-epoch", 3)
    return save_dir


@pytest.fixture(scope="module")
def commands(repo_root, data_bin, tmp_path_factory):
    """Save folder and log of the real fairseq-train, Pre-LN, all products in bfloat16."""
    save_dir = tmp_path_factory.mktemp("commands")
    flags = [*TINY, *SMOOTHED, "--ln-position", "pre", "--compute-dtype", "bfloat16", "--max-epoch", 3]
    log = run_command(repo_root, "train", data_bin, "--user-dir", "fairseq_lnplugin", "--save-dir", save_dir, *flags)
    return save_dir, log


# The commands


def test_generate_decodes_every_sentence_without_a_flag_for_the_position(commands, repo_root, data_bin):
    """The position comes from the checkpoint; 40 test sentences, each once."""
    arguments = [data_bin, "--user-dir", "fairseq_lnplugin", "--path", commands[0] / "checkpoint_last.pt", "--cpu"]
    arguments += ["--max-tokens", 400, "--num-workers", 0, "--required-batch-size-multiple", 1, "--max-len-b", 12]
    assert sorted(hypotheses_in(run_command(repo_root, "generate", *arguments))) == list(range(40))


def test_interactive_decodes_as_generate_does(commands, repo_root, data_bin, text_corpus, tmp_path):
    """Three lines on standard input; umlauts are unknown words, not errors."""
    checkpoint = commands[0] / "checkpoint_last.pt"
    lines = (text_corpus / "test.de").read_text(encoding="utf-8").splitlines()[:3]
    arguments = [
        data_bin,
        "--user-dir",
        "fairseq_lnplugin",
        "--path",
        checkpoint,
        "--cpu",
        "--max-len-b",
        12,
        "--buffer-size",
        4,
    ]
    output = run_command(repo_root, "interactive", *arguments, text="\n".join([*lines, "grüß"]) + "\n")
    expected = generate(data_bin, checkpoint, tmp_path)
    found = hypotheses_in(output)
    assert len(found) == 4
    assert [found[i] for i in range(3)] == [expected[i] for i in range(3)]


@pytest.mark.parametrize("optimizer", ["adam", "fused_adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_validate_finds_the_loss_that_training_logged(dtype, optimizer, data_bin, tmp_path, caplog, monkeypatch):
    """The weights that an epoch's validation used are those of its end, also after earlier validations."""
    caplog.set_level("INFO")
    train(data_bin, tmp_path, "--compute-dtype", dtype, "--optimizer", optimizer, "--max-epoch", 3)
    logged = [record.message for record in caplog.records if record.name == "valid"][-1]
    command = [data_bin, "--path", tmp_path / "checkpoint_last.pt", "--cpu", "--max-tokens", 400, "--num-workers", 0]
    command += ["--required-batch-size-multiple", 1, "--task", "translation", "--log-format", "json"]
    args = options.parse_args_and_arch(options.get_validation_parser(), input_args=[str(word) for word in command])
    caplog.clear()
    monkeypatch.setattr(fairseq_validate, "reset_logging", lambda: None)  # it takes pytest's handlers away
    fairseq_validate.main(convert_namespace_to_omegaconf(args), override_args=args)
    found = [record.message for record in caplog.records if record.name == "valid"][-1]
    losses = [float(re.search(r'loss": "?([0-9.]+)', message)[1]) for message in (logged, found)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)


def test_the_log_says_what_was_built(trained, data_bin, caplog):
    """Position, norms, final norms, parameters: one line, at loading too."""
    caplog.set_level("INFO")
    model = load(trained / "checkpoint_last.pt", data_bin)
    line = next(record.message for record in caplog.records if "norms a layer" in record.message)
    position, yes = model.cfg.ln_position, "yes" if model.cfg.ln_position == "pre" else "no"
    assert line.startswith(f"{position.capitalize()}-LN: norms a layer: encoder 2, decoder 3; ")
    assert f"final norms: encoder {yes}, decoder {yes}; " in line
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters" in line


def test_hydra_train_runs_our_yaml(repo_root, data_bin, tmp_path):
    """examples/hydra/pre_ln.yaml with another size; fairseq-generate decodes what it trained, layers as given."""
    overrides = [
        f"task.data={data_bin}",
        f"checkpoint.save_dir={tmp_path / 'checkpoints'}",
        f"hydra.run.dir={tmp_path / 'hydra'}",
    ]
    overrides += [
        "model._name=transformer_ln_study_tiny",
        "+model.encoder_layers=3",
        "common.cpu=true",
        "dataset.num_workers=0",
    ]
    overrides += ["optimization.max_epoch=1", "model.compute_dtype=bfloat16"]
    run_command(repo_root, "hydra_train", "--config-dir", "examples/hydra", "--config-name", "pre_ln", *overrides)
    checkpoint = tmp_path / "checkpoints/checkpoint_last.pt"
    model = load(checkpoint, data_bin)
    assert (model.cfg.ln_position, model.cfg.compute_dtype, len(model.encoder.layers)) == ("pre", "bfloat16", 3)
    assert sorted(generate(data_bin, checkpoint, tmp_path)) == list(range(40))


def test_from_pretrained_translates_as_generate_does(trained, data_bin, text_corpus, tmp_path):
    """The hub interface: a folder with a checkpoint, and the data folder for its dictionaries."""
    hub = TransformerLNStudyModel.from_pretrained(str(trained), "checkpoint_last.pt", str(data_bin))
    lines = (text_corpus / "test.de").read_text(encoding="utf-8").splitlines()[:5]
    expected = generate(data_bin, trained / "checkpoint_last.pt", tmp_path)
    assert hub.translate(lines, beam=5, max_len_b=12) == [expected[i] for i in range(5)]


@GENERATORS
def test_the_score_of_each_beam_is_that_of_full_decoding(generator_class, trained, data_bin):
    """Beam 4 token by token, against one pass over each hypothesis."""
    model = load(trained / "checkpoint_last.pt", data_bin)
    dictionary = model.decoder.dictionary
    src = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(1))
    src[1, :2] = dictionary.pad()
    net_input = {"src_tokens": src, "src_lengths": src.ne(dictionary.pad()).sum(1)}
    found = generator_class([model], dictionary, beam_size=4, max_len_b=8).generate([model], {"net_input": net_input})
    for sentence, hypotheses in enumerate(found):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            prev = torch.cat([torch.tensor([dictionary.eos()]), tokens[:-1]])[None]
            with torch.no_grad():
                output = model(src[sentence][None], net_input["src_lengths"][sentence][None], prev)
                scores = model.get_normalized_probs(output, log_probs=True)[0].gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], scores, rtol=1e-4, atol=1e-4)


def test_beam_search_compiles_with_torchscript(trained, data_bin):
    """The scripted SequenceGenerator over our model finds the eager one's hypotheses."""
    model = load(trained / "checkpoint_last.pt", data_bin)
    src = torch.randint(4, 40, (2, 6), generator=torch.Generator().manual_seed(1))
    sample = {"net_input": {"src_tokens": src, "src_lengths": torch.tensor([6, 6])}}
    generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=2, max_len_b=6)
    eager, scripted = (g.forward(sample) for g in (generator, torch.jit.script(generator)))
    for ours, theirs in zip(sum(eager, []), sum(scripted, []), strict=True):
        assert ours["tokens"].tolist() == theirs["tokens"].tolist()


# Flags of fairseq's transformer


def test_layerdrop_trains_and_a_pruned_model_keeps_the_named_layers(data_bin, tmp_path):
    """--encoder-layerdrop 0.5; --encoder-layers-to-keep at load: the checkpoint's last two of three.

    The decoder's have to be named too: fairseq's pruning drops a stack that is not.
    """
    flags = ["--encoder-layerdrop", 0.5, "--decoder-layerdrop", 0.5, "--encoder-layers", 3, "--max-update", 4]
    train(data_bin, tmp_path, *flags)
    checkpoint = tmp_path / "checkpoint_last.pt"
    model = load(checkpoint, data_bin, encoder_layers_to_keep="1,2", decoder_layers_to_keep="0,1")
    assert len(model.encoder.layers) == 2
    whole = weights_in(checkpoint)
    for kept, original in ((0, 1), (1, 2)):
        for name, parameter in model.encoder.layers[kept].named_parameters():
            assert torch.equal(parameter, whole[f"encoder.layers.{original}.{name}"]), name


@pytest.mark.parametrize(
    "flags",
    [
        "--share-all-embeddings",
        "--share-decoder-input-output-embed",
        "--layernorm-embedding",
        "--no-cross-attention",
        "--encoder-learned-pos --decoder-learned-pos",
        "--encoder-embed-dim 32",
        "--decoder-output-dim 32",
        "--attention-dropout 0.1",
        "--activation-fn gelu --activation-dropout 0.1",
        "--checkpoint-activations",
        "--criterion fused_label_smoothed_cross_entropy",
    ],
)
def test_a_flag_of_fairseqs_transformer_trains_and_decodes(flags, data_bin, tmp_path):
    """Two updates, then fairseq-generate on what they made."""
    train(data_bin, tmp_path, "--ln-position", "pre", "--max-update", 2, *flags.split())
    assert sorted(generate(data_bin, tmp_path / "checkpoint_last.pt", tmp_path, "--beam", 2)) == list(range(40))


@pytest.mark.parametrize("position", ["pre", "post"])
def test_a_moving_average_of_the_weights_is_kept_and_gone_on_with(position, data_bin, tmp_path):
    """--store-ema leaves versions out, by which fairseq's stacks would drop their final norms at the next update."""
    flags = ["--ln-position", position, "--store-ema", "--ema-decay", 0.5]
    train(data_bin, tmp_path, *flags, "--max-update", 3)
    train(data_bin, tmp_path, *flags, "--max-update", 5)
    state = torch.load(tmp_path / "checkpoint_last.pt")
    average, names = state["extra_state"]["ema"], {name for name in state["model"] if "version" not in name}
    assert state["optimizer_history"][-1]["num_updates"] == 5
    assert {name for name in average if "version" not in name} == names
    assert any(not torch.equal(average[name], state["model"][name]) for name in names)


def test_adaptive_softmax_trains_and_decodes_with_its_own_criterion(data_bin, tmp_path):
    """As in stock fairseq, which has no other criterion for it."""
    flags = ["--adaptive-softmax-cutoff", "10,20", "--ddp-backend", "legacy_ddp", "--max-update", 2]
    train(data_bin, tmp_path, *flags, criterion=["--criterion", "adaptive_loss"])
    assert sorted(generate(data_bin, tmp_path / "checkpoint_last.pt", tmp_path, "--beam", 2)) == list(range(40))


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("flag", ["checkpoint_activations", "offload_activations"])
def test_activation_checkpointing_gives_the_same_gradients(position, flag):
    """With dropout on: what is computed again draws the same mask."""
    src, gradients = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(1)), []
    for flags in ({}, {flag: True}):
        model = built(ln_position=position, dropout=0.3, attention_dropout=0.1, activation_dropout=0.1, **flags)
        torch.manual_seed(5)
        model.train()(src, torch.tensor([6, 6, 6]), src)[0].logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "flags",
    [
        "--fp16 --fp16-no-flatten-grads --fp16-init-scale 4",
        "--fp16 --memory-efficient-fp16 --fp16-init-scale 4",
        "--fp16 --memory-efficient-fp16 --fp16-init-scale 4 --optimizer fused_adam",
        "--bf16",
        "--bf16 --memory-efficient-bf16",
        "--amp",
    ],
)
def test_reduced_precision_trains_to_nearly_the_loss_of_float32(flags, data_bin, tmp_path, caplog):
    """Six updates, the last one's loss within 1 %; plain --fp16 needs a GPU, in stock fairseq too."""
    caplog.set_level("INFO")
    losses = []
    for extra in ([], flags.split()):
        caplog.clear()
        train(data_bin, tmp_path, "--no-save", "--dropout", 0, "--max-update", 6, "--lr", 0.001, *extra)
        last = [record.message for record in caplog.records if record.name == "train_inner"][-1]
        losses.append(float(re.search(r'"loss": "([0-9.]+)"', last)[1]))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


# Sizes


@pytest.mark.parametrize(
    "arch, width, ffn_width, heads, layers",
    [("transformer_ln_study", 512, 2048, 8, 6), ("transformer_ln_study_iwslt_de_en", 512, 1024, 4, 6),
     ("transformer_ln_study_wmt_en_de", 512, 2048, 8, 6), ("transformer_ln_study_small", 256, 512, 4, 6),
     ("transformer_ln_study_tiny", 64, 128, 2, 2)],
)  # fmt: skip
def test_a_named_size_has_its_widths_in_both_stacks(arch, width, ffn_width, heads, layers):
    """Counted on the built model, whose parameters follow from the sizes."""
    model = built(arch=arch, ln_position="pre")
    for stack, attentions, norms in ((model.encoder, 1, 2), (model.decoder, 2, 3)):
        assert len(stack.layers) == layers
        layer = stack.layers[0]
        assert (layer.embed_dim, layer.fc1.out_features, layer.self_attn.num_heads) == (width, ffn_width, heads)
        expected = attentions * 4 * width * (width + 1) + 2 * width * ffn_width + width + ffn_width + norms * 2 * width
        assert sum(parameter.numel() for parameter in layer.parameters()) == expected
    shared = model.encoder.embed_tokens is model.decoder.embed_tokens
    assert shared == (arch == "transformer_ln_study_wmt_en_de")


def test_a_flag_wins_over_the_named_size_and_after_reload(data_bin, tmp_path):
    """Three layers and another FFN width, in training and in what fairseq-generate loads."""
    train(
        data_bin,
        tmp_path,
        "--encoder-layers",
        3,
        "--decoder-ffn-embed-dim",
        96,
        "--ln-position",
        "pre",
        "--max-update",
        1,
    )
    model = load(tmp_path / "checkpoint_last.pt", data_bin)
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 2)
    assert [model.encoder.layers[0].fc1.out_features, model.decoder.layers[0].fc1.out_features] == [128, 96]


@pytest.mark.parametrize("layers", [1, 6])
@pytest.mark.parametrize("position, final_norms", [("pre", ["decoder.layer_norm", "encoder.layer_norm"]), ("post", [])])
def test_the_final_norms_are_those_of_table_1_at_any_depth(position, final_norms, layers):
    """All LN names: two or three a layer, and Pre-LN's one after each stack."""
    model = built(ln_position=position, encoder_layers=layers, decoder_layers=layers)
    norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    assert sorted(name for name in norms if ".layers." not in name) == final_norms
    assert sum(".layers." in name for name in norms) == 5 * layers


@pytest.mark.parametrize(
    "weight_init, limit", [(None, math.sqrt(6 / 192)), ("xavier_uniform", math.sqrt(6 / 192)), ("fairseq", 1 / 8)]
)
def test_the_ffn_starts_as_weight_init_says(weight_init, limit):
    """W1 of 64 x 128: U(-a, a) with Xavier's a = sqrt(6 / (64 + 128)), also without the flag, or torch's a = 1 / sqrt(64)."""
    layer = built(weight_init=weight_init).encoder.layers[0]
    assert 0.99 * limit < layer.fc1.weight.abs().max() <= limit
    assert (layer.fc1.bias.abs().max() == 0) == (weight_init != "fairseq")


def test_stock_fairseq_decodes_the_same_hypotheses(trained, data_bin):
    """Beam search over the same weights in fairseq's transformer: tokens equal, scores to rounding."""
    ours = load(trained / "checkpoint_last.pt", data_bin)
    src = torch.randint(4, 40, (4, 6), generator=torch.Generator().manual_seed(3))
    sample = {"net_input": {"src_tokens": src, "src_lengths": torch.full((4,), 6)}}
    found = []
    for model in (ours, stock_of(ours).eval()):
        generator = SequenceGenerator([model], model.decoder.dictionary, beam_size=3, max_len_b=8)
        found.append([hypothesis for beams in generator.generate([model], sample) for hypothesis in beams])
    for mine, theirs in zip(*found, strict=True):
        assert mine["tokens"].tolist() == theirs["tokens"].tolist()
        torch.testing.assert_close(mine["score"], theirs["score"], rtol=1e-4, atol=1e-4)


# Killed


def is_copy(last, saved):
    """Whether the copy of ``saved`` to ``last`` has ended."""
    return last.stat().st_mtime >= saved.stat().st_mtime and last.stat().st_size == saved.stat().st_size


def test_a_run_killed_in_mid_epoch_goes_on_to_the_same_weights(repo_root, data_bin, tmp_path):
    """SIGKILL after the 8th update or a little later; the same command again; bit-equal to the unbroken run."""
    flags = "--ln-position pre --batch-size 8 --max-epoch 2 --save-interval-updates 4 --no-epoch-checkpoints"
    flags += " --lr-scheduler warmup_inverse_sqrt --warmup-updates 20 --criterion fused_label_smoothed_cross_entropy"
    flags = flags.split()
    train(data_bin, tmp_path / "unbroken", *flags)
    command = [sys.executable, "-m", "fairseq_cli.train", data_bin, "--user-dir", "fairseq_lnplugin"]
    command = [str(word) for word in (*command, "--save-dir", tmp_path / "killed", *TINY, *SMOOTHED, *flags)]
    settings = {"cwd": repo_root, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    settings |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command, **settings)
    saved, last = tmp_path / "killed/checkpoint_1_8.pt", tmp_path / "killed/checkpoint_last.pt"
    # fairseq copies the one to the other: a kill between would leave the test of torn files, which is the recipes'
    while run.poll() is None and not (saved.exists() and last.exists() and is_copy(last, saved)):
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("killed/checkpoint_2_*"))
    assert subprocess.run(command, **settings, check=False).returncode == 0
    unbroken, resumed = (weights_in(tmp_path / run / "checkpoint_last.pt") for run in ("unbroken", "killed"))
    assert unbroken.keys() == resumed.keys()
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []
