"""The text encoder against transformers' own networks."""

import pytest
import torch
from transformers import BertConfig, BertModel

from snapfusion.model.text import TextEncoder
from snapfusion.tokens import tokenize
from tiny_models import WIDTH, stable_diffusion_checkpoint, sticker_checkpoint

PROMPTS = ["", "a red fox", "the blue whale, flat sticker"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@torch.no_grad()
def test_bert_is_masked_and_its_padding_zero() -> None:
    checkpoint = sticker_checkpoint()
    tokens = torch.from_numpy(tokenize(checkpoint.tokenizer, PROMPTS, 16)[0])
    mask = (tokens != 0).long()
    assert mask.sum(dim=1).tolist() == [2, 5, 8]
    expected = checkpoint.text_encoder.model(input_ids=tokens, attention_mask=mask).last_hidden_state
    embedding = checkpoint.text_encoder(tokens)
    assert embedding.shape == (3, 16, WIDTH)
    assert torch.equal(embedding[mask == 1], expected[mask == 1])
    assert torch.count_nonzero(embedding[mask == 0]) == 0
    assert torch.count_nonzero(expected[mask == 0]) > 0


@torch.no_grad()
def test_bert_does_not_see_how_far_a_prompt_is_padded() -> None:
    checkpoint = sticker_checkpoint()
    short, long = (
        checkpoint.text_encoder(torch.from_numpy(tokenize(checkpoint.tokenizer, PROMPTS[:2], length)[0]))
        for length in (5, 16)
    )
    torch.testing.assert_close(long[:, :5], short, rtol=0, atol=1e-6)
    alone = checkpoint.text_encoder(torch.from_numpy(tokenize(checkpoint.tokenizer, PROMPTS[:1], 2)[0]))
    torch.testing.assert_close(short[:1, :2], alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_clip_reads_its_padding_as_in_stable_diffusion() -> None:
    checkpoint = stable_diffusion_checkpoint()
    tokens = torch.from_numpy(tokenize(checkpoint.tokenizer, PROMPTS, 16)[0])
    embedding = checkpoint.text_encoder(tokens)
    assert torch.equal(embedding, checkpoint.text_encoder.model(tokens)[0])  # as StableDiffusionPipeline calls it
    assert (embedding.abs().sum(dim=2) > 0).all()


def test_the_width_is_the_embeddings() -> None:
    assert sticker_checkpoint().text_encoder.width == WIDTH


def test_an_encoder_without_a_pad_token_is_refused() -> None:
    config = BertConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4, pad_token_id=None
    )
    with pytest.raises(ValueError, match="got a BertModel whose config has no pad_token_id, expected one"):
        TextEncoder(BertModel(config))
