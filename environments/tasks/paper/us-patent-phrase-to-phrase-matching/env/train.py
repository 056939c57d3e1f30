# %% data
import pandas as pd

train, test = (pd.read_csv(f"data/{name}.csv", keep_default_na=False) for name in ("train", "test"))
y = train["score"].to_numpy()


# %% features
def describe(table):
    pairs = [(set(a.split()), set(b.split())) for a, b in zip(table["anchor"], table["target"], strict=True)]
    return [(len(a & b), len(a), len(b)) for a, b in pairs]


x, z = describe(train), describe(test)

# %% model
from sklearn.linear_model import Ridge

model = Ridge()

# %% fit
import numpy as np
from sklearn.model_selection import cross_val_predict

print("validation pcc", np.corrcoef(y, cross_val_predict(model, x, y, cv=4))[0, 1])
model.fit(x, y)

# %% predict
pd.DataFrame({"id": test["id"], "score": model.predict(z)}).to_csv("submission.csv", index=False)
