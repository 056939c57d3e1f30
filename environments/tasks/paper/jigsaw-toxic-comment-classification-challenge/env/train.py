# %% data
import pandas as pd

TARGETS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
train = train[::4]

# %% features
from sklearn.feature_extraction.text import CountVectorizer

vectorizer = CountVectorizer(max_features=500, binary=True)
x, z = vectorizer.fit_transform(train["comment_text"]), vectorizer.transform(test["comment_text"])

# %% model
from sklearn.naive_bayes import BernoulliNB

model = BernoulliNB()

# %% fit
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

scores = [cross_val_score(model, x, train[target], cv=2, scoring="roc_auc").mean() for target in TARGETS]
print("validation mean column auc", sum(scores) / len(scores))
models = {target: clone(model).fit(x, train[target]) for target in TARGETS}

# %% predict
submission = pd.DataFrame({target: models[target].predict_proba(z)[:, 1] for target in TARGETS})
submission.insert(0, "id", test["id"])
submission.to_csv("submission.csv", index=False)
