"""What a run promises: the recipe, sameness of arms, resuming, and files that stay whole."""

import dataclasses
import errno
import functools
import json
import math
import os
import random
import shutil
import signal
import sys
import time

import forks
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from coupled_adam import geometry, provenance
from coupled_adam.arms import ARMS, MAIN
from coupled_adam.errors import RefusedError
from coupled_adam.gpt import GPT, GPTConfig
from coupled_adam.text import synthetic
from coupled_adam.training import (
    DivergedError,
    TrainingConfig,
    load_run,
    loop,
    padded_vocabulary,
    train,
)

OPTIMIZERS = MAIN

VOCABULARY = 200
MODEL = GPTConfig(VOCABULARY, context=8, layers=1, heads=2, width=16)
RECIPE = {
    "steps": 10,
    "batch_size": 3,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "evaluate_every": 5,
    "evaluation_tokens": 64,
    "checkpoint_every": 4,
}


def make_config(optimizer="coupled", **changes):
    return TrainingConfig(**{"model": MODEL, "optimizer": optimizer, **RECIPE, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return synthetic(VOCABULARY, tokens=10_240, cache=tmp_path_factory.mktemp("text"))


def run(config, corpus, folder=None, observe=None):
    return train(config, corpus, folder, observe=observe, progress=False)


def interrupt_after(number):
    def observe(step):
        if step.number == number:
            raise KeyboardInterrupt

    return observe


def assert_same_run(one, other):
    pd.testing.assert_frame_equal(one.metrics, other.metrics, check_exact=True)
    for (name, mine), (_, theirs) in zip(
        one.model.state_dict().items(), other.model.state_dict().items(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def checkpoint_of(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same_tree(one, other):
    """Equal in every number, whatever dictionaries and lists they are in."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_tree(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same_tree(mine, theirs)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


WHOLE = [".lock", "checkpoint.pt", "config.json", "metrics.jsonl", "tokenizer.json"]


# --- the recipe ------------------------------------------------------------------------------


def test_the_learning_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    config = make_config(steps=110, warmup_steps=10, learning_rate=1.0, final_share=0.2)
    assert config.learning_rate_at(1) == pytest.approx(0.1)
    assert config.learning_rate_at(5) == pytest.approx(0.5)
    assert config.learning_rate_at(10) == pytest.approx(1.0)
    assert config.learning_rate_at(35) == pytest.approx(0.6 + 0.4 * math.sqrt(0.5))
    assert config.learning_rate_at(60) == pytest.approx(0.6)
    assert config.learning_rate_at(110) == pytest.approx(0.2)


def test_without_warmup_the_first_step_is_near_the_peak(corpus):
    config = make_config(steps=4, warmup_steps=0, learning_rate=1.0, final_share=0.0)
    rates = [config.learning_rate_at(step) for step in (1, 2, 4)]
    assert rates == pytest.approx([0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.0])
    run(make_config(warmup_steps=0, steps=2), corpus)


def test_a_warmup_longer_than_the_run_is_cut_off():
    config = make_config(steps=5, warmup_steps=10, learning_rate=1.0)
    assert config.learning_rate_at(5) == pytest.approx(0.5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizers_get_the_scheduled_rate(corpus, optimizer):
    config, seen = make_config(optimizer, embedding_multiplier=7.0), []

    def observe(step):
        for of_step in step.optimizers:
            for group in of_step.param_groups:
                of_embeddings = group["params"][0] is step.model.embedding
                expected = step.learning_rate * (7 if of_embeddings else 1)
                assert group["lr"] == pytest.approx(expected)
        seen.append(step.learning_rate)

    metrics = run(config, corpus, observe=observe).metrics
    assert seen == [config.learning_rate_at(step) for step in range(1, 11)]
    assert metrics.learning_rate[1:].tolist() == seen


def optimizers_of(config):
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    return model, loop._optimizers(model, config)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_parameter_is_trained_once_and_only_matrices_decay(optimizer, tied):
    config = make_config(optimizer, model=dataclasses.replace(MODEL, tied=tied))
    model, optimizers = optimizers_of(config)
    groups = [group for o in optimizers for group in o.param_groups]
    trained = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    embeddings = {id(model.embedding), id(model.output_embedding)}
    for group in groups:
        for parameter in group["params"]:
            matrix = parameter.dim() == 2 and id(parameter) not in embeddings
            assert group["weight_decay"] == (0.1 if matrix else 0.0)
        assert {id(p) for p in group["params"]} <= embeddings or not (
            {id(p) for p in group["params"]} & embeddings
        )


@pytest.mark.parametrize(
    ("optimizer", "shape"), [("coupled", (16,)), ("adamw", (VOCABULARY, 16)), ("sgd", None)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_second_moment_of_the_embeddings_has_the_arm_s_shape(corpus, optimizer, shape, tied):
    """So that "silently not coupled" cannot pass."""
    last = []
    model = dataclasses.replace(MODEL, tied=tied)
    config = make_config(optimizer, model=model, steps=2)
    trained = run(config, corpus, observe=lambda step: last.append(step)).model
    for weight in (trained.embedding, trained.output_embedding):
        (state,) = [o.state[weight] for o in last[-1].optimizers if weight in o.state]
        moment = state.get("exp_avg_sq")
        assert shape == (None if moment is None else tuple(moment.shape))
    # Nothing else is coupled in any arm.
    for o in last[-1].optimizers:
        for parameter, state in o.state.items():
            if parameter.shape != (VOCABULARY, 16):
                assert state["exp_avg_sq"].shape == parameter.shape


def first_gradients(config, corpus):
    """Clipped gradients of the first step, computed without the loop."""
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    tokens, targets = loop._batch(corpus, config, 1, "cpu")
    F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()).backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    factor = min(1.0, config.gradient_clip / norm.item())
    return model, {n: factor * p.grad for n, p in model.named_parameters()}, norm.item()


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_sgd_trains_the_embeddings_and_adamw_the_rest(corpus, clip):
    config = make_config(
        "sgd", steps=1, warmup_steps=0, gradient_clip=clip, embedding_multiplier=50.0
    )
    start, gradients, norm = first_gradients(config, corpus)
    result = run(config, corpus)
    assert (norm > clip) == (clip < 1)
    assert result.metrics.gradient_norm[1] == pytest.approx(norm, rel=1e-5)
    rate = config.learning_rate_at(1)
    initial, trained = dict(start.named_parameters()), dict(result.model.named_parameters())
    for name, gradient in gradients.items():
        before, after = initial[name].detach(), trained[name].detach()
        if name == "token_embedding.weight":
            expected = before - rate * 50 * gradient
        else:
            decay = 0.1 if before.dim() == 2 else 0.0
            expected = before * (1 - rate * decay) - rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "coupled"])
def test_the_first_step_of_the_embeddings(corpus, optimizer):
    config = make_config(optimizer, steps=1, warmup_steps=0)
    start, gradients, _ = first_gradients(config, corpus)
    gradient, rate = gradients["token_embedding.weight"], config.learning_rate_at(1)
    second = gradient.square()
    if optimizer == "coupled":
        second = second.mean(0)
    expected = start.embedding.detach() - rate * gradient / (second.sqrt() + 1e-8)
    after = run(config, corpus).model.embedding.detach()
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=2e-6)


# --- batches, seeds and arms -----------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_seed_gives_the_same_run_bit_for_bit(corpus, optimizer):
    first = run(make_config(optimizer), corpus)
    torch.rand(7), np.random.rand(7)  # what else draws numbers must not matter
    assert_same_run(first, run(make_config(optimizer), corpus))


def test_another_seed_gives_other_weights_and_other_batches(corpus):
    one, other = make_config(seed=0), make_config(seed=1)
    assert not torch.equal(*(optimizers_of(c)[0].embedding for c in (one, other)))
    assert not torch.equal(*(loop._batch(corpus, c, 1, "cpu")[0] for c in (one, other)))


def test_arms_share_initial_weights_and_batches(corpus):
    batches, runs = {}, {}
    for optimizer in OPTIMIZERS:
        seen = batches[optimizer] = []
        runs[optimizer] = run(
            make_config(optimizer),
            corpus,
            observe=lambda step, seen=seen: seen.append(step.targets),
        ).metrics
    for optimizer in OPTIMIZERS[1:]:
        assert_same_tree(batches[OPTIMIZERS[0]], batches[optimizer])
        one, other = runs[OPTIMIZERS[0]], runs[optimizer]
        assert one.loss[1] == other.loss[1]
        assert one.validation_loss[0] == other.validation_loss[0]
        assert one.loss[3] != other.loss[3]


def test_batches_are_windows_of_the_text_and_targets_follow(corpus):
    text, starts = np.asarray(corpus.train), set()
    config = make_config(batch_size=64)
    windows = np.lib.stride_tricks.sliding_window_view(text, 9)
    places = {window.tobytes(): place for place, window in enumerate(windows)}
    for step in range(1, 20):
        tokens, targets = loop._batch(corpus, config, step, "cpu")
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        whole = torch.cat([tokens, targets[:, -1:]], 1).numpy().astype(text.dtype)
        starts |= {places[row.tobytes()] for row in whole}
    assert min(starts) < len(text) * 0.02
    assert max(starts) > len(text) * 0.98


def test_a_text_of_one_window_is_enough(corpus):
    short = dataclasses.replace(corpus, train=corpus.train[:9], validation=corpus.validation[:9])
    assert np.isfinite(run(make_config(), short).final.validation_loss)


def test_a_step_waits_once_and_the_next_batch_is_read_before(corpus, monkeypatch):
    """On a GPU, so that it computes while the next batch is read, and does not stand still."""
    events, batch = [], loop._batch

    def read(corpus, config, step, device):
        events.append(f"read {step}")
        return batch(corpus, config, step, device)

    monkeypatch.setattr(loop, "_batch", read)
    for name in ("item", "tolist", "cpu"):
        method = getattr(torch.Tensor, name)

        def wait(tensor, *arguments, method=method):
            events.append("wait")
            return method(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, wait)
    # Not the coupled arm, whose step counter is read, from the CPU on a GPU too.
    run(
        make_config("adamw", steps=3, evaluate_every=3),
        corpus,
        observe=lambda step: events.append(f"step {step.number}"),
    )
    first, last = events.index("read 1"), events.index("step 3")
    assert events[first : last + 1] == [
        *("read 1", "read 2", "wait", "step 1"),
        *("read 3", "wait", "step 2"),
        *("wait", "step 3"),
    ]


# --- what is measured ------------------------------------------------------------------------


def test_metrics_have_each_step_once_and_the_geometry_where_evaluated(corpus):
    result = run(make_config(steps=12), corpus)
    metrics = result.metrics
    assert metrics.step.tolist() == list(range(13))
    assert metrics.tokens.tolist() == [24 * step for step in range(13)]
    assert metrics.step[metrics.validation_loss.notna()].tolist() == [0, 5, 10, 12]
    assert result.final.step == 12
    weight = result.model.output_embedding.detach()
    for name, value in geometry.summary(weight, corpus.counts).items():
        assert result.final[name] == value, name
    assert metrics.loss[1:].notna().all()
    assert abs(metrics.validation_loss[0] - math.log(VOCABULARY)) < 0.05


def test_validation_loss_is_the_mean_over_windows_spread_over_the_text(corpus):
    config = make_config(evaluation_tokens=90)  # 11 windows, in batches of unequal size
    result, text = run(config, corpus), torch.tensor(np.asarray(corpus.validation, np.int64))
    starts = [int(k * (len(text) - 9) / 10) for k in range(11)]
    with torch.no_grad():
        losses = [
            F.cross_entropy(result.model(text[None, s : s + 8])[0], text[s + 1 : s + 9])
            for s in starts
        ]
    assert starts[-1] + 9 == len(text)
    assert result.final.validation_loss == pytest.approx(
        torch.stack(losses).mean().item(), rel=1e-6
    )


def test_evaluating_more_often_does_not_change_the_training(corpus):
    often, seldom = (run(make_config(evaluate_every=e), corpus) for e in (1, 10))
    assert often.metrics.loss.equals(seldom.metrics.loss)
    assert torch.equal(often.model.embedding, seldom.model.embedding)


def test_the_observer_sees_what_met_the_output_embeddings_before_the_update(corpus):
    config, weights, checked = make_config(), [], []
    torch.manual_seed(config.seed)
    weights.append(GPT(config.model).output_embedding.detach())

    def observe(step):
        assert step.hidden_states.shape == (24, 16)
        assert not step.hidden_states.requires_grad
        loss = F.cross_entropy(step.hidden_states @ weights[-1].T, step.targets)
        assert step.loss == pytest.approx(loss.item(), rel=1e-5)
        weights.append(step.model.output_embedding.detach().clone())
        assert not torch.equal(weights[-1], weights[-2])
        checked.append(step.number)

    run(config, corpus, observe=observe)
    assert checked == list(range(1, 11))


def test_a_run_learns(corpus):
    for optimizer in ("adamw", "coupled"):
        metrics = run(make_config(optimizer, steps=60, batch_size=8), corpus).metrics
        assert metrics.validation_loss.iloc[-1] < metrics.validation_loss[0] - 0.3, optimizer


# --- at scale: pieces, precision, compiled, padded --------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(corpus, optimizer):
    """A sum instead of the mean would be clipped here, and a piece left out shows at once."""
    seen = {}
    for pieces in (1, 4):
        config = make_config(optimizer, batch_size=8, accumulation=pieces, learning_rate=1e-3)
        states = seen[pieces] = []
        result = run(config, corpus, observe=lambda step, states=states: states.append(step))
        seen[pieces, "metrics"] = result.metrics
        seen[pieces, "weights"] = result.model.state_dict()
    pd.testing.assert_frame_equal(seen[1, "metrics"], seen[4, "metrics"], rtol=1e-5, atol=1e-6)
    for name, weight in seen[1, "weights"].items():
        torch.testing.assert_close(weight, seen[4, "weights"][name], rtol=1e-5, atol=2e-6)
    for one, other in zip(seen[1], seen[4], strict=True):
        assert torch.equal(one.targets, other.targets)
        torch.testing.assert_close(one.hidden_states, other.hidden_states, rtol=1e-4, atol=1e-4)


def test_the_pieces_are_what_the_model_is_given(corpus, monkeypatch):
    sizes, hidden_states = [], GPT.hidden_states

    def spy(model, tokens):
        sizes.append(len(tokens))
        return hidden_states(model, tokens)

    monkeypatch.setattr(GPT, "hidden_states", spy)
    run(make_config(batch_size=8, accumulation=4, evaluation_tokens=80), corpus)
    assert max(sizes) == 2  # also in the evaluation, or it would need more memory than a step


def test_pieces_must_be_equal():
    with pytest.raises(ValueError, match=r"accumulation \(2\) must divide batch_size \(3\)"):
        make_config(accumulation=2)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(corpus, tmp_path):
    kinds = set()

    def observe(step):
        if not kinds:
            step.model.blocks[0].network_in.register_forward_hook(
                lambda _, inputs, output: kinds.add(output.dtype)
            )

    config = make_config(precision="bfloat16")
    result = run(config, corpus, tmp_path / "run", observe=observe)
    assert kinds == {torch.bfloat16}
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    (state,) = checkpoint_of(tmp_path / "run")["optimizers"]
    assert all(t.dtype == torch.float32 for s in state["state"].values() for t in s.values())
    exact = run(make_config(), corpus)
    assert result.metrics.loss[10] == pytest.approx(exact.metrics.loss[10], rel=2e-3)
    assert result.metrics.loss[10] != exact.metrics.loss[10]


class Products(TorchDispatchMode):
    """Notes the types that matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "matmul") or "attention" in name:
            floating = (a for a in arguments if isinstance(a, torch.Tensor))
            self.seen |= {(name, a.dtype) for a in floating if a.is_floating_point()}
        return function(*arguments, **(keywords or {}))


def test_under_bfloat16_no_matrices_of_float32_are_multiplied(corpus):
    """So there is nothing that TF32 could make faster."""
    config = make_config(precision="bfloat16")
    model, _ = optimizers_of(config)
    batch = loop._batch(corpus, config, 1, "cpu")
    with Products() as products:
        with loop._precision(config, "cpu"):
            loss, *_ = loop._Trained(model, ARMS["coupled"])(*batch)
        forward = set(products.seen)
        loss.backward()
    names = {name for name, _ in forward}
    assert "mm" in names and any("attention" in name for name in names)
    assert products.seen > forward
    statistics = {torch.float32}  # of attention: the logarithm of each row's sum
    for name, dtype in products.seen:
        allowed = statistics if "backward" in name else set()
        assert dtype == torch.bfloat16 or dtype in allowed, (name, dtype)


@pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("g++") is None, reason="needs a C++ compiler"
)
def test_a_compiled_run_is_the_same_run(corpus, tmp_path):
    states, config = [], make_config(compiled=True, steps=4, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, corpus, tmp_path / "run", interrupt_after(3))
    result = run(
        config, corpus, tmp_path / "run", observe=lambda step: states.append(step.hidden_states)
    )
    plain = run(make_config(steps=4), corpus)
    pd.testing.assert_frame_equal(result.metrics, plain.metrics, rtol=1e-4, atol=1e-5)
    assert [s.shape for s in states] == [(24, 16)] * 2
    # What is stored is the model, not what the compiler made of it.
    assert_same_run(load_run(tmp_path / "run"), result)


def test_a_folder_from_before_these_settings_goes_on(corpus, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted["coupled"], folder)
    described = json.loads((folder / "config.json").read_text())
    for name in ("accumulation", "precision", "compiled"):
        del described["config"][name]
    (folder / "config.json").write_text(json.dumps(described))
    assert load_run(folder).config == make_config()
    assert_same_run(run(make_config(), corpus, folder), load_run(folder))
    with pytest.raises(ValueError, match="precision is 'float32' there and 'bfloat16' here"):
        run(make_config(precision="bfloat16"), corpus, folder)


def test_rows_that_pad_the_vocabulary_are_trained_but_not_measured(corpus):
    padded = padded_vocabulary(VOCABULARY)
    assert (padded, padded_vocabulary(64), padded_vocabulary(50_257)) == (256, 64, 50_304)
    model = dataclasses.replace(MODEL, vocabulary_size=padded)
    config = make_config(model=model)
    result = run(config, corpus)
    weight = result.model.output_embedding.detach()
    assert len(weight) == padded
    for name, value in geometry.summary(weight[:VOCABULARY], corpus.counts).items():
        assert result.final[name] == value, name
    assert not torch.equal(weight[VOCABULARY:], optimizers_of(config)[0].embedding[VOCABULARY:])


# --- resuming --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    folders = {}
    for optimizer in OPTIMIZERS:
        folders[optimizer] = tmp_path_factory.mktemp(optimizer) / "run"
        run(make_config(optimizer), corpus, folders[optimizer])
    return folders


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 4, 7, 10])
def test_an_interrupted_run_ends_where_the_uninterrupted_one_does(
    corpus, uninterrupted, tmp_path, optimizer, at
):
    config, folder, steps = make_config(optimizer), tmp_path / "run", []
    with pytest.raises(KeyboardInterrupt):
        run(config, corpus, folder, observe=interrupt_after(at))
    # Nothing is lost that was measured, and what is there is whole.
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(at))
    resumed = run(config, corpus, folder, observe=lambda step: steps.append(step.number))
    assert steps == list(range((at - 1) // 4 * 4 + 1, 11))
    expected = uninterrupted[optimizer]
    assert_same_run(resumed, load_run(expected))
    assert_same_tree(checkpoint_of(folder), checkpoint_of(expected))
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    assert files_of(folder) == WHOLE


def test_a_run_may_go_on_in_other_pieces(corpus, tmp_path):
    """As after "out of memory": the same command, with more pieces."""
    folder, whole = tmp_path / "run", make_config(batch_size=8)
    pieces, sizes = dataclasses.replace(whole, accumulation=4), []
    with pytest.raises(KeyboardInterrupt):
        run(whole, corpus, folder, observe=interrupt_after(6))
    before = json.loads((folder / "config.json").read_text())
    resumed = run(pieces, corpus, folder, observe=lambda step: sizes.append(step.number))
    assert sizes == [5, 6, 7, 8, 9, 10]
    alone = run(whole, corpus)
    pd.testing.assert_frame_equal(resumed.metrics, alone.metrics, rtol=1e-4, atol=1e-5)
    assert load_run(folder).config == pieces
    after = json.loads((folder / "config.json").read_text())
    assert before["config"].pop("accumulation") == 1
    assert after["config"].pop("accumulation") == 4
    assert [session["first_step"] for session in before.pop("sessions")] == [1]
    assert [session["first_step"] for session in after.pop("sessions")] == [1, 5]
    assert before == after
    assert files_of(folder) == WHOLE


def in_a_process(job, *arguments):
    """Start a process that trains as the tests here do, with as many threads: or bits differ."""
    arguments = (job, torch.get_num_threads(), *arguments)
    process = forks.context().Process(target=with_threads, args=arguments)
    process.start()
    return process


def with_threads(job, threads, *arguments):
    torch.set_num_threads(threads)
    job(*arguments)


def test_a_killed_run_can_always_go_on(corpus, tmp_path):
    """Killed twice at random moments, without warning; then it is taken to its end."""
    config, folder = make_config(steps=300, checkpoint_every=2), tmp_path / "run"
    saved = 0
    for _ in range(2):
        process = in_a_process(run, config, corpus, folder)
        while process.is_alive() and steps_in(folder) < saved + 6:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        steps = load_run(folder).metrics.step.tolist()
        assert steps == list(range(len(steps)))
        assert steps[-1] > saved
        saved = steps[-1]
    seen = []
    resumed = run(config, corpus, folder, observe=lambda step: seen.append(step.number))
    assert seen == list(range(saved + 1, 301))
    assert_same_run(resumed, run(config, corpus))
    assert_same_run(load_run(folder), resumed)
    assert files_of(folder) == WHOLE


def steps_in(folder):
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_a_folder_that_was_left_before_its_first_checkpoint_starts_again(corpus, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.123.part").write_text('{"conf')  # killed while writing the very first
    (folder / ".checkpoint.pt.123.part").write_bytes(b"PK")
    assert_same_run(run(make_config(), corpus, folder), run(make_config(), corpus))
    assert files_of(folder) == WHOLE


@pytest.mark.parametrize("torn", ['{"step": 9, "lo', "\0\0\0\0", '{"step": 9, "loss": 1.0}'])
def test_a_torn_last_line_is_mended(corpus, uninterrupted, tmp_path, torn):
    folder, config = tmp_path / "run", make_config()
    with pytest.raises(KeyboardInterrupt):
        run(config, corpus, folder, observe=interrupt_after(9))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(torn)
    run(config, corpus, folder)
    expected = uninterrupted["coupled"] / "metrics.jsonl"
    assert (folder / "metrics.jsonl").read_bytes() == expected.read_bytes()


def test_a_finished_run_is_only_loaded(corpus, tmp_path):
    folder = tmp_path / "run"
    finished, steps = run(make_config(), corpus, folder), []
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    again = run(make_config(), corpus, str(folder), observe=steps.append)
    assert_same_run(finished, again)
    assert_same_run(finished, load_run(folder))
    assert steps == []
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


def test_the_folder_says_what_was_run_on_what(corpus, tmp_path):
    config = make_config(seed=np.int64(3), betas=[0.8, 0.9])
    run(config, corpus, tmp_path / "a" / "run")
    described = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert described["config"]["seed"] == 3
    assert described["config"]["model"]["width"] == 16
    assert described["corpus"]["fingerprint"] == corpus.fingerprint
    assert described["sessions"][0]["torch"] == torch.__version__
    assert described["sessions"][0]["commit"] == provenance.commit()
    tokenizer = (tmp_path / "a" / "run" / "tokenizer.json").read_bytes()
    assert tokenizer == (corpus.folder / "tokenizer.json").read_bytes()
    assert load_run(tmp_path / "a" / "run").config == dataclasses.replace(
        config, seed=3, betas=(0.8, 0.9)
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "coupled"])
def test_the_embeddings_have_settings_of_their_own(corpus, tied, optimizer):
    model = dataclasses.replace(MODEL, tied=tied)
    own = {"embedding_betas": (0.5, 0.999), "embedding_eps": 1e-3, "embedding_weight_decay": 0.7}
    groups = (
        run(make_config(model=model, optimizer=optimizer, **own), corpus)
        .optimizers[-1]
        .param_groups
    )
    of_embeddings, *others = groups
    assert of_embeddings["name"] == "embeddings"
    assert (of_embeddings["betas"], of_embeddings["eps"]) == ((0.5, 0.999), 1e-3)
    assert of_embeddings["weight_decay"] == 0.7
    for group in others:
        assert (group["betas"], group["eps"]) == ((0.9, 0.95), 1e-8)
        assert group["weight_decay"] != 0.7


def test_the_second_moment_is_corrected_by_the_embeddings_own_beta(corpus):
    """In the first step v is (1 - beta2) g^2, so the corrected one is g^2 whatever beta2 is."""
    moments = [
        run(make_config(optimizer="adamw", steps=1, embedding_betas=betas), corpus).second_moment
        for betas in (None, (0.9, 0.999))
    ]
    np.testing.assert_allclose(*moments, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_betas": (0.9, 1.0)}, "embedding_betas must be two numbers"),
        ({"embedding_eps": -1.0}, "embedding_eps must be finite and at least 0"),
        ({"embedding_weight_decay": math.inf}, "embedding_weight_decay must be finite"),
        ({"optimizer": "sgd", "embedding_eps": 1e-4}, "'sgd' have an optimizer of their own"),
    ],
)
def test_impossible_settings_of_the_embeddings_are_refused(changes, message):
    with pytest.raises(RefusedError, match=message):
        make_config(**changes)


def test_metrics_can_be_followed_while_the_run_goes_on(corpus, tmp_path):
    lengths = []

    def observe(step):
        lengths.append(len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))

    run(make_config(), corpus, tmp_path / "run", observe)
    assert lengths == list(range(1, 11))


def test_the_progress_bar_tells_speed_time_left_and_losses(corpus, monkeypatch, capsys):
    always = functools.partial(loop.tqdm, mininterval=0, miniters=1)
    monkeypatch.setattr(loop, "tqdm", always)
    result = train(make_config(), corpus)
    *_, last = [frame for frame in capsys.readouterr().err.split("\r") if "step=" in frame]
    assert "240/240 [" in last and "token/s" in last
    assert f"step=10, loss={result.metrics.loss[10]:.3f}" in last
    assert f"validation={result.final.validation_loss:.3f}" in last
    train(make_config(), corpus, progress=False)
    assert capsys.readouterr().err == ""


def test_others_may_read_what_the_user_lets_them(corpus, tmp_path):
    before = os.umask(0o022)
    try:
        run(make_config(steps=1), corpus, tmp_path / "run")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {0o644}


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": "adamw"}, "optimizer is 'coupled' there and 'adamw' here"),
        ({"steps": 11}, "steps is 10 there and 11 here"),
        ({"betas": (0.9, 0.99)}, "betas is"),
        ({"model": dataclasses.replace(MODEL, tied=False)}, "model is .*'tied': True.*'tied': Fal"),
    ],
)
def test_another_configuration_in_the_folder_is_refused_by_field(
    corpus, uninterrupted, changes, named
):
    folder = uninterrupted["coupled"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=f"holds another run .*{named}"):
        run(dataclasses.replace(make_config(), **changes), corpus, folder)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_text_in_the_folder_is_refused(uninterrupted, tmp_path):
    other = synthetic(VOCABULARY, tokens=10_240, seed=1, cache=tmp_path)
    with pytest.raises(ValueError, match="fingerprint is"):
        run(make_config(), other, uninterrupted["coupled"])


def test_a_folder_with_something_else_is_refused_and_left_alone(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        run(make_config(), corpus, tmp_path)
    assert files_of(tmp_path) == ["thesis.tex"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot lock a folder")
def test_a_folder_in_which_a_run_goes_on_is_refused_and_left_alone(corpus, tmp_path):
    folder, refused = tmp_path / "run", []

    def observe(step):
        if step.number == 6:
            with pytest.raises(ValueError, match=r"run is in use: another process trains there"):
                run(make_config(), corpus, folder)
            refused.append(step.number)

    result = run(make_config(), corpus, folder, observe)
    assert refused == [6]
    assert_same_run(load_run(folder), result)
    assert_same_run(result, run(make_config(), corpus))
    # Whoever is refused for another reason, or stopped, lets go of it.
    with pytest.raises(ValueError, match="holds another run") as caught:
        run(make_config(seed=1), corpus, folder)
    assert_same_run(run(make_config(), corpus, folder), result)
    del caught


def test_text_and_model_must_fit(corpus):
    config = make_config(model=dataclasses.replace(MODEL, vocabulary_size=199))
    with pytest.raises(ValueError, match=r"has 200 tokens, the model 199: set .*size=200"):
        run(config, corpus)
    config = make_config(model=dataclasses.replace(MODEL, vocabulary_size=257))
    with pytest.raises(ValueError, match=r"has 200 tokens, the model 257: set .*size=200"):
        run(config, corpus)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_too_short_a_text_is_refused(corpus, part):
    short = dataclasses.replace(corpus, **{part: corpus.train[:8]})
    name = {"train": "training"}.get(part, part)
    with pytest.raises(ValueError, match=f"the {name} text .* has 8 tokens.* needs 9"):
        run(make_config(), short)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", "adam"),
        ("steps", 0),
        ("steps", 10.0),
        ("batch_size", 0),
        ("evaluate_every", 0),
        ("evaluation_tokens", 0),
        ("accumulation", 0),
        ("precision", "float16"),
        ("checkpoint_every", -1),
        ("warmup_steps", -1),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("gradient_clip", 0.0),
        ("embedding_multiplier", -1.0),
        ("final_share", 1.1),
    ],
)
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"TrainingConfig\.{name} must be .* not {value!r}"):
        make_config(**{name: value})


def test_load_run_says_what_is_missing(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json: it is not a run folder"):
        load_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), corpus, tmp_path / "run", observe=interrupt_after(2))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt.*before its first checkpoint"):
        load_run(tmp_path / "run")


def test_load_run_gives_an_interrupted_run_as_of_its_checkpoint(corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(make_config(), corpus, tmp_path / "run", observe=interrupt_after(7))
    assert load_run(tmp_path / "run").metrics.step.tolist() == [0, 1, 2, 3, 4]


# --- damage ----------------------------------------------------------------------------------


def flip_a_bit(raw):
    """In the middle of a tensor: torch alone would load it without a word."""
    return raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:]


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"hello, hello", flip_a_bit],
    ids=["cut off", "empty", "something else", "one bit"],
)
def test_a_damaged_checkpoint_is_named(corpus, tmp_path, damage):
    folder = tmp_path / "run"
    run(make_config(), corpus, folder)
    path = folder / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    for attempt in (lambda: run(make_config(), corpus, folder), lambda: load_run(folder)):
        with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged .*restore it .*remove"):
            attempt()
    path.unlink()  # as the message says
    assert_same_run(run(make_config(), corpus, folder), run(make_config(), corpus))


def test_a_damaged_description_is_named(corpus, tmp_path):
    run(make_config(), corpus, tmp_path / "run")
    for text in ('{"config": {', "[]", '{"config": 3}'):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json does not describe a run"):
            run(make_config(), corpus, tmp_path / "run")


@pytest.mark.parametrize("change", ["lost", "twice", "none"])
def test_metrics_that_lack_steps_are_refused(corpus, tmp_path, change):
    path = tmp_path / "run" / "metrics.jsonl"
    run(make_config(), corpus, path.parent)
    lines = path.read_text().splitlines(keepends=True)
    changed = {"lost": lines[:3] + lines[4:], "twice": [*lines[:4], *lines[3:]], "none": []}
    path.write_text("".join(changed[change]))
    with pytest.raises(ValueError, match=r"metrics\.jsonl lacks steps before 10"):
        run(make_config(), corpus, path.parent)


# --- divergence ------------------------------------------------------------------------------


def spoil_after(number, spoil):
    """Spoil the model so that the next step diverges; keep its weights as they were then."""
    kept = {}

    def observe(step):
        if step.number == number:
            with torch.no_grad():
                spoil(step.model)
            kept["model"] = step.model
            kept["weights"] = {k: v.clone() for k, v in step.model.state_dict().items()}

    return observe, kept


def make_nan(model):
    model.final_norm.weight[0] = math.nan


def make_absurd(model):
    model.final_norm.weight.mul_(1e4)


@pytest.mark.parametrize(("spoil", "says"), [(make_nan, "loss nan"), (make_absurd, r"loss \d")])
def test_a_run_that_diverges_keeps_its_last_good_checkpoint(corpus, tmp_path, spoil, says):
    folder, (observe, kept) = tmp_path / "run", spoil_after(6, spoil)
    with pytest.raises(DivergedError, match=f"diverged at step 7: {says}.*checkpoint of step 4"):
        run(make_config(evaluate_every=5), corpus, folder, observe)
    for name, weight in kept["model"].state_dict().items():
        torch.testing.assert_close(
            weight, kept["weights"][name], rtol=0, atol=0, equal_nan=True, msg=name
        )
    saved = checkpoint_of(folder)
    assert saved["step"] == 4
    assert all(weight.isfinite().all() for weight in saved["model"].values())
    assert files_of(folder) == WHOLE
    # The model was spoiled from outside; without that, the run goes on to a good end.
    assert_same_run(run(make_config(), corpus, folder), run(make_config(), corpus))


def test_a_gradient_that_is_not_finite_is_divergence_too(corpus):
    def spoil(model):
        model.output_embedding.register_hook(lambda gradient: gradient * math.inf)

    observe, kept = spoil_after(2, spoil)
    with pytest.raises(DivergedError, match=r"at step 3.*gradient norm (inf|nan); nothing was sav"):
        run(make_config(), corpus, observe=observe)
    assert all(w.isfinite().all() for w in kept["model"].state_dict().values())


def test_divergence_before_the_first_checkpoint_says_so(corpus, tmp_path):
    observe, _ = spoil_after(2, make_nan)
    with pytest.raises(DivergedError, match="none was saved"):
        run(make_config(), corpus, tmp_path / "run", observe)


def test_divergence_that_shows_itself_in_the_evaluation(corpus, tmp_path):
    observe, _ = spoil_after(8, make_nan)  # step 8 is evaluated and would be saved
    with pytest.raises(DivergedError, match=r"step 8: validation loss nan.*checkpoint of step 4"):
        run(make_config(evaluate_every=8), corpus, tmp_path / "run", observe)
    assert checkpoint_of(tmp_path / "run")["step"] == 4


# --- a full disk -----------------------------------------------------------------------------


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_as_torch_tells_it(*_, **__):
    try:
        full_disk()
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 43 vs 42")


@pytest.mark.parametrize(
    ("module", "name", "fails"),
    [
        (torch, "save", full_disk),
        (torch, "save", full_disk_as_torch_tells_it),
        (os, "fsync", full_disk),
    ],
)
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    corpus, tmp_path, monkeypatch, module, name, fails
):
    folder = tmp_path / "run"

    def observe(step):
        if step.number == 6:
            monkeypatch.setattr(module, name, fails)

    with pytest.raises(OSError, match=r"could not write .*No space left.*free space") as caught:
        run(make_config(), corpus, folder, observe)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert str(folder) in str(caught.value)
    assert checkpoint_of(folder)["step"] == 4
    assert files_of(folder) == WHOLE
    assert_same_run(run(make_config(), corpus, folder), run(make_config(), corpus))


def train_until_files_may_not_grow(corpus, folder, more, said):
    import resource  # which Windows does not have

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def observe(step):
        if step.number == 6:
            limit = (folder / "metrics.jsonl").stat().st_size + more
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    try:
        run(make_config(evaluate_every=2), corpus, folder, observe)
    except OSError as error:
        said.put(str(error))


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are POSIX")
@pytest.mark.parametrize(("more", "named"), [(10_000, "checkpoint.pt"), (20, "metrics.jsonl")])
def test_writes_that_the_system_refuses_are_named(corpus, tmp_path, more, named):
    """No monkeypatch: what torch makes of a refused write, in the middle of its archive."""
    folder, said = tmp_path / "run", forks.context().SimpleQueue()
    process = in_a_process(train_until_files_may_not_grow, corpus, folder, more, said)
    process.join()
    assert process.exitcode == 0
    assert f"could not write {folder / named}: File too large" in said.get()
    assert checkpoint_of(folder)["step"] == 4
    assert files_of(folder) == WHOLE
    config = make_config(evaluate_every=2)
    assert_same_run(run(config, corpus, folder), run(config, corpus))
