"""A program that looks like `vllm serve` to its keeper: real processes, no model.

Its tokens are numbers, each following from all before it, and its text is their names. What it
does wrong is said by files in SMALL_ENGINE: `crash`, `hang` (at the start), `still` (no more steps,
health stays 200). It leaves a grandchild in a session of its own, and a file in /dev/shm.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ.get("SMALL_ENGINE", "."))
TOKEN_S = float(os.environ.get("SMALL_ENGINE_TOKEN_S", "0.02"))
VOCABULARY = 1000
LONGEST = 4096
steps = 0


def next_id(ids):
    return (sum((place + 1) * value for place, value in enumerate(ids)) * 31 + 7) % VOCABULARY


def name(token):
    return f" t{token}"


def ids_of(text):
    return [ord(letter) % VOCABULARY for letter in text]


def expected(prompt, count):
    """The ids of an answer that nothing interrupts."""
    ids = ids_of(prompt) if isinstance(prompt, str) else list(prompt)
    begun = len(ids)
    for _ in range(count):
        ids.append(next_id(ids))
    return ids[begun:]


def is_told(what):
    return (FOLDER / what).exists()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/health":
            self._send(200, {})
        elif self.path == "/v1/models":
            entry = {"id": served, "object": "model", "max_model_len": LONGEST}
            self._send(200, {"object": "list", "data": [entry]})
        elif self.path == "/metrics":
            text = (
                "# HELP vllm:iteration_tokens_total Steps\n"
                "# TYPE vllm:iteration_tokens_total histogram\n"
                f'vllm:iteration_tokens_total_count{{engine="0"}} {steps}.0\n'
                "# HELP vllm:generation_tokens_total Tokens\n"
                "# TYPE vllm:generation_tokens_total counter\n"
                f'vllm:generation_tokens_total{{engine="0"}} {steps}.0\n'
            )
            self._send(200, text)
        else:
            self._send(404, {"error": {"message": "no such path", "code": 404}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (FOLDER / "asked").open("a") as file:
            file.write(json.dumps({"path": self.path, "body": body}) + "\n")
        chat = self.path.endswith("/chat/completions")
        prompt = body["prompt"] if not chat else "".join(m["content"] for m in body["messages"])
        ids = ids_of(prompt) if isinstance(prompt, str) else list(prompt)
        count = body.get("max_tokens") or 16
        if not body.get("stream"):
            self._whole(body, chat, ids, count)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(OSError):
            self._stream(body, chat, ids, count)
        self.close_connection = True

    def _stream(self, body, chat, ids, count):
        head = {"id": f"engine-{os.getpid()}-{steps}", "created": int(time.time()), "model": "m"}
        asks, prompt = body.get("return_token_ids"), len(ids)
        told = {"prompt_token_ids": list(ids)} if asks else {}
        if chat:
            delta = {"role": "assistant", "content": ""}
            self._event({**head, **told, "choices": [{"index": 0, "delta": delta}]})
            told = {}
        for place in range(count):
            token = self._step(ids)
            choice = {"index": 0, "finish_reason": "length" if place == count - 1 else None}
            choice |= {"delta": {"content": name(token)}} if chat else {"text": name(token)}
            if asks:
                choice["token_ids"] = [token]
            self._event({**head, **told, "choices": [choice]})
            told = {}
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": prompt, "completion_tokens": count}
            usage["total_tokens"] = prompt + count
            self._event({**head, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _whole(self, body, chat, ids, count):
        prompt = list(ids)
        text = "".join(name(self._step(ids)) for _ in range(count))
        choice = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        document = {"id": "x", "created": 1, "choices": [choice]}
        if body.get("return_token_ids"):
            (document if chat else choice)["prompt_token_ids"] = prompt
        self._send(200, document)

    def _step(self, ids):
        global steps
        while is_told("still"):
            time.sleep(0.02)
        time.sleep(TOKEN_S)
        steps += 1
        ids.append(next_id(ids))
        return ids[-1]

    def _event(self, document):
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
        self.wfile.flush()

    def _send(self, status, content):
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def note(rank, pid):
    with (FOLDER / "pids").open("a") as file:
        file.write(f"{rank} {pid}\n")


def main():
    global served
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("--served-model-name", nargs="+", default=[""])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--master-addr", default="127.0.0.1")
    parser.add_argument("--master-port", type=int, default=0)
    given, _ = parser.parse_known_args()
    served = given.served_model_name[0]
    rank = given.node_rank
    note(rank, os.getpid())
    if is_told("crash"):
        print("ValueError: this model has 9 heads, which 2 do not divide", flush=True)
        sys.exit(1)
    while is_told("hang"):
        time.sleep(0.05)
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    note(rank, left.pid)
    # As glibc makes a semaphore: mapped under another name than it gets.
    unnamed = Path(f"/dev/shm/small-engine-unnamed-{os.getpid()}")
    with unnamed.open("wb+") as file:
        file.truncate(4096)
        memory = mmap.mmap(file.fileno(), 4096)
    os.link(unnamed, f"/dev/shm/small-engine-{os.getpid()}")
    unnamed.unlink()
    if rank:
        connection = None
        while connection is None:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((given.master_addr, given.master_port))
            time.sleep(0.05)
        connection.recv(1)
        time.sleep(600)  # an engine without its rank 0 does not end
        assert memory
    if given.nnodes > 1:
        meeting = socket.create_server((given.master_addr, given.master_port))
        met = [meeting.accept()[0] for _ in range(given.nnodes - 1)]
        assert met
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
