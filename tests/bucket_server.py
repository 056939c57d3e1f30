"""python bucket_server.py PORT BUCKET: a bucket in memory, until the process is killed."""

import sys

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects


def move(request, response, storage):
    """What gcsfs renames with, and the emulator has not."""
    request.params["dest_bucket_name"] = request.params["bucket_name"]
    objects.copy(request, response, storage)
    objects.delete(request, response, storage)


MOVE = r"^(?:/storage/v1)?/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<dest_object_id>.+)$"

if __name__ == "__main__":
    server.HANDLERS = ((MOVE, {"POST": move}), *server.HANDLERS)
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
