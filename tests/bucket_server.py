"""python bucket_server.py PORT BUCKET: a bucket in memory, until the process is killed."""

import contextlib
import sys

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def move(request, response, storage):
    """What gcsfs renames with, and the emulator has not."""
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    objects.delete(request, response, storage)


def download(request, response, storage, *, plain=objects.download):
    """With what Google's answers tell, and tensorstore needs of a file that it writes again."""
    plain(request, response, storage)
    with contextlib.suppress(NotFound):
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]


MOVE = r"^(?:/storage/v1)?/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$"

if __name__ == "__main__":
    objects.download = download
    server.HANDLERS = ((MOVE, {"POST": move}), *server.HANDLERS)
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
