"""The examples for adopters: each trains, couples the embeddings, and survives a checkpoint."""

import importlib.util
import sys

import notebooks
import pytest
import torch

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
    return expected == {id(p): s["exp_avg_sq"].shape for p, s in optimizer.state.items()}


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
    assert optimizer.param_groups[0]["lr"] < 6e-4  # the Trainer's schedule reached it

    again, data = example.small_model_and_data()
    trainer = example.make_trainer(again, data, tmp_path / "whole", max_steps=6, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert trainer.state.global_step == 6
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    example = load("lightning_module")

    def fit(steps, checkpoint=None):
        model, data = example.small_model_and_data()
        module = example.LanguageModel(model, steps=6)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, model

    whole, model = fit(6)
    assert isinstance(whole.optimizers[0], CoupledAdamW)
    assert is_coupled(whole.optimizers[0], model.embedding)
    half, _ = fit(3)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again = fit(6, tmp_path / "half.ckpt")
    assert resumed.global_step == 6
    assert is_coupled(resumed.optimizers[0], again.embedding)


def test_muon_and_coupled_adam():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no torch.optim.Muon")
    example = load("muon_and_coupled_adam")
    model, tokens = example.small_model_and_data()
    losses, (muon, coupled) = example.train(model, tokens, steps=10)
    assert losses[-1] < losses[0] - 0.1
    assert is_coupled(coupled, model.embedding)
    held = [p for o in (muon, coupled) for group in o.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len({id(p) for p in held})
