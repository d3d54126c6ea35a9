"""A tiny encoder of texts with a tokenizer, in a folder as transformers reads it, and tables of texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from piggyback.model.multitask import MultiTaskModel
from piggyback.network.backbone import Backbone
from piggyback.zoo.load import load_backbone

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "the", "is", "good", "bad", "fine", "poor", "film", "book", "it", "was", "very", "?", ".", ","),
)  # fmt: skip


def write_encoder(folder: Path, words: tuple[str, ...] = WORDS, kind: str = "BertModel") -> Path:
    """Write an encoder of two layers, always the same one, and a tokenizer of whole words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config)
        for layer in model.modules():
            if isinstance(layer, torch.nn.Embedding):
                layer.weight.data.normal_(0, 1)
    model.save_pretrained(folder)
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(dict(zip(words, range(len(words)), strict=True)), "[UNK]")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=24, **names
    )
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder without a classifier."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def reader(encoder: Path) -> Backbone:
    """That encoder as a backbone."""
    return load_backbone(f"transformers:{encoder}")


def held(reader: Backbone, *files: Path) -> MultiTaskModel:
    """A model that holds the tasks of these files."""
    model = MultiTaskModel(reader)
    for file in files:
        model.load_task(file)
    return model.eval()


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A table of 96 short reviews, of different lengths, good or bad."""
    place = tmp_path / "reviews.tsv"
    lines = ["text\tlabel\tsplit"]
    for i in range(96):
        word = ("good", "fine", "bad", "poor")[i % 4]
        text = f"the {('film', 'book')[i % 3 % 2]} is {'very ' * (i % 3)}{word}{' .' * (i // 4 % 2)}{' ,' * (i // 48)}"
        lines.append(
            f"{text}\t{'good' if i % 4 < 2 else 'bad'}\t{'test' if i % 6 == 5 else 'train'}"
        )
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """A table of 120 texts with tags: films are marked, some with a "very" behind, and books with a "bad"."""
    place, source = tmp_path / "tagged.tsv", random.Random(7)
    lines = ["text\tlabel\tsplit"]
    for i in range(120):
        words, tags = [], []
        for _ in range(source.randint(1, 2)):
            (marked, behind), more = source.choice([("film", "very"), ("book", "bad")]), i % 2
            before, after = (source.choices(("the", "a", "is", "good."), k=k) for k in (2, 1))
            words += [*before, marked, *[behind] * more, *after]
            tags += ["O", "O", f"B-{marked}", *[f"I-{marked}"] * more, "O"]
        lines.append(f"{' '.join(words)}\t{' '.join(tags)}\t{'test' if i % 6 == 5 else 'train'}")
    place.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place
