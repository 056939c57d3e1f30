"""Sources with a network: OpenML, the Hugging Face hub's data sets, Kaggle. Each is a list and a file over HTTPS.

A transport fetches a URL with a bound on the bytes; tests give another one. Nothing that arrives is executed: lists are
JSON, tables are CSV, Parquet or ARFF texts, and a data set's own loading scripts are never fetched.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import os
import re
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from environments.factory.reading import RawTable, RefusalError, read, read_delimited, table_of
from environments.factory.sources.base import UNLISTED, Candidate
from environments.tasks.task import TaskError

Transport = Callable[[str, Mapping[str, str], int], bytes]
"""Fetches a URL with headers and returns at most so many bytes.

Raises:
  OSError: it cannot be fetched.
  ValueError: it has more bytes.
"""
_LIST_BYTES, _TABLE_BYTES = 32 << 20, 64 << 20
_SECONDS = 60.0
_DEADLINE = 600.0
"""Maximum duration of a transfer in seconds; `_SECONDS` bounds each wait for bytes."""
_OPEN = re.compile(
    r"(?<![a-z])(cc0|cc.?by(.?sa)?|mit|apache|bsd|odc|pddl|odbl|public|[al]?gplv?|cdla|unlicense)(?![a-z])",
    re.IGNORECASE,
)
"""Words of licenses under which a table may become a task."""
_CLOSED = re.compile(
    r"non.{0,2}commercial|not for commercial|(?<![a-z])n[cd](?![a-z])|no.?deriv|research|academic|education|personal|"
    r"(not|n't) (be )?(permit|allow|redistribut)|prohibit|forbid",
    re.IGNORECASE,
)
"""Words that forbid derivatives or commercial use, whatever else a license says."""


def fetch(url: str, headers: Mapping[str, str], largest: int) -> bytes:
    """Fetch an HTTPS URL (see `Transport`)."""
    if not url.startswith("https://"):
        raise ValueError(f"{url[:80]!r} is no https:// address")
    request = urllib.request.Request(url, headers={"User-Agent": "mlagent-jax"})  # noqa: S310 - https alone
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    deadline, data = time.monotonic() + _DEADLINE, bytearray()
    with urllib.request.build_opener(_HttpsRedirects).open(request, timeout=_SECONDS) as answer:
        while chunk := answer.read1(1 << 16):
            data += chunk
            if len(data) > largest:
                raise ValueError(f"{url[:200]} has more than {largest >> 20} MB")
            if time.monotonic() > deadline:
                raise ValueError(f"{url[:200]} takes more than {_DEADLINE:.0f} s")
    return bytes(data)


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https:// addresses alone; headers of the account stay with the first host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise ValueError(f"{newurl[:80]!r}, to which {req.full_url[:80]} leads, is no https:// address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclasses.dataclass
class _Remote:
    """Base of the sources on the network: requests, and the reading of a table."""

    transport: Transport = fetch
    most: int = 2000
    """Maximum number of candidates listed."""

    def _json(self, url: str, headers: Mapping[str, str] | None = None) -> Any:
        try:
            return json.loads(self.transport(url, headers or {}, _LIST_BYTES))
        except (OSError, ValueError) as error:
            raise TaskError(f"{url} does not answer as expected: {str(error)[:200]}") from error

    def _bytes(self, url: str, headers: Mapping[str, str] | None = None) -> bytes:
        try:
            return self.transport(url, headers or {}, _TABLE_BYTES)
        except (OSError, ValueError) as error:
            raise RefusalError(f"{url} cannot be fetched: {str(error)[:200]}") from error


def _at(url: Any, host: str) -> str:
    """Return a URL that an answer names, if it is at the host that was asked.

    Raises:
      RefusalError: it is elsewhere.
    """
    found = urllib.parse.urlsplit(str(url))
    if found.scheme != "https" or not f".{found.hostname}".endswith(f".{host}"):
        raise RefusalError(f"{str(url)[:100]!r} is not at https://{host}")
    return str(url)


def _allowed(license: Any, origin: str) -> str:
    text = " ".join(str(license or "").split())
    return f"{text[:60]} (stated by {origin})" if _OPEN.search(text) and not _CLOSED.search(text) else ""


class OpenMlSource(_Remote):
    """Active data sets of OpenML with a default target."""

    _API = "https://www.openml.org/api/v1/json"

    def candidates(self) -> Sequence[Candidate]:
        listed = self._json(f"{self._API}/data/list/status/active/limit/{self.most}")["data"]["dataset"]
        return [Candidate(f"openml/{int(one['did'])}", str(one.get("name", "")), UNLISTED) for one in listed]

    def read(self, candidate: Candidate) -> RawTable:
        number = int(candidate.key.partition("/")[2])
        about = self._json(f"{self._API}/data/{number}")["data_set_description"]
        license = _allowed(about.get("licence"), "OpenML")
        if not license:
            raise RefusalError(f"license unknown: {str(about.get('licence'))[:40]!r}")
        raw = read_arff(self._bytes(_at(about["url"], "openml.org")), candidate.key)
        return dataclasses.replace(raw, license=license)


class HuggingFaceSource(_Remote):
    """Tabular data sets of the Hugging Face hub, by the Parquet files that the hub itself makes of them."""

    _HUB = "https://huggingface.co/api"

    def candidates(self) -> Sequence[Candidate]:
        query = urllib.parse.urlencode({"filter": "modality:tabular", "sort": "downloads", "limit": self.most})
        found = []
        for one in self._json(f"{self._HUB}/datasets?{query}"):
            tags = [str(tag) for tag in one.get("tags", ())]
            license = next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), "")
            if not one.get("gated") and not one.get("private"):
                found.append(Candidate(f"huggingface/{one['id']}", str(one["id"]), _allowed(license, "the hub")))
        return found

    def read(self, candidate: Candidate) -> RawTable:
        name = urllib.parse.quote(candidate.key.partition("/")[2], safe="/")
        files = self._json(f"{self._HUB}/datasets/{name}/parquet")
        splits = next(iter(files.values()), {})
        urls = splits.get("train") or next(iter(splits.values()), [])
        if not urls:
            raise RefusalError(f"{candidate.key} has no Parquet files")
        with tempfile.TemporaryDirectory(prefix="mlagent-source-") as temporary:
            path = Path(temporary) / "table.parquet"
            path.write_bytes(self._bytes(_at(urls[0], "huggingface.co")))
            return read(path)


class KaggleSource(_Remote):
    """Data sets of Kaggle with one CSV file of usable size, for the account in KAGGLE_USERNAME and KAGGLE_KEY."""

    _API = "https://www.kaggle.com/api/v1/datasets"

    def _account(self) -> dict[str, str]:
        user, key = (os.environ.get(name, "") for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"))
        if not (user and key):
            raise TaskError("the source `kaggle` needs an account: set KAGGLE_USERNAME and KAGGLE_KEY")
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{key}'.encode()).decode()}"}

    def candidates(self) -> Sequence[Candidate]:
        account, found = self._account(), []
        for page in range(1, self.most // 20 + 2):
            listed = self._json(
                f"{self._API}/list?filetype=csv&sortBy=votes&page={page}&maxSize={_TABLE_BYTES}", account
            )
            found += [
                Candidate(f"kaggle/{one['ref']}", str(one.get("title", "")), _allowed(one.get("licenseName"), "Kaggle"))
                for one in listed
            ]
            if not listed or len(found) >= self.most:
                break
        return found[: self.most]

    def read(self, candidate: Candidate) -> RawTable:
        name = urllib.parse.quote(candidate.key.partition("/")[2], safe="/")
        data = self._bytes(f"{self._API}/download/{name}", self._account())
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = [one for one in archive.infolist() if one.filename.lower().endswith(".csv")]
                if len(members) != 1 or members[0].file_size > _TABLE_BYTES:
                    raise RefusalError(f"{candidate.key} has {len(members)} CSV files, or too large a one")
                with archive.open(members[0]) as file:
                    return read_delimited(file.read(_TABLE_BYTES), candidate.key)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:  # Damaged, encrypted, odd packing.
            raise RefusalError(f"{candidate.key} is no archive that is read here: {error}") from error


def read_arff(data: bytes, name: str) -> RawTable:
    """Read an ARFF file: a header of `@attribute` lines, then CSV with `?` for missing cells.

    Raises:
      RefusalError: it is no dense ARFF file.
    """
    text = data.decode("utf-8", errors="replace")
    parts = re.split(r"(?mi)^@data\s*$", text, maxsplit=1)
    head, body = parts if len(parts) == 2 else (text, "")
    pattern = re.compile(r"(?mi)^\s*@attribute\s+('(?:[^'\\]|\\.)*'|\"[^\"]*\"|\S+)")
    names = [match.strip("'\"") for match in pattern.findall(head)]
    lines = [line for line in body.splitlines() if line.strip() and not line.startswith("%")]
    if not lines or not names or any(line.lstrip().startswith("{") for line in lines[:5]):
        raise RefusalError(f"{name} is no dense ARFF file")
    quote = "'" if body.count("'") > body.count('"') else '"'
    try:
        rows = [row for row in csv.reader(lines, quotechar=quote, skipinitialspace=True) if len(row) == len(names)]
    except csv.Error as error:
        raise RefusalError(f"{name} is no dense ARFF file: {error}") from error
    return table_of(pd.DataFrame(rows, dtype=object), names, [])
