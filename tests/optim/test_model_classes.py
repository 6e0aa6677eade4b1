"""param_groups on the model classes of transformers: which of their matrices are the words'."""

import os

import pytest
import torch
from torch import nn

from coupled_adam import param_groups

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

NOTHING: set[str] = set()
# Class of a model -> the embeddings, input and output, of one with its default configuration.
EXPECTED = {
    # Decoders, tied
    "GPT2LMHeadModel": {"transformer.wte"},
    "GPTNeoForCausalLM": {"transformer.wte"},
    "OPTForCausalLM": {"model.decoder.embed_tokens"},
    "BloomForCausalLM": {"transformer.word_embeddings"},
    "GemmaForCausalLM": {"model.embed_tokens"},
    "Gemma2ForCausalLM": {"model.embed_tokens"},
    "FalconForCausalLM": {"transformer.word_embeddings"},
    "MptForCausalLM": {"transformer.wte"},
    "MambaForCausalLM": {"backbone.embeddings"},
    "CTRLLMHeadModel": {"transformer.w"},
    "XLNetLMHeadModel": {"transformer.word_embedding"},
    "BioGptForCausalLM": {"biogpt.embed_tokens"},
    "XGLMForCausalLM": {"model.embed_tokens"},
    "OpenAIGPTDoubleHeadsModel": {"transformer.tokens_embed"},
    # Decoders with a head of their own
    "GPTNeoXForCausalLM": {"gpt_neox.embed_in", "lm_head"},
    "GPTJForCausalLM": {"transformer.wte", "lm_head"},
    "CodeGenForCausalLM": {"transformer.wte", "lm_head"},
    "LlamaForCausalLM": {"model.embed_tokens", "lm_head"},
    "MistralForCausalLM": {"model.embed_tokens", "lm_head"},
    "MixtralForCausalLM": {"model.embed_tokens", "lm_head"},
    "Qwen2ForCausalLM": {"model.embed_tokens", "lm_head"},
    "Qwen3ForCausalLM": {"model.embed_tokens", "lm_head"},
    "PhiForCausalLM": {"model.embed_tokens", "lm_head"},
    "RwkvForCausalLM": {"rwkv.embeddings", "head"},
    "BarkSemanticModel": {"input_embeds_layer", "lm_head"},
    "ImageGPTForCausalImageModeling": {"transformer.wte", "lm_head"},
    # Encoder and decoder
    "T5ForConditionalGeneration": {"shared"},
    "UMT5ForConditionalGeneration": {"shared"},
    "BartForConditionalGeneration": {"model.shared"},
    "MBartForConditionalGeneration": {"model.shared"},
    "PegasusForConditionalGeneration": {"model.shared"},
    "MarianMTModel": {"model.shared"},
    "LEDForConditionalGeneration": {"led.shared"},
    "ProphetNetForConditionalGeneration": {"prophetnet.word_embeddings"},
    "FSMTForConditionalGeneration": {
        "model.encoder.embed_tokens",
        "model.decoder.embed_tokens",
        "model.decoder.output_projection",
    },
    "WhisperForConditionalGeneration": {"model.decoder.embed_tokens"},
    "Speech2TextForConditionalGeneration": {"model.decoder.embed_tokens"},
    # Encoders
    "BertModel": {"embeddings.word_embeddings"},
    "BertForPreTraining": {"bert.embeddings.word_embeddings"},
    # As many classes as token types: the classifier has the shape of their table.
    "BertForSequenceClassification": {"bert.embeddings.word_embeddings"},
    "RobertaForMaskedLM": {"roberta.embeddings.word_embeddings"},
    "DistilBertForMaskedLM": {"distilbert.embeddings.word_embeddings"},
    "AlbertForMaskedLM": {"albert.embeddings.word_embeddings"},
    "ElectraForPreTraining": {"electra.embeddings.word_embeddings"},
    "ElectraForMaskedLM": {"electra.embeddings.word_embeddings"},
    "DebertaV2ForMaskedLM": {"deberta.embeddings.word_embeddings"},
    "BigBirdForMaskedLM": {"bert.embeddings.word_embeddings"},
    "LongformerForMaskedLM": {"longformer.embeddings.word_embeddings"},
    "XLMWithLMHeadModel": {"transformer.embeddings"},
    "FunnelForMaskedLM": {"funnel.embeddings.word_embeddings"},
    "LayoutLMForMaskedLM": {"layoutlm.embeddings.word_embeddings"},
    "TapasModel": {"embeddings.word_embeddings"},
    "RemBertForMaskedLM": {"rembert.embeddings.word_embeddings", "cls.predictions.decoder"},
    # The head's further coordinates are stored as [width, tokens].
    "MobileBertForMaskedLM": {"mobilebert.embeddings.word_embeddings", "cls.predictions.dense.T"},
    "PerceiverForMaskedLM": {"perceiver.input_preprocessor.embeddings"},
    # With pictures and sounds
    "CLIPModel": {"text_model.embeddings.token_embedding"},
    "SiglipModel": {"text_model.embeddings.token_embedding"},
    "BlipForConditionalGeneration": {"text_decoder.bert.embeddings.word_embeddings"},
    "GitForCausalLM": {"git.embeddings.word_embeddings", "output"},
    "LlavaForConditionalGeneration": {"model.language_model.embed_tokens", "lm_head"},
    "Gemma3ForConditionalGeneration": {"model.language_model.embed_tokens"},
    "Pix2StructForConditionalGeneration": {"decoder.embed_tokens", "decoder.lm_head"},
    "FlavaModel": {"text_model.embeddings.word_embeddings"},
    "VitsModel": {"text_encoder.embed_tokens"},
    "MusicgenForCausalLM": {
        *(f"model.decoder.embed_tokens.{codebook}" for codebook in range(4)),
        *(f"lm_heads.{codebook}" for codebook in range(4)),
    },
    # Without words
    "ViTModel": NOTHING,
    "SiglipVisionModel": NOTHING,
    "SwinModel": NOTHING,
    "MaskFormerModel": NOTHING,
    "DecisionTransformerModel": NOTHING,
    "SamModel": NOTHING,
}


def shortened(config):
    """The configuration with two layers of each kind."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            shortened(value)
        elif type(value) is int and value > 2 and name.endswith(("layers", "n_layer")):
            setattr(config, name, 2)
        elif isinstance(value, list) and name == "layer_types":
            setattr(config, name, value[:2])
    return config


def coupled(model, **options):
    """The names of what is coupled; ".T" where the tokens lie along the columns."""
    names = {id(p): name.removesuffix(".weight") for name, p in model.named_parameters()}
    return {
        names[id(p)] + (".T" if group.get("vocabulary_dim") else "")
        for group in param_groups(model, **options)
        if group["coupled"]
        for p in group["params"]
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_the_words_of_a_model_class_are_found(name):
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip(f"this version of transformers has no {name}")
    with torch.device("meta"):
        model = model_class(shortened(model_class.config_class()))
    assert coupled(model) == EXPECTED[name]


def small(**options):
    return {
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    } | {
        "intermediate_size": 16,
        **options,
    }


def marian(**options):
    sizes = {f"{part}_{of}": n for part in ("encoder", "decoder") for of, n in MARIAN.items()}
    tokens = {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    config = transformers.MarianConfig(
        vocab_size=40, d_model=8, max_position_embeddings=16, **sizes, **tokens, **options
    )
    return transformers.MarianMTModel(config)


MARIAN = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


def test_two_vocabularies():
    model = marian(decoder_vocab_size=50, share_encoder_decoder_embeddings=False)
    assert coupled(model) == {"model.encoder.embed_tokens", "model.decoder.embed_tokens"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_resized_vocabulary_is_found(tied):
    config = transformers.LlamaConfig(**small(tie_word_embeddings=tied))
    model = transformers.LlamaForCausalLM(config)
    model.resize_token_embeddings(64)
    assert coupled(model) == {"model.embed_tokens"} | ({"lm_head"} if not tied else set())
    assert model.get_input_embeddings().weight.shape == (64, 8)
    assert param_groups(model)[0]["params"][0] is model.get_input_embeddings().weight


def test_a_model_inside_another_is_found():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertModel(transformers.BertConfig(**small()))
            self.tags, self.out = nn.Embedding(7, 8), nn.Linear(8, 7)

    # The tags have a table and a head of one shape; the model inside says which its words are.
    assert coupled(Tagger()) == {"bert.embeddings.word_embeddings"}


def test_a_table_of_added_tokens_goes_with_the_words():
    config = transformers.IdeficsConfig(
        **small(additional_vocab_size=4, freeze_lm_head=False),
        vision_config=small(embed_dim=8, image_size=8, patch_size=4),
    )
    with torch.device("meta"):
        model = transformers.IdeficsForVisionText2Text(config)
    model.model.embed_tokens.weight.requires_grad_(True)
    assert coupled(model) == {
        "model.embed_tokens",
        "model.embed_tokens.additional_embedding",
        "lm_head",
        "lm_head.additional_fc",
    }


def test_hashed_characters_are_refused():
    with torch.device("meta"):
        model = transformers.CanineModel(shortened(transformers.CanineConfig()))
    with pytest.raises(ValueError, match="8 candidates"):
        param_groups(model)
