"""The examples for adopters: each trains, couples the embeddings, and survives a checkpoint."""

import copy
import importlib.util
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import notebooks
import numpy as np
import pytest
import torch
from torch import nn

from coupled_adam import CoupledAdamW

EXAMPLES = notebooks.ROOT / "examples"


def load(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


def is_coupled(optimizer, weight):
    """The embeddings have a vector as second moment, everything else what AdamW keeps."""
    expected = {id(p): p.shape[1:] if p is weight else p.shape for p in optimizer.state}
    return weight in optimizer.state and expected == {
        id(p): s["exp_avg_sq"].shape for p, s in optimizer.state.items()
    }


def learning_rates(*optimizers):
    return {group["lr"] for optimizer in optimizers for group in optimizer.param_groups}


def assert_same_weights(model, other):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@torch.no_grad()
def spoil(model):
    """So that a checkpoint that is not loaded, and a run from the start instead, are noticed."""
    for parameter in model.parameters():
        parameter.zero_()


def test_hugging_face_trainer(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    example = load("huggingface_trainer")
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_steps": 3}
    model, data = example.small_model_and_data()
    trainer = example.make_trainer(model, data, tmp_path / "whole", max_steps=6, **options)
    trainer.train()
    optimizer = trainer.optimizer.optimizer  # accelerate's wrapper holds the real one
    assert isinstance(optimizer, CoupledAdamW)
    assert is_coupled(optimizer, model.get_input_embeddings().weight)
    assert learning_rates(optimizer) == {0.0}  # the Trainer's schedule reached every group

    again, data = example.small_model_and_data()
    spoil(again)
    trainer = example.make_trainer(again, data, tmp_path / "whole", max_steps=6, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert trainer.state.global_step == 6
    assert_same_weights(model, again)


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_trainer_goes_on_from_a_checkpoint_of_its_own_adamw(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    example = load("huggingface_trainer")
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_steps": 3}
    options |= {"max_steps": 6, "logging_steps": 1}
    model, data = example.small_model_and_data()
    arguments = example.make_trainer(model, data, tmp_path / "run", **options).args
    transformers.Trainer(model, arguments, train_dataset=data).train()
    folder = tmp_path / "run" / "checkpoint-3"
    written = torch.load(folder / "optimizer.pt")

    again, data = example.small_model_and_data()
    spoil(again)
    trainer = example.make_trainer(again, data, tmp_path / "run", **options)
    with pytest.raises(ValueError, match="param"):
        trainer.train(resume_from_checkpoint=str(folder))

    trainer = example.make_trainer(again, data, tmp_path / "run", **options)
    example.change_over(trainer, folder)
    table = again.get_input_embeddings().weight
    shared = trainer.optimizer.state[table]["exp_avg_sq"].clone()
    assert any(
        state["exp_avg_sq"].shape == table.shape
        and torch.allclose(state["exp_avg_sq"].mean(dim=0), shared)
        for state in written["state"].values()
    )
    trainer.train(resume_from_checkpoint=str(folder))
    assert trainer.state.global_step == 6
    optimizer = trainer.optimizer.optimizer
    assert is_coupled(optimizer, table)
    assert {int(state["step"]) for state in optimizer.state.values()} == {6}
    # The learning rates are those of the run that was not interrupted, in every group.
    assert learning_rates(optimizer) == {0.0}
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(rates) == 6 and rates[3:] == sorted(rates[3:], reverse=True) and rates[3] < 6e-4


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    example = load("lightning_module")

    def fit(steps, checkpoint=None):
        # Equal batches: after a checkpoint Lightning does not always go on with the next one.
        model, data = example.small_model_and_data(sequences=12)
        (tokens,) = data.dataset.tensors
        tokens[4:] = tokens[:4].repeat(2, 1)
        if checkpoint is not None:
            spoil(model)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(example.LanguageModel(model, steps=6), data, ckpt_path=checkpoint)
        assert trainer.global_step == steps
        return trainer, model

    whole, model = fit(6)
    (optimizer,) = whole.optimizers
    assert isinstance(optimizer, CoupledAdamW)
    assert is_coupled(optimizer, model.embedding)
    assert learning_rates(optimizer) == {0.0}  # the schedule reached every group
    half, _ = fit(3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = fit(6, tmp_path / "half.ckpt")
    assert is_coupled(resumed.optimizers[0], again.embedding)
    assert_same_weights(model, again)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no torch.optim.Muon")
def test_muon_and_coupled_adam():
    example = load("muon_and_coupled_adam")
    model, tokens = example.small_model_and_data()
    muon, coupled = example.make_optimizers(model)
    losses = example.train(model, tokens, (muon, coupled), steps=10)
    assert losses[-1] < losses[0] - 0.1
    assert is_coupled(coupled, model.embedding)
    held = [p for o in (muon, coupled) for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len({id(p) for p in held})


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no torch.optim.Muon")
def test_muon_and_coupled_adam_resume_under_a_schedule():
    example = load("muon_and_coupled_adam")

    def start(checkpoint=None):
        model, tokens = example.small_model_and_data()
        optimizers = example.make_optimizers(model)
        schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 6) for o in optimizers]
        parts = [model, *optimizers, *schedules]
        for part, state in zip(parts, checkpoint or (), strict=checkpoint is not None):
            part.load_state_dict(state)
        return parts, tokens

    def train(parts, tokens, steps):
        model, *optimizers, muon_schedule, coupled_schedule = parts
        for _ in range(steps):
            example.train(model, tokens, optimizers, steps=1)
            muon_schedule.step()
            coupled_schedule.step()

    whole, tokens = start()
    train(whole, tokens, 3)
    half = copy.deepcopy([part.state_dict() for part in whole])
    resumed, _ = start(half)
    train(whole, tokens, 3)
    train(resumed, tokens, 3)
    assert learning_rates(*resumed[1:3]) == {0.0}
    assert_same_weights(whole[0], resumed[0])


def torchrun(processes, script, *arguments):
    """Run a script on several processes of this machine; fails with what they said."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", processes, script, *arguments]
    agent = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = agent.communicate(timeout=300)
    finally:
        agent.terminate()  # and with it what it started; nothing if all is done
        agent.wait()
    assert agent.returncode == 0, said[-3000:]
    return said


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this build of torch has no gloo",
)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # on one process it is
def test_fsdp2_torchrun(tmp_path):
    """Two processes, then three from their checkpoint, against one that shards nothing."""
    example = load("fsdp2_torchrun")
    alone = example.small_model()
    optimizer = example.make_optimizer(alone)
    for processes, steps in ((2, range(4)), (3, range(4, 8))):
        said = torchrun(processes, EXAMPLES / "fsdp2_torchrun.py", tmp_path)
        assert f"{processes} processes trained from step {steps.start} to {steps.stop}" in said
        for number in steps:
            tokens = example.batch(number)
            alone(tokens[:, :-1], tokens[:, 1:]).backward()
            assert nn.utils.clip_grad_norm_(alone.parameters(), 1.0) > 1.5  # clipped indeed
            optimizer.step()
            optimizer.zero_grad()

        # What they saved, resumed here on one process without FSDP2.
        model = example.small_model()
        resumed = example.make_optimizer(model)
        example.resume(tmp_path / str(steps.stop), model, resumed)
        assert is_coupled(resumed, model.embedding)
        for (name, ours), theirs in zip(alone.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6, msg=name)
            for key, value in optimizer.state[ours].items():
                torch.testing.assert_close(
                    resumed.state[theirs][key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}"
                )


# nanoGPT. Its code is not here: what the diff takes away and what it adds both run in a stand-in.


class NanoGPT(nn.Module):
    """The names of nanoGPT's parameters, and its two groups for AdamW."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        block = {"ln_1": nn.LayerNorm(32, bias=False), "c_fc": nn.Linear(32, 32, bias=False)}
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(97, 32),
                "wpe": nn.Embedding(16, 32),
                "h": nn.ModuleList([nn.ModuleDict(block)]),
                "ln_f": nn.LayerNorm(32, bias=False),
            }
        )
        self.lm_head = nn.Linear(32, 97, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        matrices = [p for p in self.parameters() if p.dim() == 2]
        vectors = [p for p in self.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)

    def forward(self, tokens, targets):
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight
        for block in self.transformer.h:
            x = x + block.c_fc(block.ln_1(x))
        logits = self.lm_head(self.transformer.ln_f(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def side_of_the_diff(sign):
    """The lines that the hunks show: before the change for "-", after it for "+"."""
    _, *hunks = re.split(r"^@@ .*\n", (EXAMPLES / "nanogpt.diff").read_text(), flags=re.MULTILINE)
    lines = [line for hunk in hunks for line in hunk.splitlines(keepends=True)]
    return "".join(line[1:] for line in lines if line[0] in (" ", sign))


def nanogpt(sign, steps, checkpoint=None):
    """Train from the start or from a checkpoint with one side of the diff."""
    model = NanoGPT()
    names = {"model": model, "weight_decay": 0.1, "learning_rate": 6e-4, "beta1": 0.9}
    names |= {"beta2": 0.95, "device_type": "cpu", "init_from": "scratch", "checkpoint": checkpoint}
    if checkpoint is not None:
        model.load_state_dict(checkpoint["model"])
        names["init_from"] = "resume"
    exec(compile(side_of_the_diff(sign), "nanogpt.diff", "exec"), names)
    optimizer = names["optimizer"]
    for number in steps:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(97, (8, 17), generator=generator)
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def through_a_file(path, model, optimizer):
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return torch.load(path)


def test_nanogpt_resumes(tmp_path):
    model, optimizer = nanogpt("+", range(6))
    assert is_coupled(optimizer, model.transformer.wte.weight)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))

    half = through_a_file(tmp_path / "ckpt.pt", *nanogpt("+", range(3)))
    again, resumed = nanogpt("+", range(3, 6), half)
    assert is_coupled(resumed, again.transformer.wte.weight)
    assert_same_weights(model, again)


def test_nanogpt_goes_on_from_a_checkpoint_of_adamw(tmp_path):
    model, adamw = nanogpt("-", range(3))
    assert type(adamw) is torch.optim.AdamW
    half = through_a_file(tmp_path / "ckpt.pt", model, adamw)
    again, optimizer = nanogpt("+", (), half)
    assert learning_rates(optimizer) == {6e-4}
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        old, new = adamw.state[ours], optimizer.state[theirs]
        coupled = theirs is again.transformer.wte.weight
        expected = old["exp_avg_sq"].mean(0) if coupled else old["exp_avg_sq"]
        assert torch.equal(new["exp_avg_sq"], expected), name
        assert torch.equal(new["exp_avg"], old["exp_avg"]) and new["step"] == old["step"], name

    again, optimizer = nanogpt("+", range(3, 6), half)
    assert is_coupled(optimizer, again.transformer.wte.weight)
    # From there as the run that never changed, but not in the very same steps.
    unchanged, _ = nanogpt("-", range(3, 6), half)
    difference = (again.transformer.wte.weight - unchanged.transformer.wte.weight).detach()
    assert 1e-4 < difference.square().mean().sqrt() < 3 * 6e-4


@pytest.mark.skipif(
    "NANOGPT" not in os.environ, reason="NANOGPT names no folder with a checkout of nanoGPT"
)
def test_nanogpt_itself(tmp_path):
    """The diff applies to a checkout, trains, and resumes from its own and from AdamW's file."""
    for name in ("model.py", "train.py", "configurator.py"):
        shutil.copy(Path(os.environ["NANOGPT"]) / name, tmp_path / name)
    folder = tmp_path / "data" / "random"
    folder.mkdir(parents=True)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 97}))
    for split in ("train", "val"):
        np.random.default_rng(0).integers(97, size=4096).astype(np.uint16).tofile(
            folder / f"{split}.bin"
        )

    def train(last, out, init_from="scratch"):
        options = {
            "dataset": "random", "out_dir": out, "init_from": init_from, "max_iters": last,
            "eval_interval": 4, "eval_iters": 1, "lr_decay_iters": 8, "warmup_iters": 2,
            "batch_size": 4, "block_size": 16, "gradient_accumulation_steps": 2,
            "n_layer": 1, "n_head": 2, "n_embd": 32,
            "device": "cpu", "dtype": "float32", "compile": False,
        }  # fmt: skip
        command = [sys.executable, "train.py", *(f"--{k}={v}" for k, v in options.items())]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        checkpoint = torch.load(tmp_path / out / "ckpt.pt")
        embeddings = checkpoint["optimizer"]["state"][0]
        assert checkpoint["iter_num"] == embeddings["step"] == last
        return embeddings["exp_avg_sq"].dim()

    assert train(4, "adamw") == 2
    subprocess.run(
        ["git", "apply", EXAMPLES / "nanogpt.diff"],
        cwd=tmp_path,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        check=True,
    )
    assert train(4, "coupled") == 1
    assert train(8, "coupled", "resume") == 1
    assert train(8, "adamw", "resume") == 1
