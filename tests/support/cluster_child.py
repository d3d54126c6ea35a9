"""Run by test_cluster.py in a process of its own: a cluster on this machine, and what is seen of it, as JSON.

python cluster_child.py FOLDER PORT
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import psutil

from piggyback.serve.cluster import ClusterOptions, run
from piggyback.serve.options import EngineOptions
from support import colour_tasks

TOKEN = "a-token"
TASKS = [f"t{i}" for i in range(8)]
IMAGE = colour_tasks.picture("red")


class Scenario:
    """Everything is asked over HTTP; the replicas' own reports say who answered."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.tasks = folder / "tasks"
        self.tasks.mkdir()
        shutil.copy(colour_tasks.__file__, folder / "network.py")
        self.files = colour_tasks.numbered(10)
        self.port = port
        self.seen: dict[str, Any] = {}
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=30,
        )
        for name in TASKS:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Put a task's file into the folder as a user would: another name first."""
        file = self.tasks / f".{name}"
        file.write_bytes(self.files[name])
        file.rename(self.tasks / f"{name}.safetensors")

    def serve(self) -> None:
        options = ClusterOptions(
            tasks="tasks",  # as the backbone, relative to where the command is started
            backbone="network.py:build",
            memory="1MiB",
            engine=EngineOptions(workers=1, watch_s=0.5),
            token=TOKEN,
            replicas=2,
            cpus=0.25,
        )
        self.ended = threading.Event()
        threading.Thread(target=self.guarded, daemon=True).start()
        run(options, port=self.port, say=lambda line: self.seen.update(said=line))

    def guarded(self) -> None:
        try:
            self.scenario()
        except BaseException as error:
            self.seen["error"] = f"{type(error).__name__}: {error}"
            os.kill(os.getpid(), signal.SIGTERM)
            raise
        finally:
            self.ended.set()

    def scenario(self) -> None:
        began = time.monotonic()
        self.until("ready", lambda: self.status("/health") == 200, 240)
        self.seen["seconds_to_start"] = time.monotonic() - began
        self.until("two replicas", lambda: len(self.stats()) == 2, 120)
        self.seen["open ports"] = [answer_without_token(port) for port in beyond_loopback()]
        self.seen["answers"] = self.ask(TASKS * 6)
        self.seen["asked"] = [
            {task: n for (task, outcome), n in stats.requests.items() if outcome == "ok"}
            for stats in self.stats()
        ]
        metrics = self.http.get("/metrics").text
        self.until("metrics", lambda: self.counted() == 6 * len(TASKS), 30)
        self.seen["metrics"] = sorted(
            {line.split("{")[0].split(" ")[0] for line in metrics.splitlines() if line[:1] != "#"}
        )
        self.seen["several"] = self.http.post(
            "/v1/predict?task=t1&task=t2", content=IMAGE, headers={"Content-Type": "image/png"}
        ).json()
        self.refusals()
        self.drop("t8")
        self.until("the new file", lambda: self.known() == [9, 9], 20)
        self.seen["dropped"] = self.ask(["t8"] * 4)
        put = self.http.put("/v1/tasks/t9", content=self.files["t9"])
        self.seen["put"] = [put.status_code, self.known(), self.ask(["t9"] * 4)]
        again = self.http.put("/v1/tasks/t9", content=self.files["t9"]).status_code
        gone = self.http.delete("/v1/tasks/t9").status_code
        self.seen["gone"] = [again, gone, self.known(), self.predict("t9").status_code]
        self.lose_one()

    def refusals(self) -> None:
        wrong = self.http.put("/v1/tasks/bad", content=b"no task file")
        self.seen["refused"] = {
            "unknown": [self.predict("t77").status_code, self.predict("t77").json()["error"]],
            "no image": self.predict("t1", b"no image").json()["error"]["code"],
            "no task file": [wrong.status_code, wrong.json()["error"]["code"]],
            "no token": httpx.get(f"http://127.0.0.1:{self.port}/v1/tasks").status_code,
        }

    def lose_one(self) -> None:
        """Kill a replica and ask on, without a pause."""
        import ray

        before = self.replicas()
        ray.kill(ray.get_actor(before[0], namespace="serve"))
        self.seen["after_a_death"] = self.ask(TASKS * 4)
        self.until("a new replica", lambda: len(self.stats()) == 2, 120)
        self.seen["replaced"] = len(set(self.replicas()) - set(before))
        self.seen["after_replacement"] = self.ask(TASKS)
        kind = {"Content-Type": "image/png"}
        last = self.http.post("/v1/tasks/t1/predict", content=self.told_to_stop(), headers=kind)
        self.seen["in flight at the end"] = [last.status_code, last.text]

    def told_to_stop(self) -> Iterator[bytes]:
        """An image, half of which is sent before the cluster is told to stop, and half after."""
        data = IMAGE
        yield data[:20]
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
        late = httpx.post(
            f"{self.http.base_url}/v1/tasks/t1/predict", content=data, headers=self.http.headers
        )
        self.seen["later"] = late.status_code
        yield data[20:]

    # -- helpers -------------------------------------------------------------------------------

    def predict(self, task: str, body: bytes | None = None) -> httpx.Response:
        kind = {"Content-Type": "image/png", "serve_multiplexed_model_id": task}
        return self.http.post(f"/v1/tasks/{task}/predict", content=body or IMAGE, headers=kind)

    def ask(self, tasks: list[str]) -> list[list[str]]:
        """Task and first class of each, four at a time."""

        def one(task: str) -> list[str]:
            reply = self.predict(task)
            if reply.status_code != 200:
                return [task, f"{reply.status_code} {reply.text}"]
            return [task, reply.json()["answers"][0]["classes"][0]["class"]]

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(one, tasks))

    def counted(self) -> int:
        """Requests that ended well, by /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        wanted = [line for line in lines if line.startswith("piggyback_requests_total{")]
        return int(sum(float(line.rpartition(" ")[2]) for line in wanted if '"ok"' in line))

    def stats(self) -> list[Any]:
        """Of each replica."""
        from ray import serve

        found = serve.get_app_handle("piggyback").broadcast("stats")
        return [
            stats
            for stats in found.results(timeout_s=30, return_exceptions=True)
            if not isinstance(stats, Exception)
        ]

    def known(self) -> list[int]:
        """How many tasks each replica knows."""
        return [sum(stats.tasks.values()) for stats in self.stats()]

    def replicas(self) -> list[str]:
        """Their names, as actors of Ray."""
        import ray

        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return sorted(name for name in names if name.startswith("SERVE_REPLICA::"))

    def status(self, path: str) -> int:
        try:
            return self.http.get(path).status_code
        except httpx.HTTPError:
            return 0

    def until(self, what: str, check: Callable[[], bool], seconds: float) -> None:
        began = time.monotonic()
        while not check():
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not within {seconds} s")
            time.sleep(0.1)
        self.seen.setdefault("waited", {})[what] = round(time.monotonic() - began, 1)


def beyond_loopback() -> list[int]:
    """Ports on which this process and its descendants listen for others than this machine."""
    here = psutil.Process()
    found = []
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended
            for one in process.net_connections("inet"):
                address = ip_address(one.laddr.ip.removeprefix("::ffff:"))
                if one.status == psutil.CONN_LISTEN and not address.is_loopback:
                    found.append(one.laddr.port)
    return found


def answer_without_token(port: int) -> str:
    """What a replica says to a call of Ray's own protocol from a stranger."""
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        try:
            call(b"", timeout=10)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


if __name__ == "__main__":
    scenario = Scenario(Path(sys.argv[1]), int(sys.argv[2]))
    os.chdir(scenario.folder)
    scenario.serve()
    scenario.ended.wait(60)
    (scenario.folder / "seen.json").write_text(json.dumps(scenario.seen), encoding="utf-8")
