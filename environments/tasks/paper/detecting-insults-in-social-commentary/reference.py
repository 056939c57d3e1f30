"""Logistic regression on tf-idf of words and of letters."""

import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union

train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=3)
model = make_pipeline(make_union(words, letters), LogisticRegression(C=4, max_iter=500))
model.fit(train["Comment"].str.lower(), train["Insult"])
labels = model.predict(test["Comment"].str.lower())
pd.DataFrame({"id": test["id"], "Insult": labels}).to_csv("submission.csv", index=False)
