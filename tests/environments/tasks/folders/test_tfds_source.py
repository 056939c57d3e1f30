"""Data in the format of tensorflow-datasets, made here, are read without TensorFlow and make a task."""

from __future__ import annotations

import builtins
import io
import sys

import needs
import numpy as np
import pytest

from environments import tasks
from environments.tasks import TaskError, graders
from environments.tasks.folders import tfds_source

tfds = pytest.importorskip("tensorflow_datasets")
image = needs.package("PIL.Image")


def pixels(split):
    rows = 20 if split == "train" else 8
    return np.random.default_rng(rows).integers(0, 255, (rows, 4, 4), dtype=np.uint8)


class Tiles(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(num_classes=3),
            "name": tfds.features.Text(),
            "sizes": tfds.features.Sequence(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        for row, tile in enumerate(pixels(split)):
            file = io.BytesIO()  # Bytes: encoding an array takes TensorFlow.
            image.fromarray(tile).save(file, format="png")
            yield row, {"image": file.getvalue(), "label": row % 3, "name": f"tile {row}", "sizes": [1] * (row % 2)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Tiles(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_a_split_is_read_as_arrays_without_tensorflow(data_dir):
    found = tfds_source.read("tiles", "train", data_dir)
    assert found["image"].shape == (20, 4, 4, 1) and found["image"].dtype == np.uint8
    rows = [int(name.removeprefix("tile ")) for name in found["name"]]  # On disk they are shuffled.
    assert sorted(rows) == list(range(20))
    np.testing.assert_array_equal(found["image"][..., 0], pixels("train")[rows])
    assert found["label"].tolist() == [row % 3 for row in rows]
    assert [len(sizes) for sizes in found["sizes"]] == [row % 2 for row in rows]
    assert "tensorflow" not in sys.modules


def test_a_piece_of_a_split_and_the_environment_variable(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert tfds_source.read("tiles", "test[:3]")["label"].shape == (3,)


def test_what_is_not_there_is_an_error_with_the_command(data_dir, monkeypatch):
    with pytest.raises(TaskError, match=r"no prepared data set 'cifar10'.*TFDS_DATA_DIR.*download_and_prepare"):
        tfds_source.read("cifar10", data_dir=data_dir)
    with pytest.raises(TaskError, match=r"no split 'validation'; it has .*train"):
        tfds_source.read("tiles", "validation", data_dir)
    load = builtins.__import__

    def without(name, *rest):
        if name == "tensorflow_datasets":
            raise ImportError(name)
        return load(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(TaskError, match="pip install"):
        tfds_source.read("tiles", "train", data_dir)


def test_data_in_a_format_for_tensorflow_are_refused_with_the_remedy(data_dir, tmp_path):
    folder = tmp_path / "tiles" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "tiles" / "1.0.0").glob("*.json"):
        (folder / path.name).write_text(path.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(TaskError, match=r"tfrecord, which only TensorFlow reads.*array_record"):
        tfds_source.read("tiles", "train", tmp_path)


def test_a_folder_makes_its_task_of_such_data(rents, data_dir, tmp_path):
    (rents / "prepare.py").write_text(
        "import pandas as pd\nfrom environments.tasks.folders import tfds_source\n"
        "def prepare(raw, public, private, seed):\n"
        f"    train, test = (tfds_source.read('tiles', split, {str(data_dir)!r}) for split in ('train', 'test'))\n"
        "    pd.DataFrame(train['image'].reshape(20, -1)).to_csv(public / 'train.csv')\n"
        "    pd.DataFrame({'id': range(8), 'rent': test['label']}).to_csv(private / 'answers.csv', index=False)\n"
    )
    (tmp_path / "built").mkdir()
    tasks.get(str(rents)).build(tmp_path / "built", 0)
    grader = graders.load_in_process(tmp_path / "built" / "private")
    assert grader.rows == 8 and grader.report.sum() == 4
