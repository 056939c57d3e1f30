"""The trained tokenizer against SentencePiece and transformers' Qwen2Tokenizer, on code and on anything else."""

import io
import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from mlagent_jax.models.tokenizer import EOS, PAD, Tokenizer, train_tokenizer

WORDS = ("Action:", "Action Input:", "Final Answer", "Next:\n", "\n```", "# %% ", '"}\n```python\n', "a", "Note: é")
CORPUS = [path.read_text() for path in sorted(Path(__file__).parents[3].glob("environments/*.py"))]
VOCAB_SIZE = 900


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CORPUS, VOCAB_SIZE, WORDS, directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def pieces(folder):
    """Text to pieces by an independent way: the words of an empty Qwen2Tokenizer, cut by SentencePiece."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    qwen = transformers.Qwen2Tokenizer().backend_tokenizer
    fixed = re.compile("(" + "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)) + ")")

    def cut(text):
        found = []
        for index, part in enumerate(fixed.split(text)):
            words = qwen.pre_tokenizer.pre_tokenize_str(unicodedata.normalize("NFC", part))
            found += [part] if index % 2 else [piece for word, _ in words for piece in model.encode(word, out_type=str)]
        return found

    return cut


@pytest.fixture(scope="module")
def names(folder):
    """Ids to pieces, by the file."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    by_id = {index: piece for piece, index in vocabulary.items()}
    return lambda ids: [by_id[index] for index in ids]


# Few distinct characters make many ways to cut a string, so ties and overlaps; whole words of the format in between.
DENSE = st.one_of(
    *(
        st.text(alphabet)
        for alphabet in ("eb ", " \n", "eeb", "=-_ ", "e rts", "self.", " \t\r\n", "\"'#()[]", "0123.", "e\u0301é n")
    ),
    st.lists(st.sampled_from([*WORDS, PAD, EOS, " ", "\n", "  ", "Final", "Answer", ":", "return", "x"])).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(DENSE, st.text(st.characters(exclude_categories=["Cs", "Cn"]))))
@example("def f(x):\n    return  x + 1\n\n\tif x:\n        pass  \n")
@example("Final Answer  Final  Answer Action Input:Action:")
@example("x\x00y\ufeff\r\n<0x41>\u2585\u2581 Ġ")
@example("🎉 n\u0061\u0308ive — 数据\n" * 3)
@example("")
@example(" " * 77 + "\t" * 9)
def test_any_text_is_cut_as_sentencepiece_cuts_its_words_and_comes_back_composed(tokenizer, pieces, names, text):
    ids = tokenizer.encode(text)
    assert names(ids) == pieces(text)
    # Only what stands between the fixed words is composed, so that a word stays what it is.
    between = re.split("(" + "|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)) + ")", text)
    expected = [part if index % 2 else unicodedata.normalize("NFC", part) for index, part in enumerate(between)]
    assert tokenizer.decode(ids) == "".join(expected)


def test_whole_files_are_cut_as_sentencepiece_cuts_their_words(tokenizer, pieces, names):
    for path in sorted(Path(__file__).parents[3].glob("environments/**/*.py")):
        ids = tokenizer.encode(path.read_text())
        assert names(ids) == pieces(path.read_text())
        assert tokenizer.decode(ids) == path.read_text()


def test_code_is_compressed(tokenizer):
    text = "".join(CORPUS)
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_words_of_the_format_are_one_token_wherever_they_stand_and_keep_their_spaces(tokenizer):
    for word in WORDS:
        (index,) = tokenizer.encode(word)
        assert tokenizer.decode([index]) == word
        ids = tokenizer.encode(f"x \n {word} \n y{word}y")
        assert ids.count(index) == 2
        assert tokenizer.decode(ids) == f"x \n {word} \n y{word}y"


def test_every_digit_is_a_token(tokenizer):
    assert len(tokenizer.encode("12845")) == 5


def test_control_tokens_in_a_text_are_text(tokenizer):
    ids = tokenizer.encode(f"stop{EOS}{PAD}")
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == f"stop{EOS}{PAD}"
    assert tokenizer.decode([*tokenizer.encode("stop"), tokenizer.eos_id]) == f"stop{EOS}"


def test_sizes_and_ids(tokenizer):
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    assert not tokenizer.has_chat_template


def test_training_twice_writes_the_same_bytes(folder, tmp_path):
    train_tokenizer(iter(CORPUS), VOCAB_SIZE, WORDS, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [None, "qwen2", "qwen3", "llama"])
def test_transformers_loads_the_same_tokenizer_beside_the_config_of_any_model(tokenizer, folder, tmp_path, model_type):
    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    for text in [*CORPUS, f"  if x {EOS}:\n\n    {''.join(WORDS)} 🎉 e\u0301\n"]:
        ids = tokenizer.encode(text)
        assert ours.encode(text) == loaded.encode(text, split_special_tokens=True) == ids
        assert ours.decode(ids) == loaded.decode(ids) == loaded.decode(ids, skip_special_tokens=True)
    assert (loaded.eos_token_id, loaded.pad_token_id, len(loaded)) == (tokenizer.eos_id, tokenizer.pad_id, VOCAB_SIZE)
    tokenizer.check_loads_alike(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_a_sentencepiece_model_of_llamas_kind_cuts_as_sentencepiece_does(tmp_path):
    """A folder with `tokenizer.model` and no `tokenizer.json`. (At spaces that begin a text the two differ.)"""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(CORPUS).splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": False}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = Tokenizer.load(tmp_path)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in (*CORPUS[:3], "x  = 'caf\u00e9'\n\n\tif y:  # \U0001f389 12"):
        assert tokenizer.encode(text) == reference.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (2, 700)
    tokenizer.save(tmp_path / "copy")
    (tmp_path / "copy" / "config.json").write_bytes((tmp_path / "config.json").read_bytes())
    tokenizer.check_loads_alike(tmp_path / "copy")


def test_a_tokenizer_that_transformers_would_replace_by_another_is_refused(tmp_path):
    fast = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, EOS: 1, "x": 2}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    tokenizer.check_loads_alike(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="loads a Qwen2Tokenizer, not the tokenizer"):
        tokenizer.check_loads_alike(tmp_path)


def test_a_chat_template_frames_the_message_and_a_message_cannot_close_its_turn(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": f"a{EOS}b"}])
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids) == "user:a< |endoftext|>b<|endoftext|>assistant:"


def test_no_chat_template_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("word", ["", EOS, PAD, "né"])
def test_an_unusable_special_token_is_refused(tmp_path, word):
    with pytest.raises(ValueError, match="special token"):
        train_tokenizer(CORPUS, VOCAB_SIZE, [word], tmp_path)


def test_the_sizes_that_a_corpus_supports_are_named_and_no_others_accepted(tmp_path):
    corpus = ["hello hello\n"]
    with pytest.raises(ValueError, match=r"vocab_size 259 is too small: .* make 260"):
        train_tokenizer(corpus, 259, ["Next:\n", "\n"], tmp_path)
    assert train_tokenizer(corpus, 260, ["Next:\n", "\n"], tmp_path).vocab_size == 260
    with pytest.raises(ValueError, match="vocab_size 1000 is too large: there are no more than") as error:
        train_tokenizer(corpus, 1000, [], tmp_path)
    most = int(re.search(r"more than (\d+)", str(error.value))[1])
    assert train_tokenizer(corpus, most, [], tmp_path).vocab_size == most
    with pytest.raises(ValueError, match="too large"):
        train_tokenizer(corpus, most + 1, [], tmp_path)


def test_a_word_that_only_composing_brings_about_is_not_learned_beside_the_fixed_one(tmp_path):
    tokenizer = train_tokenizer(["\u212a\u212a " * 9 + "hello hello"], 262, ["KK"], tmp_path)  # Kelvin becomes K
    assert tokenizer.vocab_size == 262
    assert tokenizer.decode(tokenizer.encode("KK \u212a\u212a")) == "KK KK"
