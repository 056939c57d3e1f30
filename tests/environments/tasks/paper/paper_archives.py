"""Small archives in the true layout of the paper's 19 sources: names, nesting, columns, types, image formats.

`make(name, folder)` writes the archive of one task into `folder`, with some hundred rows in which the labels can be
learnt in part. What a source packs but no task reads (Kaggle's own test rows) is there too, without labels.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import numpy as np
import pandas as pd

ROWS = 120
WORDS = (  # noqa: SIM905
    "the of and to a in that it is was he for on with as his they at be this from have or by one had not but what all"
).split()


def make(name, folder):
    """Write the archive of the task `name` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    if name == "cifar-10":
        cifar(folder, rng)
        return
    files = MAKERS[name](rng)
    file = "arxiv.zip" if name == "ogbn-arxiv" else f"{name}.zip"
    (folder / file).write_bytes(packed(files))


def packed(files):
    """A zip archive of `files`, bytes by path."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return stream.getvalue()


def packed_7z(path, content):
    import py7zr

    stream = io.BytesIO()
    fast = [{"id": py7zr.FILTER_LZMA2, "preset": 0}]
    with py7zr.SevenZipFile(stream, "w", filters=fast) as archive:
        archive.writestr(content, path)
    return stream.getvalue()


def csv(table, **options):
    return table.to_csv(index=False, **options).encode()


def encoded(pixels, form):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, form)
    return stream.getvalue()


def pictures(labels, rng, height, width, colours=3):
    """Pictures that are somewhat brighter on the left where the label is larger. [rows, height, width(, 3)]"""
    shape = (len(labels), height, width, *((colours,) if colours else ()))
    base = rng.integers(60, 140, (len(labels),)).reshape(-1, *(1,) * (len(shape) - 1))
    noise = rng.normal(0, 20, shape)
    tilt = np.linspace(1, -1, width).reshape((1, 1, width, *((1,) if colours else ())))
    strength = (np.asarray(labels, float) * 8 + rng.normal(0, 12, len(labels))).reshape(base.shape)
    return np.clip(base + strength * tilt + noise, 0, 255)


def texts(labels, rng, length=25):
    """Texts in which the words w<label> are somewhat more frequent."""
    found = []
    for label in labels:
        words = list(rng.choice(WORDS, rng.integers(length // 2, length)))
        words += [f"w{label}"] * int(rng.integers(0, 3)) + [f"w{rng.integers(0, 6)}"] * int(rng.integers(0, 2))
        rng.shuffle(words)
        found.append(" ".join(words) + ".")
    return found


def halved(rng, rows=ROWS):
    return rng.permutation(np.arange(rows) % 2)


def cifar(folder, rng):
    """In the format of tensorflow-datasets, whose real builder has these features."""
    import tensorflow_datasets as tfds

    labels = {split: rng.integers(0, 10, rows) for split, rows in (("train", 200), ("test", ROWS))}
    images = {split: pictures(found, rng, 32, 32) for split, found in labels.items()}

    with tfds.core.registered.skip_registration():

        class Cifar10(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("3.0.2")

            def _info(self):
                features = {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, manager):
                return {split: self._generate_examples(split) for split in labels}

            def _generate_examples(self, split):
                for row, (pixels, label) in enumerate(zip(images[split], labels[split], strict=True)):
                    image = io.BytesIO(encoded(pixels, "png"))
                    yield row, {"id": f"{split}_{row:05}", "image": image.getvalue(), "label": int(label)}

    Cifar10(data_dir=folder, file_format="array_record").download_and_prepare()


def cactus(rng):
    labels = halved(rng)
    names = [f"{row * 7919:032x}.jpg" for row in range(ROWS)]
    images = zip(names, pictures(labels, rng, 32, 32), strict=True)
    return {
        "sample_submission.csv": csv(pd.DataFrame({"id": ["0.jpg"], "has_cactus": [0.5]})),
        "test.zip": packed({"test/0.jpg": encoded(np.zeros((32, 32, 3)), "jpeg")}),
        "train.csv": csv(pd.DataFrame({"id": names, "has_cactus": labels})),
        "train.zip": packed({"train/": b"", **{f"train/{name}": encoded(pixels, "jpeg") for name, pixels in images}}),
    }


def dogs(rng):
    files = {}
    for kind, label in (("cat", 0), ("dog", 3)):
        for row, pixels in enumerate(pictures([label] * (ROWS // 2), rng, 90, 70)):
            files[f"train/{kind}.{row}.jpg"] = encoded(pixels, "jpeg")
    return {
        "sample_submission.csv": csv(pd.DataFrame({"id": [1], "label": [0.5]})),
        "test.zip": packed({"test/1.jpg": encoded(np.zeros((50, 40, 3)), "jpeg")}),
        "train.zip": packed(files),
    }


def plants(rng):
    targets = ["healthy", "multiple_diseases", "rust", "scab"]
    labels = rng.permutation(np.arange(ROWS) % 4)
    names = [f"Train_{row}" for row in range(ROWS)]
    table = pd.DataFrame(np.eye(4, dtype=int)[labels], columns=targets)
    table.insert(0, "image_id", names)
    images = dict(zip(names, pictures(labels * 3, rng, 96, 144), strict=True))
    test = pd.DataFrame({"image_id": ["Test_0"]})
    return {
        **{f"images/{name}.jpg": encoded(pixels, "jpeg") for name, pixels in images.items()},
        "images/Test_0.jpg": encoded(np.zeros((96, 144, 3)), "jpeg"),
        "sample_submission.csv": csv(test.assign(**dict.fromkeys(targets, 0.25))),
        "test.csv": csv(test),
        "train.csv": csv(table),
    }


def houses(rng):
    table = pd.DataFrame({"Id": np.arange(1, ROWS + 1), "MSSubClass": rng.choice([20, 60, 120], ROWS)})
    table["MSZoning"] = rng.choice(["RL", "RM", "C (all)"], ROWS)
    table["LotFrontage"] = np.where(rng.random(ROWS) < 0.2, "NA", rng.integers(30, 120, ROWS).astype(str))
    table["LotArea"] = rng.integers(3000, 15000, ROWS)
    table["Alley"] = rng.choice(["NA", "Pave", "Grvl"], ROWS)
    table["OverallQual"] = rng.integers(1, 11, ROWS)
    table["YearBuilt"] = rng.integers(1900, 2010, ROWS)
    for column, low, high in (("1stFlrSF", 500, 2000), ("2ndFlrSF", 0, 900), ("TotalBsmtSF", 0, 1500)):
        table[column] = rng.integers(low, high, ROWS)
    table["GrLivArea"] = table["1stFlrSF"] + table["2ndFlrSF"]
    for column in ("FullBath", "BedroomAbvGr", "TotRmsAbvGrd"):
        table[column] = rng.integers(1, 6, ROWS)
    table["SaleCondition"] = rng.choice(["Normal", "Abnorml"], ROWS)
    price = 60 * table["GrLivArea"] + 9000 * table["OverallQual"] + 500 * (table["YearBuilt"] - 1900)
    table["SalePrice"] = (price * np.exp(rng.normal(0, 0.05, ROWS))).round().astype(int)
    test = table.drop(columns="SalePrice")[:5]
    files = {
        "sample_submission.csv": csv(test[["Id"]].assign(SalePrice=200000.5)),
        "test.csv": csv(test),
        "train.csv": csv(table),
    }
    return {"data_description.txt": b"MSSubClass: the type of dwelling\n", **files} | {
        f"{name}.gz": gzip.compress(content) for name, content in files.items()
    }


def spaceship(rng):
    sizes = rng.integers(1, 4, 160)
    ids = [f"{group + 1:04}_{place + 1:02}" for group, size in enumerate(sizes) for place in range(size)]
    rows = len(ids)
    table = pd.DataFrame({"PassengerId": ids, "HomePlanet": rng.choice(["Earth", "Europa", "Mars", None], rows)})
    table["CryoSleep"] = rng.choice([True, False, None], rows)
    table["Cabin"] = [
        None if rng.random() < 0.1 else f"{rng.choice(list('ABF'))}/{row}/{'PS'[row % 2]}" for row in range(rows)
    ]
    table["Destination"] = rng.choice(["TRAPPIST-1e", "55 Cancri e"], rows)
    table["Age"] = np.where(rng.random(rows) < 0.05, np.nan, rng.integers(0, 80, rows))
    table["VIP"] = rng.choice([True, False], rows)
    for column in ("RoomService", "FoodCourt", "ShoppingMall", "Spa", "VRDeck"):
        table[column] = np.where(rng.random(rows) < 0.05, np.nan, rng.integers(0, 900, rows).astype(float))
    table["Name"] = [f"Passenger {row}" for row in range(rows)]
    table["Transported"] = table["RoomService"].fillna(400) + rng.normal(0, 300, rows) < 450
    test = table.drop(columns="Transported")[:4]
    return {
        "sample_submission.csv": csv(test[["PassengerId"]].assign(Transported=False)),
        "test.csv": csv(test),
        "train.csv": csv(table),
    }


def crystals(rng):
    table = pd.DataFrame({"id": np.arange(1, ROWS + 1), "spacegroup": rng.choice([12, 33, 194, 227], ROWS)})
    table["number_of_total_atoms"] = rng.choice([10.0, 20.0, 40.0], ROWS)
    shares = rng.dirichlet([1, 1, 1], ROWS).round(4)
    for place, element in enumerate(("al", "ga", "in")):
        table[f"percent_atom_{element}"] = shares[:, place]
    for place in (1, 2, 3):
        table[f"lattice_vector_{place}_ang"] = rng.uniform(4, 25, ROWS).round(4)
    for angle in ("alpha", "beta", "gamma"):
        table[f"lattice_angle_{angle}_degree"] = rng.uniform(60, 120, ROWS).round(4)
    table["formation_energy_ev_natom"] = (0.2 * np.exp(rng.normal(0, 0.4, ROWS))).round(4)
    table["bandgap_energy_ev"] = (1 + 3 * table["percent_atom_al"] + rng.normal(0, 0.2, ROWS)).clip(0.1).round(4)

    def geometry(row):
        lines = [
            "#=======================================================",
            "#Created using the Atomic Simulation Environment",
        ]
        lines += [f"lattice_vector {a:.7f} {b:.7f} {c:.7f}" for a, b, c in np.diag([8.0, 9.0, 10.0 + row])]
        lines += [
            f"atom {x:.7f} {y:.7f} {z:.7f} {e}"
            for (x, y, z), e in zip(rng.uniform(0, 8, (4, 3)), ("Al", "Ga", "O", "O"), strict=True)
        ]
        return ("\n".join(lines) + "\n").encode()

    test = table.iloc[:3, :-2]
    return {
        "sample_submission.csv.zip": packed({"sample_submission.csv": csv(test[["id"]])}),
        "test.csv.zip": packed({"test.csv": csv(test)}),
        "test.zip": packed({f"test/{row}/geometry.xyz": geometry(row) for row in (1, 2, 3)}),
        "train.csv.zip": packed({"train.csv": csv(table)}),
        "train.zip": packed({f"train/{row}/geometry.xyz": geometry(row) for row in table["id"]}),
    }


def feedback(rng):
    targets = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
    level = rng.integers(0, 6, ROWS)
    table = pd.DataFrame({"text_id": [f"{row:04X}AB12CD34" for row in range(ROWS)], "full_text": texts(level, rng, 40)})
    for target in targets:
        table[target] = np.clip(1.5 + level / 2 + rng.choice([-0.5, 0, 0.5], ROWS), 1, 5)
    table.loc[0, "full_text"] = 'He said "null",\nand left\r\n\r\nfor good.'
    return three(table, ["text_id", "full_text"], targets)


def three(table, inputs, targets, constant=0):
    """train.csv, test.csv and sample_submission.csv, as most competitions have them."""
    return {
        "sample_submission.csv": csv(table[inputs[:1]][:3].assign(**dict.fromkeys(targets, constant))),
        "test.csv": csv(table[inputs][:3]),
        "train.csv": csv(table),
    }


def arxiv(rng):
    nodes, classes = 300, 40
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, nodes - classes)])
    centres = rng.normal(size=(classes, 128))
    features = (centres[labels] * 0.15 + rng.normal(size=(nodes, 128)) * 0.3).round(6)
    order = rng.permutation(nodes)
    parts = {"train": np.sort(order[:150]), "valid": np.sort(order[150:200]), "test": np.sort(order[200:])}
    years = np.select(
        [np.isin(np.arange(nodes), parts["test"]), np.isin(np.arange(nodes), parts["valid"])], [2019, 2018], 2015
    )

    def table(values):
        return gzip.compress(pd.DataFrame(values).to_csv(index=False, header=False).encode())

    return {
        "arxiv/RELEASE_v1.txt": b"",
        "arxiv/mapping/README.md": b"",
        "arxiv/processed/": b"",
        "arxiv/raw/edge.csv.gz": table(rng.integers(0, nodes, (900, 2))),
        "arxiv/raw/node-feat.csv.gz": table(features),
        "arxiv/raw/node-label.csv.gz": table(labels),
        "arxiv/raw/node_year.csv.gz": table(years),
        "arxiv/raw/num-edge-list.csv.gz": table([900]),
        "arxiv/raw/num-node-list.csv.gz": table([nodes]),
        **{f"arxiv/split/time/{part}.csv.gz": table(rows) for part, rows in parts.items()},
    }


def pages(rng):
    dirty, clean = {}, {}
    for page in range(2, 18):
        height = 60 if page % 2 else 42
        text = np.where(rng.random((height, 54)) < 0.2, 0, 255)
        clean[f"train_cleaned/{page}.png"] = encoded(text, "png")
        stain = rng.uniform(0.6, 0.8) * np.ones((height, 54)) + rng.normal(0, 0.1, (height, 54))
        dirty[f"train/{page}.png"] = encoded(np.clip(text * stain + 40, 0, 255), "png")
    return {
        "sampleSubmission.csv.zip": packed({"sampleSubmission.csv": b"id,value\n1_1_1,1\n"}),
        "test.zip": packed({"test/1.png": encoded(np.zeros((42, 54)), "png")}),
        "train.zip": packed(dirty),
        "train_cleaned.zip": packed(clean),
    }


def leaves(rng):
    from environments import tasks

    species = list(tasks.get("leaf-classification").form.columns)
    labels = np.repeat(np.arange(99), 5)
    table = pd.DataFrame({"id": np.arange(1, len(labels) + 1), "species": [species[label] for label in labels]})
    numbers = [f"{kind}{place}" for kind in ("margin", "shape", "texture") for place in range(1, 65)]
    values = rng.random((99, 192))[labels] * 0.02 + rng.random((len(labels), 192)) * 0.02
    table = pd.concat([table, pd.DataFrame(values.round(6), columns=numbers)], axis=1)
    table = table.sample(frac=1, random_state=0)
    leaf = encoded(np.where(rng.random((70, 50)) < 0.5, 255, 0), "jpeg")
    test = table.drop(columns="species")[:3]
    return {
        "images.zip": packed({f"images/{leaf_id}.jpg": leaf for leaf_id in table["id"]}),
        "sample_submission.csv.zip": packed({"sample_submission.csv": csv(test[["id"]])}),
        "test.csv.zip": packed({"test.csv": csv(test)}),
        "train.csv.zip": packed({"train.csv": csv(table)}),
    }


def icebergs(rng):
    labels = halved(rng, 40)
    bands = -22 + rng.normal(0, 2, (40, 2, 5625)) + labels[:, None, None] * rng.normal(0.5, 0.8, (40, 2, 1))
    found = [
        {
            "id": f"{row:08x}",
            "band_1": bands[row, 0].round(1).tolist(),
            "band_2": bands[row, 1].round(1).tolist(),
            "inc_angle": "na" if row % 11 == 0 else round(float(rng.uniform(30, 46)), 4),
            "is_iceberg": int(labels[row]),
        }
        for row in range(40)
    ]
    test = [{name: row[name] for name in ("id", "band_1", "band_2", "inc_angle")} for row in found[:2]]
    return {
        "sample_submission.csv.7z": packed_7z("sample_submission.csv", "id,is_iceberg\n"),
        "test.json.7z": packed_7z("data/processed/test.json", json.dumps(test)),
        "train.json.7z": packed_7z("data/processed/train.json", json.dumps(found)),
    }


def whales(rng):
    labels = np.concatenate([np.repeat(np.arange(25), 4), np.arange(25, 45)])
    names = [f"{row:08x}.jpg" for row in range(len(labels))]
    ids = ["new_whale" if label > 40 else f"w_{label:07x}" for label in labels]
    base = rng.normal(100, 40, (45, 8, 16)).repeat(8, axis=1).repeat(8, axis=2)
    images = np.clip(
        base[labels] + rng.normal(0, 90, (len(labels), 1, 1)) + rng.normal(0, 150, (len(labels), 64, 128)), 0, 255
    )
    files = {}
    for row, (name, pixels) in enumerate(zip(names, images, strict=True)):
        # Some are grey, some have colours, and no size is like another.
        pixels = pixels if row % 3 == 0 else np.repeat(pixels[:, :, None], 3, axis=2)
        files[f"train/{name}"] = encoded(pixels[: 60 + row % 4], "jpeg")
    order = rng.permutation(len(labels))
    table = pd.DataFrame({"Image": np.array(names)[order], "Id": np.array(ids)[order]})
    return {
        "sample_submission.csv": b"Image,Id\n0.jpg,new_whale w_1287fbc w_98baff9 w_7554f44 w_1eafe46\n",
        "test/0.jpg": encoded(np.zeros((50, 100)), "jpeg"),
        "train.csv": csv(table),
        **files,
    }


def essays(rng):
    score = rng.integers(1, 7, 180)
    length = np.clip(score * 12 + rng.normal(0, 12, 180), 4, None).astype(int)
    text = [f'The {rng.choice(WORDS)}\n\n"Dear" ' + ", ".join(rng.choice(WORDS, n)) + "." for n in length]
    table = pd.DataFrame({"essay_id": [f"{row:07x}" for row in range(180)], "full_text": text, "score": score})
    return three(table, ["essay_id", "full_text"], ["score"], 3)


def insults(rng):
    labels = halved(rng, 200)
    # The words differ from comment to comment, their letters do not.
    marks = [f"{'rude' if label == (rng.random() < 0.9) else 'kind'}{rng.integers(0, 900)}" for label in labels]
    comments = [f'"{text} {mark}\\\\xa0\\\\n"' for text, mark in zip(texts(labels * 0, rng), marks, strict=True)]
    table = pd.DataFrame(
        {
            "Insult": labels,
            "Date": [f"2012061{row % 10}182545Z" if row % 3 else "" for row in range(200)],
            "Comment": comments,
        }
    )
    table = pd.concat([table, table[:4]])  # The source has some comments twice.
    solved = table[:6].assign(Usage="PrivateTest")
    return {
        "impermium_verification_labels.csv": csv(solved),
        "impermium_verification_set.csv": csv(solved.drop(columns="Insult")),
        "sample_submission_null.csv": csv(table[:6].assign(Insult=0)),
        "test.csv": csv(table[["Date", "Comment"]][:6]),
        "test_with_solutions.csv": csv(solved),
        "train.csv": csv(table),
    }


def spooky(rng):
    labels = rng.permutation(np.arange(400) % 3)
    table = pd.DataFrame({"id": [f"id{row * 3:05}" for row in range(400)], "text": texts(labels, rng)})
    table["author"] = np.array(["EAP", "HPL", "MWS"])[labels]
    test = table[["id", "text"]][:3]
    return {
        "sample_submission.zip": packed(
            {"sample_submission.csv": csv(test[["id"]].assign(EAP=0.4, HPL=0.29, MWS=0.31))}
        ),
        "test.zip": packed({"test.csv": csv(test)}),
        "train.zip": packed({"train.csv": csv(table, quoting=1)}),
    }


def toxic(rng):
    targets = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    rows = 900
    labels = rng.random((rows, 6)) < 0.3
    text = [
        " ".join([*rng.choice(WORDS, 8), *(f"w{k}" for k in range(6) if row[k] and rng.random() < 0.6)])
        for row in labels
    ]
    table = pd.DataFrame({"id": [f"{row:016x}" for row in range(rows)], "comment_text": text})
    table[targets] = labels.astype(int)
    files = three(table, ["id", "comment_text"], targets, 0.5)
    files["test_labels.csv"] = csv(table[["id", *targets]][:3].assign(**dict.fromkeys(targets, -1)))
    return {f"{name}.zip": packed({name: content}) for name, content in files.items()}


def patents(rng):
    anchors = [" ".join(rng.choice(WORDS, 3)) for _ in range(200)]
    score = rng.choice([0, 0.25, 0.5, 0.75, 1], 200)
    targets = [
        " ".join([*anchor.split()[: round(3 * s * rng.random())], rng.choice(WORDS)])
        for anchor, s in zip(anchors, score, strict=True)
    ]
    table = pd.DataFrame({"id": [f"{row:016x}" for row in range(200)], "anchor": anchors, "target": targets})
    table["context"], table["score"] = rng.choice(["A47", "H01"], 200), score
    return three(table, ["id", "anchor", "target", "context"], ["score"])


def forests(rng):
    rows = 3000
    table = pd.DataFrame({"Id": np.arange(rows), "Elevation": rng.integers(1800, 3900, rows)})
    for column in ("Aspect", "Slope", "Horizontal_Distance_To_Hydrology", "Vertical_Distance_To_Hydrology"):
        table[column] = rng.integers(-30, 300, rows)
    for column in ("Roadways", "Fire_Points"):
        table[f"Horizontal_Distance_To_{column}"] = rng.integers(0, 6000, rows)
    for column in ("9am", "Noon", "3pm"):
        table[f"Hillshade_{column}"] = rng.integers(0, 255, rows)
    for column, count in (("Wilderness_Area", 4), ("Soil_Type", 40)):
        for place in range(1, count + 1):
            table[f"{column}{place}"] = (rng.random(rows) < 0.1).astype(int)
    level = (table["Elevation"] - 1800) // 700 + table["Soil_Type2"] + (rng.random(rows) < 0.2)
    table["Cover_Type"] = np.clip(level, 0, 3).map({0: 3, 1: 2, 2: 1, 3: 7})
    return three(table, list(table.columns[:-1]), ["Cover_Type"], 2)


MAKERS = {
    "aerial-cactus-identification": cactus,
    "denoising-dirty-documents": pages,
    "detecting-insults-in-social-commentary": insults,
    "dogs-vs-cats-redux-kernels-edition": dogs,
    "feedback-prize-english-language-learning": feedback,
    "home-data-for-ml-course": houses,
    "jigsaw-toxic-comment-classification-challenge": toxic,
    "leaf-classification": leaves,
    "learning-agency-lab-automated-essay-scoring-2": essays,
    "nomad2018-predict-transparent-conductors": crystals,
    "ogbn-arxiv": arxiv,
    "plant-pathology-2020-fgvc7": plants,
    "spaceship-titanic": spaceship,
    "spooky-author-identification": spooky,
    "statoil-iceberg-classifier-challenge": icebergs,
    "tabular-playground-series-dec-2021": forests,
    "us-patent-phrase-to-phrase-matching": patents,
    "whale-categorization-playground": whales,
}
