"""Text to token ids and back: a checkpoint's own tokenizer, or one trained here for a policy from scratch.

A tokenizer is a folder as Hugging Face's `AutoTokenizer` reads it; it travels with every checkpoint and export. Prompt
and action are encoded apart and their ids concatenated, as they are when an action is sampled; nothing is added to
either.

SentencePiece's defaults destroy code, so `train_tokenizer` changes them: text is not normalised, newlines and runs of
spaces are kept, nothing is put in front, and what is not in the vocabulary falls back to bytes. One character is lost:
U+2581, by which SentencePiece itself writes a space, comes back as a space.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import sentencepiece
import tokenizers
import transformers
from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
"""What a tokenizer may consist of in a checkpoint's folder."""

SPACE = "\u2581"
"""By which SentencePiece writes a space."""
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
PRINTABLE_ASCII = "".join(map(chr, range(33, 127)))
PROBE = "def f(x):\n    return  x['caf\u00e9'] + 12\n\n\tif x:  # \U0001f389"
"""A text that tokenizers of different kinds cut differently."""
CHECKED_LINES = 10_000
_Piece = sentencepiece_model_pb2.ModelProto.SentencePiece


class Tokenizer:
    """A Hugging Face fast tokenizer, reduced to what the project uses of it."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._folder = folder
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in {folder} has no end-of-text token: set eos_token in its config")
        added = tokenizer.added_tokens_decoder.values()
        self._markup = tuple(token.content for token in added if token.special)

    @classmethod
    def load(cls, path_or_hub_id: str | Path) -> Self:
        """Of a folder, or of a repository on the Hugging Face hub.

        Raises:
          FileNotFoundError: the folder holds no tokenizer.
          ValueError: it has no fast implementation, or no end-of-text token.
        """
        folder = Path(path_or_hub_id)
        if not folder.is_dir():
            import huggingface_hub  # only where something is downloaded

            folder = Path(huggingface_hub.snapshot_download(str(path_or_hub_id), allow_patterns=list(FILES)))
        if not any((folder / name).exists() for name in FILES):
            raise FileNotFoundError(f"{folder} holds no tokenizer: expected at least one of {', '.join(FILES)}")
        # Directly where the folder says so: beside the config of a Qwen2 model transformers 5 would build another one.
        kind = transformers.PreTrainedTokenizerFast if _declares_generic(folder) else transformers.AutoTokenizer
        tokenizer = kind.from_pretrained(folder)
        if not tokenizer.is_fast:
            raise ValueError(f"the tokenizer in {folder} is a {type(tokenizer).__name__}, which has no tokenizer.json")
        return cls(tokenizer, folder)

    @property
    def eos_id(self) -> int:
        """Ends an action."""
        return self._tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        """Fills a batch; the end-of-text token where the checkpoint names none. Masks decide what counts."""
        pad = self._tokenizer.pad_token_id
        return self.eos_id if pad is None else pad

    @property
    def vocab_size(self) -> int:
        """Every id is below it. A checkpoint's embedding may have more rows than that, never fewer."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def has_chat_template(self) -> bool:
        return self._tokenizer.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of `text` and nothing else. The names of special tokens in it are text like any other: what an agent
        reads or writes cannot end a turn."""
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens by their names. Bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation ({"role", "content"} each) up to where the assistant is to speak.

        A special token's name inside a content is broken by a space, so that it cannot close a turn.

        Raises:
          ValueError: the checkpoint has no chat template; see `has_chat_template`.
        """
        if not self.has_chat_template:
            raise ValueError(f"the tokenizer in {self._folder} has no chat template: encode the text itself")
        broken = [{**message, "content": self._break_markup(message["content"])} for message in messages]
        text = self._tokenizer.apply_chat_template(broken, tokenize=False, add_generation_prompt=True)
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def _break_markup(self, text: str) -> str:
        for name in self._markup:
            text = text.replace(name, f"{name[0]} {name[1:]}")
        return text

    def save(self, directory: str | Path) -> None:
        """Copies the tokenizer's files into `directory`, byte by byte. Local or remote (`gs://`)."""
        target = epath.Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (self._folder / name).exists():
                (target / name).write_bytes((self._folder / name).read_bytes())

    def check_loads_alike(self, directory: str | Path) -> None:
        """Whether anyone who loads `directory` (tokenizer and config.json) with `AutoTokenizer` gets this tokenizer.

        Raises:
          ValueError: he does not. transformers 5 builds a byte-level Qwen2 tokenizer for every `model_type` qwen2.
        """
        loaded = transformers.AutoTokenizer.from_pretrained(directory)
        if loaded.encode(PROBE, add_special_tokens=False, split_special_tokens=True) != self.encode(PROBE):
            raise ValueError(
                f"AutoTokenizer loads another tokenizer from {directory} than the one saved there ({self._folder}): "
                "with a tokenizer of your own, set model_type of the model to qwen3 or llama"
            )


def _declares_generic(folder: Path) -> bool:
    """Whether the folder's tokenizer.json is all there is to its tokenizer."""
    path = folder / "tokenizer_config.json"
    declared = json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if path.exists() else None
    return declared in ("PreTrainedTokenizerFast", "TokenizersBackend")


def train_tokenizer(
    corpus: Iterable[str], vocab_size: int, special_tokens: Sequence[str], directory: str | Path
) -> Tokenizer:
    """Trains a SentencePiece model (BPE) on `corpus` and writes it for `AutoTokenizer`; the same input, the same files.

    Args:
      corpus: texts of the domain, of any length. Newlines and tabs are tokens of their own, so are digits.
      vocab_size: pieces in all: 3 control tokens, the special tokens, 256 bytes, the characters and what is learned.
      special_tokens: fixed words of the reply format, each one token wherever it stands.
      directory: to be written, local: `tokenizer.model` (SentencePiece), `tokenizer.json` and its config.

    Raises:
      ValueError: the corpus does not support `vocab_size` pieces, or a special token is unusable.
    """
    for word in special_tokens:
        if not word or SPACE in word or word in (PAD, EOS, UNKNOWN):
            raise ValueError(f"special token {word!r} is empty, reserved, or has the reserved character U+2581")
    fixed = dict.fromkeys(("\n", "\t", *special_tokens))
    # By lines: a newline is a token of its own, so nothing is learned across it.
    lines = [line for text in corpus for line in text.split("\n") if line]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=[word.replace(" ", SPACE) for word in fixed],
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            required_chars=PRINTABLE_ASCII,
            max_sentence_length=1 << 24,  # longer ones would be left out without a word
            num_threads=1,
            minloglevel=2,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,  # none
            pad_piece=PAD,
            eos_piece=EOS,
            unk_piece=UNKNOWN,
        )
    except RuntimeError as error:
        raise ValueError(f"no SentencePiece model of vocab_size {vocab_size} from this corpus: {error}") from error
    _write(model.getvalue(), Path(directory))
    tokenizer = Tokenizer.load(directory)
    _check_equal(model.getvalue(), tokenizer, lines[:CHECKED_LINES])
    return tokenizer


def _write(model: bytes, folder: Path) -> None:
    """A SentencePiece BPE model as a folder for `AutoTokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    _to_fast(sentencepiece_model_pb2.ModelProto.FromString(model)).save(str(folder / "tokenizer.json"))
    config = {
        # A name that transformers 4 and 5 both know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,  # unknown to a tokenizer: the model's config has it
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _to_fast(proto: sentencepiece_model_pb2.ModelProto) -> tokenizers.Tokenizer:
    """The same segmentation in the `tokenizers` library.

    SentencePiece merges any two neighbours whose text is a piece, the piece learned first first, and of equals the
    leftmost. `tokenizers` wants pairs in order of rank: every split of a piece into two pieces, in the order in which
    pieces were learned. User-defined pieces are cut out first, the longest at each position, as added tokens are.
    """
    kinds = _Piece.Type
    text = [
        piece.piece.replace(SPACE, " ") if piece.type == kinds.USER_DEFINED else piece.piece for piece in proto.pieces
    ]
    learned = [piece.piece for piece in proto.pieces if piece.type == kinds.NORMAL]
    known = set(learned)
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned  # already in the order of their scores
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in known and piece[cut:] in known
    ]
    fast = tokenizers.Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(text)}, merges, unk_token=UNKNOWN, byte_fallback=True)
    )
    fast.normalizer = normalizers.Replace(" ", SPACE)
    fast.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    for piece, content in zip(proto.pieces, text, strict=True):
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            fast.add_special_tokens([tokenizers.AddedToken(content, special=True, normalized=False)])
        elif piece.type == kinds.USER_DEFINED:
            fast.add_tokens([tokenizers.AddedToken(content, normalized=True)])
    return fast


def _check_equal(model: bytes, tokenizer: Tokenizer, lines: Iterable[str]) -> None:
    """A guard against a library that changes under us: both tokenizers must agree on what was trained on."""
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    for line in lines:
        expected, actual = reference.encode(line), tokenizer.encode(line)
        if expected != actual:
            raise RuntimeError(f"SentencePiece and tokenizer.json disagree on {line!r}: {expected} and {actual}")
