# %% data
import pandas as pd

TARGETS = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
y = train[TARGETS].to_numpy()

# %% features
from sklearn.feature_extraction.text import CountVectorizer

vectorizer = CountVectorizer(max_features=200, binary=True)
x, z = vectorizer.fit_transform(train["full_text"]), vectorizer.transform(test["full_text"])

# %% model
from sklearn.linear_model import Ridge

model = Ridge()

# %% fit
import numpy as np

cut = int(0.8 * len(y))
guess = model.fit(x[:cut], y[:cut]).predict(x[cut:])
print("validation mcrmse", np.sqrt(((guess - y[cut:]) ** 2).mean(axis=0)).mean())
model.fit(x, y)

# %% predict
submission = pd.DataFrame(model.predict(z), columns=TARGETS)
submission.insert(0, "text_id", test["text_id"])
submission.to_csv("submission.csv", index=False)
