"""A rank group and every tier in front of it, of which each can be lost."""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from contract.carry import Beginning, parse_line
from contract.specs import BlockSpec, InferenceServerSpec, ProxySpec, SessionsSpec
from tests.e2e.rank_group import MASTER, RankGroup
from tests.e2e.tcp_proxy import TcpProxy
from tests.proxy_block.stores.redis_server import RedisServer
from tests.waiting import free_ports, wait_for
from tests.web.tier_process import TierProcess

BLOCK = "block-1"
FAR_SILENCE_S = 1.5
FAR: dict[str, Any] = {"comment_s": FAR_SILENCE_S / 4, "silence_s": FAR_SILENCE_S}
LINES = re.compile(rb': carry \{"id".*?\}')


class CarriedStack:
    """A rank group of two, two replicas of a block on one Redis, the inference server.

    `far_server` has the same block by one replica behind `links`, which can be cut: "front" to the
    replica, from there "master" and "store". Both hold a silence of FAR_SILENCE_S for an end.
    """

    def __init__(self, folder: Path, model: str, ending: ExitStack) -> None:
        self.folder, self._ending = folder, ending
        self.group = RankGroup(model, [(0, 1), (1, 2)], folder)
        ending.callback(self.group.stop)
        self.group.start_all()
        self.redis = ending.enter_context(RedisServer(folder))
        self.proxies = [self._proxy(), self._proxy()]
        self.server = self._server([one.url for one in self.proxies])
        self.links: dict[str, TcpProxy] = {}
        master, store = self.group.master_spec.http_port, self.redis.port
        sessions = SessionsSpec(url=f"redis{self._link('store', store)[4:]}/0")
        self._far_spec = ProxySpec(BLOCK, "fault", self._link("master", master), sessions=sessions)
        self.far_proxy = self._tier("proxy_block", self._far_spec, **FAR)
        self.far_server = self._server([self._link("front", self.far_proxy.port)], **FAR)

    def _link(self, name: str, port: int) -> str:
        """The URL of `port` by a network that can be cut."""
        [near] = free_ports(1)
        self.links[name] = TcpProxy(("127.0.0.1", near), ("127.0.0.1", port))
        self._ending.callback(self.links[name].close)
        return f"http://127.0.0.1:{near}"

    def _server(self, urls: list[str], **limits: Any) -> TierProcess:
        block = BlockSpec(BLOCK, "", replica_urls=tuple(urls))
        log = str(self.folder / f"requests-{len(urls)}.sqlite3")
        spec = InferenceServerSpec("fault", (block,), request_log_path=log)
        return self._tier("inference_server", spec, **limits)

    def _proxy(self, port: int | None = None) -> TierProcess:
        sessions = SessionsSpec(url=self.redis.url)
        return self._tier(
            "proxy_block", ProxySpec(BLOCK, "fault", self.group.url, sessions=sessions), port
        )

    def _tier(self, module: str, spec: Any, port: int | None = None, **limits: Any) -> TierProcess:
        return self._ending.enter_context(TierProcess(module, spec, self.folder, port, **limits))

    def told_seed(self, answer_id: str) -> int:
        """That of an answer which came by the link "front"."""
        for told in self.links["front"].told:
            for found in LINES.findall(bytes(told)):
                line = parse_line(found)
                if isinstance(line, Beginning) and line.id == answer_id:
                    return line.seed
        raise AssertionError(answer_id)

    def stop(self, who: str, seconds: float, then: signal.Signals) -> None:
        """The "master", the last "stage" or the far "proxy", for so long; a SIGKILL as the kubelet
        does, which starts it again."""
        rank = {"master": MASTER, "stage": 1}.get(who)
        process = self.far_proxy.process if rank is None else self.group.processes[rank]
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(then)
        if then != signal.SIGKILL:
            return
        process.wait()
        if rank is None:
            self.far_proxy = self._tier("proxy_block", self._far_spec, self.far_proxy.port, **FAR)
        else:
            self.group.start(rank)

    def lose_master(self) -> None:
        self.group.restart(MASTER)

    def lose_proxy(self) -> None:
        """The one that has requests; the other one goes on."""
        self._lose(self.busy())

    def lose_both(self) -> None:
        for one in self.proxies:
            one.process.kill()
        for one in list(self.proxies):
            self._lose(one)

    def lose_all(self) -> None:
        self.lose_master()
        self.lose_both()

    def lose_store(self) -> None:
        self.redis.kill()
        self.redis.start()

    def _lose(self, proxy: TierProcess) -> None:
        proxy.process.kill()
        proxy.process.wait()
        self.proxies[self.proxies.index(proxy)] = self._proxy(proxy.port)

    def busy(self) -> TierProcess:
        """The replica that is asked, as soon as there is one."""

        def found() -> TierProcess | None:
            [block] = httpx.get(f"{self.server.url}/v1/blocks", timeout=60).json()["data"]
            busy = [one["url"] for one in block["replicas"] if one["in_flight"]]
            return next((one for one in self.proxies if one.url in busy), None)

        proxy: TierProcess = wait_for(found)
        return proxy

    def wait_running(self) -> None:
        """Until the master computes something."""
        wait_for(lambda: self.group.topology()["requests_running"])
