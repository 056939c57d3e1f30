"""Tokenizers: a checkpoint's own, or one trained here for a policy from scratch.

A tokenizer is a folder that Hugging Face's `AutoTokenizer` reads; every checkpoint and export contains it. Prompt and
action are encoded separately and their ids concatenated, as when an action is sampled; nothing is added to either.

The trained one is a Qwen2 tokenizer, like the policy: an export loads as transformers' `Qwen2Tokenizer`, which reads
only vocabulary and merges from the folder. Text is normalised (NFC) and cut into words by a regular expression. Each
word's UTF-8 bytes become characters of a 256-letter alphabet, so no byte is lost. Within words the vocabulary is
SentencePiece's (BPE).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece
import tokenizers
import transformers
from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mlagent_jax.runtime.files import refuse_pointer

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
"""Files of a tokenizer in a checkpoint's folder."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files of which a tokenizer has at least one; the others only describe it."""

PAD, EOS = "<|pad|>", "<|endoftext|>"
ALPHABET = frozenset(pre_tokenizers.ByteLevel.alphabet())
"""One character for each of the 256 bytes."""
NORMALIZER = normalizers.NFC()
# transformers/models/qwen2/tokenization_qwen2.py
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZER = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
PROBE = "def f(x):\n    return  x['caf\u00e9'] + 12\n\n\tif x:  # \U0001f389"
"""Text that tokenizers of different kinds split differently."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer:
    """Hugging Face fast tokenizer, reduced to what the project uses."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, folder: epath.Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has no end-of-text token: set eos_token in its config")
        added = tokenizer.added_tokens_decoder.values()
        self._markup = tuple(token.content for token in added if token.special)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load from a checkpoint's folder, or a folder with only a tokenizer; local or remote (`gs://`).

        Raises:
          FileNotFoundError: The folder holds no tokenizer.
          ValueError: It has no fast implementation, or no end-of-text token.
        """
        folder = epath.Path(folder)
        if not any((folder / name).exists() for name in VOCABULARIES):
            raise FileNotFoundError(f"{folder} holds no tokenizer: expected at least one of {', '.join(VOCABULARIES)}")
        for name in FILES:
            if (folder / name).exists():
                refuse_pointer(folder / name)
        with _local(folder) as local:
            tokenizer = transformers.AutoTokenizer.from_pretrained(local)
        if not tokenizer.is_fast:
            raise ValueError(f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which has no tokenizer.json")
        return cls(tokenizer, folder)

    @property
    def eos_id(self) -> int:
        """Return the id that ends an action."""
        return self._tokenizer.eos_token_id

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Return all ids that end a reply, in training, evaluation, sampling and serving, ascending.

        They are the end-of-text token; the ids that the checkpoint's generation_config.json and config.json name
        (transformers reads the latter if the former does not exist); and the token that closes an assistant message in
        its chat template.
        """
        return tuple(sorted({self.eos_id, *_named_ends(self._folder), *self._message_end()}))

    def _message_end(self) -> tuple[int, ...]:
        """Return the special token that the chat template puts after an assistant message, if any."""
        reply = "A reply."
        messages = [{"role": "user", "content": "A question."}, {"role": "assistant", "content": reply}]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False) if self.has_chat_template else ""
        except Exception:  # A chat template is code of the checkpoint and may raise anything.
            text = ""
        after = text.rpartition(reply)[2].lstrip()
        closing = max((name for name in self._markup if after.startswith(name)), key=len, default=None)
        return () if closing is None else (self._tokenizer.convert_tokens_to_ids(closing),)

    @property
    def pad_id(self) -> int:
        """Return the padding id; the end-of-text token if the checkpoint names none. Masks decide what counts."""
        pad = self._tokenizer.pad_token_id
        return self.eos_id if pad is None else pad

    @property
    def vocab_size(self) -> int:
        """Return the exclusive upper bound of ids. A checkpoint's embedding may have more rows, never fewer."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    def encode(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> list[int]:
        """Return the ids of `text`.

        Args:
          parse_special: Whether names of special tokens in the text become those tokens. By default they are plain
            text: nothing an agent reads or writes can end a message.
          add_special: Whether to add the checkpoint's tokens around every text (a beginning of sequence, for example).
        """
        return self._tokenizer.encode(text, add_special_tokens=add_special, split_special_tokens=not parse_special)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens by their names. Invalid UTF-8 becomes U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def spellings(self) -> list[bytes]:
        """Return the bytes of every token, by id; joined and decoded as UTF-8 they give `decode`.

        SentencePiece's `decode` drops a space at the very beginning; these bytes keep it.

        Raises:
          ValueError: The tokenizer is of another kind, whose tokens' texts depend on their neighbours.
        """
        spell = self._speller()
        spelled = [b""] * self.vocab_size
        for token, index in self._tokenizer.get_vocab().items():
            spelled[index] = spell(token)
        ids = self.encode(PROBE)
        text = b"".join(spelled[token] for token in ids).decode(errors="replace")
        if text.removeprefix(" ") != self.decode(ids).removeprefix(" "):
            raise ValueError(f"the tokenizer in {self._folder}: the bytes of its tokens differ from the decoded text")
        return spelled

    def _speller(self) -> Callable[[str], bytes]:
        decoder = self._tokenizer.backend_tokenizer.decoder
        if isinstance(decoder, decoders.ByteLevel):
            letters = _bytes_of_letters()

            def bytes_of(token: str) -> bytes:
                known = letters.keys() >= set(token)  # as tokenizers' ByteLevel decides it, for added tokens too
                return bytes(letters[letter] for letter in token) if known else token.encode()

            return bytes_of
        steps = [] if decoder is None else json.loads(decoder.__getstate__())
        steps = steps["decoders"] if steps and steps["type"] == "Sequence" else [steps]
        kinds = {step["type"] for step in steps if step}
        if not kinds or kinds - {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            kind = ", ".join(sorted(kinds)) or "none"
            raise ValueError(
                f"the tokenizer in {self._folder} has a decoder ({kind}) that is neither byte-level nor SentencePiece's"
                ": a token has no fixed bytes"
            )
        added = set(self._tokenizer.get_added_vocab())

        def text_of(token: str) -> bytes:
            if token in added:
                return token.encode()
            if "ByteFallback" in kinds and _BYTE.fullmatch(token):
                return bytes([int(token[3:5], 16)])
            return token.replace("\u2581", " ").encode()

        return text_of

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids of a conversation ({"role", "content"} each), up to the start of the assistant's reply.

        A special token's name inside a content is broken by a space, so that it cannot end a message.

        Raises:
          ValueError: The checkpoint has no chat template; see `has_chat_template`.
        """
        return self.encode(self.chat_text(messages), parse_special=True)

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text that `apply_chat_template` encodes. Messages may have other keys that the template reads."""
        if not self.has_chat_template:
            raise ValueError(f"the tokenizer in {self._folder} has no chat template: encode the text itself")
        return self._tokenizer.apply_chat_template(
            self.without_markup(list(messages)), tokenize=False, add_generation_prompt=True
        )

    def without_markup(self, value: Any) -> Any:
        """Break the names of special tokens by a space, in a text or in all texts of lists and mappings."""
        if isinstance(value, str):
            for name in self._markup:
                value = value.replace(name, f"{name[0]} {name[1:]}")
        elif isinstance(value, Mapping):
            value = {key: item if key == "role" else self.without_markup(item) for key, item in value.items()}
        elif isinstance(value, list):
            value = [self.without_markup(item) for item in value]
        return value

    def save(self, directory: str | Path) -> None:
        """Copy the tokenizer's files unchanged into `directory`, local or remote (`gs://`)."""
        target = epath.Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self._folder / name).exists():
                (target / name).write_bytes((self._folder / name).read_bytes())

    def check_loads_alike(self, directory: str | Path) -> None:
        """Check that `AutoTokenizer`, given `directory` (tokenizer and config.json), loads this tokenizer.

        Raises:
          ValueError: It loads another one. For some model types, Qwen2 among them, transformers 5 builds its own kind
            of tokenizer whatever the tokenizer's files say.
        """
        loaded = transformers.AutoTokenizer.from_pretrained(directory)
        if loaded.encode(PROBE, add_special_tokens=False, split_special_tokens=True) != self.encode(PROBE):
            raise ValueError(
                f"with the config.json in {directory} AutoTokenizer loads a {type(loaded).__name__}, not the tokenizer "
                f"in {self._folder}, which splits text differently: use a tokenizer of the model's type"
            )


def _named_ends(folder: epath.Path) -> set[int]:
    """Return the ids that a checkpoint's files name as the end of a text."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        named = config.get("eos_token_id") if isinstance(config, dict) else None
        ends |= {token for token in (named if isinstance(named, list) else [named]) if type(token) is int}
    return ends


@contextlib.contextmanager
def _local(folder: epath.Path) -> Iterator[str]:
    """Yield a local folder with the files that `AutoTokenizer` reads from `folder`, which may be remote."""
    if "://" not in os.fspath(folder):
        yield os.fspath(folder)
        return
    with tempfile.TemporaryDirectory() as local:
        for name in (*FILES, "config.json"):  # config.json names the model type
            if (folder / name).exists():
                Path(local, name).write_bytes((folder / name).read_bytes())
        yield local


def _bytes_of_letters() -> dict[str, int]:
    """Return the byte of each letter of `ALPHABET` (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int, special_tokens: Sequence[str], directory: str | Path
) -> Tokenizer:
    """Train a vocabulary on `corpus` and write it for `AutoTokenizer`; deterministic.

    Args:
      corpus: Texts of the domain, of any length. A digit is always a token of its own.
      vocab_size: Total entries: end of text, padding, 256 bytes, learned tokens, special tokens.
      special_tokens: Fixed words of the reply format, each always one token; the longest match wins.
      directory: Local output folder: `tokenizer.json`, its config, and SentencePiece's `tokenizer.model`.

    Raises:
      ValueError: `vocab_size` is too small, or larger than the corpus supports, or a special token is unusable.
    """
    fixed = list(dict.fromkeys(special_tokens))
    for word in fixed:
        # ByteLevel reads a token all of whose characters are in its alphabet as bytes.
        if not word or word in (PAD, EOS) or (ALPHABET.issuperset(word) and not word.isascii()):
            raise ValueError(f"special token {word!r} is empty, reserved, or would be decoded as bytes: choose another")
    own = [word for word in fixed if word not in ALPHABET]  # single characters are in the vocabulary already
    learned_size = vocab_size - len(own)
    if learned_size < 2 + len(ALPHABET):
        raise ValueError(
            f"vocab_size {vocab_size} is too small: 2 control tokens, {len(ALPHABET)} bytes and {len(own)} special "
            f"tokens make {2 + len(ALPHABET) + len(own)}"
        )
    model = _learn(_count_words(corpus, fixed), learned_size)
    pieces = [piece.piece for piece in model.pieces if piece.type == piece.NORMAL]
    if 2 + len(pieces) < learned_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too large: there are no more than {2 + len(pieces) + len(own)} entries to "
            "learn from this corpus"
        )
    _write(Path(directory), model, [PAD, EOS, *pieces, *own], _merges(pieces), fixed)
    return Tokenizer.load(directory)


def _count_words(corpus: Iterable[str], fixed: Sequence[str]) -> Counter[str]:
    """Count words of the texts between the fixed ones, in the byte alphabet; each letter counts at least once."""
    longest_first = sorted(fixed, key=len, reverse=True)
    separator = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    counts = Counter(ALPHABET)
    for text in corpus:
        for text_between in separator.split(NORMALIZER.normalize_str(text)):
            counts.update(word for word, _ in PRE_TOKENIZER.pre_tokenize_str(text_between))
    return counts


def _learn(counts: Mapping[str, int], size: int) -> sentencepiece_model_pb2.ModelProto:
    """Train a SentencePiece model (BPE) on words, without extra rules on which pieces may be joined.

    `size` counts the two control tokens. SentencePiece's unknown piece is added on top and never used.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(f"{word}\t{count}" for word, count in sorted(counts.items())),
        input_format="tsv",
        model_writer=model,
        model_type="bpe",
        vocab_size=size + 1,
        hard_vocab_limit=False,  # the caller's error says more
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        split_by_unicode_script=False,
        split_by_number=False,
        max_sentence_length=1 << 24,  # longer sentences would be dropped silently
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,  # none
        pad_piece=PAD,
        eos_piece=EOS,
    )
    return sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())


def _merges(pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Return merge pairs, highest priority first, that segment a word as SentencePiece does.

    SentencePiece joins any two neighbours whose text is a piece; the piece learned first has priority. `tokenizers`
    needs the pairs themselves: every split of a piece into two pieces, in the order in which pieces were learned.
    """
    known = set(pieces)
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces  # already in the order of their scores
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in known and piece[cut:] in known
    ]


def _write(
    folder: Path,
    model: sentencepiece_model_pb2.ModelProto,
    vocabulary: Sequence[str],
    merges: list[tuple[str, str]],
    fixed: Sequence[str],
) -> None:
    """Write the tokenizer folder in the format of `Qwen2Tokenizer`."""
    fast = tokenizers.Tokenizer(models.BPE({piece: index for index, piece in enumerate(vocabulary)}, merges))
    fast.normalizer, fast.pre_tokenizer, fast.decoder = NORMALIZER, PRE_TOKENIZER, decoders.ByteLevel()
    fast.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in (PAD, EOS)])
    # Not special: they are part of the reply's text, so they are decoded and never skipped.
    fast.add_tokens([tokenizers.AddedToken(word, special=False, normalized=False) for word in fixed])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": EOS,  # as in Qwen2; no text is unknown
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,  # set by the model's config instead
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString(deterministic=True))
    fast.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
