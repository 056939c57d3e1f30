# %% data
import pandas as pd

train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
y = train["author"].to_numpy()

# %% features
from sklearn.feature_extraction.text import CountVectorizer

vectorizer = CountVectorizer(max_features=500)
x, z = vectorizer.fit_transform(train["text"]), vectorizer.transform(test["text"])

# %% model
from sklearn.linear_model import LogisticRegression

model = LogisticRegression(max_iter=200)

# %% fit
from sklearn.metrics import log_loss

cut = int(0.8 * len(y))
guess = model.fit(x[:cut], y[:cut]).predict_proba(x[cut:])
print("validation log loss", log_loss(y[cut:], guess, labels=model.classes_))
model.fit(x, y)

# %% predict
submission = pd.DataFrame(model.predict_proba(z), columns=model.classes_)
submission.insert(0, "id", test["id"])
submission.to_csv("submission.csv", index=False)
