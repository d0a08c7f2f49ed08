"""Text encoders with a few thousand random weights, saved like pretrained ones."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "blue", "circle", "square", "on", "the", "left"]
WIDTH = 16


def tiny_encoder(folder: Path, kind: str = "bert", seed: int = 0) -> Path:
    """Save a model and its tokenizer, which knows `WORDS`."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model(kind).save_pretrained(folder)
    return folder


def model(kind: str) -> transformers.PreTrainedModel:
    sizes = {"vocab_size": len(WORDS), "hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes, num_hidden_layers=1, max_position_embeddings=12))
    if kind == "t5":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 32}
    text = {**layers, "vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 3}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config={**layers, "image_size": 8, "patch_size": 4})
    )
