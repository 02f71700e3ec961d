"""As much of W&B's server as its client needs to send a run: it says yes, and keeps what it was sent."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = {
    **{"id": "QQ==", "name": "r", "displayName": "r", "description": None, "config": None, "sweepName": None},
    **{"historyLineCount": 0},
    "project": {"id": "UA==", "name": "p", "entity": {"id": "RQ==", "name": "me"}},
}
ARTIFACT = {"id": "QQ==", "state": "COMMITTED", "artifactSequence": {"id": "S", "latestArtifact": None}}


class Server(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1 as long as the block runs.

    Attributes:
        runs: what was said of each run's folder when it was begun or changed, in order.
        history: rows of the curves, in order.
        files: content by name.
        artifacts: name, type and metadata of each, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.environment = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "x" * 40}
        self.runs: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.places: list[str] = []  # names of files by the number of their address

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def config(self) -> dict[str, Any]:
        """Of the run that was sent last."""
        told = [json.loads(run["config"]) for run in self.runs if run.get("config")]
        return {name: entry["value"] for name, entry in told[-1].items()}

    def curve(self, name: str) -> dict[int, list[float]]:
        """Values by step; more than one where a step was sent more than once."""
        values: dict[int, list[float]] = {}
        for row in self.history:
            if name in row:
                values.setdefault(row["trainer/global_step"], []).append(row[name])
        return values

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            self.runs.append(given)
            return {"upsertBucket": {"bucket": BUCKET, "inserted": True}}
        if operation == "RunResumeStatus":
            return {"model": {**BUCKET["project"], "bucket": None}}  # type: ignore[dict-item]
        if operation == "CreateArtifact":
            self.artifacts.append(given["input"])
            return {"createArtifact": {"artifact": ARTIFACT}}
        if operation == "CreateRunFiles":
            first, names = len(self.places), given["files"]
            self.places += names
            addresses = [f"{self.url}/upload/{first + i}" for i in range(len(names))]
            files = [{"name": name, "uploadUrl": at} for name, at in zip(names, addresses, strict=True)]
            return {"createRunFiles": {"runID": "QQ==", "uploadHeaders": [], "files": files}}
        return {"serverInfo": {"features": []}} if operation == "ServerFeaturesQuery" else {}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        said: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            said = {"data": self.server.answer(asked["operationName"], asked.get("variables") or {})}
        elif self.path.startswith("/upload/"):
            self.server.files[self.server.places[int(self.path.rpartition("/")[2])]] = body
        elif self.path.endswith("/file_stream"):
            rows = (json.loads(body).get("files") or {}).get("wandb-history.jsonl") or {"content": []}
            self.server.history += [json.loads(row) for row in rows["content"]]
        self.reply(json.dumps(said).encode())

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.reply(b"{}")

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
