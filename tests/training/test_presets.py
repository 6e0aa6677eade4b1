"""What the presets promise: the paper's models and recipe."""

import pytest
import torch

from coupled_adam.gpt import GPT
from coupled_adam.text import synthetic
from coupled_adam.training import PRESETS, commands, preset_config, small_config


@pytest.mark.parametrize(
    ("name", "millions", "rate"),
    [("gpt2-124m", 124, 6e-4), ("gpt2-355m", 355, 3e-4), ("gpt2-774m", 774, 2.5e-4)],
)
def test_a_preset_is_the_paper_s_model_and_recipe(name, millions, rate):
    config = preset_config(name, 50_257)
    with torch.device("meta"):
        model = GPT(config.model)
    # GPT-2 is named after its size with biases, which these models lack: 0.1 % of it.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)
    assert config.model.vocabulary_size == 50_304
    assert config.model.tied
    assert config.learning_rate == rate
    assert config.batch_size * config.model.context == 98_304
    assert (config.warmup_steps, config.final_share, config.betas) == (100, 0.1, (0.9, 0.95))
    assert (config.weight_decay, config.gradient_clip) == (0.1, 1.0)
    assert (config.precision, config.compiled) == ("bfloat16", True)


def test_the_default_is_the_tiny_test():
    config = preset_config("gpt2-124m", 50_257)
    assert config.steps * config.batch_size * config.model.context == pytest.approx(1e8, rel=0.02)


def test_what_is_given_takes_the_place_of_the_preset_s():
    config = preset_config("gpt2-355m", 8192, optimizer="adamw", accumulation=48, compiled=False)
    assert (config.optimizer, config.accumulation, config.compiled) == ("adamw", 48, False)
    assert config.model.vocabulary_size == 8192


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match=f"no preset 'gpt2': choose one of {', '.join(PRESETS)}"):
        preset_config("gpt2", 50_257)


def test_commands_of_an_unknown_preset_are_refused():
    with pytest.raises(ValueError, match="there is no preset 'gpt3'"):
        commands("gpt3", "adamw", 1, "a.txt")


def test_the_commands_hand_their_files_on():
    lines = commands("gpt2-124m", "coupled", 2, "my books.txt")
    assert list(lines) == ["prepare", "train", "evaluate", "export", "lm_eval"]
    for name in ("prepare", "train", "evaluate"):
        assert "'my books.txt'" in lines[name]
    assert lines["train"].endswith("--out runs/gpt2-124m-coupled-2")
    assert "evaluate runs/gpt2-124m-coupled-2 " in lines["evaluate"]
    assert lines["export"].endswith("export runs/gpt2-124m-coupled-2 hf/gpt2-124m-coupled-2")
    assert "pretrained=hf/gpt2-124m-coupled-2 " in lines["lm_eval"]
    assert len(lines["lm_eval"].split("--tasks ")[1].split(",")) == 7


def test_small_config_is_the_paper_s_recipe_on_a_small_model(tmp_path):
    config = small_config(synthetic(200, tokens=10_240, cache=tmp_path), seed=3, steps=7)
    assert (config.seed, config.steps) == (3, 7)
    assert (config.model.layers, config.model.width, config.model.context) == (2, 128, 128)
    assert config.model.vocabulary_size == 200
    assert (config.betas, config.weight_decay, config.gradient_clip) == ((0.9, 0.95), 0.1, 1.0)
