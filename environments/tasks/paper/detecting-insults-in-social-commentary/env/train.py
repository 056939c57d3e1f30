# %% data
import pandas as pd

train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
y = train["Insult"].to_numpy()

# %% features
from sklearn.feature_extraction.text import CountVectorizer

vectorizer = CountVectorizer(max_features=200, binary=True)
x, z = vectorizer.fit_transform(train["Comment"]), vectorizer.transform(test["Comment"])

# %% model
from sklearn.tree import DecisionTreeClassifier

model = DecisionTreeClassifier(random_state=0)

# %% fit
cut = int(0.8 * len(y))
print("validation accuracy", model.fit(x[:cut], y[:cut]).score(x[cut:], y[cut:]))
model.fit(x, y)

# %% predict
pd.DataFrame({"id": test["id"], "Insult": model.predict(z)}).to_csv("submission.csv", index=False)
