"""Sources with a network against a stub transport: what is asked, what is read, and what is refused."""

import email.message
import io
import json
import urllib.request
import urllib.response
import zipfile

import pandas as pd
import pytest

from environments.factory.reading import RefusalError
from environments.factory.sources import SOURCES, remote
from environments.factory.sources.base import UNLISTED
from environments.factory.sources.remote import HuggingFaceSource, KaggleSource, OpenMlSource, fetch, read_arff
from environments.tasks.task import TaskError

TABLE = pd.DataFrame({"size": range(5), "kind": list("abcab")})
ARFF = b"% note\n@RELATION x\n@ATTRIBUTE 'the size' NUMERIC\n@attribute kind {a,'b c'}\n@DATA\n1,a\n?,'b c'\n% end\n"


class Stub:
    """Answers by the start of the URL, and notes what was asked."""

    def __init__(self, answers):
        self.answers, self.asked = answers, []

    def __call__(self, url, headers, largest):
        self.asked.append((url, dict(headers)))
        for start, answer in self.answers.items():
            if url.startswith(start):
                return answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        raise OSError("404")


def test_the_sources_are_plug_ins_by_name():
    assert {"packages", "openml", "huggingface", "kaggle"} <= set(SOURCES.names())


def test_openml_lists_and_reads_tables_of_open_licenses():
    api, place = "https://www.openml.org/api/v1/json", "https://www.openml.org/data/x.arff"
    stub = Stub(
        {
            f"{api}/data/list": {"data": {"dataset": [{"did": n, "name": f"set {n}"} for n in (1, 2, 3)]}},
            f"{api}/data/1": {"data_set_description": {"licence": "Public", "url": place}},
            f"{api}/data/2": {"data_set_description": {"licence": "CC BY-NC", "url": place}},
            f"{api}/data/3": {"data_set_description": {"licence": "CC0", "url": "https://169.254.169.254/latest"}},
            place: ARFF,
        }
    )
    source = OpenMlSource(stub)
    first, second, third = source.candidates()
    assert (first.key, first.about, first.license) == ("openml/1", "set 1", UNLISTED)
    table = source.read(first)
    assert table.cells.to_dict("list") == {"the size": ["1", ""], "kind": ["a", "b c"]}
    assert table.license == "Public (stated by OpenML)"
    with pytest.raises(RefusalError, match="license unknown"):
        source.read(second)
    with pytest.raises(RefusalError, match="not at"):
        source.read(third)
    for broken in (b"junk", ARFF + b"'" + b"x,\n" * (1 << 20), b"@attribute a numeric\n@data\n{0 1}\n", b"@data\n1,2"):
        with pytest.raises(RefusalError, match="no dense ARFF"):
            read_arff(broken, "x")


def test_hugging_face_reads_the_parquet_files_of_the_hub():
    parquet = io.BytesIO()
    TABLE.to_parquet(parquet)
    hub = "https://huggingface.co/api/datasets"
    url = f"{hub}/owner/trees/parquet/default/train/0.parquet"
    stub = Stub(
        {
            f"{hub}?": [
                {"id": "owner/trees", "tags": ["license:mit"]},
                {"id": "owner/none", "tags": []},
                {"id": "owner/shut", "tags": ["license:mit"], "gated": "auto"},
            ],
            f"{hub}/owner/trees/parquet/default": parquet.getvalue(),
            f"{hub}/owner/trees/parquet": {"default": {"train": [url]}},
        }
    )
    source = HuggingFaceSource(stub)
    trees, none = source.candidates()
    assert (trees.license, none.license) == ("mit (stated by the hub)", "")
    assert source.read(trees).cells["kind"].tolist() == list("abcab")
    with pytest.raises(TaskError, match="does not answer"):
        source.read(type(trees)("huggingface/owner/gone"))


def test_kaggle_reads_the_one_csv_of_an_archive_with_the_account(monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../trees.csv", TABLE.to_csv(index=False))
    api = "https://www.kaggle.com/api/v1/datasets"
    listed = [{"ref": "me/trees", "title": "Trees", "licenseName": "CC0: Public Domain"}]
    first, rest, file = f"{api}/list?filetype=csv&sortBy=votes&page=1&", f"{api}/list", f"{api}/download/me/trees"
    stub = Stub({first: listed, rest: [], file: packed.getvalue()})
    source = KaggleSource(stub)
    with pytest.raises(TaskError, match="KAGGLE_USERNAME"):
        source.candidates()
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    (trees,) = source.candidates()
    assert trees.license == "CC0: Public Domain (stated by Kaggle)"
    assert source.read(trees).cells["size"].tolist() == list("01234")
    assert all(headers["Authorization"].startswith("Basic ") for _, headers in stub.asked)


def test_only_https_is_fetched():
    with pytest.raises(ValueError, match="https"):
        fetch("file:///etc/passwd", {}, 100)


def test_the_account_stays_with_its_host_and_redirects_stay_with_https(monkeypatch):
    asked = []
    leads = {"https://kaggle.test/a": "https://files.test/b", "https://kaggle.test/c": "http://files.test/d"}

    def answer(self, request):
        asked.append((request.full_url, request.get_header("Authorization")))
        headers = email.message.Message()
        if request.full_url in leads:
            headers["Location"] = leads[request.full_url]
        body = io.BytesIO(b"table")
        body.read1 = body.read
        found = urllib.response.addinfourl(body, headers, request.full_url, 302 if "Location" in headers else 200)
        found.msg = ""
        return found

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", answer)
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", answer)
    account = {"Authorization": "Basic secret"}
    assert fetch("https://kaggle.test/a", account, 100) == b"table"
    assert asked == [("https://kaggle.test/a", "Basic secret"), ("https://files.test/b", None)]
    with pytest.raises(ValueError, match="is no https"):
        fetch("https://kaggle.test/c", account, 100)
    assert len(asked) == 3
    with pytest.raises(ValueError, match="more than"):
        fetch("https://files.test/b", {}, 4)
    monkeypatch.setattr(remote, "_DEADLINE", -1.0)
    with pytest.raises(ValueError, match="takes more than"):
        fetch("https://files.test/b", {}, 100)


OPEN = ["CC0: Public Domain", "cc-by-4.0", "CC BY-SA 4.0", "mit", "apache-2.0", "GPLv3", "LGPL-2.1", "odc-by", "Public"]
CLOSED = [
    "Free for non-commercial use, redistribution not permitted",
    "Limited use: research only",
    "Publicly available for academic use only",
    "CC BY-NC-SA 4.0, public",
    "cc-by-nd-4.0",
    "MIT, but only for what is described in the long terms below: NonCommercial use",
    "unknown",
    "",
]


@pytest.mark.parametrize("license", OPEN + CLOSED)
def test_a_license_is_judged_by_its_whole_text(license):
    assert bool(remote._allowed(license, "x")) == (license in OPEN)
