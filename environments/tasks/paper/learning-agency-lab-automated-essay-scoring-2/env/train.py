# %% data
import numpy as np
import pandas as pd

train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
y = train["score"].to_numpy()


# %% features
def describe(texts):
    return pd.concat([texts.str.len(), texts.str.count("[.!?]")], axis=1).to_numpy(float)


x, z = describe(train["full_text"]), describe(test["full_text"])

# %% model
from sklearn.linear_model import Ridge

model = Ridge()

# %% fit
from sklearn.metrics import cohen_kappa_score


def grades(rows):
    return np.clip(np.rint(model.predict(rows)), 1, 6).astype(int)


cut = int(0.8 * len(y))
model.fit(x[:cut], y[:cut])
print("validation qwk", cohen_kappa_score(y[cut:], grades(x[cut:]), weights="quadratic"))
model.fit(x, y)

# %% predict
pd.DataFrame({"essay_id": test["essay_id"], "score": grades(z)}).to_csv("submission.csv", index=False)
