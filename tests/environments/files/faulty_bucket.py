"""A bucket in memory that fails when a test says so, with an exception that only its driver knows: `faulty://NAME`."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class HttpError(Exception):
    """As `gcsfs.retry.HttpError`: no OSError, no ValueError."""


class FaultyBucket(MemoryFileSystem):
    protocol = "faulty"
    failures = 0
    """Calls from now on that fail."""

    @classmethod
    def fail(cls, count):
        cls.failures = count

    def _answer(self):
        if FaultyBucket.failures > 0:
            FaultyBucket.failures -= 1
            raise HttpError("503, Service Unavailable")

    def size(self, path):
        self._answer()
        return super().size(path)

    def cat_file(self, path, **options):
        self._answer()
        return super().cat_file(path, **options)

    def pipe_file(self, path, value, **options):
        self._answer()
        return super().pipe_file(path, value, **options)


fsspec.register_implementation("faulty", FaultyBucket, clobber=True)
FOR_EVER = 10**9
