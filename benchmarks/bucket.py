"""A bucket on this machine: gcp-storage-emulator, with what TensorStore needs beyond it.

That is requests at once, the header x-goog-generation, and preconditions (ifGenerationMatch), by
which writers of one object know of each other. `Bucket.slow` lets it stall.
"""

import functools
import http.server
import threading
import time
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

NAME = "bucket"
_download = objects.download


def _download_and_tell(request: Any, response: Any, storage: Any, *more: Any, **named: Any) -> None:
    _download(request, response, storage, *more, **named)
    where = request.params["bucket_name"], request.params["object_id"]
    if response.status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        response["x-goog-generation"] = storage.get_file_obj(*where)["generation"]


def _refusal(request: Any, storage: Any) -> HTTPStatus | None:
    """What a request is answered whose preconditions do not hold."""
    name = request.params.get("object_id") or request.query.get("name", [""])[0]
    try:
        generation = storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except NotFound:
        generation = "0"
    wanted = request.query.get("ifGenerationMatch", [generation])[0]
    unwanted = request.query.get("ifGenerationNotMatch", [""])[0]
    if wanted != generation:
        return HTTPStatus.PRECONDITION_FAILED
    return HTTPStatus.NOT_MODIFIED if unwanted == generation != "0" else None


class _Router(server.Router):
    """Handles a request where its preconditions hold, one after another, as they arrive."""

    def handle(self, method: str) -> None:
        bucket: Bucket = self._request_handler.bucket
        time.sleep(bucket.slow)
        with bucket.lock:
            super().handle(method)


def _checked(handler: Any) -> Any:
    @functools.wraps(handler)
    def handle(request: Any, response: Any, storage: Any, *more: Any, **named: Any) -> None:
        refusal = _refusal(request, storage) if "bucket_name" in request.params else None
        if refusal is None:
            handler(request, response, storage, *more, **named)
        else:
            _body = request.data  # is read before the answer
            response.status = refusal

    return handle


objects.download = _download_and_tell
server.Router = _Router
server.HANDLERS = tuple(
    (path, {method: _checked(handler) for method, handler in by_method.items()})
    for path, by_method in server.HANDLERS
)


class Bucket:
    """A server with one bucket, "bucket", in memory.

    slow: seconds that every request waits.
    """

    def __init__(self, port: int = 0) -> None:
        self.slow, self.lock = 0.0, threading.Lock()
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        Handler = type("Handler", (server.RequestHandler,), {"bucket": self})
        make = functools.partial(Handler, self.storage)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), make)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What has TensorStore and gcsfs go there."""
        address = f"http://127.0.0.1:{self._server.server_port}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": address,
            "STORAGE_EMULATOR_HOST": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google of what kind a bucket is
        }

    def names(self, prefix: str = "") -> list[str]:
        """The objects in the bucket, sorted."""
        return sorted(each["name"] for each in self.storage.get_file_list(NAME, prefix)[0])

    def flip(self, prefix: str) -> None:
        """Changes one bit in the middle of every object that begins so."""
        for name in self.names(prefix):
            content = bytearray(self.storage.get_file(NAME, name))
            if content:
                content[len(content) // 2] ^= 1
            facts = self.storage.get_file_obj(NAME, name)
            for checksum in ("md5Hash", "crc32c"):  # of what the bucket believes to have
                facts[checksum] = None
            self.storage.create_file(NAME, name, bytes(content), facts)

    def close(self) -> None:
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    print("\n".join(f"export {name}={value}" for name, value in Bucket(9023).environment.items()))
    threading.Event().wait()
