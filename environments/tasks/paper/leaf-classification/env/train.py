# %% data
import pandas as pd

train, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")
y = train["species"]

# %% features
columns = train.columns.drop(["id", "species"])
x, z = train[columns].to_numpy(), test[columns].to_numpy()

# %% model
from sklearn.ensemble import RandomForestClassifier

model = RandomForestClassifier(50, random_state=0)

# %% fit
import numpy as np
from sklearn.model_selection import train_test_split

fit, valid = train_test_split(np.arange(len(y)), test_size=0.25, random_state=0, stratify=y)
guess = model.fit(x[fit], y[fit]).predict_proba(x[valid])
right = guess[np.arange(len(valid)), np.searchsorted(model.classes_, y[valid])]
print("validation log loss", -np.mean(np.log(np.clip(right, 1e-15, 1))))
model.fit(x, y)

# %% predict
submission = pd.read_csv("data/sample_submission.csv")
submission[model.classes_] = model.predict_proba(z)
submission.to_csv("submission.csv", index=False)
