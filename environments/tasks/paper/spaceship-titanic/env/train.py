# %% data
import pandas as pd

train, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")
y = train["Transported"].astype(bool)


# %% features
def describe(table):
    found = table[["Age", "RoomService", "FoodCourt", "ShoppingMall", "Spa", "VRDeck"]]
    return found.fillna(found.median())


x, z = describe(train), describe(test)

# %% model
from sklearn.tree import DecisionTreeClassifier

model = DecisionTreeClassifier(random_state=0)

# %% fit
cut = int(0.8 * len(x))
print("validation accuracy", model.fit(x[:cut], y[:cut]).score(x[cut:], y[cut:]))
model.fit(x, y)

# %% predict
pd.DataFrame({"PassengerId": test["PassengerId"], "Transported": model.predict(z)}).to_csv(
    "submission.csv", index=False
)
