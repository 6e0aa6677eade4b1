"""A trained model as a Hugging Face GPT-2 checkpoint, for lm-eval and whatever else reads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coupled_adam.errors import RefusedError
from coupled_adam.extras import needs
from coupled_adam.files import write_whole
from coupled_adam.gpt import GPT, Block, GPTConfig
from coupled_adam.text import END_OF_TEXT
from coupled_adam.text.corpus import TOKENIZER_FILE
from coupled_adam.training import load_run

with needs("cli"):
    from safetensors.torch import save
    from tokenizers import Tokenizer


def export(run_folder: str | Path, folder: str | Path) -> None:
    """Write the model of a run as ``transformers.GPT2LMHeadModel`` expects it, with its tokeniser.

    The logits are the same; the biases that GPT-2 has and these models lack are zeros. Read it
    with ``AutoModelForCausalLM.from_pretrained(folder)``, or ``lm_eval --model hf --model_args
    pretrained=folder`` (tried with lm-eval 0.4.13: its log-likelihoods are the model's own to
    1e-6, of continuations, of choices, and of texts longer than the context).

    As with OpenAI's GPT-2, nothing is put before a text, and ``<|endoftext|>`` inside a text is
    read as the token, not as its spelling, unlike in ``Corpus.encode``.

    Args:
        run_folder: a run folder that ``train`` wrote; its last checkpoint is taken.
        folder: where to write; made if needed, and must be empty.

    Raises:
        FileNotFoundError: if the run folder holds no run, or none with a checkpoint yet.
        RefusedError: if a file of the run is damaged, or ``folder`` is not empty.
        OSError: if the folder cannot be written.
    """
    run, folder = load_run(run_folder), Path(folder)
    source = Path(run_folder) / TOKENIZER_FILE
    if not source.exists():
        raise FileNotFoundError(
            f"{run_folder} has no {TOKENIZER_FILE}: the run is older than this file; train() with "
            "its configuration and text adds it, without training again"
        )
    if folder.exists() and any(folder.iterdir()):
        raise RefusedError(f"{folder} is not empty: choose a new folder for the checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(source))
    end = tokenizer.token_to_id(END_OF_TEXT)
    read_as = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": run.config.model.context,
        **({} if end is None else {"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}),
    }
    contents = {
        "model.safetensors": save(gpt2_tensors(run.model), metadata={"format": "pt"}),
        TOKENIZER_FILE: source.read_bytes(),
        "tokenizer_config.json": _json(read_as),
        "config.json": _json(gpt2_config(run.config.model, end)),  # last: it makes the folder one
    }
    for name, content in contents.items():
        write_whole(folder / name, content)


def gpt2_config(model: GPTConfig, end_of_text: int | None) -> dict[str, Any]:
    """What ``config.json`` of a Hugging Face GPT-2 says for a model of this shape."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocabulary_size,
        "n_positions": model.context,
        "n_embd": model.width,
        "n_layer": model.layers,
        "n_head": model.heads,
        "activation_function": "gelu",  # the exact one; OpenAI's own GPT-2 has "gelu_new"
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": model.tied,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }


def gpt2_tensors(model: GPT) -> dict[str, Tensor]:
    """The weights under the names and in the shapes of ``transformers.GPT2LMHeadModel``.

    Its linear layers ("Conv1D") keep their matrices as [inputs, outputs], the transpose of ours.
    """
    tensors = {
        "transformer.wte.weight": model.embedding,
        "transformer.wpe.weight": model.position_embedding.weight,
        "transformer.ln_f.weight": model.final_norm.weight,
    }
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        name = f"transformer.h.{number}"
        tensors |= {
            f"{name}.ln_1.weight": block.attention_norm.weight,
            f"{name}.attn.c_attn.weight": block.query_key_value.weight.T,
            f"{name}.attn.c_proj.weight": block.attention_out.weight.T,
            f"{name}.ln_2.weight": block.network_norm.weight,
            f"{name}.mlp.c_fc.weight": block.network_in.weight.T,
            f"{name}.mlp.c_proj.weight": block.network_out.weight.T,
        }
    biases = {
        name.replace("weight", "bias"): torch.zeros(weight.shape[-1])
        for name, weight in tensors.items()
        if name.startswith(("transformer.h.", "transformer.ln_f."))
    }
    if not model.config.tied:
        tensors["lm_head.weight"] = model.output_embedding
    return {name: t.detach().contiguous() for name, t in (tensors | biases).items()}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
