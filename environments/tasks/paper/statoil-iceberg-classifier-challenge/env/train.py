# %% data
import numpy as np
import pandas as pd

bands, train = np.load("data/train_bands.npy"), pd.read_csv("data/train.csv")
test_bands, test = np.load("data/test_bands.npy"), pd.read_csv("data/test.csv")
y = train["is_iceberg"].to_numpy()


# %% features
def describe(bands, table):
    flat = bands.reshape(len(bands), -1, 2)
    return np.hstack([flat.mean(axis=1), flat.std(axis=1), flat.max(axis=1)])


x, z = describe(bands, train), describe(test_bands, test)

# %% model
from sklearn.linear_model import LogisticRegression

model = LogisticRegression(max_iter=500)

# %% fit
from sklearn.metrics import log_loss

cut = int(0.75 * len(x))
guess = model.fit(x[:cut], y[:cut]).predict_proba(x[cut:])
print("validation log loss", log_loss(y[cut:], guess, labels=[0, 1]))
model.fit(x, y)

# %% predict
pd.DataFrame({"id": test["id"], "is_iceberg": model.predict_proba(z)[:, 1]}).to_csv("submission.csv", index=False)
