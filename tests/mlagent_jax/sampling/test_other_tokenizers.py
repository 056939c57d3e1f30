"""Tokenizers that are not byte-level: SentencePiece's serve as any other, what spells nothing fixed is refused."""

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from mlagent_jax.models.tokenizer import PROBE, Tokenizer
from mlagent_jax.sampling import Sampler, load


def write(folder, decoder=None):
    """A tokenizer as Llama 2 has it: pieces with a sign for spaces, a token for each byte that no piece has."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz():[]+123\n"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "\u2581x", "de", "def"]
    merges = [("\u2581", "x"), ("d", "e"), ("de", "f")]
    made = tokenizers.Tokenizer(
        models.BPE({piece: place for place, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoder or decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def test_spellings_are_what_tokens_decode_to(tmp_path):
    tokenizer = Tokenizer.load(write(tmp_path / "it"))
    spellings = tokenizer.spellings()
    for text in (PROBE, "def f(x):\n  \u00e9", "\U0001f389", "x"):
        ids = tokenizer.encode(text)
        assert b"".join(spellings[token] for token in ids).decode() == f" {text}"
        assert tokenizer.decode(ids) == text


def test_such_a_checkpoint_samples_and_stops(speaker, tmp_path):
    model, _ = load(speaker)
    rows = model.graph.config.vocab_size
    tokenizer = Tokenizer.load(write(tmp_path / "it"))
    assert tokenizer.vocab_size <= rows
    sampler = Sampler(model, tokenizer, slots=2)
    free = sampler.generate(["def f(x):"], max_new_tokens=24, seed=3)[0][0]
    spellings = tokenizer.spellings()
    spelled = [spellings[token] for token in sampler.spoken(free.token_ids) if token < len(spellings)]
    assert free.text == b"".join(spelled).decode(errors="replace")
    stop = next(free.text[at : at + 2] for at in range(2, 40) if free.text[at : at + 2].isascii())
    cut = sampler.generate(["def f(x):"], max_new_tokens=24, seed=3, stop=[stop])[0][0]
    assert cut.text == free.text[: free.text.find(stop)] and cut.finish_reason == "stop"


def test_a_tokenizer_whose_tokens_spell_nothing_fixed_is_refused_with_the_reason(speaker, tmp_path):
    model, _ = load(speaker)
    tokenizer = Tokenizer.load(write(tmp_path / "it", decoders.WordPiece()))
    with pytest.raises(ValueError, match=r"decoder .WordPiece. that is neither byte-level nor SentencePiece's"):
        Sampler(model, tokenizer)


def test_a_beginning_is_added_where_it_is_asked_for(tmp_path):
    folder = write(tmp_path / "it")
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("x</s>", parse_special=True, add_special=True)[0] == 1
    assert tokenizer.encode("x</s>", parse_special=True)[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in tokenizer.encode("x</s>")
