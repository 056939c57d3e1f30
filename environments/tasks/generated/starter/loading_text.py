"""Read-only: inputs of a text task. A line is a text; columns count words or pieces of them."""

from pathlib import Path

from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer


def inputs(words=200, letters=None, pairs=False, tfidf=False):
    """Inputs of the training texts and of the texts to predict, `[texts, columns]`.

    words: columns at most, the commonest first.
    letters: count pieces of up to so many letters in place of words.
    pairs: count pairs of words too.
    tfidf: weight rare words more and normalise every text.
    """
    train, test = (Path(f"data/{name}.txt").read_text(encoding="utf-8").splitlines() for name in ("train", "test"))
    options = {"analyzer": "char_wb", "ngram_range": (2, letters)} if letters else {"ngram_range": (1, 1 + pairs)}
    vectorizer = (TfidfVectorizer if tfidf else CountVectorizer)(max_features=words, **options)
    return vectorizer.fit_transform(train).toarray().astype(float), vectorizer.transform(test).toarray().astype(float)
