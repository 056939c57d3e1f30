# %% data
import numpy as np
import pandas as pd

images, labels = np.load("data/train_images.npy"), pd.read_csv("data/train.csv")["Id"].to_numpy(object)
test_images, test = np.load("data/test_images.npy"), pd.read_csv("data/test.csv")


# %% features
def describe(images):
    return images.reshape(-1, 8, 8, 16, 8).mean(axis=(2, 4)).reshape(len(images), -1)


x, z = describe(images), describe(test_images)

# %% model
from sklearn.neighbors import NearestNeighbors

model = NearestNeighbors(n_neighbors=min(30, len(x) // 2))


# %% fit
def nearest(rows):
    """Training images by distance, `[rows, neighbours]`."""
    return model.kneighbors(rows, return_distance=False)


def five(names):
    """The first five different ones."""
    return list(dict.fromkeys(names))[:5]


cut = int(0.8 * len(x))
model.fit(x[:cut])
found = [five(labels[:cut][order]) for order in nearest(x[cut:])]
hits = [1 / (1 + names.index(label)) if label in names else 0 for names, label in zip(found, labels[cut:], strict=True)]
print("validation map_at_5", np.mean(hits))
model.fit(x)

# %% predict
rows = []
for image, order in zip(test["Image"], nearest(z), strict=True):
    rows.append((image, " ".join(five(labels[order]))))
pd.DataFrame(rows, columns=["Image", "Id"]).to_csv("submission.csv", index=False)
