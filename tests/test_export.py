"""What an exported checkpoint promises: Hugging Face's names and shapes, and the same logits."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coupled_adam.export import export
from coupled_adam.gpt import GPTConfig
from coupled_adam.text import load
from coupled_adam.training import TrainingConfig, padded_vocabulary, train

VOCABULARY = 300
MODEL = GPTConfig(padded_vocabulary(VOCABULARY), context=8, layers=2, heads=2, width=16)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def exported(request, tmp_path_factory):
    """A run whose weights are large enough for attention and gelu to matter, and its export."""
    folder = tmp_path_factory.mktemp("export")
    text = folder / "text.txt"
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    text.write_text(" ".join(words[i * i % 151 % len(words)] for i in range(20_000)))
    corpus = load(text, VOCABULARY, cache=folder / "cache")
    config = TrainingConfig(
        dataclasses.replace(MODEL, tied=request.param),
        steps=30,
        learning_rate=0.05,
        warmup_steps=1,
        evaluate_every=30,
    )
    run = train(config, corpus, folder / "run", progress=False)
    export(folder / "run", folder / "hf")
    return run, folder / "hf", corpus


def make_tokens(batch=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (batch, MODEL.context), generator=generator)


def norm(x, weight, bias, epsilon):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight + bias


def straight_line_logits(w, config, tokens):
    """GPT-2's equations for one sequence, as transformers names and shapes the tensors."""
    w = {name.removeprefix("transformer."): tensor.double() for name, tensor in w.items()}
    epsilon, heads, length = config["layer_norm_epsilon"], config["n_head"], len(tokens)
    assert config["activation_function"] == "gelu"
    x = w["wte.weight"][tokens] + w["wpe.weight"][:length]
    past = torch.ones(length, length).tril() == 1
    for number in range(config["n_layer"]):
        b = {k.removeprefix(f"h.{number}."): v for k, v in w.items()}
        into = norm(x, b["ln_1.weight"], b["ln_1.bias"], epsilon)
        mixed = into @ b["attn.c_attn.weight"] + b["attn.c_attn.bias"]
        outputs = []
        for query, key, value in zip(
            *(part.chunk(heads, -1) for part in mixed.chunk(3, -1)), strict=True
        ):
            scores = query @ key.T / math.sqrt(query.shape[-1])
            outputs.append(scores.masked_fill(~past, -math.inf).softmax(-1) @ value)
        x = x + torch.cat(outputs, -1) @ b["attn.c_proj.weight"] + b["attn.c_proj.bias"]
        into = norm(x, b["ln_2.weight"], b["ln_2.bias"], epsilon)
        inner = into @ b["mlp.c_fc.weight"] + b["mlp.c_fc.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ b["mlp.c_proj.weight"] + b["mlp.c_proj.bias"]
    head = w["wte.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(x, w["ln_f.weight"], w["ln_f.bias"], epsilon) @ head.T


def test_the_exported_tensors_give_the_logits_by_the_equations_of_gpt2(exported):
    run, folder, _ = exported
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    expected = run.model.double()(make_tokens()).detach()
    run.model.float()
    actual = torch.stack([straight_line_logits(weights, config, row) for row in make_tokens()])
    assert expected.std() > 0.3
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_names_and_shapes_are_those_of_transformers(exported):
    run, folder, _ = exported
    shapes = {k: tuple(v.shape) for k, v in load_file(folder / "model.safetensors").items()}
    width, rows = MODEL.width, MODEL.vocabulary_size
    block = {
        "ln_1": ("norm", width),
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "ln_2": ("norm", width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    layers = {f"transformer.h.{n}.{k}": v for n in range(2) for k, v in block.items()}
    expected = {"transformer.wte.weight": (rows, width), "transformer.wpe.weight": (8, width)}
    for name, (inputs, outputs) in {**layers, "transformer.ln_f": ("norm", width)}.items():
        expected[f"{name}.weight"] = (outputs,) if inputs == "norm" else (inputs, outputs)
        expected[f"{name}.bias"] = (outputs,)
    if not run.config.model.tied:
        expected["lm_head.weight"] = (rows, width)
    assert shapes == expected


def test_transformers_gives_the_same_logits_and_tokens(exported):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    run, folder, corpus = exported
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs, ours = model(make_tokens()).logits, run.model(make_tokens())
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "bal dem  fir, gos kut"
    assert tokenizer(text)["input_ids"] == corpus.encode(text).tolist()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == 0


def log_likelihood(run, ids, first):
    """Of the tokens from a place on, given those before, by the run's own model."""
    with torch.no_grad():
        logits = run.model(torch.tensor(ids[None, :-1]))[0].log_softmax(-1)
    return logits[range(first - 1, len(ids) - 1), ids[first:]].sum().item()


SENTENCES = [("bal dem", " fir"), ("gos", " kut bil"), ("bal", " dal fal gal")]


def test_text_is_read_as_an_evaluation_needs_it(exported):
    """Nothing is put before a text; a text without context follows the end of another."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    run, folder, _ = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert tokenizer.model_max_length == model.config.max_position_embeddings == MODEL.context
    assert tokenizer.bos_token_id == model.config.bos_token_id == 0
    assert tokenizer("")["input_ids"] == []
    for context, continuation in SENTENCES:
        ids = torch.tensor([tokenizer(context + continuation)["input_ids"]])
        first = len(tokenizer(context)["input_ids"])
        assert tokenizer(context)["input_ids"] == ids[0, :first].tolist()
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < first, -100)
        with torch.no_grad():
            loss = model(ids, labels=labels).loss
        expected = log_likelihood(run, ids[0].numpy(), first)
        assert -loss.item() * (ids.shape[1] - first) == pytest.approx(expected, rel=3e-6)


def test_lm_eval_finds_the_likelihoods_of_the_run(exported):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    run, folder, corpus = exported
    judge = HFLM(pretrained=str(folder), device="cpu", batch_size=2)
    assert judge.max_length == MODEL.context
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in SENTENCES]
    for (context, continuation), (found, _) in zip(
        SENTENCES, judge.loglikelihood(asked), strict=True
    ):
        ids = corpus.encode(context + continuation).astype(np.int64)
        expected = log_likelihood(run, ids, len(corpus.encode(context)))
        assert found == pytest.approx(expected, rel=3e-6)
    # A text longer than the context, in windows; the first begins after an end of text.
    text = " ".join(a + b for a, b in SENTENCES)
    ids = np.concatenate([[0], corpus.encode(text).astype(np.int64)])
    length, expected = MODEL.context, 0.0
    assert len(ids) > 2 * length
    for place in range(1, len(ids), length):
        end = min(place + length, len(ids))
        window = ids[max(0, end - 1 - length) : end]
        expected += log_likelihood(run, window, len(window) - (end - place))
    (found,) = judge.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert found == pytest.approx(expected, rel=3e-6)


def test_a_folder_with_something_in_it_is_left_alone(exported):
    run, folder, _ = exported
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="hf is not empty: choose a new folder"):
        export(run.folder, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json: it is not a run folder"):
        export(tmp_path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
