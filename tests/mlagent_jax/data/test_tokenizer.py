"""The trained tokenizer against SentencePiece itself, on code and on anything else."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlagent_jax.data.tokenizer import EOS, SPACE, Tokenizer, train_tokenizer

WORDS = ("Thought:", "Action:", "Action Input:", "Final Answer")
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
def reference(folder):
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


# Few distinct characters make many ways to cut a string, so ties and overlaps; whole words of the format in between.
DENSE = st.one_of(
    *(
        st.text(alphabet)
        for alphabet in ("ab ", " \n", "aab", "=-_ ", "e rts", "self.", " \t\r\n", "\"'#()[]", "0123.")
    ),
    st.lists(st.sampled_from([*WORDS, " ", "\n", "  ", "Final", "Answer", "Action", ":", "return", "x"])).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(DENSE, st.text(st.characters(exclude_categories=["Cs"]))))
@example("def f(x):\n    return  x + 1\n\n\tif x:\n        pass  \n")
@example("Final Answer  Final  Answer Action Input:Action:")
@example("a\x00b\ufeff\r\n<0x41>\u2585")
@example(f"{SPACE}a Final{SPACE}Answer")
@example("🎉 naïve — 数据\n" * 3)
@example("")
@example(" " * 77)
def test_any_text_is_cut_as_sentencepiece_cuts_it_and_comes_back(tokenizer, reference, text):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == text.replace(SPACE, " ")


def test_whole_files_are_cut_as_sentencepiece_cuts_them(tokenizer, reference):
    for text in CORPUS:
        assert tokenizer.encode(text) == reference.encode(text)


def test_code_is_compressed(tokenizer):
    text = "".join(CORPUS)
    assert len(tokenizer.encode(text)) < len(text) / 2


def test_words_of_the_format_newlines_and_digits_are_one_token_each(tokenizer):
    for word in (*WORDS, "\n", "\t", "7"):
        assert len(tokenizer.encode(word)) == 1
    assert len(tokenizer.encode("x\n\n128")) == 6


def test_control_tokens_in_a_text_are_text(tokenizer):
    assert tokenizer.eos_id not in tokenizer.encode(f"stop{EOS}<pad>")
    assert tokenizer.decode([*tokenizer.encode("stop"), tokenizer.eos_id]) == f"stop{EOS}"


def test_sizes_and_ids(tokenizer):
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    assert not tokenizer.has_chat_template


def test_training_twice_writes_the_same_bytes(folder, tmp_path):
    train_tokenizer(iter(CORPUS), VOCAB_SIZE, WORDS, tmp_path)
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_a_saved_tokenizer_is_the_same_beside_the_config_of_any_model(tokenizer, folder, tmp_path, model_type):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    text = "  if x <eos>:\n\n    Final Answer 🎉"
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer.encode(text)
    assert (tmp_path / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_transformers_loads_the_same_tokenizer(tokenizer, tmp_path, model_type):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in CORPUS:
        ids = tokenizer.encode(text)
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    tokenizer.check_loads_alike(tmp_path)


def test_a_model_type_under_which_transformers_loads_another_tokenizer_is_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="set model_type of the model to qwen3 or llama"):
        tokenizer.check_loads_alike(tmp_path)


def test_a_chat_template_frames_the_message_and_a_message_cannot_close_its_turn(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a<eos>b"}])
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.decode(ids) == "user:a< eos>b<eos>assistant:"


def test_no_chat_template_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("word", ["", EOS, f"a{SPACE}b"])
def test_an_unusable_special_token_is_refused(tmp_path, word):
    with pytest.raises(ValueError, match="special token"):
        train_tokenizer(CORPUS, VOCAB_SIZE, [word], tmp_path)


@pytest.mark.parametrize("vocab_size", [100, 100_000])
def test_a_size_that_the_corpus_does_not_support_is_refused(tmp_path, vocab_size):
    with pytest.raises(ValueError, match=f"vocab_size {vocab_size}"):
        train_tokenizer(CORPUS[:1], vocab_size, [], tmp_path)
