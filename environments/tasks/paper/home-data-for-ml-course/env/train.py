# %% data
import pandas as pd

train, test = pd.read_csv("data/train.csv"), pd.read_csv("data/test.csv")
y = train["SalePrice"]

# %% features
columns = ["LotArea", "YearBuilt", "1stFlrSF", "2ndFlrSF", "FullBath", "BedroomAbvGr", "TotRmsAbvGrd"]
x, z = train[columns].fillna(0), test[columns].fillna(0)

# %% model
from sklearn.tree import DecisionTreeRegressor

model = DecisionTreeRegressor(max_leaf_nodes=100, random_state=0)

# %% fit
cut = int(0.75 * len(x))
print("validation mae", (model.fit(x[:cut], y[:cut]).predict(x[cut:]) - y[cut:]).abs().mean())
model.fit(x, y)

# %% predict
pd.DataFrame({"Id": test["Id"], "SalePrice": model.predict(z)}).to_csv("submission.csv", index=False)
